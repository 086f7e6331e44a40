//! What a container uses, and how full volumes are.

use std::collections::BTreeMap;

/// Nanoseconds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuUsage {
    #[prost(uint64, tag = "1")]
    pub total_usage: u64,
    #[prost(uint64, repeated, tag = "2")]
    pub percpu_usage: Vec<u64>,
    #[prost(uint64, tag = "3")]
    pub usage_in_kernelmode: u64,
    #[prost(uint64, tag = "4")]
    pub usage_in_usermode: u64,
}

/// How often the quota ran out; time in nanoseconds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ThrottlingData {
    #[prost(uint64, tag = "1")]
    pub periods: u64,
    #[prost(uint64, tag = "2")]
    pub throttled_periods: u64,
    #[prost(uint64, tag = "3")]
    pub throttled_time: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CpuStats {
    #[prost(message, optional, tag = "1")]
    pub cpu_usage: Option<CpuUsage>,
    #[prost(message, optional, tag = "2")]
    pub throttling_data: Option<ThrottlingData>,
}

/// Tasks, and how many there may be (0: any number).
#[derive(Clone, PartialEq, prost::Message)]
pub struct PidsStats {
    #[prost(uint64, tag = "1")]
    pub current: u64,
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// Bytes, and how often the limit was hit.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryData {
    #[prost(uint64, tag = "1")]
    pub usage: u64,
    #[prost(uint64, tag = "2")]
    pub max_usage: u64,
    #[prost(uint64, tag = "3")]
    pub failcnt: u64,
    #[prost(uint64, tag = "4")]
    pub limit: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryStats {
    #[prost(uint64, tag = "1")]
    pub cache: u64,
    #[prost(message, optional, tag = "2")]
    pub usage: Option<MemoryData>,
    #[prost(message, optional, tag = "3")]
    pub swap_usage: Option<MemoryData>,
    #[prost(message, optional, tag = "4")]
    pub kernel_usage: Option<MemoryData>,
    /// cgroup v1 only.
    #[prost(bool, tag = "5")]
    pub use_hierarchy: bool,
    /// Lines of `memory.stat`.
    #[prost(btree_map = "string, uint64", tag = "6")]
    pub stats: BTreeMap<String, u64>,
}

/// One counter of one device.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BlkioStatsEntry {
    #[prost(uint64, tag = "1")]
    pub major: u64,
    #[prost(uint64, tag = "2")]
    pub minor: u64,
    #[prost(string, tag = "3")]
    pub op: String,
    #[prost(uint64, tag = "4")]
    pub value: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct BlkioStats {
    #[prost(message, repeated, tag = "1")]
    pub io_service_bytes_recursive: Vec<BlkioStatsEntry>,
    #[prost(message, repeated, tag = "2")]
    pub io_serviced_recursive: Vec<BlkioStatsEntry>,
    #[prost(message, repeated, tag = "3")]
    pub io_queued_recursive: Vec<BlkioStatsEntry>,
    #[prost(message, repeated, tag = "4")]
    pub io_service_time_recursive: Vec<BlkioStatsEntry>,
    #[prost(message, repeated, tag = "5")]
    pub io_wait_time_recursive: Vec<BlkioStatsEntry>,
    #[prost(message, repeated, tag = "6")]
    pub io_merged_recursive: Vec<BlkioStatsEntry>,
    #[prost(message, repeated, tag = "7")]
    pub io_time_recursive: Vec<BlkioStatsEntry>,
    #[prost(message, repeated, tag = "8")]
    pub sectors_recursive: Vec<BlkioStatsEntry>,
}

/// Bytes, and how often the limit was hit.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HugetlbStats {
    #[prost(uint64, tag = "1")]
    pub usage: u64,
    #[prost(uint64, tag = "2")]
    pub max_usage: u64,
    #[prost(uint64, tag = "3")]
    pub failcnt: u64,
}

/// What the container's cgroup counts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupStats {
    #[prost(message, optional, tag = "1")]
    pub cpu_stats: Option<CpuStats>,
    #[prost(message, optional, tag = "2")]
    pub memory_stats: Option<MemoryStats>,
    #[prost(message, optional, tag = "3")]
    pub pids_stats: Option<PidsStats>,
    #[prost(message, optional, tag = "4")]
    pub blkio_stats: Option<BlkioStats>,
    /// By page size: `2MB`.
    #[prost(btree_map = "string, message", tag = "5")]
    pub hugetlb_stats: BTreeMap<String, HugetlbStats>,
}

/// One interface.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkStats {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub rx_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub rx_packets: u64,
    #[prost(uint64, tag = "4")]
    pub rx_errors: u64,
    #[prost(uint64, tag = "5")]
    pub rx_dropped: u64,
    #[prost(uint64, tag = "6")]
    pub tx_bytes: u64,
    #[prost(uint64, tag = "7")]
    pub tx_packets: u64,
    #[prost(uint64, tag = "8")]
    pub tx_errors: u64,
    #[prost(uint64, tag = "9")]
    pub tx_dropped: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatsContainerResponse {
    #[prost(message, optional, tag = "1")]
    pub cgroup_stats: Option<CgroupStats>,
    #[prost(message, repeated, tag = "2")]
    pub network_stats: Vec<NetworkStats>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeStatsResponse {
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<VolumeUsage>,
    #[prost(message, optional, tag = "2")]
    pub volume_condition: Option<VolumeCondition>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum VolumeUsageUnit {
    Unknown = 0,
    Bytes = 1,
    Inodes = 2,
}

/// How full a volume is in one unit.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeUsage {
    #[prost(uint64, tag = "1")]
    pub available: u64,
    #[prost(uint64, tag = "2")]
    pub total: u64,
    #[prost(uint64, tag = "3")]
    pub used: u64,
    /// A [`VolumeUsageUnit`].
    #[prost(enumeration = "VolumeUsageUnit", tag = "4")]
    pub unit: i32,
}

/// Whether it is healthy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeCondition {
    #[prost(bool, tag = "1")]
    pub abnormal: bool,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The agent's metrics.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMetricsRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Metrics {
    /// In the Prometheus text format.
    #[prost(string, tag = "1")]
    pub metrics: String,
}
