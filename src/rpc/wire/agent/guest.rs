//! The sandbox and the guest as a whole: identity, network, processors, clock, health.

use super::super::types;
use super::Storage;

/// A module to load.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KernelModule {
    #[prost(string, tag = "1")]
    pub name: String,
    /// `name=value`, one each.
    #[prost(string, repeated, tag = "2")]
    pub parameters: Vec<String>,
}

/// The pod's identity and what its containers share. The first call.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandboxRequest {
    #[prost(string, tag = "1")]
    pub hostname: String,
    /// Lines of resolv.conf.
    #[prost(string, repeated, tag = "2")]
    pub dns: Vec<String>,
    /// Mounts that containers share.
    #[prost(message, repeated, tag = "3")]
    pub storages: Vec<Storage>,
    /// The pod shares one PID namespace.
    #[prost(bool, tag = "4")]
    pub sandbox_pidns: bool,
    #[prost(string, tag = "5")]
    pub sandbox_id: String,
    /// A directory of OCI hooks in the guest image.
    #[prost(string, tag = "6")]
    pub guest_hook_path: String,
    /// To be loaded first.
    #[prost(message, repeated, tag = "7")]
    pub kernel_modules: Vec<KernelModule>,
}

/// The last call: the guest powers off.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DestroySandboxRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Interfaces {
    #[prost(message, repeated, tag = "1")]
    pub interfaces: Vec<types::Interface>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Routes {
    #[prost(message, repeated, tag = "1")]
    pub routes: Vec<types::Route>,
}

/// Gives an interface its name and addresses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateInterfaceRequest {
    #[prost(message, optional, tag = "1")]
    pub interface: Option<types::Interface>,
}

/// The routes the guest is to have; answered by those it has.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRoutesRequest {
    #[prost(message, optional, tag = "1")]
    pub routes: Option<Routes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListInterfacesRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRoutesRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ArpNeighbors {
    #[prost(message, repeated, tag = "1")]
    pub arp_neighbors: Vec<types::ArpNeighbor>,
}

/// Neighbours the guest need not ask for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddArpNeighborsRequest {
    #[prost(message, optional, tag = "1")]
    pub neighbors: Option<ArpNeighbors>,
}

/// Refused by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetIpTablesRequest {
    #[prost(bool, tag = "1")]
    pub is_ipv6: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetIpTablesResponse {
    /// As iptables-save prints.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// Refused by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetIpTablesRequest {
    #[prost(bool, tag = "1")]
    pub is_ipv6: bool,
    /// As iptables-restore reads.
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SetIpTablesResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// Brings plugged processors and memory online.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OnlineCpuMemRequest {
    /// Answer only when `nb_cpus` are online.
    #[prost(bool, tag = "1")]
    pub wait: bool,
    /// How many more to expect.
    #[prost(uint32, tag = "2")]
    pub nb_cpus: u32,
    /// Leave memory alone.
    #[prost(bool, tag = "3")]
    pub cpu_only: bool,
    /// Ours (Kata has no such field): exactly so many processors shall be online, the rest go offline. 0 takes none away.
    #[prost(uint32, tag = "1000")]
    pub total_cpus: u32,
}

/// Entropy from the host.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReseedRandomDevRequest {
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// What this agent is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentDetails {
    #[prost(string, tag = "1")]
    pub version: String,
    /// The agent is PID 1.
    #[prost(bool, tag = "2")]
    pub init_daemon: bool,
    /// Kinds of [`Device`] it knows.
    #[prost(string, repeated, tag = "3")]
    pub device_handlers: Vec<String>,
    /// Drivers of [`Storage`] it knows.
    #[prost(string, repeated, tag = "4")]
    pub storage_handlers: Vec<String>,
    #[prost(bool, tag = "5")]
    pub supports_seccomp: bool,
    /// What it can do beyond Kata's protocol, one word each.
    #[prost(string, repeated, tag = "6")]
    pub extra_features: Vec<String>,
}

/// What this guest is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestDetailsRequest {
    /// Ask for the size of a memory block.
    #[prost(bool, tag = "1")]
    pub mem_block_size: bool,
    /// Ask whether memory is announced by hand (not on x86).
    #[prost(bool, tag = "2")]
    pub mem_hotplug_probe: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GuestDetailsResponse {
    #[prost(uint64, tag = "1")]
    pub mem_block_size_bytes: u64,
    #[prost(message, optional, tag = "2")]
    pub agent_details: Option<AgentDetails>,
    #[prost(bool, tag = "3")]
    pub support_mem_hotplug_probe: bool,
}

/// Announces memory by hand (not on x86).
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemHotplugByProbeRequest {
    /// Physical addresses.
    #[prost(uint64, repeated, tag = "1")]
    pub mem_hotplug_probe_addr: Vec<u64>,
}

/// The host's clock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetGuestDateTimeRequest {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub sec: i64,
    /// Microseconds.
    #[prost(int64, tag = "2")]
    pub usec: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SetPolicyRequest {
    /// Refused by name: osc has no policy engine.
    #[prost(string, tag = "1")]
    pub policy: String,
}

/// Something for a bug report.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetDiagnosticDataRequest {
    /// What to collect.
    #[prost(string, tag = "1")]
    pub log_type: String,
    #[prost(string, tag = "2")]
    pub container_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetDiagnosticDataResponse {
    #[prost(string, tag = "1")]
    pub data: String,
}

/// Refused by name.
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

/// Refused by name.
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

/// An empty service name asks for all.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

/// Whether calls are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum HealthCheckResponseServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    /// A [`HealthCheckResponseServingStatus`].
    #[prost(enumeration = "HealthCheckResponseServingStatus", tag = "1")]
    pub status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionCheckResponse {
    #[prost(string, tag = "1")]
    pub grpc_version: String,
    #[prost(string, tag = "2")]
    pub agent_version: String,
}
