//! A container's figures in the message its manager expects: that of the host's own cgroup version.
//!
//! CRI-O takes parts of these messages without looking whether they are there, so every part is, even when it is empty.

use std::path::Path;

use crate::rpc::wire::agent::{CgroupStats, NetworkStats, StatsContainerResponse};
use crate::rpc::wire::google::Any;
use crate::rpc::wire::{cgroups1 as v1, cgroups2 as v2};
use prost::Message;

/// True where the host's managers read cgroup v2 messages: /sys/fs/cgroup itself is cgroup2.
pub fn host_is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The figures as `Any`, for a manager on a host of this kind.
pub fn metrics(stats: StatsContainerResponse, host_v2: bool) -> Any {
    let cgroup = stats.cgroup_stats.unwrap_or_default();
    if host_v2 {
        Any { type_url: "io.containerd.cgroups.v2.Metrics".into(), value: to_v2(&cgroup, &stats.network_stats).encode_to_vec() }
    } else {
        Any { type_url: "io.containerd.cgroups.v1.Metrics".into(), value: to_v1(&cgroup, &stats.network_stats).encode_to_vec() }
    }
}

/// Adds the figures of one more container of a pod; the network's are the pod's already.
pub fn add(sum: &mut StatsContainerResponse, more: StatsContainerResponse) {
    let (sums, more_network) = (sum.cgroup_stats.get_or_insert_default(), more.network_stats);
    sum.network_stats = more_network;
    let more = more.cgroup_stats.unwrap_or_default();
    let (cpu, more_cpu) = (sums.cpu_stats.get_or_insert_default(), more.cpu_stats.unwrap_or_default());
    let (usage, more_usage) = (cpu.cpu_usage.get_or_insert_default(), more_cpu.cpu_usage.unwrap_or_default());
    usage.total_usage += more_usage.total_usage;
    usage.usage_in_kernelmode += more_usage.usage_in_kernelmode;
    usage.usage_in_usermode += more_usage.usage_in_usermode;
    let (memory, more_memory) = (sums.memory_stats.get_or_insert_default(), more.memory_stats.unwrap_or_default());
    let (used, more_used) = (memory.usage.get_or_insert_default(), more_memory.usage.unwrap_or_default());
    used.usage += more_used.usage;
    used.failcnt += more_used.failcnt;
    for (name, value) in more_memory.stats {
        *memory.stats.entry(name).or_default() += value;
    }
    sums.pids_stats.get_or_insert_default().current += more.pids_stats.unwrap_or_default().current;
}

const NANOS_PER_MICRO: u64 = 1000;

fn to_v2(c: &CgroupStats, network: &[NetworkStats]) -> v2::Metrics {
    let cpu = c.cpu_stats.clone().unwrap_or_default();
    let usage = cpu.cpu_usage.unwrap_or_default();
    let throttling = cpu.throttling_data.unwrap_or_default();
    let memory = c.memory_stats.clone().unwrap_or_default();
    let (used, swap) = (memory.usage.unwrap_or_default(), memory.swap_usage.unwrap_or_default());
    let stat = |name: &str| memory.stats.get(name).copied().unwrap_or(0);
    let pids = c.pids_stats.clone().unwrap_or_default();
    v2::Metrics {
        pids: Some(v2::PidsStat { current: pids.current, limit: pids.limit }),
        cpu: Some(v2::CpuStat {
            usage_usec: usage.total_usage / NANOS_PER_MICRO,
            user_usec: usage.usage_in_usermode / NANOS_PER_MICRO,
            system_usec: usage.usage_in_kernelmode / NANOS_PER_MICRO,
            nr_periods: throttling.periods,
            nr_throttled: throttling.throttled_periods,
            throttled_usec: throttling.throttled_time / NANOS_PER_MICRO,
            ..Default::default()
        }),
        memory: Some(v2::MemoryStat {
            anon: stat("anon"),
            file: stat("file"),
            kernel_stack: stat("kernel_stack"),
            slab: stat("slab"),
            sock: stat("sock"),
            shmem: stat("shmem"),
            file_mapped: stat("file_mapped"),
            file_dirty: stat("file_dirty"),
            file_writeback: stat("file_writeback"),
            anon_thp: stat("anon_thp"),
            inactive_anon: stat("inactive_anon"),
            active_anon: stat("active_anon"),
            inactive_file: stat("inactive_file"),
            active_file: stat("active_file"),
            unevictable: stat("unevictable"),
            slab_reclaimable: stat("slab_reclaimable"),
            slab_unreclaimable: stat("slab_unreclaimable"),
            pgfault: stat("pgfault"),
            pgmajfault: stat("pgmajfault"),
            workingset_refault: stat("workingset_refault_anon") + stat("workingset_refault_file"),
            workingset_activate: stat("workingset_activate_anon") + stat("workingset_activate_file"),
            workingset_nodereclaim: stat("workingset_nodereclaim"),
            pgrefill: stat("pgrefill"),
            pgscan: stat("pgscan"),
            pgsteal: stat("pgsteal"),
            pgactivate: stat("pgactivate"),
            pgdeactivate: stat("pgdeactivate"),
            pglazyfree: stat("pglazyfree"),
            pglazyfreed: stat("pglazyfreed"),
            thp_fault_alloc: stat("thp_fault_alloc"),
            thp_collapse_alloc: stat("thp_collapse_alloc"),
            usage: used.usage,
            usage_limit: used.limit,
            max_usage: used.max_usage,
            swap_usage: swap.usage,
            swap_limit: swap.limit,
            swap_max_usage: swap.max_usage,
            ..Default::default()
        }),
        memory_events: Some(v2::MemoryEvents { oom_kill: used.failcnt, ..Default::default() }),
        io: Some(io_v2(c)),
        rdma: Some(Default::default()),
        network: network.iter().map(network_v2).collect(),
        ..Default::default()
    }
}

fn io_v2(c: &CgroupStats) -> v2::IoStat {
    let blkio = c.blkio_stats.clone().unwrap_or_default();
    let mut usage: Vec<v2::IoEntry> = Vec::new();
    let lists = [(&blkio.io_service_bytes_recursive, true), (&blkio.io_serviced_recursive, false)];
    for (list, bytes) in lists {
        for e in list {
            let at = usage.iter().position(|u| (u.major, u.minor) == (e.major, e.minor)).unwrap_or_else(|| {
                usage.push(v2::IoEntry { major: e.major, minor: e.minor, ..Default::default() });
                usage.len() - 1
            });
            match (e.op.to_ascii_lowercase().as_str(), bytes) {
                ("read", true) => usage[at].rbytes = e.value,
                ("write", true) => usage[at].wbytes = e.value,
                ("read", false) => usage[at].rios = e.value,
                ("write", false) => usage[at].wios = e.value,
                _ => {}
            }
        }
    }
    v2::IoStat { usage, ..Default::default() }
}

fn network_v2(n: &NetworkStats) -> v2::NetworkStat {
    v2::NetworkStat {
        name: n.name.clone(),
        rx_bytes: n.rx_bytes,
        rx_packets: n.rx_packets,
        rx_errors: n.rx_errors,
        rx_dropped: n.rx_dropped,
        tx_bytes: n.tx_bytes,
        tx_packets: n.tx_packets,
        tx_errors: n.tx_errors,
        tx_dropped: n.tx_dropped,
    }
}

fn to_v1(c: &CgroupStats, network: &[NetworkStats]) -> v1::Metrics {
    let cpu = c.cpu_stats.clone().unwrap_or_default();
    let usage = cpu.cpu_usage.unwrap_or_default();
    let throttling = cpu.throttling_data.unwrap_or_default();
    let memory = c.memory_stats.clone().unwrap_or_default();
    let stat = |name: &str| memory.stats.get(name).copied().unwrap_or(0);
    let pids = c.pids_stats.clone().unwrap_or_default();
    // cgroup v1 says "no limit" with the largest number of whole pages.
    const UNLIMITED: u64 = (i64::MAX as u64) & !4095;
    let entry = |m: Option<crate::rpc::wire::agent::MemoryData>| {
        let m = m.unwrap_or_default();
        Some(v1::MemoryEntry { limit: m.limit.min(UNLIMITED), usage: m.usage, max: m.max_usage, failcnt: m.failcnt })
    };
    let blkio = c.blkio_stats.clone().unwrap_or_default();
    let entries = |list: &[crate::rpc::wire::agent::BlkioStatsEntry]| {
        list.iter()
            .map(|e| v1::BlkIoEntry { op: e.op.clone(), major: e.major, minor: e.minor, value: e.value, ..Default::default() })
            .collect()
    };
    v1::Metrics {
        pids: Some(v1::PidsStat { current: pids.current, limit: pids.limit }),
        cpu: Some(v1::CpuStat {
            usage: Some(v1::CpuUsage {
                total: usage.total_usage,
                kernel: usage.usage_in_kernelmode,
                user: usage.usage_in_usermode,
                per_cpu: usage.percpu_usage.clone(),
            }),
            throttling: Some(v1::Throttle {
                periods: throttling.periods,
                throttled_periods: throttling.throttled_periods,
                throttled_time: throttling.throttled_time,
            }),
        }),
        memory: Some(v1::MemoryStat {
            cache: stat("file"),
            rss: stat("anon"),
            rss_huge: stat("anon_thp"),
            mapped_file: stat("file_mapped"),
            dirty: stat("file_dirty"),
            writeback: stat("file_writeback"),
            pg_fault: stat("pgfault"),
            pg_maj_fault: stat("pgmajfault"),
            inactive_anon: stat("inactive_anon"),
            active_anon: stat("active_anon"),
            inactive_file: stat("inactive_file"),
            active_file: stat("active_file"),
            unevictable: stat("unevictable"),
            // cgroup v2 figures are of the whole subtree already.
            total_cache: stat("file"),
            total_rss: stat("anon"),
            total_rss_huge: stat("anon_thp"),
            total_mapped_file: stat("file_mapped"),
            total_dirty: stat("file_dirty"),
            total_writeback: stat("file_writeback"),
            total_pg_fault: stat("pgfault"),
            total_pg_maj_fault: stat("pgmajfault"),
            total_inactive_anon: stat("inactive_anon"),
            total_active_anon: stat("active_anon"),
            total_inactive_file: stat("inactive_file"),
            total_active_file: stat("active_file"),
            total_unevictable: stat("unevictable"),
            hierarchical_memory_limit: memory.usage.as_ref().map(|m| m.limit).unwrap_or(0),
            hierarchical_swap_limit: memory.swap_usage.as_ref().map(|m| m.limit).unwrap_or(0),
            usage: entry(memory.usage.clone()),
            swap: entry(memory.swap_usage.clone()),
            kernel: entry(memory.kernel_usage.clone()),
            kernel_tcp: entry(None),
            ..Default::default()
        }),
        blkio: Some(v1::BlkIoStat {
            io_service_bytes_recursive: entries(&blkio.io_service_bytes_recursive),
            io_serviced_recursive: entries(&blkio.io_serviced_recursive),
            ..Default::default()
        }),
        memory_oom_control: Some(Default::default()),
        network: network
            .iter()
            .map(|n| v1::NetworkStat {
                name: n.name.clone(),
                rx_bytes: n.rx_bytes,
                rx_packets: n.rx_packets,
                rx_errors: n.rx_errors,
                rx_dropped: n.rx_dropped,
                tx_bytes: n.tx_bytes,
                tx_packets: n.tx_packets,
                tx_errors: n.tx_errors,
                tx_dropped: n.tx_dropped,
            })
            .collect(),
        ..Default::default()
    }
}
