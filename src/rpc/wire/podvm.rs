//! Which VM a pod has.

/// `podvminfo.GetInfoRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInfoRequest {
    #[prost(string, tag = "1")]
    pub pod_name: String,
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
    #[prost(bool, tag = "3")]
    pub wait: bool,
}

/// `podvminfo.GetInfoResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetInfoResponse {
    #[prost(string, tag = "1")]
    pub vmid: String,
}
