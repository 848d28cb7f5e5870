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

// Four signed bytes. GPUs turn integers into floats slowly; but a code with 128 added, in the low bits of the f16 1024.0, is a
// number already, and two of them lie in a word.
fn unpack_q8(word: u32) -> vec4<f32> {
    let even = unpack2x16float((word & 0x00ff00ffu) ^ 0x64806480u);
    let odd = unpack2x16float(((word >> 8u) & 0x00ff00ffu) ^ 0x64806480u);
    return vec4<f32>(even.x, odd.x, even.y, odd.y) - vec4<f32>(1152.0);
}

// Half of eight numbers of 4 bits, stored with 8 added, in the same way: one four places on is in the same word.
fn unpack_q4(word: u32, half: u32) -> vec4<f32> {
    let first = unpack2x16float((word & 0x000f000fu) | 0x64006400u);
    let second = unpack2x16float(((word >> 4u) & 0x000f000fu) | 0x64006400u);
    let third = unpack2x16float(((word >> 8u) & 0x000f000fu) | 0x64006400u);
    let fourth = unpack2x16float(((word >> 12u) & 0x000f000fu) | 0x64006400u);
    return vec4<f32>(first[half], second[half], third[half], fourth[half]) - vec4<f32>(1032.0);
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

