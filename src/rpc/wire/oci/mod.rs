//! The OCI runtime specification, both as the agent protocol carries it (package `grpc`) and as `config.json` has it.
//!
//! One set of structs for both, so that what a manager writes reaches the guest without a translation that could lose
//! something. What OCI has and the wire lacks sits in fields numbered from 1000, which a stock peer ignores. The wire cannot tell
//! "unset" from zero, and nor can these structs, except where zero would mean something: there the field is an `Option`.
//!
//! JSON: fields we do not know are ignored, and `null` stands for "unset" everywhere, since Go writes it for empty lists.

mod json;
mod linux;
mod process;
mod resources;
mod seccomp;

pub use linux::*;
pub use process::*;
pub use resources::*;
pub use seccomp::*;

/// A major or minor number that a device rule does not name: every device.
pub const ANY_NUMBER: i64 = -1;

#[cfg(test)]
mod tests;
