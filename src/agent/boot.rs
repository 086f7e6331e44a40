//! From the kernel's first call of `/init` to a system that containers can live in.
//!
//! The root an initramfs gives is the one mount that `pivot_root` refuses to leave, so every container would fail on it.
//! A tmpfs becomes the root instead (Documentation/filesystems/ramfs-rootfs-initramfs.rst: MS_MOVE, then chroot). The
//! program and the modules are not copied but bound there: the same pages, and no time.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::OnceLock;

use rustix::mount::{MountFlags as F, mount, mount_bind, mount_move, mount_remount};

use crate::error::{At, Result, Stage};

/// This program in the guest. A process started from here cannot write to it, which `/proc/self/exe` of PID 1 would allow:
/// that one reaches the file through the initramfs (CVE-2019-5736 is such a write).
pub const PROGRAM: &str = "/sbin/init";

/// Where guests keep what the host shares with them and what containers add to it.
pub const KATA_RUN: &str = "/run/kata-containers";

/// The hostname until CreateSandbox names the pod.
const HOSTNAME: &[u8] = b"osc";

/// What the new root keeps of the initramfs.
const CARRIED: &[&str] = &[PROGRAM, "/lib/modules", "/etc/osc-release"];

/// One step of the boot layout.
enum Row {
    Dir(&'static str, u32),
    Mount {
        at: &'static str,
        kind: &'static CStr,
        flags: F,
        data: &'static CStr,
        /// The kernel option without which it fails.
        needs: &'static str,
    },
    Link(&'static str, &'static str),
}
use Row::{Dir, Link, Mount};

const SAFE: F = F::NOSUID.union(F::NODEV).union(F::NOEXEC);

const LAYOUT: &[Row] = &[
    Dir("/proc", 0o555),
    Mount { at: "/proc", kind: c"proc", flags: SAFE, data: c"", needs: "CONFIG_PROC_FS" },
    Dir("/sys", 0o555),
    Mount { at: "/sys", kind: c"sysfs", flags: SAFE, data: c"", needs: "CONFIG_SYSFS" },
    Dir("/dev", 0o755),
    Mount { at: "/dev", kind: c"devtmpfs", flags: F::NOSUID, data: c"mode=0755", needs: "CONFIG_DEVTMPFS" },
    Dir("/dev/pts", 0o755),
    Mount {
        at: "/dev/pts",
        kind: c"devpts",
        flags: F::NOSUID.union(F::NOEXEC),
        data: c"mode=0620,gid=5,ptmxmode=0666",
        needs: "CONFIG_UNIX98_PTYS",
    },
    Dir("/dev/shm", 0o1777),
    Mount { at: "/dev/shm", kind: c"tmpfs", flags: F::NOSUID.union(F::NODEV), data: c"mode=1777", needs: "CONFIG_TMPFS" },
    // devtmpfs makes /dev/ptmx, which serves the instance mounted on /dev/pts beside it.
    Link("/proc/self/fd", "/dev/fd"),
    Link("fd/0", "/dev/stdin"),
    Link("fd/1", "/dev/stdout"),
    Link("fd/2", "/dev/stderr"),
    Dir("/run", 0o755),
    // No size limit: what containers write here (overlays' upper directories) is charged to their own memory limits, and a
    // limit set now would not grow with memory plugged later.
    Mount { at: "/run", kind: c"tmpfs", flags: F::NOSUID.union(F::NODEV), data: c"mode=0755,size=0,nr_inodes=0", needs: "CONFIG_TMPFS" },
    Dir(KATA_RUN, 0o755),
    Dir("/tmp", 0o1777),
    Dir("/root", 0o700),
    Dir("/etc", 0o755),
    Dir("/var", 0o755),
    Link("../run", "/var/run"),
    Mount { at: "/sys/fs/cgroup", kind: c"cgroup2", flags: SAFE, data: c"nsdelegate,memory_recursiveprot", needs: "CONFIG_CGROUPS" },
];

/// Settings a container finds on every Kubernetes node, because kubelet makes them and programs came to count on them.
const SYSCTLS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    // A guest that oopsed serves nobody: it ends, and the console tells why.
    ("kernel/panic_on_oops", "1"),
    // A key ring per container: the kernel's default is used up by a hundred of them.
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Cgroup controllers that containers get where the kernel has them.
const CONTROLLERS: &[&str] = &["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// The kernel's command line.
pub fn command_line() -> &'static str {
    static LINE: OnceLock<String> = OnceLock::new();
    LINE.get_or_init(|| fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Whether `path` lies in memory: an initramfs or a tmpfs.
pub fn is_memory(path: &Path) -> rustix::io::Result<bool> {
    const RAMFS: i64 = 0x8584_58f6; // linux/magic.h
    const TMPFS: i64 = 0x0102_1994;
    Ok([RAMFS, TMPFS].contains(&rustix::fs::statfs(path)?.f_type))
}

/// Moves PID 1 from the initramfs onto a tmpfs. On any other root (a disk) there is nothing to do.
pub fn move_root() -> Result<()> {
    if !is_memory(Path::new("/")).at(Stage::Agent, || "stat of the root")? {
        return Ok(());
    }
    let new = Path::new("/newroot");
    make_dir(new, 0o755)?;
    mount(c"root", new, c"tmpfs", F::empty(), c"mode=0755").at(Stage::Agent, || "new root: mount tmpfs")?;
    for path in CARRIED.iter().map(Path::new).filter(|p| p.exists()) {
        let to = new.join(path.strip_prefix("/").unwrap_or(path));
        if path.is_dir() {
            make_dir(&to, 0o755)?;
        } else {
            make_dir(to.parent().unwrap_or(new), 0o755)?;
            fs::write(&to, "").at(Stage::Agent, || format!("new root: create {}", path.display()))?;
        }
        mount_bind(path, &to).at(Stage::Agent, || format!("new root: bind {}", path.display()))?;
    }
    let program = new.join(PROGRAM.trim_start_matches('/'));
    if program.exists() {
        mount_remount(&program, F::BIND | F::RDONLY | F::NOSUID | F::NODEV, c"").at(Stage::Agent, || "new root: protect /sbin/init")?;
    }
    std::env::set_current_dir(new).at(Stage::Agent, || "new root: chdir")?;
    mount_move(".", "/").at(Stage::Agent, || "new root: move")?;
    rustix::process::chroot(".").at(Stage::Agent, || "new root: chroot")?;
    std::env::set_current_dir("/").at(Stage::Agent, || "new root: chdir /")
}

/// Makes the directories, mounts and links of the table.
pub fn lay_out() -> Result<()> {
    for row in LAYOUT {
        match row {
            Dir(path, mode) => make_dir(Path::new(path), *mode)?,
            Mount { at, kind, flags, data, needs } => mount(*kind, *at, *kind, *flags, *data)
                .at(Stage::Agent, || format!("mount {} on {at}", kind.to_string_lossy()))
                .map_err(|e| e.way_out(format!("the guest kernel needs {needs}")))?,
            Link(to, path) => match symlink(to, path) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e).at(Stage::Agent, || format!("link {path}")),
                _ => {}
            },
        }
    }
    Ok(())
}

/// What a container host needs besides its tree: hostname, loopback, cgroup controllers, sysctls. A setting that this kernel
/// lacks is told and left out.
pub fn settle() {
    let told = |what: &str, e: &dyn std::fmt::Display| log::warn!("{what}: {e}");
    if let Err(e) = rustix::system::sethostname(HOSTNAME) {
        told("hostname", &e);
    }
    if let Err(e) = loopback_up() {
        told("loopback", &e);
    }
    if let Err(e) = enable_controllers(Path::new("/sys/fs/cgroup")) {
        told("cgroup controllers", &e);
    }
    for (name, value) in SYSCTLS {
        if let Err(e) = fs::write(Path::new("/proc/sys").join(name), value) {
            told(name, &e);
        }
    }
}

/// Hands the controllers that `cgroup` has to the cgroups below it.
pub fn enable_controllers(cgroup: &Path) -> std::io::Result<()> {
    let present = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    let wanted: Vec<String> =
        CONTROLLERS.iter().filter(|&&c| present.split_whitespace().any(|p| p == c)).map(|c| format!("+{c}")).collect();
    fs::write(cgroup.join("cgroup.subtree_control"), wanted.join(" "))
}

/// `lo` up, in the network namespace of the calling thread.
pub fn loopback_up() -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data; "lo" and the flags are set below.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_LOOPBACK) as libc::c_short;
    // SAFETY: the request is a complete ifreq that outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Makes `path` and its parents; `mode` is the last one's, whatever the umask.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    // The kernel's own directories (/sys/fs/cgroup) neither need making nor take a mode.
    if path.is_dir() && path.starts_with("/sys") {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .at(Stage::Agent, || format!("make directory {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_point_is_made_before_it_is_mounted() {
        let mut made: Vec<&str> = Vec::new();
        for row in LAYOUT {
            match row {
                Dir(path, _) => made.push(path),
                Mount { at, .. } => assert!(made.contains(at) || *at == "/sys/fs/cgroup", "{at}"),
                Link(_, path) => assert!(made.contains(&Path::new(path).parent().unwrap().to_str().unwrap()), "{path}"),
            }
        }
    }

    #[test]
    fn present_controllers_are_handed_down() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids rdma\n").unwrap();
        enable_controllers(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "+cpu +memory +pids");
    }
}
