//! Files that Landmark reads and writes: safetensors, PyTorch checkpoints, event files.
