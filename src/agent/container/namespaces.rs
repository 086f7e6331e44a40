//! Namespaces of a container: joined, made, mapped, and a process forked into the new PID namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::setup::{Child, JOIN};
use crate::rpc::wire::oci::Linux;
use crate::rpc::{Code, Status};

/// (OCI's name, the kernel's flag). In the order in which they are joined: the user namespace owns the others, and with a
/// mount namespace the paths of all that come after would be looked up in it.
const KINDS: [(&str, i32); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("uts", libc::CLONE_NEWUTS),
    ("ipc", libc::CLONE_NEWIPC),
    ("network", libc::CLONE_NEWNET),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", CLONE_NEWTIME),
    ("pid", libc::CLONE_NEWPID),
    ("mount", libc::CLONE_NEWNS),
];

/// linux/sched.h; libc has it as an unsigned constant on some targets only.
const CLONE_NEWTIME: i32 = 0x80;

fn flag(name: &str) -> Result<i32, Status> {
    let kind = KINDS.iter().find(|k| k.0 == name);
    kind.map(|k| k.1).ok_or_else(|| Status::new(Code::InvalidArgument, format!("namespace {name:?} is unknown")))
}

/// The flags of the namespaces that a specification lists.
pub fn flags(linux: &Linux) -> Result<i32, Status> {
    linux.namespaces.iter().try_fold(0, |flags, ns| match flag(&ns.r#type)? {
        flag if flags & flag != 0 => Err(Status::new(Code::InvalidArgument, format!("namespace {:?} is listed twice", ns.r#type))),
        flag => Ok(flags | flag),
    })
}

/// Enters the namespaces of a new container, all but PID and time, which the next fork enters.
///
/// A path is one of the guest. The IPC namespace is the guest's own, which is the pod's: its containers share it, and a stock
/// shim lists it for each of them without a path. Only with a user namespace it is new, since what is mounted of it there
/// must belong to that.
pub fn enter_new(linux: &Linux, join_pid: bool, socket: &mut Child) -> Result<(), Status> {
    let mut new = flags(linux)?;
    if new & libc::CLONE_NEWUSER == 0 && linux.namespaces.iter().any(|n| n.r#type == "ipc" && n.path.is_empty()) {
        new &= !libc::CLONE_NEWIPC;
    }
    let mut given = Vec::new();
    for ns in linux.namespaces.iter().filter(|n| !n.path.is_empty()) {
        let file = File::open(&ns.path).map_err(|e| failed(&format!("namespace {} {}", ns.r#type, ns.path), e))?;
        given.push((flag(&ns.r#type)?, ns, file));
        new &= !flag(&ns.r#type)?;
    }
    given.sort_by_key(|(flag, ..)| KINDS.iter().position(|k| k.1 == *flag));
    if new & libc::CLONE_NEWUSER != 0 {
        unshare(libc::CLONE_NEWUSER)?;
        socket.map_me().map_err(|e| failed("map users", e))?;
        become_root()?;
        // A change of ids gives /proc/self to root of the guest, who this is no longer.
        let _ = nix::sys::prctl::set_dumpable(true);
        new &= !libc::CLONE_NEWUSER;
    }
    for (flag, ns, file) in &given {
        join(file, *flag).map_err(|e| failed(&format!("join namespace {} {}", ns.r#type, ns.path), e))?;
        if *flag == libc::CLONE_NEWUSER {
            become_root()?;
        }
    }
    if join_pid {
        // SAFETY: the agent gave this process the descriptor under this number and nothing closes it before exec.
        let pid_ns = unsafe { BorrowedFd::borrow_raw(JOIN) };
        join(&pid_ns, libc::CLONE_NEWPID).map_err(|e| failed("join the pod's PID namespace", e))?;
        new &= !libc::CLONE_NEWPID;
    }
    unshare(new)?;
    if new & libc::CLONE_NEWNET != 0 {
        crate::agent::boot::loopback_up().map_err(|e| failed("loopback", e))?;
    }
    if new & CLONE_NEWTIME != 0 {
        let offsets: String = linux.time_offsets.iter().map(|(clock, o)| format!("{clock} {} {}\n", o.secs, o.nanosecs)).collect();
        if !offsets.is_empty() {
            fs::write("/proc/self/timens_offsets", offsets).map_err(|e| failed("time offsets", e))?;
        }
    }
    Ok(())
}

/// Enters every namespace that a running container has of its own, or shares with the pod.
pub fn enter_existing(linux: &Linux) -> Result<(), Status> {
    // Always the PID namespace: it may be the pod's, which the specification does not list.
    let wanted = flags(linux)? | libc::CLONE_NEWPID;
    // SAFETY: as in `enter_new`.
    let pidfd = unsafe { BorrowedFd::borrow_raw(JOIN) };
    join(&pidfd, wanted).map_err(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => Status::new(Code::FailedPrecondition, "the container has ended"),
        _ => failed("join the container's namespaces", e),
    })?;
    if wanted & libc::CLONE_NEWUSER != 0 {
        become_root()?;
    }
    Ok(())
}

/// Forks; the parent tells the agent the child's pid and ends. Returns in the child, once the agent knows it: it could
/// otherwise be ahead of its parent's words, and its limits would be set to the wrong process.
pub fn fork_into_pid(socket: &mut Child) -> Result<(), Status> {
    // SAFETY: this process has one thread; the child goes on in this very program.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork", io::Error::last_os_error())),
        0 => socket.known().map_err(|e| failed("wait to be known", e)),
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

fn join(fd: &impl AsRawFd, flags: i32) -> io::Result<()> {
    // SAFETY: a system call on a descriptor that the caller holds.
    if unsafe { libc::setns(fd.as_raw_fd(), flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn failed(what: &str, e: io::Error) -> Status {
    Status::new(Code::Internal, format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::LinuxNamespace;

    #[test]
    fn names_become_flags_and_what_makes_no_sense_is_refused() {
        let linux = |names: &[&str]| Linux {
            namespaces: names.iter().map(|n| LinuxNamespace { r#type: n.to_string(), ..Default::default() }).collect(),
            ..Default::default()
        };
        assert_eq!(flags(&linux(&["pid", "mount"])).unwrap(), libc::CLONE_NEWPID | libc::CLONE_NEWNS);
        assert_eq!(flags(&linux(&["pidd"])).unwrap_err().code, Code::InvalidArgument);
        assert_eq!(flags(&linux(&["pid", "pid"])).unwrap_err().code, Code::InvalidArgument);
    }
}
