//! Messages on the wire, one module per protocol: names, numbers and types are the peers', not ours to change.

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
