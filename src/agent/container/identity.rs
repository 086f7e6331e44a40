//! Who the process is when its program starts: limits, user, groups, capabilities, umask, and the place it starts in.

use std::io;
use std::io::Read;

use caps::{CapSet, Capability, CapsHashSet};

use super::path::Root;
use crate::rpc::wire::oci::{Process, User};
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

/// Limits and scores that need the guest's privileges: before the user changes, and before a user namespace is entered.
pub fn limit(process: &Process) -> Result<(), Status> {
    for l in &process.rlimits {
        let (_, number) = LIMITS.iter().find(|k| k.0 == l.r#type).ok_or_else(|| invalid(format!("rlimit {:?} is unknown", l.r#type)))?;
        let value = libc::rlimit { rlim_cur: l.soft, rlim_max: l.hard };
        // SAFETY: a structure on our stack that the kernel only reads.
        if unsafe { libc::setrlimit(*number, &value) } != 0 {
            return Err(failed(&format!("rlimit {} {}:{}", l.r#type, l.soft, l.hard), io::Error::last_os_error()));
        }
    }
    if process.oom_score_adj != 0 {
        std::fs::write("/proc/self/oom_score_adj", process.oom_score_adj.to_string())
            .map_err(|e| failed(&format!("oomScoreAdj {}", process.oom_score_adj), e))?;
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

/// The five sets, as the specification names them.
struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
}

fn sets(process: &Process) -> Sets {
    let c = process.capabilities.clone().unwrap_or_default();
    // A capability that this kernel does not have cannot be given; the others are.
    let set = |names: &[String]| names.iter().filter_map(|n| n.to_ascii_uppercase().parse::<Capability>().ok()).collect();
    Sets {
        bounding: set(&c.bounding),
        effective: set(&c.effective),
        permitted: set(&c.permitted),
        inheritable: set(&c.inheritable),
        ambient: set(&c.ambient),
    }
}

/// Becomes the process's user, in the one order that works: the bounding set while it may be changed, then the ids with the
/// permitted set kept, then the sets.
pub fn become_user(process: &Process) -> Result<(), Status> {
    let user = process.user.clone().unwrap_or_default();
    let sets = sets(process);
    let caps_failed = |what: &str| {
        let what = format!("capabilities: {what}");
        move |e: caps::errors::CapsError| failed(&what, e)
    };
    for cap in caps::read(None, CapSet::Bounding).map_err(caps_failed("bounding"))? {
        if !sets.bounding.contains(&cap) {
            caps::drop(None, CapSet::Bounding, cap).map_err(caps_failed("bounding"))?;
        }
    }
    nix::sys::prctl::set_keepcaps(true).map_err(|e| failed("keep capabilities", e))?;
    set_ids(&user)?;
    nix::sys::prctl::set_keepcaps(false).map_err(|e| failed("keep capabilities", e))?;
    let held = caps::read(None, CapSet::Permitted).map_err(caps_failed("permitted"))?;
    let possible = |wanted: &CapsHashSet| wanted.intersection(&held).copied().collect::<CapsHashSet>();
    // Effective first shrinks to what stays permitted; permitted last, since it limits the others.
    caps::set(None, CapSet::Inheritable, &possible(&sets.inheritable)).map_err(caps_failed("inheritable"))?;
    caps::set(None, CapSet::Effective, &possible(&sets.effective)).map_err(caps_failed("effective"))?;
    caps::set(None, CapSet::Permitted, &possible(&sets.permitted)).map_err(caps_failed("permitted"))?;
    let _ = caps::clear(None, CapSet::Ambient);
    for cap in possible(&sets.ambient) {
        // Only what is permitted and inheritable as well can be ambient; runc leaves out the rest with a warning.
        let _ = caps::raise(None, CapSet::Ambient, cap);
    }
    Ok(())
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

/// Enters the working directory, made if it is missing; it must be inside the root (CVE-2024-21626: a leaked descriptor of
/// the guest as `/proc/self/fd/N`).
pub fn enter_cwd(cwd: &str) -> Result<(), Status> {
    let enter = || rustix::process::chdir(cwd);
    match enter() {
        Ok(()) => {}
        Err(e) => return Err(failed(&format!("working directory {cwd}"), e)),
    }
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        _ => Err(invalid(format!("working directory {cwd} is outside the container's root"))),
    }
}
