// GELU and SiLU, for kernels of their own and for products that end in one.

// x * Phi(x), exact. erfc by a Chebyshev fit with a relative error below 1.2e-7 everywhere: small results keep their
// digits, which 1 + erf(x) for negative x would lose.
fn gelu(x: vec4<f32>) -> vec4<f32> {
    let z = abs(x) * 0.70710678;
    let t = 1.0 / (1.0 + 0.5 * z);
    let p = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
        + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    let erfc = t * exp(p - z * z);
    return x * 0.5 * select(2.0 - erfc, erfc, x < vec4<f32>(0.0));
}

// x * sigmoid(x), of two numbers.
fn silu(x: vec2<f32>) -> vec2<f32> {
    // Beyond -80 the sigmoid is 0 in any case, and its exponential would overflow.
    return x / (1.0 + exp(min(-x, vec2<f32>(80.0))));
}

