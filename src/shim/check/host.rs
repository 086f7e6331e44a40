//! What the host itself has: rights, memory, disk, control groups, devices.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use super::{Finding, Fix, fail, ok, warn};
use crate::config::Config;

/// Where guest images and unpacked kernels go.
const CACHE: &str = "/var/cache/kata-containers";

/// What an image and a kernel take there, MiB.
const CACHE_LEAST_MIB: u64 = 500;

/// With less than this available, a guest and its daemons do not fit, MiB.
const MEMORY_LEAST_MIB: u64 = 256;

pub fn checks() -> Vec<Finding> {
    vec![root(), memory(&read("/proc/meminfo")), disk(), cgroups(&read("/proc/self/mounts"), &read("/sys/fs/cgroup/cgroup.controllers"))]
}

/// Devices of the host that make a pod faster, or give it a network.
pub fn devices() -> Vec<Finding> {
    vec![
        device("vsock", "/dev/vhost-vsock", "vhost_vsock", "the channel to the guest is virtio-serial instead"),
        device("vhost-net", "/dev/vhost-net", "vhost_net", "QEMU itself moves the packets of pods"),
        device("tun", "/dev/net/tun", "tun", "no network from a container manager; osc run --network user works"),
    ]
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn root() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => ok("root", "yes"),
        false => fail("root", "no: osc mounts and opens devices; use sudo"),
    }
}

fn memory(meminfo: &str) -> Finding {
    let mib = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
        line.trim_start_matches(':').split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib >> 10)
    };
    let (Some(total), Some(available)) = (mib("MemTotal"), mib("MemAvailable")) else {
        return warn("memory", "/proc/meminfo does not say");
    };
    let told = format!("{available} MiB available of {total}");
    let usual = Config::default().default_memory;
    match available {
        n if n < MEMORY_LEAST_MIB => warn("memory", format!("{told}: hardly enough for one VM")),
        n if n < usual => warn("memory", format!("{told}: less than a VM may grow to use by default ({usual})")),
        _ => ok("memory", told),
    }
}

fn disk() -> Finding {
    let Some(there) = Path::new(CACHE).ancestors().find(|p| p.exists()) else { return warn("disk", format!("no {CACHE}")) };
    match rustix::fs::statvfs(there) {
        Ok(s) => {
            let mib = s.f_bavail.saturating_mul(s.f_frsize) >> 20;
            let told = format!("{mib} MiB free for {CACHE}");
            if mib < CACHE_LEAST_MIB {
                warn("disk", format!("{told}: a kernel and its image take up to {CACHE_LEAST_MIB}"))
            } else {
                ok("disk", told)
            }
        }
        Err(e) => warn("disk", format!("{}: {e}", there.display())),
    }
}

/// The controllers that limit a pod.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// `unified` is the list of controllers of a version 2 tree at /sys/fs/cgroup.
fn cgroups(mounts: &str, unified: &str) -> Finding {
    let mut first = BTreeSet::new();
    let mut second = None;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, place, kind, options, ..] = fields[..] else { continue };
        match kind {
            "cgroup" => first.extend(options.split(',').filter(|o| WANTED.contains(o))),
            "cgroup2" => second = Some(place),
            _ => {}
        }
    }
    let missing = |have: &dyn Fn(&str) -> bool| WANTED.iter().filter(|c| !have(c)).copied().collect::<Vec<_>>().join(", ");
    let (told, missing) = match (first.is_empty(), second) {
        (true, None) => return warn("cgroups", "none mounted: pods are not limited on the host"),
        (true, Some(_)) => ("version 2".to_owned(), missing(&|c| unified.split_ascii_whitespace().any(|u| u == c))),
        (false, None) => ("version 1".to_owned(), missing(&|c| first.contains(c))),
        (false, Some(place)) => (format!("version 1, and version 2 at {place} (hybrid)"), missing(&|c| first.contains(c))),
    };
    match missing.as_str() {
        "" => ok("cgroups", told),
        missing => warn("cgroups", format!("{told}, without {missing}: these do not limit pods on the host")),
    }
}

/// A device that opens; else what is done `without` it, and whether a module would bring it.
fn device(name: &'static str, path: &str, module: &'static str, without: &str) -> Finding {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => ok(name, path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => warn(name, format!("no {path}: {without}")).fix(loadable(module)),
        Err(e) => warn(name, format!("{path} does not open ({e}): {without}")).fix(loadable(module)),
    }
}

/// The fix for a module that the running kernel has and did not load.
pub fn loadable(module: &'static str) -> Option<Fix> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let list = read(&format!("/lib/modules/{release}/modules.dep"));
    (has_module(&list, module) && !Path::new("/sys/module").join(module).exists()).then(|| Fix::module(module))
}

/// Whether modules.dep has `module`, whatever it is compressed with.
fn has_module(list: &str, module: &str) -> bool {
    let name = |line: &str| line.split(':').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default().to_owned();
    list.lines().any(|l| name(l).split(".ko").next().is_some_and(|n| n.replace('-', "_") == module))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn memory_of_three_sizes() {
        let of = |mib: u64| memory(&format!("MemTotal:       16384000 kB\nMemAvailable:   {} kB\n", mib << 10));
        assert_eq!((of(8000).status, of(8000).detail.as_str()), (Status::Ok, "8000 MiB available of 16000"));
        assert_eq!((of(1000).status, of(100).status), (Status::Warn, Status::Warn));
        assert!(of(100).detail.contains("hardly"));
        assert_eq!(memory("").status, Status::Warn);
    }

    #[test]
    fn control_groups_of_each_kind() {
        let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\n";
        let pids = "cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n";
        let v2 = |at: &str| format!("cgroup2 {at} cgroup2 rw 0 0\n");
        let of = |mounts: &str, unified: &str| {
            let f = cgroups(mounts, unified);
            (f.status, f.detail)
        };
        assert_eq!(of(&v2("/sys/fs/cgroup"), "cpuset cpu io memory pids\n"), (Status::Ok, "version 2".into()));
        assert_eq!(of(&format!("{v1}{pids}"), ""), (Status::Ok, "version 1".into()));
        let hybrid = of(&format!("{v1}{pids}{}", v2("/sys/fs/cgroup/unified")), "");
        assert_eq!(hybrid, (Status::Ok, "version 1, and version 2 at /sys/fs/cgroup/unified (hybrid)".into()));
        assert_eq!(of(v1, "").1, "version 1, without pids: these do not limit pods on the host");
        assert!(of(&v2("/sys/fs/cgroup"), "cpu pids").1.contains("without memory"));
        assert!(of("proc /proc proc rw 0 0\n", "").1.contains("none mounted"));
    }

    #[test]
    fn a_module_by_any_of_its_names() {
        let list = "kernel/drivers/vhost/vhost_vsock.ko.xz: a.ko\nkernel/net/tun-x.ko: \nkernel/x/kvm-intel.ko.zst:\n";
        assert!(has_module(list, "vhost_vsock") && has_module(list, "kvm_intel") && has_module(list, "tun_x"));
        assert!(!has_module(list, "vhost") && !has_module(list, "a") && !has_module("", "tun"));
    }

    #[test]
    fn a_device_that_is_not_there_says_what_is_done_without() {
        let f = device("x", "/dev/no-such-device", "no_such_module", "slower");
        assert_eq!((f.status, f.detail.as_str(), f.fix.is_none()), (Status::Warn, "no /dev/no-such-device: slower", true));
        assert_eq!(device("null", "/dev/null", "x", "").status, Status::Ok);
    }
}
