//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

/// Role `osc`.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::from(2)
}
