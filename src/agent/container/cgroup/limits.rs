//! Limits in the words of OCI -> files of cgroup v2 and their values.
//!
//! Facts: the kernel's `Documentation/admin-guide/cgroup-v2.rst`; conversions as in runc's `libcontainer/cgroups`.

use crate::rpc::wire::oci::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use crate::rpc::{Code, Status};

/// The kernel's own default period, microseconds.
const PERIOD: u64 = 100_000;

/// (file, value), in the order in which they are written.
pub fn files(r: &LinuxResources) -> Result<Vec<(String, String)>, Status> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut put = |file: &str, value: String| out.push((file.to_owned(), value));
    if let Some(cpu) = &r.cpu {
        of_cpu(cpu, &mut put);
    }
    if let Some(memory) = &r.memory {
        of_memory(memory, &mut put)?;
    }
    if let Some(pids) = r.pids.as_ref().filter(|p| p.limit != 0) {
        put("pids.max", max_or(pids.limit));
    }
    if let Some(io) = &r.block_io {
        of_io(io, &mut put);
    }
    for h in &r.hugepage_limits {
        put(&format!("hugetlb.{}.max", h.page_size), h.limit.to_string());
    }
    for (file, value) in &r.unified {
        if file.contains('/') || file.starts_with("cgroup.") {
            return Err(Status::new(Code::InvalidArgument, format!("unified {file:?} is no limit of a cgroup")));
        }
        put(file, value.clone());
    }
    Ok(out)
}

fn max_or(n: i64) -> String {
    if n < 0 { "max".into() } else { n.to_string() }
}

fn of_cpu(cpu: &LinuxCpu, put: &mut impl FnMut(&str, String)) {
    if cpu.shares != 0 {
        put("cpu.weight", weight(cpu.shares).to_string());
    }
    if let Some(idle) = cpu.idle {
        put("cpu.idle", idle.to_string());
    }
    if cpu.quota != 0 || cpu.period != 0 {
        let quota = if cpu.quota > 0 { cpu.quota.to_string() } else { "max".into() };
        let period = if cpu.period == 0 { PERIOD } else { cpu.period };
        put("cpu.max", format!("{quota} {period}"));
    }
    if let Some(burst) = cpu.burst {
        put("cpu.max.burst", burst.to_string());
    }
    if !cpu.cpus.is_empty() {
        put("cpuset.cpus", cpu.cpus.clone());
    }
    if !cpu.mems.is_empty() {
        put("cpuset.mems", cpu.mems.clone());
    }
}

/// 2..=262144 of version 1 onto 1..=10000 of version 2, linearly, as the kernel's documentation of neither says but every
/// runtime does.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

fn of_memory(m: &LinuxMemory, put: &mut impl FnMut(&str, String)) -> Result<(), Status> {
    // Version 1's swap limit is of memory and swap together.
    let swap = match (m.swap, m.limit) {
        (0, _) => None,
        (-1, _) => Some("max".to_owned()),
        (swap, limit) if limit > 0 && swap >= limit => Some((swap - limit).to_string()),
        (swap, limit) if limit > 0 => {
            return Err(Status::new(
                Code::InvalidArgument,
                format!("memory.swap {swap} is less than memory.limit {limit}: it is the sum of both"),
            ));
        }
        (swap, _) => return Err(Status::new(Code::InvalidArgument, format!("memory.swap {swap} without memory.limit"))),
    };
    if let Some(swap) = swap {
        put("memory.swap.max", swap);
    }
    if m.limit != 0 {
        put("memory.max", max_or(m.limit));
    }
    if m.reservation != 0 {
        put("memory.low", max_or(m.reservation));
    }
    Ok(())
}

fn of_io(io: &LinuxBlockIo, put: &mut impl FnMut(&str, String)) {
    // 10..=1000 of version 1 onto 1..=10000 of version 2.
    let weight = |w: u32| 1 + (u64::from(w).clamp(10, 1000) - 10) * 9999 / 990;
    if io.weight != 0 {
        put("io.weight", format!("default {}", weight(io.weight)));
    }
    for d in io.weight_device.iter().filter(|d| d.weight != 0) {
        put("io.weight", format!("{}:{} {}", d.major, d.minor, weight(d.weight)));
    }
    let lists: [(&str, &[LinuxThrottleDevice]); 4] = [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ];
    for (key, list) in lists {
        for d in list {
            put("io.max", format!("{}:{} {key}={}", d.major, d.minor, d.rate));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::{LinuxHugepageLimit, LinuxPids};

    fn of(r: LinuxResources) -> Vec<String> {
        files(&r).unwrap().into_iter().map(|(f, v)| format!("{f}={v}")).collect()
    }

    #[test]
    fn cpu() {
        let of_cpu = |cpu: LinuxCpu| of(LinuxResources { cpu: Some(cpu), ..Default::default() });
        assert_eq!(of_cpu(LinuxCpu { shares: 1024, ..Default::default() }), ["cpu.weight=39"]);
        assert_eq!(of_cpu(LinuxCpu { shares: 2, ..Default::default() }), ["cpu.weight=1"]);
        assert_eq!(of_cpu(LinuxCpu { quota: 150_000, period: 100_000, ..Default::default() }), ["cpu.max=150000 100000"]);
        assert_eq!(of_cpu(LinuxCpu { quota: -1, ..Default::default() }), ["cpu.max=max 100000"]);
        assert_eq!(of_cpu(LinuxCpu::default()), Vec::<String>::new());
    }

    #[test]
    fn memory_and_swap() {
        let memory =
            |limit, swap| files(&LinuxResources { memory: Some(LinuxMemory { limit, swap, ..Default::default() }), ..Default::default() });
        let text = |r: Result<Vec<(String, String)>, Status>| r.unwrap().into_iter().map(|(f, v)| format!("{f}={v}")).collect::<Vec<_>>();
        assert_eq!(text(memory(1000, 1500)), ["memory.swap.max=500", "memory.max=1000"]);
        assert_eq!(text(memory(-1, -1)), ["memory.swap.max=max", "memory.max=max"]);
        assert_eq!(memory(1000, 500).unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn the_rest() {
        let r = LinuxResources {
            pids: Some(LinuxPids { limit: -1 }),
            hugepage_limits: vec![LinuxHugepageLimit { page_size: "2MB".into(), limit: 9 }],
            unified: [("memory.high".to_string(), "5".to_string())].into(),
            block_io: Some(LinuxBlockIo {
                weight: 1000,
                throttle_read_bps_device: vec![LinuxThrottleDevice { major: 8, minor: 0, rate: 7 }],
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(of(r), ["pids.max=max", "io.weight=default 10000", "io.max=8:0 rbps=7", "hugetlb.2MB.max=9", "memory.high=5"]);
        let r = LinuxResources { unified: [("cgroup.procs".to_string(), "1".to_string())].into(), ..Default::default() };
        assert!(files(&r).is_err());
    }
}
