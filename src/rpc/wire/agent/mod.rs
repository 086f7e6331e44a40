//! The guest agent's protocol: `grpc.AgentService` and `grpc.Health`, as Kata Containers 4.1 speaks it.

mod container;
mod guest;
mod network;
mod stats;

pub use container::*;
pub use guest::*;
pub use network::*;
pub use stats::*;
