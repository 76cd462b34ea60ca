//! smolbuild
fn main() {}
