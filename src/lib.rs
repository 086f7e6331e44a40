//! osc: every pod in its own virtual machine.
//!
//! Imports point down this list and never back:
//!
//! ```text
//! shim    faces of a pod: Task API, sandbox API, `osc run`; shim::sandbox is THE pod
//! vm      a VM: start it, dial it, resize it, plug into it, lose it
//! agent   the guest: PID 1, containers, storage, hotplug   (knows neither shim nor vm)
//! net     netlink verbs, endpoints
//! fs      mounts, share, virtiofsd, guest images, container images
//! rpc     ttrpc over any byte stream, stream mux, wire messages
//! ```
//!
//! Cross-cutting files sit beside this one: [`error`], [`log`], [`process`], [`thread`], [`role`], [`cli`].

pub mod agent;
pub mod cli;
pub mod config;
pub mod error;
pub mod fs;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod process;
pub mod role;
pub mod rpc;
pub mod shim;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod tool;
pub mod vm;
pub mod watch;

/// `0.1.0 (1234567890ab)`: what `--version` prints and what the record and the agent's details carry.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("OSC_COMMIT"), ")");
