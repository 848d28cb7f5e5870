// What `matrix_units.wgsl` says, in plain WGSL, so that kernels can be tested where there are no matrix units. Of 32
// threads, two share a row of the sums, eight columns each: a thread keeps the row of the left matrix, and reads the right
// one where it lies. Loops end at what no compiler knows, or they would be unrolled a hundred times.

// Four elements a column.
alias Left = mat4x4<f32>;

struct Right {
    at: u32,
    is_keys: bool,
}

struct Sums {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn left_of_tile(at: u32) -> Left {
    let row = at + (lane >> 1u) * PITCH;
    return Left(vec4<f32>(tile[row]), vec4<f32>(tile[row + 1u]), vec4<f32>(tile[row + 2u]), vec4<f32>(tile[row + 3u]));
}

fn left_of_weights(at: u32) -> Left {
    let row = at + (lane >> 1u) * ROW_PITCH;
    return Left(vec4<f32>(weights[row]), vec4<f32>(weights[row + 1u]), vec4<f32>(weights[row + 2u]),
        vec4<f32>(weights[row + 3u]));
}

fn right_of_keys(at: u32) -> Right {
    return Right(at, true);
}

fn right_of_values(at: u32) -> Right {
    return Right(at, false);
}

fn product(x: vec4<f32>, at: u32) -> vec4<f32> {
    return vec4<f32>(dot(x, vec4<f32>(tile[at])), dot(x, vec4<f32>(tile[at + PITCH])),
        dot(x, vec4<f32>(tile[at + 2u * PITCH])), dot(x, vec4<f32>(tile[at + 3u * PITCH])));
}

fn multiply_add(a: Left, b: Right, c: Sums) -> Sums {
    var left = a;
    var sums = c;
    if (b.is_keys) {
        let first = b.at + 8u * (lane & 1u) * PITCH;
        for (var i = 0u; i < min(4u, params.block); i++) {
            sums.low += product(left[i], first + i);
            sums.high += product(left[i], first + 4u * PITCH + i);
        }
    } else {
        let first = b.at + 2u * (lane & 1u);
        for (var i = 0u; i < min(16u, params.block); i++) {
            let x = left[i / 4u][i % 4u];
            sums.low += x * vec4<f32>(tile[first + i * PITCH]);
            sums.high += x * vec4<f32>(tile[first + i * PITCH + 1u]);
        }
    }
    return sums;
}

fn put_sums(c: Sums, at: u32) {
    let to = at + (lane >> 1u) * ROW_PITCH + 2u * (lane & 1u);
    scores[to] = c.low;
    scores[to + 1u] = c.high;
}
