//! Who the process is when its program starts: limits, user, groups, capabilities, umask, and the place it starts in.

use std::io;
use std::io::Read;

use caps::{CapSet, Capability, CapsHashSet};

use super::path::Root;
use crate::rpc::wire::oci::{PosixRlimit, Process, User};
use crate::rpc::{Code, Status};

fn failed(what: &str, e: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, format!("{what}: {e}"))
}

fn invalid(text: String) -> Status {
    Status::new(Code::InvalidArgument, text)
}

/// (OCI's name, the kernel's number): every limit of setrlimit(2).
const LIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", libc::RLIMIT_CPU),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
    ("RLIMIT_DATA", libc::RLIMIT_DATA),
    ("RLIMIT_STACK", libc::RLIMIT_STACK),
    ("RLIMIT_CORE", libc::RLIMIT_CORE),
    ("RLIMIT_RSS", libc::RLIMIT_RSS),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("RLIMIT_AS", libc::RLIMIT_AS),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", libc::RLIMIT_NICE),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
];

/// The limits of `process` as the kernel has them.
pub fn limits(process: &Process) -> Result<Vec<(u32, libc::rlimit)>, Status> {
    let known = |name: &str| LIMITS.iter().find(|k| k.0 == name).ok_or_else(|| invalid(format!("rlimit {name:?} is unknown")));
    let limit = |l: &PosixRlimit| Ok((known(&l.r#type)?.1, libc::rlimit { rlim_cur: l.soft, rlim_max: l.hard }));
    process.rlimits.iter().map(limit).collect()
}

/// Sets them on a process that has all set up and is still root: earlier, they would hinder it; and from outside, since in a user
/// namespace nobody may raise them.
pub fn set_limits(pid: i32, limits: &[(u32, libc::rlimit)]) -> Result<(), Status> {
    for (number, value) in limits {
        // SAFETY: a structure of ours that the kernel only reads.
        if unsafe { libc::prlimit(pid, *number, value, std::ptr::null_mut()) } != 0 {
            let e = io::Error::last_os_error();
            let name = LIMITS.iter().find(|k| k.1 == *number).map(|k| k.0).unwrap_or_default();
            return Err(invalid(format!("rlimit {name} {}:{}: {e}", value.rlim_cur, value.rlim_max)));
        }
    }
    Ok(())
}

/// Scores and priorities that need the guest's privileges: before a user namespace is entered.
pub fn prioritize(process: &Process) -> Result<(), Status> {
    let score = std::fs::write("/proc/self/oom_score_adj", process.oom_score_adj.to_string());
    if process.oom_score_adj != 0 {
        score.map_err(|e| failed(&format!("oomScoreAdj {}", process.oom_score_adj), e))?;
    }
    schedule(process)
}

/// Scheduling policy and I/O priority, by the raw calls: glibc has no wrappers.
fn schedule(process: &Process) -> Result<(), Status> {
    if let Some(io_priority) = &process.io_priority {
        const CLASSES: [&str; 4] = ["IOPRIO_CLASS_NONE", "IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"];
        let class = CLASSES
            .iter()
            .position(|c| *c == io_priority.class)
            .ok_or_else(|| invalid(format!("ioPriority class {:?}", io_priority.class)))?;
        let value = (class << 13) as i32 | io_priority.priority;
        // SAFETY: ioprio_set(IOPRIO_WHO_PROCESS, self, value): numbers only.
        if unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, value) } != 0 {
            return Err(failed("ioPriority", io::Error::last_os_error()));
        }
    }
    let Some(s) = &process.scheduler else { return Ok(()) };
    const POLICIES: [(&str, u32); 6] =
        [("SCHED_OTHER", 0), ("SCHED_FIFO", 1), ("SCHED_RR", 2), ("SCHED_BATCH", 3), ("SCHED_IDLE", 5), ("SCHED_DEADLINE", 6)];
    const FLAGS: [(&str, u64); 7] = [
        ("SCHED_FLAG_RESET_ON_FORK", 1),
        ("SCHED_FLAG_RECLAIM", 2),
        ("SCHED_FLAG_DL_OVERRUN", 4),
        ("SCHED_FLAG_KEEP_POLICY", 8),
        ("SCHED_FLAG_KEEP_PARAMS", 16),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", 32),
        ("SCHED_FLAG_UTIL_CLAMP_MAX", 64),
    ];
    let policy = POLICIES.iter().find(|p| p.0 == s.policy).ok_or_else(|| invalid(format!("scheduler policy {:?}", s.policy)))?.1;
    let flags = s.flags.iter().try_fold(0, |all, f| match FLAGS.iter().find(|k| k.0 == f) {
        Some(k) => Ok(all | k.1),
        None => Err(invalid(format!("scheduler flag {f:?}"))),
    })?;
    /// linux/sched/types.h, version 0.
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy,
        flags,
        nice: s.nice,
        priority: s.priority as u32,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
    };
    // SAFETY: a structure of the size it states, which the kernel only reads.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0) } != 0 {
        return Err(failed(&format!("scheduler {}", s.policy), io::Error::last_os_error()));
    }
    Ok(())
}

/// personality(2): `LINUX` or `LINUX32`.
pub fn personality(domain: &str) -> Result<(), Status> {
    const PER_LINUX32: libc::c_ulong = 8;
    let value = match domain {
        "" | "LINUX" => return Ok(()),
        "LINUX32" => PER_LINUX32,
        other => return Err(invalid(format!("personality {other:?} is unknown"))),
    };
    // SAFETY: numbers only.
    if unsafe { libc::personality(value) } < 0 { Err(failed("personality", io::Error::last_os_error())) } else { Ok(()) }
}

pub fn no_new_privileges() -> Result<(), Status> {
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("noNewPrivileges", e))
}

/// The five sets that a process shall have.
pub struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
    /// Names that this kernel does not know: such a capability cannot be given, the others are.
    pub unknown: Vec<String>,
}

pub fn sets(process: &Process) -> Sets {
    let c = process.capabilities.clone().unwrap_or_default();
    let mut unknown = Vec::new();
    let mut set = |names: &[String]| {
        let (known, strange): (Vec<_>, Vec<_>) = names.iter().map(|n| n.parse::<Capability>().map_err(|_| n)).partition(Result::is_ok);
        unknown.extend(strange.into_iter().filter_map(Result::err).cloned());
        known.into_iter().flatten().collect()
    };
    let (bounding, effective, permitted) = (set(&c.bounding), set(&c.effective), set(&c.permitted));
    let (inheritable, ambient) = (set(&c.inheritable), set(&c.ambient));
    unknown.sort();
    unknown.dedup();
    Sets { bounding, effective, permitted, inheritable, ambient, unknown }
}

/// Becomes the process's user, in the one order that works: the bounding set while it may be changed, then the ids with the
/// permitted set kept, then the sets. `keep` stays permitted, and no more than that, until [`settle`].
pub fn become_user(user: &User, sets: &Sets, keep: Option<Capability>) -> Result<(), Status> {
    for cap in caps::read(None, CapSet::Bounding).map_err(caps_failed("bounding"))? {
        if !sets.bounding.contains(&cap) {
            caps::drop(None, CapSet::Bounding, cap).map_err(caps_failed("bounding"))?;
        }
    }
    nix::sys::prctl::set_keepcaps(true).map_err(|e| failed("keep capabilities", e))?;
    set_ids(user)?;
    nix::sys::prctl::set_keepcaps(false).map_err(|e| failed("keep capabilities", e))?;
    let held = caps::read(None, CapSet::Permitted).map_err(caps_failed("permitted"))?;
    let possible = |wanted: &CapsHashSet| wanted.intersection(&held).copied().collect::<CapsHashSet>();
    let mut permitted = possible(&sets.permitted);
    permitted.extend(keep.filter(|k| held.contains(k)));
    // Effective first shrinks to what stays permitted; permitted last, since it limits the others.
    caps::set(None, CapSet::Inheritable, &possible(&sets.inheritable)).map_err(caps_failed("inheritable"))?;
    caps::set(None, CapSet::Effective, &possible(&sets.effective)).map_err(caps_failed("effective"))?;
    caps::set(None, CapSet::Permitted, &permitted).map_err(caps_failed("permitted"))?;
    let _ = caps::clear(None, CapSet::Ambient);
    for cap in possible(&sets.ambient) {
        // Only what is permitted and inheritable as well can be ambient; runc leaves out the rest, too.
        let _ = caps::raise(None, CapSet::Ambient, cap);
    }
    Ok(())
}

/// Runs `act` with the capability that [`become_user`] kept, and gives that up.
pub fn settle(sets: &Sets, kept: Capability, act: impl FnOnce() -> Result<(), Status>) -> Result<(), Status> {
    let held = caps::read(None, CapSet::Permitted).map_err(caps_failed("permitted"))?;
    let effective = caps::read(None, CapSet::Effective).map_err(caps_failed("effective"))?;
    let mut with = effective.clone();
    with.extend(Some(kept).filter(|k| held.contains(k)));
    caps::set(None, CapSet::Effective, &with).map_err(caps_failed("effective"))?;
    act()?;
    if with != effective {
        caps::set(None, CapSet::Effective, &effective).map_err(caps_failed("effective"))?;
    }
    if held.contains(&kept) && !sets.permitted.contains(&kept) {
        let rest = held.into_iter().filter(|c| *c != kept).collect();
        caps::set(None, CapSet::Permitted, &rest).map_err(caps_failed("permitted"))?;
    }
    Ok(())
}

fn caps_failed(what: &'static str) -> impl FnOnce(caps::errors::CapsError) -> Status {
    move |e| failed(&format!("capabilities: {what}"), e)
}

fn set_ids(user: &User) -> Result<(), Status> {
    let gids: Vec<nix::unistd::Gid> = user.additional_gids.iter().map(|&g| g.into()).collect();
    let denied = std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|s| s.trim() == "deny");
    if !denied {
        nix::unistd::setgroups(&gids).map_err(|e| failed("additional groups", e))?;
    } else if !gids.is_empty() {
        return Err(invalid("additionalGids in a user namespace that denies setgroups".into()));
    }
    let (uid, gid) = (user.uid.into(), user.gid.into());
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| failed(&format!("gid {}", user.gid), e))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| failed(&format!("uid {}", user.uid), e))
}

/// Descriptors 0 to 2 belong to the user, so that it may open /dev/stdout; not those that are devices of everybody.
pub fn own_stdio(user: &User) {
    for fd in 0..3 {
        // SAFETY: descriptors that every process has; the stat is filled by the kernel.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd, &mut stat) == 0 && stat.st_rdev != libc::makedev(1, 3) && stat.st_uid != user.uid {
                // A read-only file system or a foreign owner: the process then has only what it inherited.
                libc::fchown(fd, user.uid, stat.st_gid);
            }
        }
    }
}

/// HOME of the process's user, by the container's own /etc/passwd.
pub fn home(uid: u32) -> String {
    const LARGEST: u64 = 1 << 20;
    let mut text = String::new();
    if let Ok(file) = Root::open("/".as_ref()).and_then(|root| root.read("/etc/passwd")) {
        let _ = file.take(LARGEST).read_to_string(&mut text);
    }
    let wanted = uid.to_string();
    let line = text.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.get(2) == Some(&wanted.as_str()));
    line.and_then(|f| f.get(5).map(|h| h.to_string())).filter(|h| !h.is_empty()).unwrap_or_else(|| "/".into())
}

/// Enters the working directory; it must be inside the root (CVE-2024-21626: a leaked descriptor of the guest as
/// `/proc/self/fd/N`).
pub fn enter_cwd(cwd: &str) -> Result<(), Status> {
    rustix::process::chdir(cwd).map_err(|e| failed(&format!("working directory {cwd}"), e))?;
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        _ => Err(invalid(format!("working directory {cwd} is outside the container's root"))),
    }
}

/// A session keyring that the container's processes share, and nobody else's keys in it. What a kernel without keys, or one
/// that has too many, cannot give is not worth failing for.
pub fn own_keyring(id: &str, own_users: bool) {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    const SETPERM: libc::c_int = 5;
    /// linux/key.h: all for the possessor; view, read, link for the owner, and search, which an exec needs to join it.
    const PERMISSIONS: u32 = 0x3f1b_0000;
    /// Search for others: in a user namespace the owner is another.
    const SEARCH: u32 = 8;
    let Ok(name) = std::ffi::CString::new(format!("_ses.{id}")) else { return };
    // SAFETY: a string that lives through the call.
    let ring = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    // SAFETY: numbers only; without a name it is a new one.
    unsafe {
        match ring {
            -1 => libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0),
            ring => libc::syscall(libc::SYS_keyctl, SETPERM, ring, PERMISSIONS | if own_users { SEARCH } else { 0 }),
        }
    };
}
