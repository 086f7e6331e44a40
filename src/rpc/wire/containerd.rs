//! Types that several of containerd's APIs share (packages `containerd.types` and `containerd.v1.types`).

use std::collections::BTreeMap;

use super::google;

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    Unknown = 0,
    Created = 1,
    Running = 2,
    Stopped = 3,
    Paused = 4,
    Pausing = 5,
}

/// A process as a manager lists it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// A [`Status`].
    #[prost(enumeration = "Status", tag = "4")]
    pub status: i32,
    #[prost(string, tag = "5")]
    pub stdin: String,
    #[prost(string, tag = "6")]
    pub stdout: String,
    #[prost(string, tag = "7")]
    pub stderr: String,
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    #[prost(uint32, tag = "9")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "10")]
    pub exited_at: Option<google::Timestamp>,
}

/// One process of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessInfo {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(message, optional, tag = "2")]
    pub info: Option<google::Any>,
}

/// A mount as mount(8) takes it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub source: String,
    /// Below the root file system; usually empty.
    #[prost(string, tag = "3")]
    pub target: String,
    /// As in fstab, one word each.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// A mount that a manager has made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActiveMount {
    #[prost(message, optional, tag = "1")]
    pub mount: Option<Mount>,
    #[prost(message, optional, tag = "2")]
    pub mounted_at: Option<google::Timestamp>,
    #[prost(string, tag = "3")]
    pub mount_point: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub data: BTreeMap<String, String>,
}

/// A set of mounts under one name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivationInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub active: Vec<ActiveMount>,
    #[prost(message, repeated, tag = "3")]
    pub system: Vec<Mount>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: BTreeMap<String, String>,
}

/// What an event travels in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<google::Timestamp>,
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// `/tasks/exit` and its kin.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// One of [`super::events`].
    #[prost(message, optional, tag = "4")]
    pub event: Option<google::Any>,
}

/// What `-info` gets on stdin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeRequest {
    #[prost(string, tag = "1")]
    pub runtime_path: String,
    #[prost(message, optional, tag = "2")]
    pub options: Option<google::Any>,
}

/// Which build this is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeVersion {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub revision: String,
}

/// What `-info` prints.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub version: Option<RuntimeVersion>,
    #[prost(message, optional, tag = "3")]
    pub options: Option<google::Any>,
    #[prost(message, optional, tag = "4")]
    pub features: Option<google::Any>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// A measurement and when it was taken.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metric {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<google::Timestamp>,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(message, optional, tag = "3")]
    pub data: Option<google::Any>,
}

/// What a sandbox runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Platform {
    #[prost(string, tag = "1")]
    pub os: String,
    /// Go's word: `amd64`.
    #[prost(string, tag = "2")]
    pub architecture: String,
    #[prost(string, tag = "3")]
    pub variant: String,
    #[prost(string, tag = "4")]
    pub os_version: String,
    #[prost(string, repeated, tag = "5")]
    pub os_features: Vec<String>,
}
