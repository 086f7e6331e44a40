//! The guest: PID 1, containers, storage, hotplug. Knows neither the shim nor the VM it runs in.

pub mod container;

use std::ffi::OsString;
use std::process::ExitCode;

/// Role `init`.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::from(2)
}
