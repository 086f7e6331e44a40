//! Options of a runtime, as containerd and CRI-O hand them over.

/// `runtimeoptions.v1.Options`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Options {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(string, tag = "2")]
    pub config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}
