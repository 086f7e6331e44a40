//! What is Linux about a container.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{LinuxResources, is_default, or_default};

/// `grpc.Linux`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub uid_mappings: Vec<LinuxIdMapping>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub gid_mappings: Vec<LinuxIdMapping>,
    #[prost(btree_map = "string, string", tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub sysctl: BTreeMap<String, String>,
    #[prost(message, optional, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub resources: Option<LinuxResources>,
    #[prost(string, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub cgroups_path: String,
    #[prost(message, repeated, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub namespaces: Vec<LinuxNamespace>,
    #[prost(message, repeated, tag = "7")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub devices: Vec<LinuxDevice>,
    #[prost(message, optional, tag = "8")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub seccomp: Option<LinuxSeccomp>,
    #[prost(string, tag = "9")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub rootfs_propagation: String,
    #[prost(string, repeated, tag = "10")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub masked_paths: Vec<String>,
    #[prost(string, repeated, tag = "11")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub readonly_paths: Vec<String>,
    #[prost(string, tag = "12")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub mount_label: String,
    #[prost(message, optional, tag = "13")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub intel_rdt: Option<LinuxIntelRdt>,
    /// osc's own: a stock agent skips it.
    #[prost(message, optional, tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub personality: Option<Personality>,
    /// osc's own: a stock agent skips it.
    #[prost(btree_map = "string, message", tag = "1001")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

/// `grpc.LinuxIDMapping`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxIdMapping {
    #[prost(uint32, tag = "1")]
    #[serde(rename = "hostID", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub host_id: u32,
    #[prost(uint32, tag = "2")]
    #[serde(rename = "containerID", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub container_id: u32,
    #[prost(uint32, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub size: u32,
}

/// `grpc.LinuxNamespace`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxNamespace {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub path: String,
}

/// `grpc.LinuxDevice`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxDevice {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub path: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub r#type: String,
    #[prost(int64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub major: i64,
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub minor: i64,
    #[prost(uint32, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub file_mode: u32,
    #[prost(uint32, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub uid: u32,
    #[prost(uint32, tag = "7")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub gid: u32,
}

/// `grpc.LinuxSeccomp`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxSeccomp {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub default_action: String,
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub architectures: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub flags: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub syscalls: Vec<LinuxSyscall>,
    /// osc's own: a stock agent skips it.
    #[prost(uint32, optional, tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub default_errno_ret: Option<u32>,
    /// osc's own: a stock agent skips it.
    #[prost(string, tag = "1001")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub listener_path: String,
    /// osc's own: a stock agent skips it.
    #[prost(string, tag = "1002")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub listener_metadata: String,
}

/// `grpc.LinuxSeccompArg`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxSeccompArg {
    #[prost(uint64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub index: u64,
    #[prost(uint64, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub value: u64,
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub value_two: u64,
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub op: String,
}

/// `grpc.LinuxSyscall`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxSyscall {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub names: Vec<String>,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub action: String,
    #[prost(uint32, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub errno_ret: u32,
    #[prost(message, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub args: Vec<LinuxSeccompArg>,
}

/// `grpc.LinuxIntelRdt`
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxIntelRdt {
    #[prost(string, tag = "1")]
    #[serde(rename = "l3CacheSchema", deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub l3_cache_schema: String,
}

/// osc's own: OCI's `personality`, which the protocol lacks.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Personality {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub domain: String,
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub flags: Vec<String>,
}

/// osc's own: OCI's `timeOffset`, which the protocol lacks.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TimeOffset {
    #[prost(int64, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub secs: i64,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub nanosecs: u32,
}
