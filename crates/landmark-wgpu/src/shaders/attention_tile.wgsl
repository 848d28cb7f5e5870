// Attention of a tile of queries to a landmark block of keys on matrix units: what `attend_blocks.wgsl` and
// `attend_chunk.wgsl` share.
//
// A subgroup of 32 threads has 16 queries, which stay in matrices (q0 .. q7), and so do their results. Keys, then values,
// lie in `tile`; scores pass through workgroup memory in f32 and come back as weights in f16. Between the two, a pair of
// neighbouring threads has a row: each every other vector of it. Rows in workgroup memory are padded, so that those of a
// matrix lie in different banks. What a thread keeps has a name each: compilers keep arrays that a loop indexes in memory.

const THREADS: u32 = 32u * SUBGROUPS;
const QUERIES: u32 = 16u * SUBGROUPS;
// Rows of a block in whole matrices. The tile has 64: what loops write behind a block's is not read.
const ROWS: u32 = (BLOCK + 15u) / 16u * 16u;
// In vectors.
const PITCH: u32 = QUADS + 2u;
const ROW_PITCH: u32 = 18u;
// A thread brings one unit of every LINES-th row.
const LINES: u32 = THREADS / UNITS;

var<workgroup> tile: array<vec4<f16>, 64u * PITCH>;
var<workgroup> scores: array<vec4<f32>, QUERIES * ROW_PITCH>;
var<workgroup> weights: array<vec4<f16>, QUERIES * ROW_PITCH>;
var<private> lane: u32;

// e to powers that are never positive.
fn decay(x: f32) -> f32 {
    return exp(max(x, -87.0));
}

fn decay4(x: vec4<f32>) -> vec4<f32> {
    return exp(max(x, vec4<f32>(-87.0)));
}

// Eight elements of each row that a thread brings, as words: compilers take vectors of f16 apart.
struct Pieces {
    p0: vec4<u32>,
    p1: vec4<u32>,
    p2: vec4<u32>,
    p3: vec4<u32>,
    p4: vec4<u32>,
    p5: vec4<u32>,
    p6: vec4<u32>,
    p7: vec4<u32>,
}

fn halves(low: u32, high: u32) -> vec4<f16> {
    return vec4<f16>(vec2<f16>(unpack2x16float(low)), vec2<f16>(unpack2x16float(high)));
}

fn keep_piece(row: u32, unit: u32, piece: vec4<u32>) {
    let at = row * PITCH + 2u * unit;
    tile[at] = halves(piece.x, piece.y);
    tile[at + 1u] = halves(piece.z, piece.w);
}

fn keep(first: u32, unit: u32, x: Pieces) {
    keep_piece(first, unit, x.p0);
    keep_piece(first + LINES, unit, x.p1);
    keep_piece(first + 2u * LINES, unit, x.p2);
    keep_piece(first + 3u * LINES, unit, x.p3);
    if (ROWS > 4u * LINES) {
        keep_piece(first + 4u * LINES, unit, x.p4);
        keep_piece(first + 5u * LINES, unit, x.p5);
        keep_piece(first + 6u * LINES, unit, x.p6);
        keep_piece(first + 7u * LINES, unit, x.p7);
    }
}

fn put_pairs(row: u32, unit: u32, x: Pairs) {
    let at = row * PITCH;
    if (HALVES) {
        tile[at + unit] = vec4<f16>(x.a);
        tile[at + QUADS / 2u + unit] = vec4<f16>(x.b);
    } else {
        tile[at + 2u * unit] = vec4<f16>(vec4<f32>(x.a.x, x.b.x, x.a.y, x.b.y));
        tile[at + 2u * unit + 1u] = vec4<f16>(vec4<f32>(x.a.z, x.b.z, x.a.w, x.b.w));
    }
}

fn scores_of_16(at: u32, q0: Left, q1: Left, q2: Left, q3: Left, q4: Left, q5: Left, q6: Left, q7: Left) -> Sums {
    var c: Sums;
    c = multiply_add(q0, right_of_keys(at), c);
    c = multiply_add(q1, right_of_keys(at + 4u), c);
    c = multiply_add(q2, right_of_keys(at + 8u), c);
    c = multiply_add(q3, right_of_keys(at + 12u), c);
    if (HEAD > 64u) {
        c = multiply_add(q4, right_of_keys(at + 16u), c);
        c = multiply_add(q5, right_of_keys(at + 20u), c);
        c = multiply_add(q6, right_of_keys(at + 24u), c);
        c = multiply_add(q7, right_of_keys(at + 28u), c);
    }
    return c;
}

// Puts down the scores of a subgroup's queries against the keys in the tile.
fn score(at: u32, q0: Left, q1: Left, q2: Left, q3: Left, q4: Left, q5: Left, q6: Left, q7: Left) {
    for (var i = 0u; i < ROWS / 16u; i++) {
        put_sums(scores_of_16(16u * i * PITCH, q0, q1, q2, q3, q4, q5, q6, q7), at + 4u * i);
    }
}

// A thread's half of a row.
struct Row {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
}

fn masked(at: u32, key: u32, count: u32) -> vec4<f32> {
    let keys = vec4<u32>(key, key + 1u, key + 2u, key + 3u);
    return select(vec4<f32>(NOTHING), params.scale * scores[at], keys < vec4<u32>(count));
}

// The scores of the first `count` keys, NOTHING for the others.
fn row_of(row: u32, half: u32, count: u32) -> Row {
    let at = row * ROW_PITCH + half;
    let key = 4u * half;
    return Row(
        masked(at, key, count), masked(at + 2u, key + 8u, count),
        masked(at + 4u, key + 16u, count), masked(at + 6u, key + 24u, count),
        masked(at + 8u, key + 32u, count), masked(at + 10u, key + 40u, count),
        masked(at + 12u, key + 48u, count), masked(at + 14u, key + 56u, count));
}

fn top_of(r: Row) -> f32 {
    let four = max(max(max(r.s0, r.s1), max(r.s2, r.s3)), max(max(r.s4, r.s5), max(r.s6, r.s7)));
    let most = max(max(four.x, four.y), max(four.z, four.w));
    return max(most, subgroupShuffleXor(most, 1u));
}

// Weights of a row whose largest score is `top`.
fn weights_of(r: Row, top: f32) -> Row {
    return Row(decay4(r.s0 - top), decay4(r.s1 - top), decay4(r.s2 - top), decay4(r.s3 - top),
        decay4(r.s4 - top), decay4(r.s5 - top), decay4(r.s6 - top), decay4(r.s7 - top));
}

fn total_of(r: Row) -> f32 {
    let sum = sum4(((r.s0 + r.s1) + (r.s2 + r.s3)) + ((r.s4 + r.s5) + (r.s6 + r.s7)));
    return sum + subgroupShuffleXor(sum, 1u);
}

fn put_weights(row: u32, half: u32, r: Row, scale: f32) {
    let at = row * ROW_PITCH + half;
    weights[at] = vec4<f16>(scale * r.s0);
    weights[at + 2u] = vec4<f16>(scale * r.s1);
    weights[at + 4u] = vec4<f16>(scale * r.s2);
    weights[at + 6u] = vec4<f16>(scale * r.s3);
    weights[at + 8u] = vec4<f16>(scale * r.s4);
    weights[at + 10u] = vec4<f16>(scale * r.s5);
    weights[at + 12u] = vec4<f16>(scale * r.s6);
    weights[at + 14u] = vec4<f16>(scale * r.s7);
}

// The landmark's score, while scores lie there.
fn landmark_of(row: u32) -> f32 {
    return params.scale * scores[row * ROW_PITCH + (BLOCK - 1u) / 4u][(BLOCK - 1u) % 4u];
}

// Adds weights times values, of the 16 coordinates from vector `at` on.
fn add_values(at: u32, w0: Left, w1: Left, w2: Left, w3: Left, before: Sums) -> Sums {
    var c = multiply_add(w0, right_of_values(at), before);
    if (ROWS > 16u) {
        c = multiply_add(w1, right_of_values(at + 16u * PITCH), c);
    }
    if (ROWS > 32u) {
        c = multiply_add(w2, right_of_values(at + 32u * PITCH), c);
    }
    if (ROWS > 48u) {
        c = multiply_add(w3, right_of_values(at + 48u * PITCH), c);
    }
    return c;
}

// Puts down 64 coordinates of a subgroup's results, where scores lie.
fn put_results(at: u32, o0: Sums, o1: Sums, o2: Sums, o3: Sums) {
    put_sums(o0, at);
    put_sums(o1, at + 4u);
    put_sums(o2, at + 8u);
    put_sums(o3, at + 12u);
}
