//! smol-host
