//! ttrpc over any byte stream, the stream mux of virtio-serial, and the wire messages.
//!
//! Knows nothing of what is above it: a [`Stream`] comes in, calls go out. Facts: containerd's ttrpc protocol; the
//! numbers of every message are in [`wire`].

pub mod mux;
mod status;
mod stream;
pub mod wire;

pub use status::{Code, Status};
pub use stream::Stream;
