//! The model and its training, as the flags of a run describe them.

use landmark_model::config::ModelConfig;
use landmark_model::model::{CacheShape, Optimizer};
use landmark_model::record::Regularisation;
use landmark_model::released;
use landmark_model::schedule::Schedule;
use landmark_model::train::TrainSettings;

use super::RunArgs;
use crate::args::values::{self, Accumulation, LmCache, Model, OptimizationProcess};
use crate::error::{Error, Result};

/// The model of a run: read from its settings as those of a checkpoint are.
///
/// # Errors
/// Names the setting that no model can have.
pub fn config(run: &RunArgs) -> Result<ModelConfig> {
    let usage =
        |error: released::ReleasedError| Error::Parse { message: error.to_string(), help: String::new() };
    released::config(&run.to_map()).map_err(usage)
}

/// How the run trains.
pub fn training(run: &RunArgs, schedule: Schedule) -> TrainSettings {
    let is_xl = run.optimization_process == OptimizationProcess::TransformerXl;
    let cache = match run.lm_cache {
        LmCache::Kv | LmCache::KvTrain if is_xl => {
            CacheShape::Kv { positions: run.mem_cache_size.unwrap_or(0) }
        }
        _ => CacheShape::None,
    };
    TrainSettings {
        schedule,
        optimizer: match run.opt {
            values::Optimizer::Adamw => {
                Optimizer::AdamW { beta1: run.beta1 as f32, beta2: run.beta2 as f32, eps: 1e-8 }
            }
            values::Optimizer::Sgd => Optimizer::Sgd { momentum: 0.9 },
            values::Optimizer::Adafactor => Optimizer::Adafactor,
        },
        // As released: Adafactor is built without weight decay.
        weight_decay: if run.opt == values::Optimizer::Adafactor { 0.0 } else { run.weight_decay as f32 },
        max_norm: run.grad_clip.map(|norm| norm as f32),
        batch: run.batch_size,
        length: run.sequence_length,
        total_length: match run.total_sequence_length {
            Some(total) if is_xl => total,
            _ => run.sequence_length,
        },
        micro_batches: u32::try_from(run.acc_steps).unwrap_or(u32::MAX),
        mean: run.accumulation == Accumulation::Mean,
        regularisation: Regularisation {
            dropout: run.dropout as f32,
            group_dropout: run.group_dropout.unwrap_or(0.0) as f32,
            gate: if run.model == Model::LandmarkWithCmt {
                run.under_rem_score_prob.unwrap_or(0.0) as f32
            } else {
                0.0
            },
        },
        position_jump: run
            .pos_jump_on_mem
            .and_then(|jump| u32::try_from(jump).ok())
            .filter(|_| run.positional_encoder == values::PositionalEncoder::RotaryMemJump),
        seed: run.seed,
        cache,
        recompute: false,
    }
}
