//! Types that containerd shares between its services: `containerd.v1.types`, `containerd.types`.

use std::collections::BTreeMap;

use crate::rpc::wire::google;

/// `containerd.v1.types.Status`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    Unknown = 0,
    Created = 1,
    Running = 2,
    Stopped = 3,
    Paused = 4,
    Pausing = 5,
}

/// `containerd.v1.types.Process`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(uint32, tag = "3")]
    pub pid: u32,
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

/// `containerd.v1.types.ProcessInfo`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessInfo {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(message, optional, tag = "2")]
    pub info: Option<google::Any>,
}

/// `containerd.types.Mount`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub r#type: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, tag = "3")]
    pub target: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `containerd.types.ActiveMount`
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

/// `containerd.types.ActivationInfo`
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

/// `containerd.types.Envelope`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<google::Timestamp>,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub event: Option<google::Any>,
}

/// `containerd.types.RuntimeRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeRequest {
    #[prost(string, tag = "1")]
    pub runtime_path: String,
    #[prost(message, optional, tag = "2")]
    pub options: Option<google::Any>,
}

/// `containerd.types.RuntimeVersion`
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeVersion {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub revision: String,
}

/// `containerd.types.RuntimeInfo`
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

/// `containerd.types.Metric`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metric {
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<google::Timestamp>,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(message, optional, tag = "3")]
    pub data: Option<google::Any>,
}

/// `containerd.types.Platform`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Platform {
    #[prost(string, tag = "1")]
    pub os: String,
    #[prost(string, tag = "2")]
    pub architecture: String,
    #[prost(string, tag = "3")]
    pub variant: String,
    #[prost(string, tag = "4")]
    pub os_version: String,
    #[prost(string, repeated, tag = "5")]
    pub os_features: Vec<String>,
}
