//! Everything that can be asked of an open checkpoint.

use landmark_formats::torch::{Kind, TensorMeta, TorchFile, Value};
use std::collections::VecDeque;

/// Objects looked at: enough for any real file, and an end for those that refer to themselves.
const MOST_OBJECTS: usize = 2000;

/// Bytes of tensors read. A file may hold thousands of tensors of some megabytes each on one small storage.
const MOST_BYTES: usize = 64 << 20;

pub(crate) fn read_all(file: &TorchFile) {
    let mut budget = MOST_BYTES;
    let mut queue = VecDeque::from([file.root()]);
    for _ in 0..MOST_OBJECTS {
        let Some(value) = queue.pop_front() else { break };
        let room = MOST_OBJECTS.saturating_sub(queue.len());
        look_at(file, value, &mut budget);
        queue.extend(value.elements().take(room));
        queue.extend(value.entries().take(room / 2).flat_map(|(key, value)| [key, value]));
    }
    for path in [&[][..], &["model"]] {
        for (_, meta) in file.state_dict(path).unwrap_or_default() {
            read(file, &meta, &mut budget);
        }
    }
}

fn look_at(file: &TorchFile, value: Value<'_>, budget: &mut usize) {
    let _ = (format!("{value:?}").len(), value.get("model"), value.as_i64(), value.as_f64());
    if let Kind::Tensor(meta) = value.kind() {
        read(file, meta, budget);
    }
}

fn read(file: &TorchFile, meta: &TensorMeta, budget: &mut usize) {
    let elements = meta.shape().iter().fold(1usize, |n, &d| n.saturating_mul(d));
    let Some(left) = budget.checked_sub(elements.saturating_mul(8)) else { return };
    *budget = left;
    if let Ok(tensor) = file.tensor(meta) {
        assert_eq!(tensor.to_f32().len(), elements);
    }
}
