//! The `osc-container` role: one thread, from the agent's spawn to the container's own program.
//!
//! Two processes in turn. The first joins the cgroup and the namespaces and forks; the second is the container's process:
//! it builds the root, becomes who it shall be, says that it is ready, waits, and executes. The order of the steps is runc's.

use std::ffi::{CString, OsString};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use caps::Capability;

use super::setup::{Child, SOCKET, Setup};
use super::{hook, identity, namespaces, program, rootfs, seccomp, terminal};
use crate::rpc::wire::oci::{Linux, Process, Spec};
use crate::rpc::{Code, Status};

/// Role `osc-container`.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    // SAFETY: the agent opened the socket under this number for this process, and nothing else uses it.
    let mut socket = Child(unsafe { UnixStream::from_raw_fd(SOCKET) });
    if let Err(status) = become_container(&mut socket) {
        socket.failed(&status);
    }
    ExitCode::FAILURE
}

fn failed(what: &str, e: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, format!("{what}: {e}"))
}

/// Returns only with what went wrong.
fn become_container(socket: &mut Child) -> Result<(), Status> {
    guard().map_err(|e| failed("osc-container", e))?;
    let mut setup = socket.receive().map_err(|e| failed("specification", e))?;
    let missing = |what: &str| Status::new(Code::InvalidArgument, format!("no {what}"));
    let spec = setup.spec.take().ok_or_else(|| missing("specification"))?;
    let process = setup.process.take().ok_or_else(|| missing("process"))?;
    let linux = spec.linux.clone().unwrap_or_default();

    join_cgroup(&setup)?;
    identity::prioritize(&process)?;
    if setup.exec {
        namespaces::enter_existing(&linux)?
    } else {
        namespaces::enter_new(&linux, setup.join_pid, socket)?
    }
    namespaces::fork_into_pid(socket)?;
    // Also in a session of its own where there is no terminal: a signal to the agent's group is none to the container's.
    let _ = rustix::process::setsid();
    let own_users = namespaces::flags(&linux)? & libc::CLONE_NEWUSER != 0;
    identity::own_keyring(&setup.id, own_users);
    if !setup.exec {
        build(&setup, &spec, &process, &linux, socket)?;
    } else if process.terminal {
        terminal::open(&process, false, socket)?;
    }
    finish(&setup, &spec, &process, &linux, socket)
}

/// What a process between the guest and the container must not give away. Descriptors: none of the agent's and none of ours
/// may reach the program (CVE-2016-9962, CVE-2024-21626). Memory and `/proc/PID`: not for the container's processes to look
/// into or to trace, once this one is in their PID namespace; exec undoes it.
fn guard() -> std::io::Result<()> {
    // SAFETY: numbers only.
    if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    nix::sys::prctl::set_dumpable(false)?;
    let _ = nix::sys::prctl::set_name(c"osc-container");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn join_cgroup(setup: &Setup) -> Result<(), Status> {
    let join =
        |dir: &str| std::fs::write(Path::new(dir).join("cgroup.procs"), "0").map_err(|e| (failed(&format!("join cgroup {dir}"), &e), e));
    if setup.cgroup.is_empty() {
        return Ok(());
    }
    match join(&setup.cgroup) {
        Err((_, e)) if !setup.cgroup_of_first.is_empty() && matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
            join(&setup.cgroup_of_first).map_err(|(status, _)| status)
        }
        joined => joined.map_err(|(status, _)| status),
    }
}

/// The container around its first process.
fn build(setup: &Setup, spec: &Spec, process: &Process, linux: &Linux, socket: &mut Child) -> Result<(), Status> {
    let flags = namespaces::flags(linux)?;
    if flags & libc::CLONE_NEWNS == 0 {
        return Err(Status::new(Code::InvalidArgument, "a container without a mount namespace would change the guest's own mounts"));
    }
    rootfs::prepare(spec, Path::new(&setup.cgroup))?;
    rootfs::enter(spec)?;
    rootfs::reopen_null();
    rootfs::make_cwd(&process.cwd)?;
    if process.terminal {
        terminal::open(process, true, socket)?;
    }
    rootfs::close(spec)?;
    if flags & libc::CLONE_NEWUTS == 0 && !spec.hostname.is_empty() {
        return Err(Status::new(Code::InvalidArgument, "a hostname without a uts namespace would rename the guest"));
    }
    if flags & libc::CLONE_NEWUTS != 0 {
        if !spec.hostname.is_empty() {
            nix::unistd::sethostname(&spec.hostname).map_err(|e| failed(&format!("hostname {}", spec.hostname), e))?;
        }
        if !spec.domainname.is_empty() {
            rustix::system::setdomainname(spec.domainname.as_bytes()).map_err(|e| failed(&format!("domainname {}", spec.domainname), e))?;
        }
    }
    rootfs::finish(spec)
}

/// Everything that is the process's own, the same for a container's first process and an exec.
fn finish(setup: &Setup, spec: &Spec, process: &Process, linux: &Linux, socket: &mut Child) -> Result<(), Status> {
    let user = process.user.clone().unwrap_or_default();
    identity::personality(linux.personality.as_ref().map(|p| p.domain.as_str()).unwrap_or_default())?;
    identity::own_stdio(&user);
    let filter = linux.seccomp.as_ref().map(seccomp::compile).transpose()?.flatten();
    let env = program::environment(process, user.uid)?;
    let nul = |_| Status::new(Code::InvalidArgument, "process.args: a NUL byte");
    let args = process.args.iter().map(|a| CString::new(a.as_str())).collect::<Result<Vec<_>, _>>().map_err(nul)?;
    let sets = identity::sets(process);
    if !sets.unknown.is_empty() {
        socket.warn(&format!("capabilities that this kernel does not know are left out: {}", sets.unknown.join(" ")));
    }
    if process.no_new_privileges {
        identity::no_new_privileges()?;
    }
    // Without no_new_privs a filter can be installed only with this one, which the process itself need not have.
    let keep = (filter.is_some() && !process.no_new_privileges).then_some(Capability::CAP_SYS_ADMIN);
    socket.limit_me().map_err(|e| failed("limits", e))?;
    // First as root: a directory that only root may enter is allowed as a working directory if it is entered before.
    let early = identity::enter_cwd(&process.cwd);
    identity::become_user(&user, &sets, keep)?;
    if early.is_err() {
        identity::enter_cwd(&process.cwd)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
    let program = program::find(&process.args, &env)?;
    socket.ready().map_err(|e| failed("wait for the start", e))?;
    if !setup.exec {
        hook::run_all(spec, &setup.id)?;
    }
    reset_signals();
    // Last, so that a profile need not allow what only we do.
    match (&filter, keep) {
        (Some(filter), Some(keep)) => identity::settle(&sets, keep, || filter.install())?,
        (Some(filter), None) => filter.install()?,
        (None, _) => {}
    }
    Err(program::execute(&program, &args, &env))
}

/// Rust's runtime ignores SIGPIPE; the program starts with the defaults.
fn reset_signals() {
    // SAFETY: sets a default disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
