//! The remote hypervisor of peer pods.

use std::collections::BTreeMap;

/// `hypervisor.VersionRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionRequest {
    #[prost(string, tag = "1")]
    pub version: String,
}

/// `hypervisor.VersionResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionResponse {
    #[prost(string, tag = "1")]
    pub version: String,
}

/// `hypervisor.CreateVMRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub annotations: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    pub network_namespace_path: String,
}

/// `hypervisor.CreateVMResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmResponse {
    #[prost(string, tag = "1")]
    pub agent_socket_path: String,
}

/// `hypervisor.StartVMRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartVmRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `hypervisor.StartVMResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartVmResponse {}

/// `hypervisor.StopVMRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopVmRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `hypervisor.StopVMResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopVmResponse {}
