//! smolrun
fn main() {}
