// Grouped softmax attention of a tile of queries of one head over their own run of keys, the unfinished block and the
// chunk, on matrix units, joined with what they retrieved (`attend_blocks.wgsl`).
//
// Results stay in matrices, of which no single row can be scaled. So what they are relative to must be known before: the
// largest score in the outer softmax. Scores of landmarks come from a product of their own, one key a block, and a query's
// own block, the other thing that can be largest, comes first: blocks are read from the last to the first.

// What the loads of a workgroup share.
struct Places {
    q: u32,
    k: u32,
    v: u32,
    page: u32,
    unfinished: u32,
    // Position of the unfinished block.
    origin: u32,
    // The last query.
    last_row: u32,
}

// Of a query's outer softmax the largest score, and 1 over the sum of weights.
struct Outer {
    top: f32,
    over: f32,
}

var<workgroup> outers: array<Outer, QUERIES>;

fn mark_of(record: u32, slot: u32) -> f32 {
    return bitcast<f32>(records[(record + slot) * RECORD + QUADS].x);
}

// The row of the chunk that has this key of the run; the nearest one for keys that are not there.
fn row_of_key(at: Places, key: u32) -> u32 {
    return min(max(key, at.unfinished) - at.unfinished, at.last_row);
}

// Keys `start`, start + step and so on of the run: those of a thread's rows from `row` on.
fn fetch_keys(at: Places, start: u32, step: u32, row: u32, unit: u32) -> Pieces {
    let e = at.k + 8u * unit;
    let key = start + row * step;
    let apart = LINES * step;
    var x: Pieces;
    x.p0 = k_oct(e + row_of_key(at, key) * params.k_cols, 8u);
    x.p1 = k_oct(e + row_of_key(at, key + apart) * params.k_cols, 8u);
    x.p2 = k_oct(e + row_of_key(at, key + 2u * apart) * params.k_cols, 8u);
    x.p3 = k_oct(e + row_of_key(at, key + 3u * apart) * params.k_cols, 8u);
    if (ROWS > 4u * LINES) {
        x.p4 = k_oct(e + row_of_key(at, key + 4u * apart) * params.k_cols, 8u);
        x.p5 = k_oct(e + row_of_key(at, key + 5u * apart) * params.k_cols, 8u);
        x.p6 = k_oct(e + row_of_key(at, key + 6u * apart) * params.k_cols, 8u);
        x.p7 = k_oct(e + row_of_key(at, key + 7u * apart) * params.k_cols, 8u);
    }
    return x;
}

fn fetch_values(at: Places, start: u32, row: u32, unit: u32) -> Pieces {
    let e = at.v + 8u * unit;
    let key = start + row;
    var x: Pieces;
    x.p0 = v_oct(e + row_of_key(at, key) * params.v_cols, 8u);
    x.p1 = v_oct(e + row_of_key(at, key + LINES) * params.v_cols, 8u);
    x.p2 = v_oct(e + row_of_key(at, key + 2u * LINES) * params.v_cols, 8u);
    x.p3 = v_oct(e + row_of_key(at, key + 3u * LINES) * params.v_cols, 8u);
    if (ROWS > 4u * LINES) {
        x.p4 = v_oct(e + row_of_key(at, key + 4u * LINES) * params.v_cols, 8u);
        x.p5 = v_oct(e + row_of_key(at, key + 5u * LINES) * params.v_cols, 8u);
        x.p6 = v_oct(e + row_of_key(at, key + 6u * LINES) * params.v_cols, 8u);
        x.p7 = v_oct(e + row_of_key(at, key + 7u * LINES) * params.v_cols, 8u);
    }
    return x;
}

// Puts down keys that were fetched, and those that few threads fetch now.
fn keep_keys(at: Places, start: u32, step: u32, line: u32, unit: u32, x: Pieces) {
    keep(line, unit, x);
    if (ROWS > 8u * LINES) {
        keep(line + 8u * LINES, unit, fetch_keys(at, start, step, line + 8u * LINES, unit));
    }
}

// Puts the keys of the unfinished block in the places of those that the chunk does not have.
fn keep_unfinished_keys(at: Places, line: u32, unit: u32) {
    workgroupBarrier();
    for (var row = line; row < at.unfinished; row += LINES) {
        let by = unit_angles(f32(at.origin + row), unit);
        put_pairs(row, unit, turn(keys_pairs(at.page + row * HEAD, unit), by));
    }
}

// The same with values, in their own places.
fn keep_values(at: Places, start: u32, line: u32, unit: u32, x: Pieces) {
    keep(line, unit, x);
    if (ROWS > 8u * LINES) {
        keep(line + 8u * LINES, unit, fetch_values(at, start, line + 8u * LINES, unit));
    }
    if (start < at.unfinished) {
        for (var row = line; row < at.unfinished; row += LINES) {
            keep_piece(row, unit, values_oct(at.page + row * HEAD + 8u * unit, 8u));
        }
    }
}

// Joins 64 coordinates of the results with what was retrieved: those from vector `column` on.
fn finish(column: u32, first_out: u32, first_record: u32, rows: u32, thread: u32) {
    for (var i = thread; i < 16u * rows; i += THREADS) {
        let row = i / 16u;
        let quad = column + i % 16u;
        let outer = outers[row];
        let record = first_record + row * params.top_k;
        var whole = scores[row * ROW_PITCH + i % 16u];
        for (var slot = 0u; slot < SLOTS; slot++) {
            let mark = mark_of(record, slot);
            if (mark > NOTHING) {
                let part = records[(record + slot) * RECORD + quad];
                whole += decay(mark - outer.top) * vec4<f32>(unpack_f16(part.x), unpack_f16(part.y));
            }
        }
        out_put(first_out + row * params.heads * HEAD + 4u * quad, outer.over * whole, 4u);
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    lane = thread & 31u;
    let subgroup = thread >> 5u;
    let heads = params.held * params.share;
    let b = group.z;
    let h = params.first_head * params.share + group.y;
    let kv = h / params.share;
    // The longest runs first.
    let tile_number = groups.x - 1u - group.x;
    let first = params.first_row + tile_number * QUERIES;
    let rows = min(QUERIES, params.first_row + params.row_count - first);
    let state = state_of(lengths_at(b));
    let ring = (b * (params.blocks + 1u) + state.seen % (params.blocks + 1u)) * params.held + kv - params.first_head;
    let before = select(state.retrieved + 1u, min(state.seen, params.top_k + 1u), BLOCKS_SEEN);
    let at = Places(
        b * params.rows * params.q_cols + params.q_start + h * HEAD,
        b * params.rows * params.k_cols + params.k_start + kv * HEAD,
        b * params.rows * params.v_cols + params.v_start + kv * HEAD,
        ring * BLOCK * HEAD,
        state.unfinished,
        before * BLOCK,
        first + rows - 1u,
    );
    let row = thread >> 1u;
    let half = thread & 1u;
    // Where the query stands in the run.
    let own = state.unfinished + first + row;
    let record = ((b * heads + group.y) * params.row_count + tile_number * QUERIES + min(row, rows - 1u)) * params.top_k;

    let unit = thread % UNITS;
    let line = thread / UNITS;
    for (var i = line; i < QUERIES; i += LINES) {
        keep_piece(i, unit, q_oct(at.q + min(first + i, at.last_row) * params.q_cols + 8u * unit, 8u));
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

    // The largest score of a closed block.
    var outer_top = NOTHING;
    for (var slot = 0u; slot < SLOTS; slot++) {
        outer_top = max(outer_top, mark_of(record, slot));
    }
    let own_scores = 16u * subgroup * ROW_PITCH;
    let last_block = (state.unfinished + at.last_row) / BLOCK;
    for (var block = 0u; block < last_block; block += ROWS) {
        workgroupBarrier();
        let landmark = block * BLOCK + BLOCK - 1u;
        keep_keys(at, landmark, BLOCK, line, unit, fetch_keys(at, landmark, BLOCK, line, unit));
        workgroupBarrier();
        score(own_scores, q0, q1, q2, q3, q4, q5, q6, q7);
        workgroupBarrier();
        outer_top = max(outer_top, top_of(row_of(row, half, min(ROWS, max(own / BLOCK, block) - block))));
    }

    var outer_sum = 0.0;
    var o0: Sums;
    var o1: Sums;
    var o2: Sums;
    var o3: Sums;
    var o4: Sums;
    var o5: Sums;
    var o6: Sums;
    var o7: Sums;
    workgroupBarrier();
    keep_keys(at, last_block * BLOCK, 1u, line, unit, fetch_keys(at, last_block * BLOCK, 1u, line, unit));
    if (last_block == 0u) {
        keep_unfinished_keys(at, line, unit);
    }
    // What comes next is fetched before the matrix units work, and put down behind them in the same turn.
    for (var left = last_block + 1u; left > 0u; left--) {
        let start = (left - 1u) * BLOCK;
        workgroupBarrier();
        let values = fetch_values(at, start, line, unit);
        score(own_scores, q0, q1, q2, q3, q4, q5, q6, q7);
        workgroupBarrier();
        keep_values(at, start, line, unit, values);
        let is_closed = own >= start + BLOCK;
        let members = min(max(own + 1u, start) - start, BLOCK - 1u);
        let scored = row_of(row, half, members);
        let top = top_of(scored);
        let weighed = weights_of(scored, top);
        let total = total_of(weighed);
        var scale = 0.0;
        if (members > 0u) {
            var closing = landmark_of(row);
            if (!is_closed) {
                closing = top;
                outer_top = max(outer_top, top);
            }
            let share = decay(closing - outer_top);
            outer_sum += share * select(total, 1.0, is_closed);
            scale = share / select(1.0, total, is_closed);
        }
        put_weights(row, half, weighed, scale);
        workgroupBarrier();
        let next = max(start, BLOCK) - BLOCK;
        let ahead = fetch_keys(at, next, 1u, line, unit);
        let w0 = left_of_weights(own_scores);
        let w1 = left_of_weights(own_scores + 4u);
        let w2 = left_of_weights(own_scores + 8u);
        let w3 = left_of_weights(own_scores + 12u);
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
        workgroupBarrier();
        keep_keys(at, next, 1u, line, unit, ahead);
        if (next == 0u) {
            keep_unfinished_keys(at, line, unit);
        }
    }

    for (var slot = 0u; slot < SLOTS; slot++) {
        let mark = mark_of(record, slot);
        if (mark > NOTHING) {
            outer_sum += decay(mark - outer_top);
        }
    }
    if (half == 0u) {
        outers[row] = Outer(outer_top, 1.0 / outer_sum);
    }
    put_results(own_scores, o0, o1, o2, o3);
    workgroupBarrier();
    let first_record = ((b * heads + group.y) * params.row_count + tile_number * QUERIES) * params.top_k;
    let first_out = ((b * params.rows + first) * params.heads + h) * HEAD;
    finish(0u, first_out, first_record, rows, thread);
    for (var i = thread; i < rows * SLOTS; i += THREADS) {
        let mark = mark_of(first_record, i);
        let outer = outers[i / params.top_k];
        let share = select(0.0, decay(mark - outer.top) * outer.over, mark > NOTHING);
        shares_put_one(((b * params.heads + h) * params.rows + first) * params.top_k + i, share);
    }
    if (HEAD > 64u) {
        workgroupBarrier();
        put_results(own_scores, o4, o5, o6, o7);
        workgroupBarrier();
        finish(16u, first_out, first_record, rows, thread);
    }
}
