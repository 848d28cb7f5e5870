//! The two tiny transformers as a whole: what the reverse walk makes of many ops together.

use crate::rig::{Plant, Rig};
use landmark_core::DType;
use landmark_core::ops::Op;
use landmark_core::plant;
use landmark_core::testing::model::{Kind, Tiny};

fn rig(kind: Kind) -> Rig {
    let tiny = Tiny::new(kind, DType::F32);
    let mut rig = Rig::over(tiny.layout.clone());
    for weight in &tiny.weights {
        rig.trained(&weight.name, weight.value, weight.gradient, weight.initial.clone());
    }
    for (tensor, bytes) in &tiny.inputs {
        rig.write_fixed(*tensor, bytes.clone());
    }
    rig.loss_at(tiny.loss, 0.5);
    rig.record(move |r| tiny.forward(r));
    rig
}

#[test]
fn gpt() {
    let plants: [Plant<'_>; 3] = [
        (
            "residual gradients overwritten",
            Box::new(plant!(Op::NormBackward(op) => op.dx.as_mut().unwrap().add = false)),
        ),
        ("positions not turned back", Box::new(plant!(Op::Rope(op) => op.inverse = false))),
        ("other dropout bits in the backward pass", Box::new(plant!(Op::Dropout(op) => op.salt += 1))),
    ];
    rig(Kind::Gpt).prove(&plants);
}

#[test]
fn llama() {
    let plants: [Plant<'_>; 2] = [
        (
            "the other norm",
            Box::new(
                plant!(Op::NormBackward(op) => op.kind = landmark_core::ops::NormKind::Layer { eps: 1e-6 }),
            ),
        ),
        (
            "gate and up exchanged",
            Box::new(plant!(Op::SwiGluBackward(op) => std::mem::swap(&mut op.dgate, &mut op.dup))),
        ),
    ];
    rig(Kind::Llama).prove(&plants);
}
