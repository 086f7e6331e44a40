//! What a ttrpc frame carries (package `ttrpc`); the frame itself is [`crate::rpc::frame`].

use super::google;

/// A call.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// With its package: `grpc.AgentService`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Without anything before it: `CreateContainer`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// Nanoseconds the caller will wait; 0 means for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// What came of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Unset, or with code 0, where the call succeeded.
    #[prost(message, optional, tag = "1")]
    pub status: Option<google::RpcStatus>,
    /// The encoded message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// An entry of a call's metadata.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}
