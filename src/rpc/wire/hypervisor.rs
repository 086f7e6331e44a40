//! The remote hypervisor protocol (package `hypervisor`): a shim asks the adaptor on its node for pod VMs.
//!
//! ttrpc on `/run/peerpod/hypervisor.sock`. StartVM may take minutes: 600 s by default, 900 s on OpenShift.
//!
//! ```text
//! CreateVM CreateVMRequest -> CreateVMResponse
//! StartVM  StartVMRequest -> StartVMResponse
//! StopVM   StopVMRequest -> StopVMResponse
//! Version  VersionRequest -> VersionResponse
//! ```

use std::collections::BTreeMap;

/// The service's name on the wire.
pub const SERVICE: &str = "hypervisor.Hypervisor";
/// Its methods.
pub const METHODS: [&str; 4] = ["CreateVM", "StartVM", "StopVM", "Version"];
/// The version the caller speaks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionRequest {
    #[prost(string, tag = "1")]
    pub version: String,
}

/// The version the adaptor speaks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionResponse {
    #[prost(string, tag = "1")]
    pub version: String,
}

/// Names a pod VM to be; nothing runs yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmRequest {
    /// The sandbox id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Those of the pod: its name, namespace, instance type.
    #[prost(btree_map = "string, string", tag = "2")]
    pub annotations: BTreeMap<String, String>,
    /// The pod's, for the adaptor to tie to the VM.
    #[prost(string, tag = "3")]
    pub network_namespace_path: String,
}

/// Where its agent will answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateVmResponse {
    /// A unix socket; speaks the agent protocol once the VM is started.
    #[prost(string, tag = "1")]
    pub agent_socket_path: String,
}

/// Makes the VM and waits for its agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartVmRequest {
    /// The sandbox id.
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StartVmResponse {}

/// Deletes the VM.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StopVmRequest {
    /// The sandbox id.
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StopVmResponse {}
