//! Optimisers against the numbers that torch 2 gives in float64: three steps on six weights.
//!
//! Constants are exact in f32 where an op holds them in f32, so agreement is to rounding. The numbers were printed by
//! `torch.optim.AdamW(lr=0.1, betas=(0.875, 0.9375), eps=2**-20, weight_decay=0.125)`,
//! `torch.optim.SGD(lr=0.1, momentum=0.875, weight_decay=0.125)`,
//! `torch.optim.Adafactor(lr=0.1 or 0.75, eps=(2**-23, 1e-3), weight_decay=0.125)`, and, where clipped,
//! `torch.nn.utils.clip_grad_norm_(0.5)` before each step.

use landmark_core::backend::Backend;
use landmark_core::ops::{Adafactor, AdamW, ClipScale, Op, Sgd, SquaredNorm};
use landmark_core::testing::{alter, worst};
use landmark_core::{Cpu, DType, Layout, Out, Recorder, Tensor, plant};

const WEIGHTS: [f64; 6] = [0.5, -1.25, 2.0, 0.75, -0.5, 1.5];
const GRADIENTS: [[f64; 6]; 3] =
    [[0.3, -0.2, 0.7, 1.1, -0.9, 0.05], [-0.4, 0.6, 0.1, -1.3, 0.8, 0.25], [2.0, -3.0, 1.0, 0.5, -0.25, 4.0]];

/// The tensors of an optimiser's step.
struct Step {
    param: Tensor,
    grad: Tensor,
    state: [Tensor; 2],
    hyper: Tensor,
    scale: Option<Tensor>,
}

/// Three steps of what `optimizer` records; `hyper(t)` is what lies in its `hyper` at step `t`.
fn run(
    state: [usize; 2],
    clip: Option<f32>,
    hyper: impl Fn(f64) -> [f64; 3],
    optimizer: impl Fn(&Step) -> Op,
    bug: impl Fn(&mut Op) -> bool,
) -> Vec<f64> {
    let mut layout = Layout::new();
    let [param, grad] = ["param", "grad"].map(|name| layout.add(name, DType::F32, [2, 3]));
    let vector = state[1] == 0;
    let state = if vector { [state[0], 1] } else { state };
    let state = state.map(|n| {
        layout.add("state", DType::F32, if n == 6 && !vector { vec![2, 3] } else { vec![n] }.as_slice())
    });
    let values = layout.add("hyper", DType::F32, [3]);
    let mut r = Recorder::new("step", &layout);
    let scale = clip.map(|max_norm| {
        let [squared_norm, out] = ["norm", "scale"].map(|name| r.scratch(name, DType::F32, [1]));
        r.push(SquaredNorm { x: grad, out: Out::set(squared_norm) });
        r.push(ClipScale { squared_norm, max_norm, out });
        out
    });
    r.push(optimizer(&Step { param, grad, state, hyper: values, scale }));
    let mut program = r.finish();
    alter(&mut program, bug);
    let cpu = Cpu::<f64>::new();
    let mut arena = cpu.allocate(&layout).unwrap();
    let mut plan = cpu.compile(&program, &arena).unwrap();
    cpu.write_f64(&mut arena, param, &WEIGHTS).unwrap();
    for (t, gradient) in GRADIENTS.iter().enumerate() {
        cpu.write_f64(&mut arena, grad, gradient).unwrap();
        cpu.write_f64(&mut arena, values, &hyper(t as f64 + 1.0)).unwrap();
        cpu.run(&mut plan, &mut arena).unwrap();
        assert_eq!(cpu.read_f64(&arena, grad), [0.0; 6], "the gradient is left at zero");
    }
    cpu.read_f64(&arena, param)
}

fn adamw(clip: Option<f32>, bug: impl Fn(&mut Op) -> bool) -> Vec<f64> {
    let hyper = |t: f64| [0.1, 1.0 - 0.875_f64.powf(t), 1.0 - 0.9375_f64.powf(t)];
    let op = |s: &Step| {
        let (eps, weight_decay) = (1.0 / (1 << 20) as f32, 0.125);
        let (m, v) = (s.state[0], s.state[1]);
        AdamW {
            param: s.param,
            copy: None,
            grad: s.grad,
            m,
            v,
            hyper: s.hyper,
            scale: s.scale,
            beta1: 0.875,
            beta2: 0.9375,
            eps,
            weight_decay,
        }
        .into()
    };
    run([6, 6], clip, hyper, op, bug)
}

fn sgd(clip: Option<f32>, bug: impl Fn(&mut Op) -> bool) -> Vec<f64> {
    let op = |s: &Step| {
        let (buffer, momentum, weight_decay) = (s.state[0], 0.875, 0.125);
        Sgd {
            param: s.param,
            copy: None,
            grad: s.grad,
            buffer,
            hyper: s.hyper,
            scale: s.scale,
            momentum,
            weight_decay,
        }
        .into()
    };
    run([6, 6], clip, |_| [0.1, 0.0, 0.0], op, bug)
}

fn adafactor(lr: f64, matrix: bool, clip: Option<f32>, bug: impl Fn(&mut Op) -> bool) -> Vec<f64> {
    let op = |s: &Step| {
        let (rows, columns, weight_decay) = (s.state[0], matrix.then_some(s.state[1]), 0.125);
        Adafactor {
            param: s.param,
            copy: None,
            grad: s.grad,
            rows,
            columns,
            hyper: s.hyper,
            scale: s.scale,
            weight_decay,
        }
        .into()
    };
    let hyper = |t: f64| [lr.min(1.0 / t.sqrt()), lr, t.powf(-0.8)];
    run(if matrix { [2, 3] } else { [6, 0] }, clip, hyper, op, bug)
}

fn sound(_: &mut Op) -> bool {
    false
}

/// Rounding of three steps.
fn assert_close(found: &[f64], expected: &[f64; 6]) {
    assert!(worst(found, expected) < 1e-14, "{found:?} instead of {expected:?}");
}

fn assert_noticed(spoilt: &[f64], right: &[f64]) {
    assert!(worst(spoilt, right) > 1e-6, "the bug goes unnoticed");
}

#[test]
fn adamw_is_torchs() {
    let plain = adamw(None, sound);
    assert_close(
        &plain,
        &[
            0.3462685682438063,
            -1.1010526952857336,
            1.6662001942090232,
            0.6317898628562945,
            -0.37178287390876885,
            1.1948605735491244,
        ],
    );
    let clipped = adamw(Some(0.5), sound);
    assert_close(
        &clipped,
        &[
            0.36075577332354597,
            -1.1219823604910903,
            1.6725242964370257,
            0.6406821971972333,
            -0.3767638789109939,
            1.1865562031515022,
        ],
    );
    assert_noticed(&adamw(None, plant!(Op::AdamW(op) => op.weight_decay = 0.0)), &plain);
    assert_noticed(&adamw(None, plant!(Op::AdamW(op) => op.eps = 1e-3)), &plain);
    assert_noticed(
        &adamw(None, plant!(Op::AdamW(op) => std::mem::swap(&mut op.beta1, &mut op.beta2))),
        &plain,
    );
    assert_noticed(&adamw(Some(0.5), plant!(Op::ClipScale(op) => op.max_norm = 3.0)), &clipped);
    assert_noticed(&adamw(Some(0.5), plant!(Op::AdamW(op) => op.scale = None)), &clipped);
}

#[test]
fn sgd_is_torchs() {
    let plain = sgd(None, sound);
    assert_close(
        &plain,
        &[
            0.2625802734375,
            -0.9246155273437501,
            1.56339140625,
            0.6056415039062499,
            -0.3564458984375,
            0.9381603515625,
        ],
    );
    let clipped = sgd(Some(0.5), sound);
    assert_close(
        &clipped,
        &[
            0.4455887359889175,
            -1.1542265974713328,
            1.7932120282793618,
            0.6773590022536032,
            -0.4354005114832089,
            1.3437585696776402,
        ],
    );
    assert_noticed(&sgd(None, plant!(Op::Sgd(op) => op.momentum = 0.5)), &plain);
    assert_noticed(&sgd(None, plant!(Op::Sgd(op) => op.weight_decay = 0.0)), &plain);
}

#[test]
fn adafactor_is_torchs() {
    let matrix = adafactor(0.1, true, None, sound);
    assert_close(
        &matrix,
        &[
            0.35662333334440594,
            -1.1362633570324503,
            1.611055375222625,
            0.696824572681889,
            -0.4494638511983337,
            1.2224451205109634,
        ],
    );
    assert_close(
        &adafactor(0.1, false, None, sound),
        &[
            0.34318367573420544,
            -1.0811577485641841,
            1.665177612229252,
            0.6686975115335514,
            -0.4273055157042022,
            1.0554026261691085,
        ],
    );
    // A learning rate above 1 / sqrt(t): the relative step is cut, the weight decay is not.
    assert_close(
        &adafactor(0.75, true, None, sound),
        &[
            -0.20936913556795855,
            -0.601905396270968,
            -0.2577155719863268,
            0.1723479641783557,
            0.04808906560474053,
            0.2916216938987468,
        ],
    );
    let clipped = adafactor(0.1, true, Some(0.5), sound);
    assert_close(
        &clipped,
        &[
            0.39087818986374656,
            -1.1247544833619516,
            1.5945842250131432,
            0.7078589559094679,
            -0.44990891428556723,
            1.2097956103867749,
        ],
    );
    assert_noticed(&adafactor(0.1, true, None, plant!(Op::Adafactor(op) => op.weight_decay = 0.0)), &matrix);
    assert_noticed(&adafactor(0.1, true, Some(0.5), plant!(Op::Adafactor(op) => op.scale = None)), &clipped);
}

/// Every optimiser leaves the rounded weights in the copy that products read.
#[test]
fn the_half_copy_follows_the_master() {
    let cpu = Cpu::<f64>::new();
    let mut layout = Layout::new();
    let mut add = |name: &str, dtype, numel: usize| layout.add(name, dtype, [numel]);
    let [param, grad, a, b] = ["param", "grad", "a", "b"].map(|name| add(name, DType::F32, 6));
    let (copy, hyper) = (add("copy", DType::Bf16, 6), add("hyper", DType::F32, 3));
    let (scale, weight_decay) = (None, 0.125);
    let copied = Some(copy);
    let ops: [Op; 3] = [
        AdamW {
            param,
            copy: copied,
            grad,
            m: a,
            v: b,
            hyper,
            scale,
            beta1: 0.5,
            beta2: 0.5,
            eps: 1.0,
            weight_decay,
        }
        .into(),
        Sgd { param, copy: copied, grad, buffer: a, hyper, scale, momentum: 0.5, weight_decay }.into(),
        Adafactor { param, copy: copied, grad, rows: a, columns: None, hyper, scale, weight_decay }.into(),
    ];
    for op in ops {
        let mut arena = cpu.allocate(&layout).unwrap();
        let mut r = Recorder::new("copied", &layout);
        r.push(op);
        let program = r.finish();
        cpu.write_f64(&mut arena, param, &WEIGHTS).unwrap();
        cpu.write_f64(&mut arena, grad, &GRADIENTS[0]).unwrap();
        cpu.write_f64(&mut arena, hyper, &[0.1, 0.5, 0.5]).unwrap();
        cpu.run(&mut cpu.compile(&program, &arena).unwrap(), &mut arena).unwrap();
        let (master, copy) = (cpu.read_f64(&arena, param), cpu.read_f64(&arena, copy));
        assert_ne!(master, WEIGHTS, "the weights were updated");
        let rounded: Vec<f64> = master.iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect();
        assert_eq!(copy, rounded);
    }
}
