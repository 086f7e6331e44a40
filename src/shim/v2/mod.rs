//! `containerd-shim-kata-v2`: the process that a container manager starts for each pod.
//!
//! | file | what it does |
//! | --- | --- |
//! | `flags` | the command line |
//! | `start` | `start`: a daemon for a new pod, or the address of the one that has it |
//! | `delete` | `delete`: what a dead shim left goes |
//! | `pod` | what a specification says of the pod: which sandbox, which network namespace |
//! | `shim` | the daemon: makes the sandbox at the first Create |
//! | `sandbox_api` | containerd 2.x's Sandbox service over the same sandbox |
//! | `events` | events to the manager |
//! | `features` | what the runtime can do, for `features` and `-info` |

mod delete;
mod events;
mod features;
mod flags;
mod netns;
mod pod;
mod sandbox_api;
mod shim;
mod start;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use flags::{Action, Flags};

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;

/// Roles `containerd-shim-kata-v2` and `containerd-shim-kata-remote-v2`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let name = args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let result = Flags::parse(args.into_iter().skip(1))
        .map_err(|e| Failure::new(Stage::Request, e).code(Code::InvalidArgument))
        .and_then(|flags| act(&name, &flags));
    match result {
        Ok(answer) => {
            let mut out = std::io::stdout().lock();
            if out.write_all(&answer).and_then(|()| out.flush()).is_err() {
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            // A manager shows it to its user as it is.
            eprintln!("{name}: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What goes to stdout.
fn act(name: &str, flags: &Flags) -> Result<Vec<u8>> {
    match flags.action {
        Action::Version => Ok(format!("{name} {}\n", crate::VERSION).into_bytes()),
        Action::Features => Ok(features::json().into_bytes()),
        Action::Info => Ok(features::info(name)),
        Action::Start => start::start(name, flags).map(String::into_bytes),
        Action::Delete => delete::delete(flags),
        Action::Serve => shim::serve(name, flags).map(|()| Vec::new()),
    }
}
