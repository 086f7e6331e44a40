//! What containerd 2.3 and later write to stdin of `start` (package `containerd.runtime.bootstrap.v1`).
//!
//! Earlier ones write an `Any` of runtime options there; any bytes may parse as either, so believe this one only if `instance_id` and
//! `namespace` equal the flags `-id` and `-namespace`.

use std::collections::BTreeMap;

use super::google;

/// Parameters of `start`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapParams {
    #[prost(string, tag = "1")]
    pub instance_id: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// A [`LogLevel`].
    #[prost(enumeration = "LogLevel", tag = "3")]
    pub log_level: i32,
    #[prost(string, tag = "4")]
    pub containerd_version: String,
    #[prost(string, tag = "5")]
    pub containerd_ttrpc_address: String,
    #[prost(string, tag = "6")]
    pub containerd_grpc_address: String,
    /// Publishes events where there is no ttrpc address.
    #[prost(string, tag = "7")]
    pub containerd_binary: String,
    #[prost(message, repeated, tag = "8")]
    pub extensions: Vec<Extension>,
    /// Where to bind the shim's socket, if not in `/run/containerd/s`.
    #[prost(string, optional, tag = "9")]
    pub socket_dir: Option<String>,
}

/// An option some plugin adds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Extension {
    #[prost(message, optional, tag = "1")]
    pub value: Option<google::Any>,
}

/// A structured answer to `start`; one line with the address serves every version.
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

/// How much to log, in the numbers of Go's slog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
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

/// What a shim can do beyond the Task API; none is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Capability {
    Unspecified = 0,
}
