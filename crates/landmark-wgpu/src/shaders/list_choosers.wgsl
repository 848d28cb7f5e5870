// For each head of each row of the batch, the queries by the block that they chose, so that a block is read once for all
// of them (`attend_blocks.wgsl`). `list` has entries t · top_k + slot, block after block; `pieces` how many pieces of lists
// there are, then of each its block, its first entry and how many it has, at most QUERIES. A slot without a block gets its
// record here: NOTHING for the landmark's score.
//
// In which order a block lists its queries depends on timing. What becomes of a query does not: rows of a matrix product
// do not meet.

// Blocks listed at a time, four a thread.
const RANGE: u32 = 4u * WORKGROUP;

// Entries of a block, then where its next one goes.
var<workgroup> counts: array<atomic<u32>, RANGE>;
// Entries and pieces up to a thread's last block.
var<workgroup> sums: array<vec2<u32>, WORKGROUP>;

fn is_there(i: u32, j: u32, state: State) -> bool {
    return j != NO_BLOCK && i % params.top_k < state.retrieved;
}

// Counts an entry in, if its block is among those from `begin` on.
fn count_in(i: u32, end: u32, base: u32, begin: u32, state: State) {
    if (i < end) {
        let j = chosen_at(base + i);
        if (is_there(i, j, state) && j >= begin && j - begin < RANGE) {
            atomicAdd(&counts[j - begin], 1u);
        }
    }
}

fn enter(i: u32, end: u32, base: u32, to: u32, begin: u32, state: State) {
    if (i < end) {
        let j = chosen_at(base + i);
        if (is_there(i, j, state) && j >= begin && j - begin < RANGE) {
            list[to + atomicAdd(&counts[j - begin], 1u)] = i;
        }
    }
}

fn pieces_of(count: u32) -> u32 {
    return (count + QUERIES - 1u) / QUERIES;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let heads = params.held * params.share;
    let b = group.y;
    let h = params.first_head * params.share + group.x;
    let at = b * heads + group.x;
    let state = state_of(lengths_at(b));
    let end = params.row_count * params.top_k;
    let base = ((b * params.heads + h) * params.rows + params.first_row) * params.top_k;
    let to = at * end;
    let piece = at * params.room;
    for (var i = thread; i < end; i += WORKGROUP) {
        if (!is_there(i, chosen_at(base + i), state)) {
            records[(to + i) * RECORD + QUADS] = vec2<u32>(bitcast<u32>(NOTHING), 0u);
        }
    }
    // Entries and pieces of the blocks before.
    var before = vec2<u32>(0u);
    for (var begin = 0u; begin < state.cached; begin += RANGE) {
        let first = 4u * thread;
        workgroupBarrier();
        atomicStore(&counts[first], 0u);
        atomicStore(&counts[first + 1u], 0u);
        atomicStore(&counts[first + 2u], 0u);
        atomicStore(&counts[first + 3u], 0u);
        workgroupBarrier();
        for (var i = thread; i < end; i += 4u * WORKGROUP) {
            count_in(i, end, base, begin, state);
            count_in(i + WORKGROUP, end, base, begin, state);
            count_in(i + 2u * WORKGROUP, end, base, begin, state);
            count_in(i + 3u * WORKGROUP, end, base, begin, state);
        }
        workgroupBarrier();
        let four = vec4<u32>(atomicLoad(&counts[first]), atomicLoad(&counts[first + 1u]),
            atomicLoad(&counts[first + 2u]), atomicLoad(&counts[first + 3u]));
        let mine = vec2<u32>(four.x + four.y + four.z + four.w,
            pieces_of(four.x) + pieces_of(four.y) + pieces_of(four.z) + pieces_of(four.w));
        var sum = mine;
        for (var distance = 1u; distance < WORKGROUP; distance *= 2u) {
            sums[thread] = sum;
            workgroupBarrier();
            if (thread >= distance) {
                sum += sums[thread - distance];
            }
            workgroupBarrier();
        }
        sums[thread] = sum;
        var next = before + sum - mine;
        for (var i = 0u; i < 4u; i++) {
            let count = four[i];
            atomicStore(&counts[first + i], next.x);
            for (var one = 0u; one < count; one += QUERIES) {
                pieces[piece + 1u + next.y] = vec4<u32>(begin + first + i, next.x + one, min(QUERIES, count - one), 0u);
                next.y++;
            }
            next.x += count;
        }
        workgroupBarrier();
        before += sums[WORKGROUP - 1u];
        for (var i = thread; i < end; i += 4u * WORKGROUP) {
            enter(i, end, base, to, begin, state);
            enter(i + WORKGROUP, end, base, to, begin, state);
            enter(i + 2u * WORKGROUP, end, base, to, begin, state);
            enter(i + 3u * WORKGROUP, end, base, to, begin, state);
        }
    }
    if (thread == 0u) {
        pieces[piece] = vec4<u32>(before.y, 0u, 0u, 0u);
    }
}
