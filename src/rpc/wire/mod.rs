//! The messages that osc exchanges with programs it does not control: names, numbers and types as they have them.
//!
//! Plain structs with prost's derives, so there is no protoc and no generated code. One module per protobuf package (or per
//! few small ones); a module's header lists the methods of its service. Rust names are snake_case; a message keeps the
//! name it has on the wire, in Rust's capitals (`GetOOMEventRequest` is [`agent::GetOomEventRequest`]).
//!
//! A field of enumeration type is an `i32`: peers may be newer than us. Maps are ordered, so that encoding is reproducible.

pub mod agent;
pub mod bootstrap;
pub mod cgroups1;
pub mod cgroups2;
pub mod containerd;
pub mod events;
pub mod google;
pub mod hypervisor;
pub mod oci;
pub mod options;
pub mod podvm;
pub mod sandbox;
pub mod task;
pub mod ttrpc;
pub mod types;

/// A message that travels inside an [`google::Any`], with the name it has there.
pub trait Named: prost::Message + Default {
    /// Package and name: `containerd.events.TaskExit`.
    const TYPE: &str;
}
