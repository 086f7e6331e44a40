//! The table of roles: `argv[0]` -> what this process is.
//!
//! One rule besides the table: `osc-X` is `osc X` (`osc-image`, `osc-run`), so that a link is all a subcommand needs
//! to become a command of its own.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

/// A role: the name it answers to, what it is in a few words, and its entry point, which is given the whole of argv.
pub struct Role {
    pub name: &'static str,
    pub what: &'static str,
    pub main: fn(Vec<OsString>) -> ExitCode,
}

/// Every name this binary may be called by.
pub const ROLES: &[Role] = &[
    Role { name: "osc", what: "command line: run, image, check, ...", main: crate::cli::main },
    Role { name: "containerd-shim-kata-v2", what: "a pod's shim (started by containerd and CRI-O)", main: crate::shim::v2::main },
    Role { name: "containerd-shim-kata-remote-v2", what: "the same for peer pods", main: crate::shim::v2::main },
    Role { name: "cloud-api-adaptor", what: "a worker's adaptor: makes the VMs of peer pods", main: |args| command("adaptor", args) },
    Role { name: "agent-protocol-forwarder", what: "a pod VM's forwarder, beside another agent", main: crate::agent::forwarder::main },
    Role { name: "init", what: "PID 1 of a guest: the agent", main: crate::agent::main },
    Role { name: "pause", what: "a pod's own container, where the guest pulls images", main: pause },
    Role { name: "osc-container", what: "first process of a container (started by the agent only)", main: crate::agent::container::main },
];

/// Runs the role that `args[0]` names.
pub fn dispatch(mut args: Vec<OsString>) -> ExitCode {
    pin_name_services();
    let name = args.first().map(|a| base_name(a)).unwrap_or_default();
    if let Some(role) = ROLES.iter().find(|r| r.name == name) {
        // A role need not look for its name in a path.
        args[0] = name.into();
        return (role.main)(args);
    }
    if let Some(sub) = name.strip_prefix("osc-") {
        return command(sub, args);
    }
    eprintln!("osc: called as {name:?}, which is none of its roles:");
    for role in ROLES {
        eprintln!("  {:<28} {}", role.name, role.what);
    }
    eprintln!("  {:<28} the same as `osc X`", "osc-X");
    ExitCode::from(2)
}

/// `osc NAME ...`
fn command(name: &str, mut args: Vec<OsString>) -> ExitCode {
    args[0] = "osc".into();
    args.insert(1, name.into());
    crate::cli::main(args)
}

/// Lasts as long as its pod, whose first process it may be: what nobody waits for ends with no trace.
fn pause(_: Vec<OsString>) -> ExitCode {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    // SAFETY: no handler runs; the kernel reaps the children of who ignores their end.
    let reaped = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
    match reaped.and_then(|_| ends.thread_block()).and_then(|()| ends.wait()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn base_name(arg: &OsStr) -> String {
    std::path::Path::new(arg).file_name().unwrap_or(arg).to_string_lossy().into_owned()
}

/// Keeps a static glibc from loading the root's NSS modules, whose version may differ from ours and crash us.
fn pin_name_services() {
    unsafe extern "C" {
        fn __nss_configure_lookup(db: *const libc::c_char, service: *const libc::c_char) -> libc::c_int;
    }
    for (db, service) in [(c"hosts", c"files dns"), (c"passwd", c"files"), (c"group", c"files")] {
        // SAFETY: both are NUL-terminated constants and no other thread runs yet; glibc copies what it keeps.
        unsafe { __nss_configure_lookup(db.as_ptr(), service.as_ptr()) };
    }
}
