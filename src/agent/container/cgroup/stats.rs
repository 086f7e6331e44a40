//! What a container uses, read off its cgroup. A file that the kernel does not have reads as zeroes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::rpc::wire::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, PidsStats, ThrottlingData,
};

const NANOS_PER_MICRO: u64 = 1000;

/// What the kernel writes for "no limit"; the protocol has numbers only.
const NO_LIMIT: u64 = u64::MAX;

pub fn read(dir: &Path) -> CgroupStats {
    CgroupStats {
        cpu_stats: Some(cpu(dir)),
        memory_stats: Some(memory(dir)),
        pids_stats: Some(PidsStats { current: number(dir, "pids.current"), limit: limit_or_zero(dir, "pids.max") }),
        blkio_stats: Some(io(dir)),
        hugetlb_stats: hugetlb(dir),
    }
}

fn number(dir: &Path, file: &str) -> u64 {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    match text.trim() {
        "max" => NO_LIMIT,
        n => n.parse().unwrap_or(0),
    }
}

/// containerd shows a pids limit of 0 as none.
fn limit_or_zero(dir: &Path, file: &str) -> u64 {
    match number(dir, file) {
        NO_LIMIT => 0,
        n => n,
    }
}

/// `key value` lines.
fn table(dir: &Path, file: &str) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    text.lines().filter_map(|l| l.split_once(' ')).filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?))).collect()
}

fn cpu(dir: &Path) -> CpuStats {
    let stat = table(dir, "cpu.stat");
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    CpuStats {
        cpu_usage: Some(CpuUsage {
            total_usage: get("usage_usec") * NANOS_PER_MICRO,
            usage_in_kernelmode: get("system_usec") * NANOS_PER_MICRO,
            usage_in_usermode: get("user_usec") * NANOS_PER_MICRO,
            percpu_usage: Vec::new(),
        }),
        throttling_data: Some(ThrottlingData {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: get("throttled_usec") * NANOS_PER_MICRO,
        }),
    }
}

fn memory(dir: &Path) -> MemoryStats {
    let stats = table(dir, "memory.stat");
    let events = table(dir, "memory.events");
    let data = |kind: &str, failcnt: u64| MemoryData {
        usage: number(dir, &format!("memory.{kind}current")),
        max_usage: number(dir, &format!("memory.{kind}peak")),
        limit: number(dir, &format!("memory.{kind}max")),
        failcnt,
    };
    MemoryStats {
        cache: stats.get("file").copied().unwrap_or(0),
        usage: Some(data("", events.get("max").copied().unwrap_or(0))),
        swap_usage: Some(data("swap.", 0)),
        kernel_usage: Some(MemoryData { usage: stats.get("kernel").copied().unwrap_or(0), ..Default::default() }),
        use_hierarchy: true,
        stats: stats.into_iter().chain(events.into_iter().map(|(k, v)| (format!("events.{k}"), v))).collect(),
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io(dir: &Path) -> BlkioStats {
    let text = fs::read_to_string(dir.join("io.stat")).unwrap_or_default();
    let mut stats = BlkioStats::default();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let Some((major, minor)) = fields.next().and_then(|d| d.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in fields.filter_map(|f| f.split_once('=')) {
            let op = match key.as_bytes().first() {
                Some(b'r') => "Read",
                Some(b'w') => "Write",
                _ => "Discard",
            };
            let entry = BlkioStatsEntry { major, minor, op: op.into(), value: value.parse().unwrap_or(0) };
            if key.ends_with("bytes") {
                stats.io_service_bytes_recursive.push(entry);
            } else {
                stats.io_serviced_recursive.push(entry);
            }
        }
    }
    stats
}

fn hugetlb(dir: &Path) -> BTreeMap<String, HugetlbStats> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let sizes = names.filter_map(|n| n.strip_prefix("hugetlb.")?.strip_suffix(".current").map(str::to_owned)).filter(|s| !s.contains('.'));
    sizes
        .map(|size| {
            let usage = number(dir, &format!("hugetlb.{size}.current"));
            let failcnt = table(dir, &format!("hugetlb.{size}.events")).get("max").copied().unwrap_or(0);
            (size, HugetlbStats { usage, max_usage: 0, failcnt })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_finds_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n");
        put("memory.current", "100\n");
        put("memory.max", "max\n");
        put("memory.stat", "anon 5\nfile 6\n");
        put("memory.events", "max 4\noom_kill 1\n");
        put("pids.current", "2\n");
        put("pids.max", "max\n");
        put("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n");
        put("hugetlb.2MB.current", "9\n");
        let s = read(dir.path());
        let cpu = s.cpu_stats.unwrap();
        let usage = cpu.cpu_usage.unwrap();
        assert_eq!((usage.total_usage, usage.usage_in_usermode, usage.usage_in_kernelmode), (30_000, 20_000, 10_000));
        assert_eq!(cpu.throttling_data.unwrap().throttled_time, 7000);
        let memory = s.memory_stats.unwrap();
        let used = memory.usage.unwrap();
        assert_eq!((used.usage, used.limit, used.failcnt, memory.cache), (100, u64::MAX, 4, 6));
        assert_eq!(memory.stats["events.oom_kill"], 1);
        assert_eq!(s.pids_stats.unwrap(), PidsStats { current: 2, limit: 0 });
        assert_eq!(s.blkio_stats.unwrap().io_serviced_recursive[1].value, 4);
        assert_eq!(s.hugetlb_stats["2MB"].usage, 9);
    }
}
