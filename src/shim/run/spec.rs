//! The specification that `osc run` gives a container when there is no bundle that says otherwise.
//!
//! The set of capabilities, masked paths and mounts is what Docker and Podman give by default: a command shall see here
//! what it would see there.

use std::collections::BTreeMap;

use crate::rpc::wire::oci::{
    Linux, LinuxCapabilities, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxNamespace, LinuxResources, Mount, PosixRlimit, Process, Root,
    Spec, User,
};

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const NAMESPACES: [&str; 6] = ["pid", "network", "ipc", "uts", "mount", "cgroup"];

/// (destination, type, source, options)
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the caller decides.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub terminal: bool,
    pub hostname: String,
    /// (host path, path in the container, read-only)
    pub volumes: Vec<(String, String, bool)>,
    pub cpus: Option<f64>,
    pub memory_bytes: Option<u64>,
}

/// The specification for a wish.
pub fn build(wish: &Wish) -> Spec {
    let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let volumes = wish.volumes.iter().map(|(source, destination, read_only)| Mount {
        destination: destination.clone(),
        source: source.clone(),
        r#type: "bind".into(),
        options: strings(&["rbind", "rprivate", if *read_only { "ro" } else { "rw" }]),
        ..Default::default()
    });
    let mounts = MOUNTS.iter().map(|(destination, kind, source, options)| Mount {
        destination: destination.to_string(),
        source: source.to_string(),
        r#type: kind.to_string(),
        options: strings(options),
        ..Default::default()
    });
    Spec {
        version: "1.0.2".into(),
        root: Some(Root { path: "rootfs".into(), readonly: false }),
        hostname: wish.hostname.clone(),
        mounts: mounts.chain(volumes).collect(),
        process: Some(process(wish)),
        linux: Some(Linux {
            namespaces: NAMESPACES.iter().map(|n| LinuxNamespace { r#type: n.to_string(), ..Default::default() }).collect(),
            masked_paths: strings(&MASKED),
            readonly_paths: strings(&READONLY),
            resources: Some(resources(wish)),
            ..Default::default()
        }),
        annotations: BTreeMap::new().into_iter().collect(),
        ..Default::default()
    }
}

fn process(wish: &Wish) -> Process {
    // Not root: no capability is effective, as with Docker's --user.
    let caps: Vec<String> = CAPABILITIES.iter().map(|c| c.to_string()).collect();
    let held = if wish.uid == 0 { caps.clone() } else { Vec::new() };
    Process {
        terminal: wish.terminal,
        user: Some(User { uid: wish.uid, gid: wish.gid, additional_gids: wish.additional_gids.clone(), ..Default::default() }),
        args: wish.args.clone(),
        env: wish.env.clone(),
        cwd: wish.cwd.clone(),
        capabilities: Some(LinuxCapabilities { bounding: caps, effective: held.clone(), permitted: held, ..Default::default() }),
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 1 << 20, soft: 1 << 20 }],
        ..Default::default()
    }
}

fn resources(wish: &Wish) -> LinuxResources {
    /// Microseconds; the kernel's own default.
    const PERIOD: u64 = 100_000;
    let deny_all = LinuxDeviceCgroup { allow: false, access: "rwm".into(), ..Default::default() };
    LinuxResources {
        devices: vec![deny_all],
        cpu: wish.cpus.map(|c| LinuxCpu { quota: (c * PERIOD as f64) as i64, period: PERIOD, ..Default::default() }),
        memory: wish.memory_bytes.map(|m| LinuxMemory { limit: m as i64, swap: m as i64, ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_quota_and_bytes() {
        let spec = build(&Wish { cpus: Some(1.5), memory_bytes: Some(1 << 20), ..Default::default() });
        let resources = spec.linux.unwrap().resources.unwrap();
        let cpu = resources.cpu.unwrap();
        assert_eq!((cpu.quota, cpu.period), (150_000, 100_000));
        assert_eq!(resources.memory.unwrap().limit, 1 << 20);
    }

    #[test]
    fn another_user_holds_no_capability() {
        let of = |uid| build(&Wish { uid, ..Default::default() }).process.unwrap().capabilities.unwrap();
        assert_eq!(of(0).effective.len(), CAPABILITIES.len());
        assert_eq!((of(7).effective.len(), of(7).bounding.len()), (0, CAPABILITIES.len()));
    }
}
