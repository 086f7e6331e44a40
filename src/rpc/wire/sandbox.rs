//! containerd's sandbox API (`sandboxer = "shim"`).

use std::collections::BTreeMap;

use crate::rpc::wire::{containerd, google};

/// `containerd.runtime.sandbox.v1.CreateSandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub bundle_path: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<containerd::Mount>,
    #[prost(message, optional, tag = "4")]
    pub options: Option<google::Any>,
    #[prost(string, tag = "5")]
    pub netns_path: String,
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
}

/// `containerd.runtime.sandbox.v1.CreateSandboxResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxResponse {}

/// `containerd.runtime.sandbox.v1.StartSandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

/// `containerd.runtime.sandbox.v1.StartSandboxResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartSandboxResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(message, optional, tag = "2")]
    pub created_at: Option<google::Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub spec: Option<google::Any>,
}

/// `containerd.runtime.sandbox.v1.PlatformRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlatformRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

/// `containerd.runtime.sandbox.v1.PlatformResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlatformResponse {
    #[prost(message, optional, tag = "1")]
    pub platform: Option<containerd::Platform>,
}

/// `containerd.runtime.sandbox.v1.StopSandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub timeout_secs: u32,
}

/// `containerd.runtime.sandbox.v1.StopSandboxResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopSandboxResponse {}

/// `containerd.runtime.sandbox.v1.UpdateSandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub resources: Option<google::Any>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub annotations: BTreeMap<String, String>,
}

/// `containerd.runtime.sandbox.v1.WaitSandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

/// `containerd.runtime.sandbox.v1.WaitSandboxResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitSandboxResponse {
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<google::Timestamp>,
}

/// `containerd.runtime.sandbox.v1.UpdateSandboxResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSandboxResponse {}

/// `containerd.runtime.sandbox.v1.SandboxStatusRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxStatusRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

/// `containerd.runtime.sandbox.v1.SandboxStatusResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxStatusResponse {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    #[prost(string, tag = "3")]
    pub state: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub info: BTreeMap<String, String>,
    #[prost(message, optional, tag = "5")]
    pub created_at: Option<google::Timestamp>,
    #[prost(message, optional, tag = "6")]
    pub exited_at: Option<google::Timestamp>,
    #[prost(message, optional, tag = "7")]
    pub extra: Option<google::Any>,
}

/// `containerd.runtime.sandbox.v1.PingRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct PingRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

/// `containerd.runtime.sandbox.v1.PingResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct PingResponse {}

/// `containerd.runtime.sandbox.v1.ShutdownSandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

/// `containerd.runtime.sandbox.v1.ShutdownSandboxResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownSandboxResponse {}

/// `containerd.runtime.sandbox.v1.SandboxMetricsRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxMetricsRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

/// `containerd.runtime.sandbox.v1.SandboxMetricsResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxMetricsResponse {
    #[prost(message, optional, tag = "1")]
    pub metrics: Option<containerd::Metric>,
}
