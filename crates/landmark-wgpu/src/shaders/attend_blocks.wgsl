// What queries get from the blocks that they chose, on matrix units: a workgroup takes a block and the queries of a piece
// of its list (`list_choosers.wgsl`), puts the positions of its keys on them and takes the block's place off the
// queries, both rounded to f16 then.
//
// A record of a slot is what the inner softmax gives, in f16, and the landmark's score.

// Angles of a row of the table: of an offset inside a block, or, to be taken off, of a block's place.
fn angles_of(row: u32, unit: u32) -> Angles {
    let at = 2u * (row * UNITS + unit);
    return Angles(angles[at], angles[at + 1u]);
}

fn plus(x: Angles, y: Angles) -> Angles {
    return Angles(x.sin * y.cos + x.cos * y.sin, x.cos * y.cos - x.sin * y.sin);
}

// Where the queries of a piece and their records are.
struct Places {
    q: u32,
    list: u32,
    records: u32,
    members: u32,
    // 1 if the block stands at a distance of its own.
    later: u32,
}

fn query_pairs(at: Places, row: u32, unit: u32) -> Pairs {
    if (row >= at.members) {
        return Pairs(vec4<f32>(0.0), vec4<f32>(0.0));
    }
    let entry = list[at.list + row];
    let by = angles_of(BLOCK + entry % TOP_K + at.later, unit);
    return turn(q_pairs(at.q + entry / TOP_K * params.q_cols, unit), Angles(-by.sin, by.cos));
}

// Writes 64 coordinates of the results.
fn put_records(at: Places, column: u32, thread: u32) {
    for (var i = thread; i < 16u * at.members; i += THREADS) {
        let v = scores[i / 16u * ROW_PITCH + i % 16u];
        records[(at.records + list[at.list + i / 16u]) * RECORD + column + i % 16u] =
            vec2<u32>(pack_f16(v.xy), pack_f16(v.zw));
    }
}

fn value_piece(e: u32, row: u32) -> vec4<u32> {
    return values_oct(e + min(row, BLOCK - 1u) * HEAD, 8u);
}

fn fetch_values(e: u32, row: u32) -> Pieces {
    var x: Pieces;
    x.p0 = value_piece(e, row);
    x.p1 = value_piece(e, row + LINES);
    x.p2 = value_piece(e, row + 2u * LINES);
    x.p3 = value_piece(e, row + 3u * LINES);
    if (ROWS > 4u * LINES) {
        x.p4 = value_piece(e, row + 4u * LINES);
        x.p5 = value_piece(e, row + 5u * LINES);
        x.p6 = value_piece(e, row + 6u * LINES);
        x.p7 = value_piece(e, row + 7u * LINES);
    }
    return x;
}

fn attend(at: Places, page: u32, thread: u32) {
    let subgroup = thread >> 5u;
    let is_busy = 16u * subgroup < at.members;
    let unit = thread % UNITS;
    let line = thread / UNITS;
    workgroupBarrier();
    for (var first = line; first < QUERIES; first += 4u * LINES) {
        let x0 = query_pairs(at, first, unit);
        let x1 = query_pairs(at, first + LINES, unit);
        let x2 = query_pairs(at, first + 2u * LINES, unit);
        let x3 = query_pairs(at, first + 3u * LINES, unit);
        put_pairs(first, unit, x0);
        put_pairs(first + LINES, unit, x1);
        put_pairs(first + 2u * LINES, unit, x2);
        put_pairs(first + 3u * LINES, unit, x3);
    }
    workgroupBarrier();
    let q = 16u * subgroup * PITCH;
    let q0 = left_of_tile(q);
    let q1 = left_of_tile(q + 4u);
    let q2 = left_of_tile(q + 8u);
    let q3 = left_of_tile(q + 12u);
    let q4 = left_of_tile(q + 16u % QUADS);
    let q5 = left_of_tile(q + 20u % QUADS);
    let q6 = left_of_tile(q + 24u % QUADS);
    let q7 = left_of_tile(q + 28u % QUADS);
    workgroupBarrier();
    var by = angles_of(line, unit);
    let step = angles_of(LINES, unit);
    for (var first = line; first < ROWS; first += 4u * LINES) {
        let k0 = keys_pairs(page + min(first, BLOCK - 1u) * HEAD, unit);
        let k1 = keys_pairs(page + min(first + LINES, BLOCK - 1u) * HEAD, unit);
        let k2 = keys_pairs(page + min(first + 2u * LINES, BLOCK - 1u) * HEAD, unit);
        let k3 = keys_pairs(page + min(first + 3u * LINES, BLOCK - 1u) * HEAD, unit);
        put_pairs(first, unit, turn(k0, by));
        by = plus(by, step);
        put_pairs(first + LINES, unit, turn(k1, by));
        by = plus(by, step);
        put_pairs(first + 2u * LINES, unit, turn(k2, by));
        by = plus(by, step);
        put_pairs(first + 3u * LINES, unit, turn(k3, by));
        by = plus(by, step);
    }
    workgroupBarrier();
    let own = 16u * subgroup * ROW_PITCH;
    let values = fetch_values(page + 8u * unit, line);
    if (is_busy) {
        score(own, q0, q1, q2, q3, q4, q5, q6, q7);
    }
    workgroupBarrier();
    keep(line, unit, values);
    if (ROWS > 8u * LINES) {
        keep(line + 8u * LINES, unit, fetch_values(page + 8u * unit, line + 8u * LINES));
    }
    if (is_busy) {
        let row = thread >> 1u;
        let half = thread & 1u;
        let scored = row_of(row, half, BLOCK - 1u);
        let weighed = weights_of(scored, top_of(scored));
        put_weights(row, half, weighed, 1.0 / total_of(weighed));
        if (half == 0u && row < at.members) {
            let to = (at.records + list[at.list + row]) * RECORD + QUADS;
            records[to] = vec2<u32>(bitcast<u32>(landmark_of(row)), 0u);
        }
    }
    workgroupBarrier();
    var o0: Sums;
    var o1: Sums;
    var o2: Sums;
    var o3: Sums;
    var o4: Sums;
    var o5: Sums;
    var o6: Sums;
    var o7: Sums;
    if (is_busy) {
        let w0 = left_of_weights(own);
        let w1 = left_of_weights(own + 4u);
        let w2 = left_of_weights(own + 8u);
        let w3 = left_of_weights(own + 12u);
        o0 = add_values(0u, w0, w1, w2, w3, o0);
        o1 = add_values(4u, w0, w1, w2, w3, o1);
        o2 = add_values(8u, w0, w1, w2, w3, o2);
        o3 = add_values(12u, w0, w1, w2, w3, o3);
        if (HEAD > 64u) {
            o4 = add_values(16u, w0, w1, w2, w3, o4);
            o5 = add_values(20u, w0, w1, w2, w3, o5);
            o6 = add_values(24u, w0, w1, w2, w3, o6);
            o7 = add_values(28u, w0, w1, w2, w3, o7);
        }
        put_results(own, o0, o1, o2, o3);
    }
    workgroupBarrier();
    put_records(at, 0u, thread);
    if (HEAD > 64u) {
        workgroupBarrier();
        if (is_busy) {
            put_results(own, o4, o5, o6, o7);
        }
        workgroupBarrier();
        put_records(at, 16u, thread);
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    lane = thread & 31u;
    let heads = params.held * params.share;
    let b = group.z;
    let h = params.first_head * params.share + group.y;
    let head = b * heads + group.y;
    let state = state_of(lengths_at(b));
    let ring = b * (params.blocks + 1u) * params.held + h / params.share - params.first_head;
    let first_query = (b * params.rows + params.first_row) * params.q_cols + params.q_start + h * HEAD;
    let count = pieces[head * params.room].x;
    for (var i = group.x; i < count; i += groups.x) {
        let piece = pieces[head * params.room + 1u + i];
        let entries = head * params.row_count * TOP_K;
        let later = select(0u, 1u, stingy_index(state, piece.x) > 0u);
        let page = (ring + slot_of(state, piece.x) * params.held) * BLOCK * HEAD;
        attend(Places(first_query, entries + piece.y, entries, piece.z, later), page, thread);
    }
}
