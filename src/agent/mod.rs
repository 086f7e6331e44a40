//! The guest: PID 1, containers, storage, hotplug. Knows neither the shim nor the VM it runs in.

pub mod container;
pub mod reaper;
#[cfg(test)]
pub mod testing;

use std::ffi::OsString;
use std::process::ExitCode;

/// Role `init`.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::from(2)
}
