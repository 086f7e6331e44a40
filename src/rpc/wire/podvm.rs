//! Which VM a pod has (package `podvminfo`): asked by the pod VM deletion webhook and by people.
//!
//! ```text
//! GetInfo GetInfoRequest -> GetInfoResponse
//! ```

/// The service's name on the wire.
pub const SERVICE: &str = "podvminfo.PodVMInfo";
/// Its methods.
pub const METHODS: [&str; 1] = ["GetInfo"];
/// The pod, by name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInfoRequest {
    #[prost(string, tag = "1")]
    pub pod_name: String,
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
    /// Block until the pod has a VM.
    #[prost(bool, tag = "3")]
    pub wait: bool,
}

/// Its VM.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInfoResponse {
    /// The provider's id of it.
    #[prost(string, tag = "1")]
    pub vmid: String,
}
