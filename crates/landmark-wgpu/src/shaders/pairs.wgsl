// Rotary pairs, four at a time: a *unit* holds the first and the second coordinates of pairs 4u .. 4u + 4 of a head,
// whichever coordinates make a pair.

struct Pairs {
    a: vec4<f32>,
    b: vec4<f32>,
}

struct Angles {
    sin: vec4<f32>,
    cos: vec4<f32>,
}

fn turn(x: Pairs, by: Angles) -> Pairs {
    return Pairs(x.a * by.cos - x.b * by.sin, x.b * by.cos + x.a * by.sin);
}

// The scalar product of x with y turned.
fn dot_turned(x: Pairs, y: Pairs, by: Angles) -> f32 {
    return dot(by.cos, x.a * y.a + x.b * y.b) + dot(by.sin, x.b * y.a - x.a * y.b);
}

// Angles of a unit at a position.
fn unit_angles(position: f32, unit: u32) -> Angles {
    var angles: Angles;
    for (var i = 0u; i < 4u; i++) {
        let sc = sin_cos(position * frequencies_one(min(4u * unit + i, HEAD / 2u - 1u)));
        angles.sin[i] = sc.x;
        angles.cos[i] = sc.y;
    }
    return angles;
}

