//! Landmark attention against the released program's numbers, forward and backward.

use landmark_core::cpu::Real;
use landmark_core::ops::{AttentionGradients, Blocks, Heads, LandmarkAttention, LandmarkAttentionBackward};
use landmark_core::{Backend, Cols, Cpu, DType, Layout, Recorder};
use landmark_tests::{Tensors, assert_close, json};

/// `(B, H, N, D)` to `(B, N, H · D)`.
fn rows(x: &[f64], [b, h, n, d]: [usize; 4]) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for i in 0..b * h * n {
        let (row, head, batch) = (i % n, i / n % h, i / n / h);
        out[((batch * n + row) * h + head) * d..][..d].copy_from_slice(&x[i * d..][..d]);
    }
    out
}

fn run<T: Real>(tolerance: f64) {
    let tensors = Tensors::open("attention.safetensors");
    for case in json("attention.json").as_array().expect("cases") {
        let number = |key: &str| case[key].as_u64().expect(key) as usize;
        let id = number("case");
        let (b, h, nq, nk, d) =
            (number("batch"), number("heads"), number("n_q"), number("n_k"), number("head_dim"));
        let mut layout = Layout::new();
        let mut add = |name: &str, n| layout.add(name, DType::F32, [b, n, h * d]);
        let [q, dq, dout, out] = ["q", "dq", "dout", "out"].map(|name| add(name, nq));
        let [k, v, dk, dv] = ["k", "v", "dk", "dv"].map(|name| add(name, nk));
        let lse = layout.add("lse", DType::F32, [b, h, nq]);
        let phases = layout.add("phases", DType::U32, [b]);
        let mask = layout.add("is_landmark", DType::U32, [b, nk]);
        let blocks = match case["block"].as_u64() {
            Some(block) => Blocks::Regular { block: block as usize, phases },
            None => Blocks::Anywhere { is_landmark: mask },
        };
        let all = |tensor| Cols::all(tensor, h * d);
        let mut r = Recorder::new("attention", &layout);
        let forward = LandmarkAttention {
            heads: Heads { batch: b, queries: nq, keys: nk, heads: h, kv_heads: h, head_dim: d },
            q: all(q),
            k: all(k),
            v: all(v),
            blocks,
            miss: None,
            first_key: None,
            randomness: None,
            out,
            lse,
        };
        r.push(forward.clone());
        let gradients = AttentionGradients { dq: all(dq), dk: all(dk), dv: all(dv) };
        r.push(LandmarkAttentionBackward { forward, dout, gradients });
        let program = r.finish();
        let cpu = Cpu::<T>::new();
        let mut arena = cpu.allocate(&layout).expect("memory");
        let read = |name: &str, n| rows(&tensors.f64(&format!("{id}.{name}")), [b, h, n, d]);
        for (tensor, name, n) in [(q, "q", nq), (dout, "dout", nq), (k, "k", nk), (v, "v", nk)] {
            cpu.write_f64(&mut arena, tensor, &read(name, n)).expect("inputs");
        }
        if tensors.has(&format!("{id}.is_landmark")) {
            let values: Vec<f64> = tensors.f64(&format!("{id}.is_landmark")).repeat(b);
            cpu.write_f64(&mut arena, mask, &values).expect("mask");
        }
        let mut plan = cpu.compile(&program, &arena).expect("a plan");
        cpu.run(&mut plan, &mut arena).expect("a run");
        for (tensor, name, n) in [(out, "out", nq), (dq, "dq", nq), (dk, "dk", nk), (dv, "dv", nk)] {
            assert_close(
                &format!("case {id} {name}"),
                &cpu.read_f64(&arena, tensor),
                &read(name, n),
                tolerance,
            );
        }
    }
}

#[test]
fn the_oracle_meets_every_number() {
    // The fixtures were computed in f64 and stored in f32.
    run::<f64>(1e-6);
}

#[test]
fn f32_meets_every_number() {
    run::<f32>(1e-5);
}
