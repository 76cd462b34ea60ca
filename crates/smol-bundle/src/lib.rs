//! smol-bundle
