//! Gradients of every op against central finite differences in f64, each check with bugs that turn it red.

mod attention;
mod layers;
mod rig;
mod whole;
