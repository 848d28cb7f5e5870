// The end of a tile of a product: four columns of a row of the results.
fn store(row: u32, col: u32, product: vec4<f32>) {
    if (row >= params.m || col >= params.n) {
        return;
    }
    let valid = valid_of(col, params.n);
    let e = row * params.stride + params.first + col;
    var value = params.scale * product + bias_quad(params.first + col, valid);
    if (ADD) {
        value += out_quad(e, valid);
    }
    out_put(e, value, valid);
}
