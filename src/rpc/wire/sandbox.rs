//! containerd 2's sandbox API (package `containerd.runtime.sandbox.v1`), for `sandboxer = "shim"`.
//!
//! ```text
//! CreateSandbox   CreateSandboxRequest -> CreateSandboxResponse
//! StartSandbox    StartSandboxRequest -> StartSandboxResponse
//! Platform        PlatformRequest -> PlatformResponse
//! StopSandbox     StopSandboxRequest -> StopSandboxResponse
//! WaitSandbox     WaitSandboxRequest -> WaitSandboxResponse
//! SandboxStatus   SandboxStatusRequest -> SandboxStatusResponse
//! PingSandbox     PingRequest -> PingResponse
//! ShutdownSandbox ShutdownSandboxRequest -> ShutdownSandboxResponse
//! SandboxMetrics  SandboxMetricsRequest -> SandboxMetricsResponse
//! ```

use std::collections::BTreeMap;

use super::{containerd, google};

/// The service's name on the wire.
pub const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// Its methods.
pub const METHODS: [&str; 9] = [
    "CreateSandbox",
    "StartSandbox",
    "Platform",
    "StopSandbox",
    "WaitSandbox",
    "SandboxStatus",
    "PingSandbox",
    "ShutdownSandbox",
    "SandboxMetrics",
];
/// Prepares a sandbox; nothing runs yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(string, tag = "2")]
    pub bundle_path: String,
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<containerd::Mount>,
    /// What the manager was told about the pod: CRI's `PodSandboxConfig` or runtime options.
    #[prost(message, optional, tag = "4")]
    pub options: Option<google::Any>,
    /// The network namespace of the pod.
    #[prost(string, tag = "5")]
    pub netns_path: String,
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxResponse {}

/// Starts the VM.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StartSandboxResponse {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(message, optional, tag = "2")]
    pub created_at: Option<google::Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub spec: Option<google::Any>,
}

/// Asks what the sandbox runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PlatformRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PlatformResponse {
    #[prost(message, optional, tag = "1")]
    pub platform: Option<containerd::Platform>,
}

/// Ends every container and the VM.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    /// Seconds to end in an orderly way; 0 leaves it to us.
    #[prost(uint32, tag = "2")]
    pub timeout_secs: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StopSandboxResponse {}

/// New limits for the sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub resources: Option<google::Any>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub annotations: BTreeMap<String, String>,
}

/// Answered when the sandbox has ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitSandboxResponse {
    /// As a shell tells it: 128 + n for signal n.
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<google::Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSandboxResponse {}

/// What the sandbox is doing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxStatusRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    /// Fill in `info` too.
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxStatusResponse {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// `SANDBOX_READY` or `SANDBOX_NOTREADY`.
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

/// Is the shim alive?
#[derive(Clone, PartialEq, prost::Message)]
pub struct PingRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PingResponse {}

/// Asks the shim to end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownSandboxRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ShutdownSandboxResponse {}

/// What the sandbox uses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxMetricsRequest {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxMetricsResponse {
    #[prost(message, optional, tag = "1")]
    pub metrics: Option<containerd::Metric>,
}
