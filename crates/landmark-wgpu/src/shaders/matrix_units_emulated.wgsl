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

fn multiply_add(a: Left, b: Right, c: Sums) -> Sums {
    var left = a;
    var sums = c;
    for (var i = 0u; i < min(16u, params.block); i++) {
        let x = left[i / 4u][i % 4u];
        if (b.is_keys) {
            let column = b.at + 8u * (lane & 1u) * PITCH + i / 4u;
            let k = i % 4u;
            sums.low += x * vec4<f32>(vec4<f16>(tile[column][k], tile[column + PITCH][k], tile[column + 2u * PITCH][k],
                tile[column + 3u * PITCH][k]));
            sums.high += x * vec4<f32>(vec4<f16>(tile[column + 4u * PITCH][k], tile[column + 5u * PITCH][k],
                tile[column + 6u * PITCH][k], tile[column + 7u * PITCH][k]));
        } else {
            let row = b.at + i * PITCH + 2u * (lane & 1u);
            sums.low += x * vec4<f32>(tile[row]);
            sums.high += x * vec4<f32>(tile[row + 1u]);
        }
    }
    return sums;
}

fn put_sums(c: Sums, at: u32) {
    let to = at + (lane >> 1u) * ROW_PITCH + 2u * (lane & 1u);
    scores[to] = c.low;
    scores[to + 1u] = c.high;
}
