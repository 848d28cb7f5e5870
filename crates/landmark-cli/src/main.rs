//! The landmark command.
fn main() {}
