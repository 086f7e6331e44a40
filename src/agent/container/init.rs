//! The `osc-container` role: one thread, from the agent's spawn to the container's own program.
//!
//! Two processes in turn. The first joins the cgroup and the namespaces and forks; the second is the container's process:
//! it builds the root, becomes who it shall be, says that it is ready, waits, and executes.

use std::ffi::{CString, OsString};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use super::setup::{Child, SOCKET, Setup};
use super::{identity, namespaces, rootfs, seccomp, terminal};
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
    close_on_exec().map_err(|e| failed("descriptors", e))?;
    let setup = socket.receive().map_err(|e| failed("specification", e))?;
    let missing = |what: &str| Status::new(Code::InvalidArgument, format!("no {what}"));
    let spec = setup.spec.clone().ok_or_else(|| missing("specification"))?;
    let process = setup.process.clone().ok_or_else(|| missing("process"))?;
    let linux = spec.linux.clone().unwrap_or_default();

    if !setup.cgroup.is_empty() {
        let procs = Path::new(&setup.cgroup).join("cgroup.procs");
        std::fs::write(&procs, "0").map_err(|e| failed(&format!("join {}", procs.display()), e))?;
    }
    identity::limit(&process)?;
    if setup.exec {
        namespaces::enter_existing(&linux)?
    } else {
        namespaces::enter_new(&linux, setup.join_pid, socket)?
    }
    namespaces::fork_into_pid(socket)?;
    // Also in a session of its own where there is no terminal: a signal to the agent's group is none to the container's.
    let _ = rustix::process::setsid();
    if !setup.exec {
        build(&setup, &spec, &process, &linux, socket)?;
    } else if process.terminal {
        terminal::open(&process, false, socket)?;
    }
    finish(&process, &linux, spec.hooks.map(|h| h.start_container).unwrap_or_default(), &setup.id, setup.exec, socket)
}

/// The container around its first process.
fn build(setup: &Setup, spec: &Spec, process: &Process, linux: &Linux, socket: &mut Child) -> Result<(), Status> {
    let flags = namespaces::flags(linux)?;
    if flags & libc::CLONE_NEWNS == 0 {
        return Err(Status::new(Code::InvalidArgument, "a container without a mount namespace would change the guest's own mounts"));
    }
    rootfs::prepare(spec, Path::new(&setup.cgroup))?;
    rootfs::enter(spec)?;
    if process.terminal {
        terminal::open(process, true, socket)?;
    }
    if flags & libc::CLONE_NEWUTS == 0 && !spec.hostname.is_empty() {
        return Err(Status::new(Code::InvalidArgument, "a hostname without a uts namespace would rename the guest"));
    }
    if flags & libc::CLONE_NEWUTS != 0 {
        if !spec.hostname.is_empty() {
            nix::unistd::sethostname(&spec.hostname).map_err(|e| failed(&format!("hostname {}", spec.hostname), e))?;
        }
        if !spec.domainname.is_empty() {
            // SAFETY: a string of the length we state.
            let r = unsafe { libc::setdomainname(spec.domainname.as_ptr().cast(), spec.domainname.len()) };
            if r != 0 {
                return Err(failed(&format!("domainname {}", spec.domainname), std::io::Error::last_os_error()));
            }
        }
    }
    rootfs::finish(spec)
}

/// Everything that is the process's own, the same for a container's first process and an exec.
fn finish(
    process: &Process,
    linux: &Linux,
    hooks: Vec<crate::rpc::wire::oci::Hook>,
    id: &str,
    exec: bool,
    socket: &mut Child,
) -> Result<(), Status> {
    let user = process.user.clone().unwrap_or_default();
    // A keyring of its own: the session's keys of whoever came before are none of its business. A kernel without keys is fine.
    // SAFETY: keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL): numbers only.
    unsafe { libc::syscall(libc::SYS_keyctl, 1, 0) };
    identity::personality(linux.personality.as_ref().map(|p| p.domain.as_str()).unwrap_or_default())?;
    identity::own_stdio(&user);
    let filter = linux.seccomp.as_ref().map(seccomp::compile).transpose()?.flatten();
    if process.no_new_privileges {
        identity::no_new_privileges()?;
    } else if let Some(filter) = &filter {
        // Without no_new_privs the filter needs a privilege that goes with the capabilities.
        filter.install()?;
    }
    let env = environment(process, user.uid);
    // First as root: a directory that only root may enter is allowed as a working directory if it is entered before.
    let early = identity::enter_cwd(&process.cwd);
    identity::become_user(process)?;
    if early.is_err() {
        identity::enter_cwd(&process.cwd)?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
    let program = find_program(&process.args, &env)?;
    socket.ready().map_err(|e| failed("wait for the start", e))?;
    if !exec {
        for hook in &hooks {
            super::init::hook(hook, id)?;
        }
    }
    if let (true, Some(filter)) = (process.no_new_privileges, &filter) {
        filter.install()?;
    }
    execute(&program, &process.args, &env)
}

/// Nothing that the agent had open, and nothing of ours, may reach the program (CVE-2016-9962, CVE-2024-21626).
fn close_on_exec() -> std::io::Result<()> {
    // SAFETY: numbers only.
    let r = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if r == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The process's own variables, with HOME where it has none.
fn environment(process: &Process, uid: u32) -> Vec<CString> {
    let mut env: Vec<CString> = process.env.iter().filter_map(|v| CString::new(v.as_str()).ok()).collect();
    if !process.env.iter().any(|v| v.starts_with("HOME=") && v.len() > "HOME=".len()) {
        env.retain(|v| !v.to_bytes().starts_with(b"HOME="));
        env.extend(CString::new(format!("HOME={}", identity::home(uid))));
    }
    env
}

/// Finds the program as execvp would, and says what a shell would say when it is not there.
fn find_program(args: &[String], env: &[CString]) -> Result<CString, Status> {
    let name = args.first().filter(|a| !a.is_empty()).ok_or_else(|| Status::new(Code::InvalidArgument, "no program to execute"))?;
    let candidates: Vec<String> = if name.contains('/') {
        vec![name.clone()]
    } else {
        let path = env.iter().find_map(|v| v.to_str().ok()?.strip_prefix("PATH=")).unwrap_or_default();
        path.split(':').map(|dir| format!("{}/{name}", if dir.is_empty() { "." } else { dir })).collect()
    };
    let mut refused = None;
    for candidate in candidates {
        match rustix::fs::stat(&candidate) {
            Ok(s) if rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory => {
                refused = Some(format!("{candidate}: is a directory"))
            }
            Ok(_) if rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_err() => {
                refused = Some(format!("{candidate}: permission denied"))
            }
            Ok(_) => return CString::new(candidate).map_err(|e| failed("program", e)),
            Err(rustix::io::Errno::ACCESS) => refused = Some(format!("{candidate}: permission denied")),
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(why) => Status::new(Code::PermissionDenied, format!("exec {name:?}: {why}")),
        None if name.contains('/') => Status::new(Code::NotFound, format!("exec {name:?}: no such file")),
        None => Status::new(Code::NotFound, format!("exec {name:?}: executable file not found in $PATH")),
    })
}

fn execute(program: &CString, args: &[String], env: &[CString]) -> Result<(), Status> {
    let args: Vec<CString> = args.iter().filter_map(|a| CString::new(a.as_str()).ok()).collect();
    reset_signals();
    let Err(e) = nix::unistd::execve(program, &args, env);
    let code = match e {
        nix::Error::ENOENT | nix::Error::ENOTDIR => Code::NotFound,
        _ => Code::PermissionDenied,
    };
    Err(Status::new(code, format!("exec {}: {}", program.to_string_lossy(), e.desc())))
}

/// Rust's runtime ignores SIGPIPE; the program starts with the defaults.
fn reset_signals() {
    // SAFETY: sets a default disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A startContainer hook: in the container, before its program, with the container's state on stdin.
fn hook(hook: &crate::rpc::wire::oci::Hook, id: &str) -> Result<(), Status> {
    use std::io::Write;
    let name = || format!("startContainer hook {}", hook.path);
    let (stdin, mut to_hook) = crate::process::pipe().map_err(|e| failed(&name(), e))?;
    let mut spawn = crate::process::Spawn::new(&hook.path).fd(stdin, 0);
    if let Some(arg0) = hook.args.first() {
        spawn = spawn.arg0(arg0).args(&hook.args[1..]);
    }
    spawn.env = Some(hook.env.iter().filter_map(|v| CString::new(v.as_str()).ok()).collect());
    let child = spawn.start().map_err(|e| failed(&name(), e))?;
    let state = serde_json::json!({"ociVersion": "1.0.2", "id": id, "status": "created", "pid": std::process::id(), "bundle": "/"});
    let _ = to_hook.write_all(state.to_string().as_bytes());
    drop(to_hook);
    let limit = u64::try_from(hook.timeout).ok().filter(|&t| t > 0).map(std::time::Duration::from_secs);
    match child.wait_within(limit).map_err(|e| failed(&name(), e))? {
        Some(crate::process::Ended::Exited(0)) => Ok(()),
        Some(ended) => Err(failed(&name(), ended)),
        None => {
            child.signal(libc::SIGKILL);
            let _ = child.wait();
            Err(failed(&name(), "took longer than its timeout"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> Result<CString, Code> {
        let env = [CString::from(c"PATH=/no/such:/bin:/usr/bin")];
        find_program(&[name.to_owned()], &env).map_err(|s| s.code)
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert_eq!(find("sh").unwrap().to_str().unwrap(), "/bin/sh");
        assert_eq!(find("/bin/sh").unwrap().to_str().unwrap(), "/bin/sh");
        assert_eq!(find("no-such-program"), Err(Code::NotFound));
        assert_eq!(find("/no/such/program"), Err(Code::NotFound));
        assert_eq!(find("/etc"), Err(Code::PermissionDenied));
        assert_eq!(find(""), Err(Code::InvalidArgument));
    }
}
