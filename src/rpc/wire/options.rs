//! Runtime options (package `runtimeoptions.v1`): what a manager's configuration says about a runtime.

use super::Named;

/// Sent inside an `Any`, on stdin of `start` and in Create.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Options {
    /// What `config_body` is; for people.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// `ConfigPath` in the manager's configuration: our `configuration.toml`.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// The options table itself, as TOML.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

impl Named for Options {
    const TYPE: &str = "runtimeoptions.v1.Options";
}
