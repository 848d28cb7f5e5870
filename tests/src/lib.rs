//! Shared pieces of the tests: fixtures of the released program, and how close is close enough.
//!
//! The fixtures are numbers that the released PyTorch program produced on a CPU in float32 (attention in
//! float64). Agreement is asked for to 1e-4 of the largest magnitude of what is compared.

use landmark_formats::huggingface::WeightFolder;
use landmark_formats::safetensors::SafetensorsFile;
use landmark_formats::torch::TorchFile;
use landmark_model::config::{Attention, Biases, ModelConfig};
use landmark_model::engine::Error;
use landmark_model::huggingface;
use std::path::{Path, PathBuf};

/// Shape and values of a weight.
pub type Weight = (Vec<usize>, Vec<f32>);

/// Relative error that the fixtures allow.
pub const FIXTURE_TOLERANCE: f64 = 1e-4;

/// Path of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A fixture in JSON.
///
/// # Panics
/// When it is not there.
pub fn json(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(fixture(name)).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

/// Tensors of one fixture.
pub struct Tensors(SafetensorsFile);

impl Tensors {
    /// Opens a safetensors fixture.
    ///
    /// # Panics
    /// When it is not there.
    pub fn open(name: &str) -> Self {
        Tensors(SafetensorsFile::open(&fixture(name)).expect("a fixture"))
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.0.names().map(str::to_string).collect()
    }

    /// Shape of a tensor.
    ///
    /// # Panics
    /// When it is not there.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.0.get(name).expect(name).shape().to_vec()
    }

    /// Floats.
    ///
    /// # Panics
    /// When it is not there.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.0.get(name).expect(name).to_f64()
    }

    /// Floats.
    ///
    /// # Panics
    /// When it is not there.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.0.get(name).expect(name).to_f32()
    }

    /// Integers.
    ///
    /// # Panics
    /// When it is not there.
    pub fn i32(&self, name: &str) -> Vec<i32> {
        self.0.get(name).expect(name).to_i64().expect(name).into_iter().map(|x| x as i32).collect()
    }

    /// Token ids.
    ///
    /// # Panics
    /// When it is not there, or one is negative.
    pub fn tokens(&self, name: &str) -> Vec<u32> {
        self.0.get(name).expect(name).to_u32().expect(name)
    }
}

/// Panics when `found` is farther from `expected` than `tolerance` times the largest magnitude in it.
///
/// # Panics
/// See above.
pub fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    let size = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance * size,
            "{what}[{i}]: {f} instead of {e} (largest magnitude {size})"
        );
    }
}

/// Configuration of one of the GPT fixtures, straight from its summary.
///
/// # Panics
/// When the summary is not as expected.
pub fn gpt_config(name: &str) -> ModelConfig {
    let args = &json(&format!("{name}/summary.json"))["args"];
    let number = |key: &str| args[key].as_u64().expect(key) as usize;
    let attention = match args["model"].as_str() {
        Some("base") => Attention::Plain,
        Some("landmark") => Attention::Landmark,
        Some("landmark_with_cmt") => Attention::LandmarkWithMiss,
        other => panic!("model {other:?}"),
    };
    let mut config = ModelConfig::gpt(
        number("vocab_size"),
        number("n_embd"),
        number("n_layer"),
        number("n_head"),
        attention,
    );
    config.biases = Biases::all_or_none(args["bias"].as_bool().expect("bias"));
    config.landmark_id = number("landmark_id") as u32;
    config.context = number("sequence_length");
    config
}

/// As [`gpt_weights`], with what the released *evaluation* makes of them: loading a checkpoint, it passes over every
/// name with `attn.bias` in it, meaning the causal mask, and `attn.c_attn.bias` with it, which stays 0.
///
/// # Panics
/// When the checkpoint cannot be read.
pub fn gpt_weights_as_evaluated(name: &str) -> impl FnMut(&str) -> Result<Option<Weight>, Error> {
    let mut weights = gpt_weights(name);
    move |wanted| {
        let mut found = weights(wanted)?;
        if let (true, Some((_, values))) = (wanted.contains("attn.bias"), &mut found) {
            values.fill(0.0);
        }
        Ok(found)
    }
}

/// A function that finds the weights of a GPT fixture by name, for `Engine::load`.
///
/// # Panics
/// When the checkpoint cannot be read.
pub fn gpt_weights(name: &str) -> impl FnMut(&str) -> Result<Option<Weight>, Error> {
    let file = TorchFile::open(&fixture(&format!("{name}/ckpt.pt"))).expect("a checkpoint");
    let weights = file.state_dict(&["model"]).expect("weights");
    move |wanted| {
        let found = weights.iter().find(|(name, _)| name == wanted);
        Ok(found.map(|(_, meta)| (meta.shape().to_vec(), file.tensor(meta).expect("weights").to_f32())))
    }
}

/// Configuration of one of the LLaMA fixtures, with the attention that a case was computed with.
///
/// # Panics
/// When its config.json cannot be read.
pub fn llama_config(name: &str, attention: Attention) -> ModelConfig {
    let fields = json(&format!("{name}/config.json"));
    let config = huggingface::config(fields.as_object().expect("an object")).expect("a model");
    ModelConfig { attention, ..config }
}

/// A function that finds the weights of a LLaMA fixture by name, for `Engine::load`.
///
/// # Panics
/// When they cannot be read.
pub fn hugging_face_weights(name: &str) -> impl FnMut(&str) -> Result<Option<Weight>, Error> {
    let folder = WeightFolder::open(&fixture(name)).expect("weights");
    move |wanted| {
        if !folder.contains(wanted) {
            return Ok(None);
        }
        let tensor = folder.get(wanted).expect("a weight");
        Ok(Some((tensor.shape().to_vec(), tensor.to_f32())))
    }
}
