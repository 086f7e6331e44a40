//! Container images.

pub mod user;
