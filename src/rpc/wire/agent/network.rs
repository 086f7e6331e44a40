//! The guest's network.

use crate::rpc::wire::types;

/// `grpc.Interfaces`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Interfaces {
    #[prost(message, repeated, tag = "1")]
    pub interfaces: Vec<types::Interface>,
}

/// `grpc.Routes`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Routes {
    #[prost(message, repeated, tag = "1")]
    pub routes: Vec<types::Route>,
}

/// `grpc.UpdateInterfaceRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateInterfaceRequest {
    #[prost(message, optional, tag = "1")]
    pub interface: Option<types::Interface>,
}

/// `grpc.UpdateRoutesRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRoutesRequest {
    #[prost(message, optional, tag = "1")]
    pub routes: Option<Routes>,
}

/// `grpc.ListInterfacesRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListInterfacesRequest {}

/// `grpc.ListRoutesRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRoutesRequest {}

/// `grpc.ARPNeighbors`
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArpNeighbors {
    #[prost(message, repeated, tag = "1")]
    pub arp_neighbors: Vec<types::ArpNeighbor>,
}

/// `grpc.AddARPNeighborsRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddArpNeighborsRequest {
    #[prost(message, optional, tag = "1")]
    pub neighbors: Option<ArpNeighbors>,
}

/// `grpc.GetIPTablesRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetIpTablesRequest {
    #[prost(bool, tag = "1")]
    pub is_ipv6: bool,
}

/// `grpc.GetIPTablesResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetIpTablesResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// `grpc.SetIPTablesRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetIpTablesRequest {
    #[prost(bool, tag = "1")]
    pub is_ipv6: bool,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

/// `grpc.SetIPTablesResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetIpTablesResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}
