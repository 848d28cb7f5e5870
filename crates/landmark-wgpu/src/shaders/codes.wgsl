// Codes of weights in blocks without turning integers into floats: a code with something added, in the low bits of the f16 1024.0,
// is a number already, and two of them lie in a word. For matrix units; where a stream of weights is all there is to do,
// `unpack_q8` and `unpack_q4` were faster (benches/wgpu.md).

// Four signed bytes.
fn codes_q8(word: u32) -> vec4<f32> {
    let even = unpack2x16float((word & 0x00ff00ffu) ^ 0x64806480u);
    let odd = unpack2x16float(((word >> 8u) & 0x00ff00ffu) ^ 0x64806480u);
    return vec4<f32>(even.x, odd.x, even.y, odd.y) - vec4<f32>(1152.0);
}

// Half of eight numbers of 4 bits, stored with 8 added.
fn codes_q4(word: u32, half: u32) -> vec4<f32> {
    let first = unpack2x16float((word & 0x000f000fu) | 0x64006400u);
    let second = unpack2x16float(((word >> 4u) & 0x000f000fu) | 0x64006400u);
    let third = unpack2x16float(((word >> 8u) & 0x000f000fu) | 0x64006400u);
    let fourth = unpack2x16float(((word >> 12u) & 0x000f000fu) | 0x64006400u);
    return vec4<f32>(first[half], second[half], third[half], fourth[half]) - vec4<f32>(1032.0);
}
