//! Settings under a name, for models whose files do not say them.
//!
//! The weights published with the paper (`llama_legacy`) have a plain LLaMA configuration: nothing in their files says
//! that there are landmarks, how long blocks are, or how the model is to be asked. `paper` does.

use crate::config::{Attention, ConfigError, ModelConfig};
use crate::record::Granularity;

/// What a model's own files may leave open.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Id of the landmark token.
    pub landmark_id: u32,
    /// Ordinary tokens of a block.
    pub mem_freq: usize,
    /// Trained context, in positions with landmarks.
    pub context: usize,
    /// Whether landmarks were part of the loss.
    pub landmark_in_loss: bool,
    /// Ordinary tokens read at once.
    pub chunk: usize,
    /// Blocks retrieved.
    pub top_k: usize,
    /// For whom blocks are chosen.
    pub selection: Granularity,
    /// The sum of all weights, by which a recovered copy is checked.
    pub checksum: f64,
}

/// The fine-tuned LLaMA 7B of the paper, as it was published and tested in 2023.
pub const PAPER: Preset = Preset {
    name: "paper",
    landmark_id: 32_001,
    mem_freq: 50,
    context: 512,
    landmark_in_loss: true,
    chunk: 255,
    top_k: 5,
    selection: Granularity::PerTokenAndHead,
    checksum: 49_798.765_6,
};

impl Preset {
    /// All presets.
    pub const ALL: [Preset; 1] = [PAPER];

    /// The preset of this name.
    pub fn named(name: &str) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.name == name)
    }

    /// A model with landmarks from one whose configuration says nothing of them.
    ///
    /// # Errors
    /// [`ConfigError::Landmark`] if the vocabulary lacks the token.
    pub fn apply(&self, config: ModelConfig) -> Result<ModelConfig, ConfigError> {
        let config = ModelConfig {
            attention: Attention::Landmark,
            landmark_id: self.landmark_id,
            mem_freq: Some(self.mem_freq),
            landmark_in_loss: self.landmark_in_loss,
            context: self.context,
            ..config
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_needs_its_token() {
        let paper = Preset::named("paper").unwrap();
        assert_eq!(Preset::named("papers"), None);
        let plain = |vocab| ModelConfig::gpt(vocab, 16, 1, 2, Attention::Plain);
        assert!(matches!(paper.apply(plain(32_000)), Err(ConfigError::Landmark { landmark: 32_001, .. })));
        let config = paper.apply(plain(32_002)).unwrap();
        assert_eq!(
            (config.attention, config.landmark_id, config.mem_freq),
            (Attention::Landmark, 32_001, Some(50))
        );
        assert_eq!((config.context, config.landmark_in_loss), (512, true));
    }
}
