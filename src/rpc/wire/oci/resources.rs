//! What a cgroup limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::{any_number, is_default, or_any_number, or_default};

/// Limits of a container's cgroup.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxResources {
    /// Later entries win.
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub devices: Vec<LinuxDeviceCgroup>,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<LinuxMemory>,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<LinuxCpu>,
    #[prost(message, optional, tag = "4")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<LinuxPids>,
    #[prost(message, optional, tag = "5")]
    #[serde(rename = "blockIO", skip_serializing_if = "Option::is_none")]
    pub block_io: Option<LinuxBlockIo>,
    #[prost(message, repeated, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub hugepage_limits: Vec<LinuxHugepageLimit>,
    /// cgroup v1 only.
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<LinuxNetwork>,
    /// Files of cgroup v2 and what to write to them. osc's own field: a stock agent ignores it.
    #[prost(btree_map = "string, string", tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub unified: BTreeMap<String, String>,
    /// By device. osc's own field: a stock agent ignores it.
    #[prost(btree_map = "string, message", tag = "1001")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub rdma: BTreeMap<String, LinuxRdma>,
}

/// Bytes; -1 means no limit, 0 that nothing was said.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxMemory {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub limit: i64,
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub reservation: i64,
    /// Memory and swap together, as cgroup v1 counts.
    #[prost(int64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub swap: i64,
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub kernel: i64,
    #[prost(int64, tag = "5")]
    #[serde(rename = "kernelTCP", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub kernel_tcp: i64,
    /// 0 to 100.
    #[prost(uint64, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub swappiness: u64,
    #[prost(bool, tag = "7")]
    #[serde(rename = "disableOOMKiller", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub disable_oom_killer: bool,
    /// Refuse a limit below what is in use. osc's own field: a stock agent ignores it.
    #[prost(bool, tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub check_before_update: bool,
}

/// Processor time.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxCpu {
    /// 2 to 262144, as cgroup v1 counts.
    #[prost(uint64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub shares: u64,
    /// Microseconds per period; -1 means no limit.
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub quota: i64,
    /// Microseconds.
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub period: u64,
    /// Microseconds. Likewise the next.
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub realtime_runtime: i64,
    #[prost(uint64, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub realtime_period: u64,
    /// A list: `0-2,7`.
    #[prost(string, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpus: String,
    /// A list of NUMA nodes.
    #[prost(string, tag = "7")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub mems: String,
    /// Microseconds. osc's own field: a stock agent ignores it.
    #[prost(uint64, optional, tag = "1000")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// 1 is SCHED_IDLE. osc's own field: a stock agent ignores it.
    #[prost(int64, optional, tag = "1001")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<i64>,
}

/// Tasks.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxPids {
    /// Less than 0 means no limit, 0 that nothing was said.
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub limit: i64,
}

/// Which devices may be used.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxDeviceCgroup {
    #[prost(bool, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub allow: bool,
    /// `a`, `c` or `b`; empty is `a`.
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub r#type: String,
    /// [`ANY_NUMBER`] where JSON names none. Likewise `minor`. A stock shim sends 0 for that: it cannot tell the two apart.
    #[prost(int64, tag = "3")]
    #[serde(default = "any_number", deserialize_with = "or_any_number")]
    pub major: i64,
    #[prost(int64, tag = "4")]
    #[serde(default = "any_number", deserialize_with = "or_any_number")]
    pub minor: i64,
    /// Of `rwm`.
    #[prost(string, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub access: String,
}

/// Block devices.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxBlockIo {
    /// 10 to 1000.
    #[prost(uint32, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub weight: u32,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub leaf_weight: u32,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub weight_device: Vec<LinuxWeightDevice>,
    #[prost(message, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub throttle_read_bps_device: Vec<LinuxThrottleDevice>,
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub throttle_write_bps_device: Vec<LinuxThrottleDevice>,
    #[prost(message, repeated, tag = "6")]
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub throttle_read_iops_device: Vec<LinuxThrottleDevice>,
    #[prost(message, repeated, tag = "7")]
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub throttle_write_iops_device: Vec<LinuxThrottleDevice>,
}

/// Weight on one device.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxWeightDevice {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub major: i64,
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub minor: i64,
    #[prost(uint32, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub weight: u32,
    #[prost(uint32, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub leaf_weight: u32,
}

/// Bytes or requests per second on one device.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxThrottleDevice {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub major: i64,
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub minor: i64,
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "or_default")]
    pub rate: u64,
}

/// Huge pages of one size.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxHugepageLimit {
    /// `2MB`.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub page_size: String,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub limit: u64,
}

/// Network classes and priorities of cgroup v1.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxNetwork {
    #[prost(uint32, tag = "1")]
    #[serde(rename = "classID", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub class_id: u32,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub priorities: Vec<LinuxInterfacePriority>,
}

/// Priority on one interface.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxInterfacePriority {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub priority: u32,
}

/// Limits on one RDMA device.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxRdma {
    #[prost(uint32, optional, tag = "1")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hca_handles: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hca_objects: Option<u32>,
}
