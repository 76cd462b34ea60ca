//! smol-machine
