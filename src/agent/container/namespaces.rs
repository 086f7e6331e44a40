//! Namespaces of a container: joined, made, mapped, and a process forked into the new PID namespace.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use super::setup::{Child, JOIN};
use crate::rpc::wire::oci::Linux;
use crate::rpc::{Code, Status};

/// (OCI's name, the kernel's flag)
const KINDS: [(&str, i32); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("mount", libc::CLONE_NEWNS),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("network", libc::CLONE_NEWNET),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", CLONE_NEWTIME),
    ("pid", libc::CLONE_NEWPID),
];

/// linux/sched.h; libc has it as an unsigned constant on some targets only.
const CLONE_NEWTIME: i32 = 0x80;

/// The flags of the namespaces that a specification lists.
pub fn flags(linux: &Linux) -> Result<i32, Status> {
    linux.namespaces.iter().try_fold(0, |flags, ns| match KINDS.iter().find(|k| k.0 == ns.r#type) {
        Some(kind) => Ok(flags | kind.1),
        None => Err(Status::new(Code::InvalidArgument, format!("namespace {:?} is unknown", ns.r#type))),
    })
}

/// Enters the namespaces of a new container, all but PID, which the next fork enters. The user namespace goes first: it
/// owns the others.
pub fn enter_new(linux: &Linux, join_pid: bool, socket: &mut Child) -> Result<(), Status> {
    let mut wanted = flags(linux)?;
    if wanted & libc::CLONE_NEWUSER != 0 {
        unshare(libc::CLONE_NEWUSER)?;
        socket.map_me().map_err(|e| failed("map users", e))?;
        become_root()?;
        wanted &= !libc::CLONE_NEWUSER;
    }
    if join_pid {
        // SAFETY: the agent gave this process the descriptor under this number and nothing closes it before exec.
        let pid_ns = unsafe { BorrowedFd::borrow_raw(JOIN) };
        set_ns(pid_ns, libc::CLONE_NEWPID).map_err(|e| failed("join the pod's PID namespace", e))?;
        wanted &= !libc::CLONE_NEWPID;
    }
    unshare(wanted)?;
    if wanted & CLONE_NEWTIME != 0 {
        let offsets: String = linux.time_offsets.iter().map(|(clock, o)| format!("{clock} {} {}\n", o.secs, o.nanosecs)).collect();
        if !offsets.is_empty() {
            fs::write("/proc/self/timens_offsets", offsets).map_err(|e| failed("time offsets", e))?;
        }
    }
    Ok(())
}

/// Enters every namespace that a running container has of its own.
pub fn enter_existing(linux: &Linux) -> Result<(), Status> {
    let wanted = flags(linux)? & !CLONE_NEWTIME;
    if wanted == 0 {
        return Ok(());
    }
    // SAFETY: as in `enter_new`.
    let pidfd = unsafe { BorrowedFd::borrow_raw(JOIN) };
    set_ns(pidfd, wanted).map_err(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => Status::new(Code::FailedPrecondition, "the container has ended"),
        _ => failed("join the container's namespaces", e),
    })?;
    if wanted & libc::CLONE_NEWUSER != 0 {
        become_root()?;
    }
    Ok(())
}

/// Forks; the parent tells the agent the child's pid and ends. Returns in the child.
pub fn fork_into_pid(socket: &mut Child) -> Result<(), Status> {
    // SAFETY: this process has one thread; the child goes on in this very program.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork", io::Error::last_os_error())),
        0 => Ok(()),
        pid => {
            let told = socket.pid(pid);
            // Left to PID 1, the agent, which has been told.
            std::process::exit(if told.is_ok() { 0 } else { 1 })
        }
    }
}

/// In a new user namespace this process has every capability and still the ids of before, which may not be mapped.
fn become_root() -> Result<(), Status> {
    let all = |e: nix::Error| failed("become root of the user namespace", e.into());
    nix::unistd::setresgid(0.into(), 0.into(), 0.into()).map_err(all)?;
    nix::unistd::setresuid(0.into(), 0.into(), 0.into()).map_err(all)?;
    // Where gid_map was written without privilege, setgroups stays denied: then there are no groups to drop either.
    let _ = nix::unistd::setgroups(&[]);
    // A change of ids makes /proc/self root's of the host; being dumpable gives it back.
    let _ = nix::sys::prctl::set_dumpable(true);
    Ok(())
}

fn unshare(flags: i32) -> Result<(), Status> {
    // SAFETY: a system call without pointers.
    if flags == 0 || unsafe { libc::unshare(flags) } == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    let names: Vec<&str> = KINDS.iter().filter(|k| flags & k.1 != 0).map(|k| k.0).collect();
    Err(failed(&format!("new namespaces ({})", names.join(", ")), e))
}

fn set_ns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let raw: RawFd = fd.as_raw_fd();
    // SAFETY: a system call on a descriptor that the caller holds.
    if unsafe { libc::setns(raw, flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn failed(what: &str, e: io::Error) -> Status {
    Status::new(Code::Internal, format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::LinuxNamespace;

    #[test]
    fn names_become_flags_and_an_unknown_one_is_refused() {
        let linux = |names: &[&str]| Linux {
            namespaces: names.iter().map(|n| LinuxNamespace { r#type: n.to_string(), ..Default::default() }).collect(),
            ..Default::default()
        };
        assert_eq!(flags(&linux(&["pid", "mount"])).unwrap(), libc::CLONE_NEWPID | libc::CLONE_NEWNS);
        assert_eq!(flags(&linux(&["pidd"])).unwrap_err().code, Code::InvalidArgument);
    }
}
