//! smol-cli
