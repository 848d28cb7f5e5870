// What every shader may use.

// Stands for minus infinity: WGSL promises nothing of infinities.
const NOTHING: f32 = -3.0e38;

// Number of a workgroup in a grid that is folded into two dimensions.
fn group_index(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + group.y * groups.x;
}

// How many of the elements e .. e + 4 lie below end.
fn valid_of(e: u32, end: u32) -> u32 {
    return min(4u, end - e);
}

fn sum4(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

fn unpack_f16(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

fn pack_f16(v: vec2<f32>) -> u32 {
    return pack2x16float(v);
}

fn unpack_bf16(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}

// To the nearest, ties to even; a NaN stays one.
fn pack_bf16(v: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(v);
    let rounded = bits + vec2<u32>(0x7fffu) + ((bits >> vec2<u32>(16u)) & vec2<u32>(1u));
    let is_nan = (bits & vec2<u32>(0x7fffffffu)) > vec2<u32>(0x7f800000u);
    let kept = select(rounded, bits | vec2<u32>(0x400000u), is_nan);
    return (kept.x >> 16u) | (kept.y & 0xffff0000u);
}

// Four signed bytes.
fn unpack_q8(word: u32) -> vec4<f32> {
    let w = bitcast<i32>(word);
    return vec4<f32>(vec4<i32>(
        extractBits(w, 0u, 8u), extractBits(w, 8u, 8u), extractBits(w, 16u, 8u), extractBits(w, 24u, 8u)));
}

// Half of eight numbers of 4 bits, stored with 8 added, as they are stored: every other one is a byte of the word with the
// others masked out, which becomes a float in one instruction.
fn unpack_q4(word: u32, half: u32) -> vec4<f32> {
    let even = word & 0x0f0f0f0fu;
    let odd = (word >> 4u) & 0x0f0f0f0fu;
    let at = 16u * half;
    return vec4<f32>(vec4<u32>(
        extractBits(even, at, 8u), extractBits(odd, at, 8u), extractBits(even, at + 8u, 8u), extractBits(odd, at + 8u, 8u)));
}

// Codes of 8 bits in the highest bits of a word: multiplied there, since software shifts numbers one by one.
fn high_q8(word: u32) -> vec4<f32> {
    let high = vec4<u32>(word) * vec4<u32>(0x1000000u, 0x10000u, 0x100u, 1u);
    return vec4<f32>(bitcast<vec4<i32>>(high & vec4<u32>(0xff000000u)));
}

// The same of the four lower or upper codes of 4 bits in a word.
fn high_q4(word: u32, half: u32) -> vec4<f32> {
    let low = select(word, word >> 16u, half == 1u) ^ 0x8888u;
    let high = vec4<u32>(low) * vec4<u32>(0x10000000u, 0x1000000u, 0x100000u, 0x10000u);
    return vec4<f32>(bitcast<vec4<i32>>(high & vec4<u32>(0xf0000000u)));
}

// Sine and cosine of any angle up to some 100,000, to a few units in the last place: what WGSL promises of its own
// ends at pi. The angle is reduced by multiples of pi/2 in three parts short enough for exact products.
fn sin_cos(angle: f32) -> vec2<f32> {
    let turns = round(angle * 0.63661977);
    let r = ((angle - turns * 1.5703125) - turns * 4.837512969970703e-4) - turns * 7.54978995489188e-8;
    let r2 = r * r;
    let s = r + r * r2 * (-1.6666654611e-1 + r2 * (8.3321608736e-3 + r2 * -1.9515295891e-4));
    let c = 1.0 - 0.5 * r2
        + r2 * r2 * (4.166664568298827e-2 + r2 * (-1.388731625493765e-3 + r2 * 2.443315711809948e-5));
    let quadrant = u32(i32(turns)) & 3u;
    let swapped = select(vec2<f32>(s, c), vec2<f32>(c, s), (quadrant & 1u) == 1u);
    return vec2<f32>(
        select(swapped.x, -swapped.x, quadrant >= 2u),
        select(swapped.y, -swapped.y, quadrant == 1u || quadrant == 2u),
    );
}

