//! Tensors, ops, recorded programs and the CPU backend of Landmark.
