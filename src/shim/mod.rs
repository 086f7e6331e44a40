//! Faces of a pod: the Task API, `osc run`, and the commands that look at sandboxes. Each only translates to [`sandbox`].

pub mod check;
pub mod ctl;
pub mod direct_volume;
pub mod image;
pub mod install;
pub mod monitor;
pub mod progress;
pub mod pull;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod stats;
pub mod stdio;
pub mod task;
pub mod v2;

/// The Task API of every sandbox, in its state directory: what `osc exec`, `logs` and `stop` dial, whoever started it.
pub const SOCKET: &str = "shim.sock";
