// Matrices of 16 x 16 on the device's matrix units, for `attention_tile.wgsl`: operands in f16, sums in f32. What is said
// here `matrix_units_emulated.wgsl` says in plain WGSL.

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

// Rows of the tile.
fn left_of_tile(at: u32) -> Left {
    return coopLoadT<Left>(&tile[at], PITCH);
}

fn left_of_weights(at: u32) -> Left {
    return coopLoadT<Left>(&weights[at], ROW_PITCH);
}

// Rows of the tile as columns: for products with keys.
fn right_of_keys(at: u32) -> Right {
    return coopLoad<Right>(&tile[at], PITCH);
}

// Rows of the tile as rows: for products with values.
fn right_of_values(at: u32) -> Right {
    return coopLoadT<Right>(&tile[at], PITCH);
}

fn multiply_add(a: Left, b: Right, c: Sums) -> Sums {
    return coopMultiplyAdd(a, b, c);
}

fn put_sums(c: Sums, at: u32) {
    coopStoreT(c, &scores[at], ROW_PITCH);
}
