//! GPT and LLaMA with landmark attention: configuration, weights, memory, training, generation.
