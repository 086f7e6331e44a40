//! A container in the guest.

use std::ffi::OsString;
use std::process::ExitCode;

/// Role `osc-container`: becomes a container's first process.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::from(2)
}
