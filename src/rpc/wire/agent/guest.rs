//! The sandbox and the guest as a whole, and Health.

use super::Storage;
/// `grpc.KernelModule`
#[derive(Clone, PartialEq, prost::Message)]
pub struct KernelModule {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub parameters: Vec<String>,
}

/// `grpc.CreateSandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxRequest {
    #[prost(string, tag = "1")]
    pub hostname: String,
    #[prost(string, repeated, tag = "2")]
    pub dns: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub storages: Vec<Storage>,
    #[prost(bool, tag = "4")]
    pub sandbox_pidns: bool,
    #[prost(string, tag = "5")]
    pub sandbox_id: String,
    #[prost(string, tag = "6")]
    pub guest_hook_path: String,
    #[prost(message, repeated, tag = "7")]
    pub kernel_modules: Vec<KernelModule>,
}

/// `grpc.DestroySandboxRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DestroySandboxRequest {}

/// `grpc.RemoveStaleVirtiofsShareMountsRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveStaleVirtiofsShareMountsRequest {}

/// `grpc.OnlineCPUMemRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct OnlineCpuMemRequest {
    #[prost(bool, tag = "1")]
    pub wait: bool,
    #[prost(uint32, tag = "2")]
    pub nb_cpus: u32,
    #[prost(bool, tag = "3")]
    pub cpu_only: bool,
}

/// `grpc.ReseedRandomDevRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReseedRandomDevRequest {
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// `grpc.AgentDetails`
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentDetails {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(bool, tag = "2")]
    pub init_daemon: bool,
    #[prost(string, repeated, tag = "3")]
    pub device_handlers: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub storage_handlers: Vec<String>,
    #[prost(bool, tag = "5")]
    pub supports_seccomp: bool,
    #[prost(string, repeated, tag = "6")]
    pub extra_features: Vec<String>,
}

/// `grpc.GuestDetailsRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestDetailsRequest {
    #[prost(bool, tag = "1")]
    pub mem_block_size: bool,
    #[prost(bool, tag = "2")]
    pub mem_hotplug_probe: bool,
}

/// `grpc.GuestDetailsResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestDetailsResponse {
    #[prost(uint64, tag = "1")]
    pub mem_block_size_bytes: u64,
    #[prost(message, optional, tag = "2")]
    pub agent_details: Option<AgentDetails>,
    #[prost(bool, tag = "3")]
    pub support_mem_hotplug_probe: bool,
}

/// `grpc.MemHotplugByProbeRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemHotplugByProbeRequest {
    #[prost(uint64, repeated, tag = "1")]
    pub mem_hotplug_probe_addr: Vec<u64>,
}

/// `grpc.SetGuestDateTimeRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetGuestDateTimeRequest {
    #[prost(int64, tag = "1")]
    pub sec: i64,
    #[prost(int64, tag = "2")]
    pub usec: i64,
}

/// `grpc.CopyFileRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CopyFileRequest {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(int64, tag = "2")]
    pub file_size: i64,
    #[prost(uint32, tag = "3")]
    pub file_mode: u32,
    #[prost(uint32, tag = "4")]
    pub dir_mode: u32,
    #[prost(int32, tag = "5")]
    pub uid: i32,
    #[prost(int32, tag = "6")]
    pub gid: i32,
    #[prost(int64, tag = "7")]
    pub offset: i64,
    #[prost(bytes = "vec", tag = "8")]
    pub data: Vec<u8>,
}

/// `grpc.GetOOMEventRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetOomEventRequest {}

/// `grpc.OOMEvent`
#[derive(Clone, PartialEq, prost::Message)]
pub struct OomEvent {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// `grpc.AddSwapRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddSwapRequest {
    #[prost(uint32, repeated, tag = "1")]
    pub pci_path: Vec<u32>,
}

/// `grpc.AddSwapPathRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddSwapPathRequest {
    #[prost(string, tag = "1")]
    pub path: String,
}

/// `grpc.GetMetricsRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetMetricsRequest {}

/// `grpc.Metrics`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metrics {
    #[prost(string, tag = "1")]
    pub metrics: String,
}

/// `grpc.VolumeStatsRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeStatsRequest {
    #[prost(string, tag = "1")]
    pub volume_guest_path: String,
}

/// `grpc.ResizeVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizeVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_guest_path: String,
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

/// `grpc.SetPolicyRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetPolicyRequest {
    #[prost(string, tag = "1")]
    pub policy: String,
}

/// `grpc.GetDiagnosticDataRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetDiagnosticDataRequest {
    #[prost(string, tag = "1")]
    pub log_type: String,
    #[prost(string, tag = "2")]
    pub container_id: String,
}

/// `grpc.GetDiagnosticDataResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetDiagnosticDataResponse {
    #[prost(string, tag = "1")]
    pub data: String,
}

/// `grpc.MemAgentMemcgConfig`
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemAgentMemcgConfig {
    #[prost(bool, optional, tag = "1")]
    pub disabled: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub swap: Option<bool>,
    #[prost(uint32, optional, tag = "3")]
    pub swappiness_max: Option<u32>,
    #[prost(uint64, optional, tag = "4")]
    pub period_secs: Option<u64>,
    #[prost(uint32, optional, tag = "5")]
    pub period_psi_percent_limit: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub eviction_psi_percent_limit: Option<u32>,
    #[prost(uint64, optional, tag = "7")]
    pub eviction_run_aging_count_min: Option<u64>,
}

/// `grpc.MemAgentCompactConfig`
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemAgentCompactConfig {
    #[prost(bool, optional, tag = "1")]
    pub disabled: Option<bool>,
    #[prost(uint64, optional, tag = "2")]
    pub period_secs: Option<u64>,
    #[prost(uint32, optional, tag = "3")]
    pub period_psi_percent_limit: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub compact_psi_percent_limit: Option<u32>,
    #[prost(int64, optional, tag = "5")]
    pub compact_sec_max: Option<i64>,
    #[prost(uint32, optional, tag = "6")]
    pub compact_order: Option<u32>,
    #[prost(uint64, optional, tag = "7")]
    pub compact_threshold: Option<u64>,
    #[prost(uint64, optional, tag = "8")]
    pub compact_force_times: Option<u64>,
}

/// `grpc.HealthCheckResponseServingStatus`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum HealthCheckResponseServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
}

/// `grpc.CheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

/// `grpc.HealthCheckResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    #[prost(enumeration = "HealthCheckResponseServingStatus", tag = "1")]
    pub status: i32,
}

/// `grpc.VersionCheckResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionCheckResponse {
    #[prost(string, tag = "1")]
    pub grpc_version: String,
    #[prost(string, tag = "2")]
    pub agent_version: String,
}

/// `grpc.VolumeUsageUnit`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum VolumeUsageUnit {
    Unknown = 0,
    Bytes = 1,
    Inodes = 2,
}

/// `grpc.VolumeStatsResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeStatsResponse {
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<VolumeUsage>,
    #[prost(message, optional, tag = "2")]
    pub volume_condition: Option<VolumeCondition>,
}

/// `grpc.VolumeUsage`
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeUsage {
    #[prost(uint64, tag = "1")]
    pub available: u64,
    #[prost(uint64, tag = "2")]
    pub total: u64,
    #[prost(uint64, tag = "3")]
    pub used: u64,
    #[prost(enumeration = "VolumeUsageUnit", tag = "4")]
    pub unit: i32,
}

/// `grpc.VolumeCondition`
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeCondition {
    #[prost(bool, tag = "1")]
    pub abnormal: bool,
    #[prost(string, tag = "2")]
    pub message: String,
}
