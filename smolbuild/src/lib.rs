//! smolbuild: from a Smolfile to a bundle.

pub mod assemble;
pub mod plan;
pub mod smolfile;
