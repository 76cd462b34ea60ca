//! smol-guest
