//! Looking into the memory of a machine that stands still: whose is this page?
//!
//! | module | |
//! |---|---|
//! | [`ram`] | memory by physical and by virtual address |
//! | [`kallsyms`] | the kernel's symbols |
//! | [`layout`] | the table by which our kernels tell where things are |
//! | [`names`], [`tasks`] | files, slab caches, tasks, processes |
//! | [`owner`] | all of it, asked page by page |

pub mod kallsyms;
pub mod layout;
pub mod names;
pub mod owner;
pub mod ram;
pub mod tasks;
