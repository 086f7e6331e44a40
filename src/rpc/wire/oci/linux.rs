//! Namespaces, devices and the like.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::{is_default, or_default};
use super::{LinuxResources, LinuxSeccomp};

/// What only Linux has.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<LinuxResources>,
    /// A path, or systemd's `slice:prefix:name`.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<LinuxSeccomp>,
    /// `shared`, `slave`, `private`, `unbindable`, or with an `r` before.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<LinuxIntelRdt>,
    /// osc's own field: a stock agent ignores it.
    #[prost(message, optional, tag = "1000")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
    /// By clock: `monotonic`, `boottime`. osc's own field: a stock agent ignores it.
    #[prost(btree_map = "string, message", tag = "1001")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

/// A range of ids.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxIdMapping {
    #[prost(uint32, tag = "1")]
    #[serde(rename = "hostID", deserialize_with = "or_default")]
    pub host_id: u32,
    #[prost(uint32, tag = "2")]
    #[serde(rename = "containerID", deserialize_with = "or_default")]
    pub container_id: u32,
    #[prost(uint32, tag = "3")]
    #[serde(deserialize_with = "or_default")]
    pub size: u32,
}

/// A namespace: a new one, or the one at `path`.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxNamespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub path: String,
}

/// A device node.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxDevice {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// `c`, `u`, `b` or `p`.
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub r#type: String,
    #[prost(int64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub major: i64,
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub minor: i64,
    /// Permissions.
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

/// Cache allocation; not in a guest.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxIntelRdt {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub l3_cache_schema: String,
}

/// personality(2).
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub domain: String,
    /// OCI defines none.
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub flags: Vec<String>,
}

/// What a time namespace adds to a clock.
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
