//! Limits of a container.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{any_number, is_default, or_any_number, or_default};

/// `grpc.LinuxResources`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxResources {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub devices: Vec<LinuxDeviceCgroup>,
    #[prost(message, optional, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub memory: Option<LinuxMemory>,
    #[prost(message, optional, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpu: Option<LinuxCpu>,
    #[prost(message, optional, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub pids: Option<LinuxPids>,
    #[prost(message, optional, tag = "5")]
    #[serde(rename = "blockIO", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub block_io: Option<LinuxBlockIo>,
    #[prost(message, repeated, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub hugepage_limits: Vec<LinuxHugepageLimit>,
    #[prost(message, optional, tag = "7")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub network: Option<LinuxNetwork>,
    /// osc's own: a stock agent skips it.
    #[prost(btree_map = "string, string", tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub unified: BTreeMap<String, String>,
}

/// `grpc.LinuxMemory`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxMemory {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub limit: i64,
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub reservation: i64,
    #[prost(int64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub swap: i64,
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub kernel: i64,
    #[prost(int64, tag = "5")]
    #[serde(rename = "kernelTCP", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub kernel_tcp: i64,
    #[prost(uint64, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub swappiness: u64,
    #[prost(bool, tag = "7")]
    #[serde(rename = "disableOOMKiller", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub disable_oom_killer: bool,
    /// osc's own: a stock agent skips it.
    #[prost(bool, tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub check_before_update: bool,
}

/// `grpc.LinuxCPU`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxCpu {
    #[prost(uint64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub shares: u64,
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub quota: i64,
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub period: u64,
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub realtime_runtime: i64,
    #[prost(uint64, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub realtime_period: u64,
    #[prost(string, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cpus: String,
    #[prost(string, tag = "7")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub mems: String,
    /// osc's own: a stock agent skips it.
    #[prost(uint64, optional, tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub burst: Option<u64>,
    /// osc's own: a stock agent skips it.
    #[prost(int64, optional, tag = "1001")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub idle: Option<i64>,
}

/// `grpc.LinuxWeightDevice`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxWeightDevice {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub major: i64,
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub minor: i64,
    #[prost(uint32, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub weight: u32,
    #[prost(uint32, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub leaf_weight: u32,
}

/// `grpc.LinuxThrottleDevice`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxThrottleDevice {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub major: i64,
    #[prost(int64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub minor: i64,
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub rate: u64,
}

/// `grpc.LinuxBlockIO`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxBlockIo {
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

/// `grpc.LinuxPids`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxPids {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub limit: i64,
}

/// `grpc.LinuxDeviceCgroup`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxDeviceCgroup {
    #[prost(bool, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub allow: bool,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub r#type: String,
    #[prost(int64, tag = "3")]
    #[serde(default = "any_number", deserialize_with = "or_any_number")]
    pub major: i64,
    #[prost(int64, tag = "4")]
    #[serde(default = "any_number", deserialize_with = "or_any_number")]
    pub minor: i64,
    #[prost(string, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub access: String,
}

/// `grpc.LinuxNetwork`
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

/// `grpc.LinuxHugepageLimit`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxHugepageLimit {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub page_size: String,
    #[prost(uint64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub limit: u64,
}

/// `grpc.LinuxInterfacePriority`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxInterfacePriority {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub priority: u32,
}
