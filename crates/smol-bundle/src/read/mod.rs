//! From a bundle back to images; nothing is used before it is verified.
//!
//! | module | purpose |
//! |---|---|
//! | `bundle` | opens a bundle, and answers what is in it |
//! | `archive`, `structure` | the rules that opening checks: the tar's form, and how its parts agree |
//! | `extract` | frames back to images |
//! | `verify` | every byte |

mod archive;
pub(crate) mod bundle;
pub(crate) mod extract;
#[cfg(test)]
mod hostile;
mod structure;
mod verify;
