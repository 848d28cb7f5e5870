//! Low-rank adapters in the layout of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! PEFT wraps a model twice, and the names of its tensors show it: what the model calls
//! `model.layers.0.self_attn.q_proj` has its adapter under `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
//! Matrices that were trained whole (`modules_to_save`) stand beside them under their own names behind the same
//! prefix. Here all names are without it.
//!
//! PEFT's configuration has some forty fields, most of them for variants of the method, and gains more with each version.
//! What changes how an adapter is *computed* has to be understood; so fields are read by allow-list: those known here,
//! those that only concern how training began, and beyond these only fields that say "not used" (null, false, empty). An
//! adapter of an unknown variant is refused by the field's name instead of being computed wrongly.
//!
//! Which layers are adapted is read off the tensors rather than from `target_modules`, which may be a list of names,
//! a list of endings, a regular expression, or `all-linear`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::short;
use crate::safetensors::{SafetensorsFile, TensorSource, write_safetensors};
use crate::tensor::TensorRef;
use crate::{Error, Result, atomic};

/// The configuration's file.
pub const CONFIG: &str = "adapter_config.json";
/// The tensors' file.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of a model.
const PREFIX: &str = "base_model.model.";
/// More than any configuration holds, in bytes.
const LARGEST_CONFIG: u64 = 4 << 20;
/// More than any rank; a larger one is damage.
const LARGEST_RANK: u64 = 1 << 16;

/// Fields that say nothing about how an adapter is computed.
const IRRELEVANT: [&str; 14] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// What an adapter's configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// Path or name of the model that it belongs to, as it was given.
    pub base_model: Option<String>,
    /// Rows of `A`.
    pub rank: usize,
    /// Strength: the factor on `B A` is `alpha / rank`.
    pub alpha: f64,
    /// Dropout of an adapter's input, in training.
    pub dropout: f64,
    /// Whether the factor is `alpha / sqrt(rank)` instead.
    pub rank_stabilised: bool,
    /// Names of the adapted layers (`q_proj`). Read from a file, this is empty where it gives no list; see
    /// [`Adapter::targets`].
    pub targets: Vec<String>,
    /// Names of the matrices trained whole (`lm_head`).
    pub whole: Vec<String>,
}

impl PeftConfig {
    /// Reads the bytes of an `adapter_config.json`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence without the name of the file.
    pub fn parse(bytes: &[u8]) -> std::result::Result<PeftConfig, String> {
        let fields: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|e| format!("it is no JSON object ({e})"))?;
        match fields.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => {
                return Err(format!("its peft_type is {:?}, and only LORA is known", short(other)));
            }
            None => return Err("it has no peft_type".into()),
        }
        refuse_variants(&fields)?;
        let rank = fields.get("r").and_then(Value::as_u64);
        let rank = rank.filter(|rank| (1..=LARGEST_RANK).contains(rank));
        let rank = rank.ok_or("its r, the rank, has to be a number of at least 1")? as usize;
        let number = |name: &str, default: f64| match fields.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| format!("its {name} has to be a number")),
        };
        let names = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(names)) => {
                let name_of = |value: &Value| value.as_str().map(str::to_owned);
                let names: Option<Vec<String>> = names.iter().map(name_of).collect();
                names.ok_or_else(|| format!("its {name} has to be a list of names"))
            }
            // A pattern, or all-linear: the tensors will tell.
            Some(Value::String(_)) if name == "target_modules" => Ok(Vec::new()),
            Some(_) => Err(format!("its {name} has to be a list of names")),
        };
        Ok(PeftConfig {
            base_model: fields.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            rank,
            alpha: number("lora_alpha", 8.0)?,
            dropout: number("lora_dropout", 0.0)?,
            rank_stabilised: fields.get("use_rslora") == Some(&Value::Bool(true)),
            targets: names("target_modules")?,
            whole: names("modules_to_save")?,
        })
    }

    /// The contents of an `adapter_config.json`.
    pub fn to_json(&self) -> Value {
        // PEFT's class holds an integer, and only a number with a fraction needs to be another.
        let alpha = if self.alpha.fract() == 0.0 && self.alpha.abs() < 1e15 {
            json!(self.alpha as i64)
        } else {
            json!(self.alpha)
        };
        let whole = if self.whole.is_empty() { Value::Null } else { json!(self.whole) };
        json!({
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": whole,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": self.targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.rank_stabilised,
        })
    }
}

/// Refuses fields that say that an adapter is computed in another way.
fn refuse_variants(fields: &Map<String, Value>) -> std::result::Result<(), String> {
    const KNOWN: [&str; 8] = [
        "base_model_name_or_path",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
        "target_modules",
        "use_rslora",
    ];
    for (name, value) in fields {
        let is_unused = match (name.as_str(), value) {
            ("bias", value) => value.is_null() || value == "none",
            // Some ways to begin change the base model too, which is then another than the one named.
            ("init_lora_weights", Value::String(way)) => {
                ["true", "gaussian", "eva", "orthogonal"].contains(&way.to_lowercase().as_str())
            }
            ("init_lora_weights", _) => true,
            (_, Value::Null | Value::Bool(false)) => true,
            (_, Value::Array(list)) if list.is_empty() => true,
            (_, Value::Object(object)) if object.is_empty() => true,
            (name, _) => KNOWN.contains(&name) || IRRELEVANT.contains(&name),
        };
        if !is_unused {
            let value = short(&value.to_string());
            return Err(format!(
                "it sets {:?} to {value}, a variant of LoRA that is not known here; merge the adapter into its model \
                 with PEFT (merge_and_unload) and use the merged model",
                short(name)
            ));
        }
    }
    Ok(())
}

/// An adapter on disk.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    config: PeftConfig,
    file: SafetensorsFile,
    /// Last names of the adapted layers.
    targets: BTreeSet<String>,
    /// Names of matrices that stand in the file whole.
    whole: BTreeSet<String>,
}

impl Adapter {
    /// Whether a folder holds one.
    pub fn is_one(folder: &Path) -> bool {
        folder.join(CONFIG).is_file()
    }

    /// Opens the adapter in a folder. Tensors are not read yet, but every name is checked.
    ///
    /// # Errors
    /// [`Error::Io`] if a file is missing, [`Error::Unsupported`] for variants and strange tensors,
    /// [`Error::Damaged`] if the configuration makes no sense or the file is damaged.
    pub fn open(folder: &Path) -> Result<Adapter> {
        let path = folder.join(CONFIG);
        let bytes = read_small(&path)?;
        let config = PeftConfig::parse(&bytes)
            .map_err(|reason| Error::Unsupported { file: path.display().to_string(), reason })?;
        let weights = folder.join(WEIGHTS);
        if !weights.exists() && folder.join("adapter_model.bin").exists() {
            let reason =
                "it is an adapter saved by an old version of PEFT; load and save it with a newer one, which \
                          writes adapter_model.safetensors"
                    .to_owned();
            return Err(Error::Unsupported {
                file: folder.join("adapter_model.bin").display().to_string(),
                reason,
            });
        }
        let file = SafetensorsFile::open(&weights)?;
        let mut adapter = Adapter {
            path: folder.to_owned(),
            config,
            file,
            targets: BTreeSet::new(),
            whole: BTreeSet::new(),
        };
        adapter.sort_names()?;
        Ok(adapter)
    }

    /// Sees what each tensor of the file is.
    fn sort_names(&mut self) -> Result<()> {
        let strange = |name: &str, reason: &str| Error::Unsupported {
            file: self.file.label().to_owned(),
            reason: format!("its tensor `{}` {reason}", short(name)),
        };
        let (mut targets, mut whole) = (BTreeSet::new(), BTreeSet::new());
        for name in self.file.names() {
            let plain = name
                .strip_prefix(PREFIX)
                .ok_or_else(|| strange(name, "is not named as PEFT names tensors of a language model"))?;
            let layer = ["lora_A", "lora_B"]
                .iter()
                .find_map(|half| plain.strip_suffix(".weight")?.strip_suffix(half)?.strip_suffix('.'));
            let last = |layer: &str| layer.rsplit('.').next().unwrap_or_default().to_owned();
            match layer {
                Some(layer) => {
                    targets.insert(last(layer));
                }
                None if plain.contains("lora_") => {
                    return Err(strange(name, "belongs to a variant of LoRA that is not known here"));
                }
                None => {
                    let module = plain.strip_suffix(".weight");
                    whole.insert(last(module.ok_or_else(|| strange(name, "is not a weight"))?));
                }
            }
        }
        if targets.is_empty() {
            return Err(Error::Unsupported {
                file: self.file.label().to_owned(),
                reason: "it adapts no layer".into(),
            });
        }
        (self.targets, self.whole) = (targets, whole);
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its configuration.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// The names of the layers that have adapters in the file (`q_proj`), sorted.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(String::as_str)
    }

    /// The names of the matrices that stand in the file whole (`lm_head`), sorted: those that were trained, and those
    /// that were saved because the vocabulary grew.
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        self.whole.iter().map(String::as_str)
    }

    /// Names of all tensors, as the model would call them: `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file.names().filter_map(|name| name.strip_prefix(PREFIX))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.file.contains(&format!("{PREFIX}{name}"))
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// If there is none, or it is of an unknown type.
    pub fn get(&self, name: &str) -> Result<TensorRef<'_>> {
        self.file.get(&format!("{PREFIX}{name}"))
    }
}

/// Reads a file of at most [`LARGEST_CONFIG`] bytes.
fn read_small(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
    file.take(LARGEST_CONFIG + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > LARGEST_CONFIG {
        let reason = format!("it has more than {LARGEST_CONFIG} bytes");
        return Err(Error::Unsupported { file: path.display().to_string(), reason });
    }
    Ok(bytes)
}

/// Writes an adapter into a folder: each file atomically, the configuration last. Names are the model's, without
/// PEFT's prefix.
///
/// # Errors
/// [`Error::Io`] from the disk, whatever a tensor's source reports.
pub fn write_adapter<'a>(
    folder: &Path,
    config: &PeftConfig,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
) -> Result<()> {
    let tensors = tensors.into_iter().map(|tensor| {
        let name = format!("{PREFIX}{}", tensor.name());
        tensor.renamed(name)
    });
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(WEIGHTS), tensors, &metadata)?;
    atomic::write_atomic(&folder.join(CONFIG), |writer| {
        serde_json::to_writer_pretty(writer, &config.to_json()).map_err(std::io::Error::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn config() -> PeftConfig {
        PeftConfig {
            base_model: Some("some/base".into()),
            rank: 2,
            alpha: 4.0,
            dropout: 0.05,
            rank_stabilised: true,
            targets: vec!["q_proj".into()],
            whole: vec!["lm_head".into()],
        }
    }

    fn tensors() -> Vec<TensorSource<'static>> {
        ["model.layers.0.self_attn.q_proj.lora_A.weight", "lm_head.weight"]
            .into_iter()
            .map(|name| TensorSource::new(name, DType::F32, vec![1, 2], vec![0_u8; 8]))
            .collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Adapter::is_one(folder.path()));
        write_adapter(folder.path(), &config(), tensors()).unwrap();
        let adapter = Adapter::open(folder.path()).unwrap();
        assert!(Adapter::is_one(folder.path()));
        assert_eq!(adapter.config(), &config());
        assert_eq!(adapter.targets().collect::<Vec<_>>(), ["q_proj"]);
        assert_eq!(adapter.whole().collect::<Vec<_>>(), ["lm_head"]);
        assert_eq!(adapter.names().count(), 2);
        assert!(adapter.contains("lm_head.weight") && !adapter.contains("base_model.model.lm_head.weight"));
        let file = SafetensorsFile::open(&folder.path().join(WEIGHTS)).unwrap();
        assert!(file.contains("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"));
    }

    /// As PEFT 0.21 writes it, shortened.
    #[test]
    fn a_configuration_of_peft_is_read() {
        let text = br#"{"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
            "auto_mapping": null, "base_model_name_or_path": null, "bias": "none", "eva_config": null,
            "inference_mode": true, "init_lora_weights": true, "loftq_config": {}, "lora_alpha": 16,
            "lora_dropout": 0.1, "megatron_core": "megatron.core", "modules_to_save": null,
            "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 8,
            "rank_pattern": {}, "target_modules": "all-linear", "use_dora": false, "use_rslora": false}"#;
        let found = PeftConfig::parse(text).unwrap();
        assert_eq!((found.rank, found.alpha, found.dropout, found.rank_stabilised), (8, 16.0, 0.1, false));
        assert!(found.targets.is_empty() && found.whole.is_empty() && found.base_model.is_none());
    }

    #[test]
    fn other_variants_and_damage_are_refused() {
        let with = |changes: Value| {
            let mut fields = config().to_json();
            for (name, value) in changes.as_object().unwrap() {
                fields[name] = value.clone();
            }
            PeftConfig::parse(fields.to_string().as_bytes())
        };
        assert_eq!(with(json!({})).unwrap(), config());
        for (changes, said) in [
            (json!({"use_dora": true}), "use_dora"),
            (json!({"rank_pattern": {"q_proj": 4}}), "rank_pattern"),
            (json!({"bias": "all"}), "bias"),
            (json!({"layers_to_transform": [1]}), "layers_to_transform"),
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights"),
            (json!({"something_of_next_year": 3}), "something_of_next_year"),
            (json!({"peft_type": "IA3"}), "IA3"),
            (json!({"peft_type": null}), "peft_type"),
            (json!({"r": 0}), "rank"),
            (json!({"r": u64::MAX}), "rank"),
            (json!({"r": -1}), "rank"),
            (json!({"lora_alpha": "16"}), "lora_alpha"),
            (json!({"modules_to_save": "lm_head"}), "modules_to_save"),
            (json!({"target_modules": [1]}), "target_modules"),
        ] {
            let error = with(changes.clone()).expect_err(&changes.to_string());
            assert!(error.contains(said) && error.len() < 400, "{error}");
        }
        for text in ["", "[]", "{", "3"] {
            assert!(PeftConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn strange_tensors_are_refused() {
        let refused = |name: &str| {
            let folder = tempfile::tempdir().unwrap();
            let strange = TensorSource::new(name, DType::F32, vec![1], vec![0_u8; 4]);
            write_adapter(folder.path(), &config(), tensors()).unwrap();
            write_safetensors(&folder.path().join(WEIGHTS), [strange], &BTreeMap::new()).unwrap();
            Adapter::open(folder.path()).unwrap_err().to_string()
        };
        assert!(refused("lm_head.weight").contains("named as PEFT"));
        assert!(refused("base_model.model.x.lora_magnitude_vector").contains("variant"));
        assert!(refused("base_model.model.x.bias").contains("not a weight"));
        assert!(refused("base_model.model.lm_head.weight").contains("adapts no layer"));
    }

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Adapter::open(folder.path()).unwrap_err().to_string().contains(CONFIG));
        write_adapter(folder.path(), &config(), tensors()).unwrap();
        std::fs::rename(folder.path().join(WEIGHTS), folder.path().join("adapter_model.bin")).unwrap();
        assert!(Adapter::open(folder.path()).unwrap_err().to_string().contains("adapter_model.bin"));
        std::fs::remove_file(folder.path().join("adapter_model.bin")).unwrap();
        assert!(Adapter::open(folder.path()).unwrap_err().to_string().contains(WEIGHTS));
    }
}
