//! GetMetrics: the guest in Prometheus' text form, under the names of Kata's agent, for dashboards that exist.
//!
//! The names and labels are those of Kata's metrics document (docs/design/kata-2-0-metrics.md); the values come from proc(5).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{AgentService, Answer};
use crate::metrics::{Kind, Text, field, own_process, process, read, snake, times};
use crate::rpc::wire::agent::{GetMetricsRequest, Metrics, NetworkStats};

/// How often somebody asked.
static SCRAPES: AtomicU64 = AtomicU64::new(0);

impl AgentService {
    pub(super) fn metrics(&self, _: GetMetricsRequest) -> Answer<Metrics> {
        let mut text = Text(String::with_capacity(16 * 1024));
        load(&mut text, &read("/proc/loadavg"));
        meminfo(&mut text, &read("/proc/meminfo"));
        cpu_time(&mut text, &read("/proc/stat"));
        named_values(&mut text, "kata_guest_vm_stat", "Statistics about virtual memory in the guest.", &read("/proc/vmstat"));
        crate::metrics::netdev(&mut text, "kata_guest_netdev_stat", "Guest net devices stats.", &read("/proc/net/dev"));
        diskstats(&mut text, &read("/proc/diskstats"));
        filesystems(&mut text, &read("/proc/self/mounts"));
        agent(&mut text);
        Ok(Metrics { metrics: text.0 })
    }
}

/// Interfaces of this network namespace, for StatsContainer too.
pub fn network() -> Vec<NetworkStats> {
    read("/proc/net/dev").lines().skip(2).filter_map(interface).collect()
}

/// A line of /proc/net/dev: 8 counters received, 8 transmitted.
fn interface(line: &str) -> Option<NetworkStats> {
    let (name, counters) = line.split_once(':')?;
    let n: Vec<u64> = counters.split_whitespace().map_while(|w| w.parse().ok()).collect();
    let &[rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = n.as_slice() else {
        return None;
    };
    Some(NetworkStats {
        name: name.trim().into(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

fn load(text: &mut Text, loadavg: &str) {
    const NAME: &str = "kata_guest_load";
    text.family(NAME, "gauge", "Guest system load.");
    for (item, value) in ["load1", "load5", "load15"].iter().zip(loadavg.split_whitespace()) {
        text.value(NAME, &format!("item=\"{item}\""), value);
    }
    // "running/all" is the fourth word.
    const TASKS: &str = "kata_guest_tasks";
    text.family(TASKS, "gauge", "Guest system load.");
    if let Some((running, all)) = loadavg.split_whitespace().nth(3).and_then(|w| w.split_once('/')) {
        text.value(TASKS, "item=\"cur\"", running);
        text.value(TASKS, "item=\"max\"", all);
    }
}

fn meminfo(text: &mut Text, meminfo: &str) {
    const NAME: &str = "kata_guest_meminfo";
    text.family(NAME, "gauge", "Statistics about memory usage in the system.");
    for (item, value) in meminfo.lines().filter_map(|l| l.split_once(':')) {
        let mut words = value.split_whitespace();
        let Some(number) = words.next().and_then(|n| n.parse::<u64>().ok()) else { continue };
        let bytes = if words.next() == Some("kB") { number * 1024 } else { number };
        text.value(NAME, &format!("item=\"{}\"", snake(item)), bytes);
    }
}

fn cpu_time(text: &mut Text, stat: &str) {
    const NAME: &str = "kata_guest_cpu_time";
    const ITEMS: [&str; 10] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
    text.family(NAME, "gauge", "Guest CPU statistics.");
    for line in stat.lines().filter(|l| l.starts_with("cpu")) {
        let mut words = line.split_whitespace();
        let Some(cpu) = words.next().map(|c| c.trim_start_matches("cpu")) else { continue };
        let cpu = if cpu.is_empty() { "total" } else { cpu };
        for (item, value) in ITEMS.iter().zip(words) {
            text.value(NAME, &format!("cpu=\"{cpu}\",item=\"{item}\""), value);
        }
    }
}

fn named_values(text: &mut Text, name: &str, help: &str, lines: &str) {
    text.family(name, "gauge", help);
    for (item, value) in lines.lines().filter_map(|l| l.split_once([' ', ':'])) {
        if let Ok(value) = value.trim().parse::<u64>() {
            text.value(name, &format!("item=\"{item}\""), value);
        }
    }
}

fn diskstats(text: &mut Text, lines: &str) {
    const NAME: &str = "kata_guest_diskstat";
    const ITEMS: [&str; 17] = [
        "reads",
        "merged",
        "sectors_read",
        "time_reading",
        "writes",
        "writes_merged",
        "sectors_written",
        "time_writing",
        "in_progress",
        "time_in_progress",
        "weighted_time_in_progress",
        "discards",
        "discards_merged",
        "sectors_discarded",
        "time_discarding",
        "flushes",
        "time_flushing",
    ];
    text.family(NAME, "gauge", "Disks stats in system.");
    for line in lines.lines() {
        let mut words = line.split_whitespace().skip(2);
        let Some(disk) = words.next() else { continue };
        for (item, value) in ITEMS.iter().zip(words) {
            text.value(NAME, &format!("disk=\"{disk}\",item=\"{item}\""), value);
        }
    }
}

/// What has a size: a share, a disk, memory. The kernel's own windows have none.
fn filesystems(text: &mut Text, mounts: &str) {
    // Of several mounts on one point only the last is seen.
    let sizes: BTreeMap<String, rustix::fs::StatVfs> = mounts
        .lines()
        .filter_map(|l| {
            let point = l.split(' ').nth(1)?.replace("\\040", " ");
            let stat = rustix::fs::statvfs(point.as_str()).ok().filter(|s| s.f_blocks > 0)?;
            Some((point, stat))
        })
        .collect();
    /// What a line says of a file system, and from what.
    type Figure = (&'static str, fn(&rustix::fs::StatVfs) -> u64);
    type Family = (&'static str, &'static str, [Figure; 3]);
    let families: [Family; 2] = [
        (
            "kata_guest_filesystem_bytes",
            "Guest filesystem size in bytes.",
            [("total", |s| s.f_blocks * s.f_frsize), ("free", |s| s.f_bfree * s.f_frsize), ("available", |s| s.f_bavail * s.f_frsize)],
        ),
        (
            "kata_guest_filesystem_inodes",
            "Guest filesystem inodes.",
            [("total", |s| s.f_files), ("free", |s| s.f_ffree), ("available", |s| s.f_favail)],
        ),
    ];
    for (name, help, items) in families {
        text.family(name, "gauge", help);
        for (point, stat) in &sizes {
            let point = crate::metrics::escape(point);
            for (item, of) in items {
                text.value(name, &format!("mountpoint=\"{point}\",item=\"{item}\""), of(stat));
            }
        }
    }
}

fn agent(text: &mut Text) {
    let (stat, status) = (read("/proc/self/stat"), read("/proc/self/status"));
    let bytes = |name: &str| field(&status, name).unwrap_or(0) * 1024;
    let [user, system, ..] = times(&stat);
    text.single("kata_agent_total_time", "gauge", "Agent process total time, clock ticks.", user + system);
    text.single("kata_agent_total_rss", "gauge", "Agent process total rss size.", bytes("VmRSS:"));
    text.single("kata_agent_total_vm", "gauge", "Agent process total vm size.", bytes("VmSize:"));
    text.single("kata_agent_scrape_count", "counter", "Metrics scrape count.", SCRAPES.fetch_add(1, Ordering::Relaxed) + 1);
    process(text, "kata_agent", "Agent", std::process::id(), Kind::Agent);
    own_process(text, "kata_agent");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_become_samples() {
        let mut text = Text::default();
        load(&mut text, "0.10 0.20 0.30 2/77 1234\n");
        meminfo(&mut text, "MemTotal:  1024 kB\nHugePages_Total:  3\nActive(anon):  1 kB\n");
        cpu_time(&mut text, "cpu  1 2 3\ncpu0 4 5 6\nintr 7\n");
        for line in [
            "kata_guest_load{item=\"load15\"} 0.30",
            "kata_guest_tasks{item=\"max\"} 77",
            "kata_guest_meminfo{item=\"mem_total\"} 1048576",
            "kata_guest_meminfo{item=\"hugepages_total\"} 3",
            "kata_guest_meminfo{item=\"active_anon\"} 1024",
            "kata_guest_cpu_time{cpu=\"total\",item=\"nice\"} 2",
            "kata_guest_cpu_time{cpu=\"0\",item=\"system\"} 6",
        ] {
            assert!(text.0.lines().any(|l| l == line), "{line} is not in:\n{}", text.0);
        }
    }

    #[test]
    fn an_interface_has_both_directions() {
        let stats = interface("  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0").unwrap();
        assert_eq!((stats.name.as_str(), stats.rx_dropped, stats.tx_bytes, stats.tx_dropped), ("eth0", 4, 5, 8));
        assert!(network().iter().any(|i| i.name == "lo"));
    }
}
