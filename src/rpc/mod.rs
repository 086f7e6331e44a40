//! ttrpc over any byte stream, the stream mux of virtio-serial, and the wire messages.
//!
//! Knows nothing of what is above it: a [`Stream`] comes in, calls go out. Facts: containerd's ttrpc protocol; the
//! numbers of every message are in [`wire`].

mod client;
mod deadlines;
pub mod frame;
pub mod http;
pub mod hybrid;
pub mod mux;
pub mod reconnect;
pub mod relay;
mod server;
mod status;
mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod wire;
mod workers;

pub use client::Client;
pub use server::{Context, Server, Service, unary};
pub use status::{Code, Status};
pub use stream::Stream;
