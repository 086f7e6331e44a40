//! What containerd 2.3 and later writes to the stdin of a shim's `start`.

use std::collections::BTreeMap;

use crate::rpc::wire::google;

/// `containerd.runtime.bootstrap.v1.LogLevel`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LogLevel {
    Trace = -8,
    Debug = -4,
    Info = 0,
    Warn = 4,
    Error = 8,
    Fatal = 10,
    Panic = 12,
}

/// `containerd.runtime.bootstrap.v1.Capability`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Capability {
    Unspecified = 0,
}

/// `containerd.runtime.bootstrap.v1.BootstrapParams`
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapParams {
    #[prost(string, tag = "1")]
    pub instance_id: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(enumeration = "LogLevel", tag = "3")]
    pub log_level: i32,
    #[prost(string, tag = "4")]
    pub containerd_version: String,
    #[prost(string, tag = "5")]
    pub containerd_ttrpc_address: String,
    #[prost(string, tag = "6")]
    pub containerd_grpc_address: String,
    #[prost(string, tag = "7")]
    pub containerd_binary: String,
    #[prost(message, repeated, tag = "8")]
    pub extensions: Vec<Extension>,
    #[prost(string, optional, tag = "9")]
    pub socket_dir: Option<String>,
}

/// `containerd.runtime.bootstrap.v1.Extension`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Extension {
    #[prost(message, optional, tag = "1")]
    pub value: Option<google::Any>,
}

/// `containerd.runtime.bootstrap.v1.BootstrapResult`
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapResult {
    #[prost(int32, tag = "1")]
    pub version: i32,
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(string, tag = "3")]
    pub protocol: String,
    #[prost(enumeration = "Capability", tag = "4")]
    pub capabilities: i32,
    #[prost(btree_map = "string, string", tag = "5")]
    pub metadata: BTreeMap<String, String>,
}
