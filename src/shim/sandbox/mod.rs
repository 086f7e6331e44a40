//! THE pod: VM, agent client, share, endpoints, containers. One way to start, one to clean up.

pub mod cleanup;
pub mod record;
