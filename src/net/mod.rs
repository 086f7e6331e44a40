//! The network: netlink verbs, and what a pod's interfaces are to its VM. Knows nobody above.
//!
//! A small socket ([`netlink`]) and messages ([`message`]) below, verbs by what they act on above them, the models of a
//! pod's network ([`scan`], [`endpoint`]) on top. Every error names the call, the device and the kernel's own words
//! (extended acknowledgement).

pub mod address;
pub mod channels;
pub mod endpoint;
pub mod link;
pub mod message;
pub mod monitor;
pub mod namespace;
pub mod neighbour;
pub mod netlink;
pub mod nft;
pub mod route;
pub mod scan;
pub mod setup;
pub mod step;
pub mod tap;
pub mod tc;
pub mod vxlan;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

pub use namespace::Namespace;

use crate::error::{Failure, Stage};
use crate::rpc::Code;

/// Why a netlink call failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused; its text says more than the number, where it has one.
    #[error("{what}: {error}{}", if text.is_empty() { String::new() } else { format!(" ({text})") })]
    Refused { what: String, error: io::Error, text: String },
    /// No such device in this network namespace.
    #[error("no interface {0}")]
    NoLink(String),
    /// The path is no network namespace, or it cannot be entered.
    #[error("network namespace {}: {cause}", path.display())]
    Namespace { path: PathBuf, cause: String },
    /// A pod with the host's own network: there is nothing that a VM could be given.
    #[error("network namespace {}: is the host's own; a pod in a VM cannot have the host's network", .0.display())]
    Host(PathBuf),
    /// Somebody else's traffic control is where ours would have to be.
    #[error("{link} has an ingress qdisc with {filters} filters that are not ours: remove them, or `tc qdisc del dev {link} ingress`")]
    Foreign { link: String, filters: usize },
    /// What was asked for is no address, prefix or MAC.
    #[error("{0}")]
    Invalid(String),
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
}

impl NetError {
    /// The kernel's number, where it refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetError::Refused { error, .. } | NetError::Io(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

impl From<NetError> for Failure {
    fn from(e: NetError) -> Failure {
        let code = match &e {
            NetError::Namespace { .. } | NetError::NoLink(_) => Code::NotFound,
            NetError::Invalid(_) | NetError::Host(_) => Code::InvalidArgument,
            NetError::Foreign { .. } => Code::FailedPrecondition,
            NetError::Refused { .. } | NetError::Io(_) => Code::Internal,
        };
        let failure = Failure::new(Stage::Network, e.to_string()).code(code);
        match e {
            NetError::Host(_) => failure.way_out("a pod with hostNetwork needs another runtime class"),
            _ => failure,
        }
    }
}

/// An address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl Prefix {
    /// `10.0.0.1/24`; the length must be there.
    pub fn parse(text: &str) -> Result<Prefix, NetError> {
        let invalid = || NetError::Invalid(format!("{text:?} is no address with a prefix length"));
        let (address, length) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let length: u8 = length.parse().map_err(|_| invalid())?;
        if length > bits(&address) { Err(invalid()) } else { Ok(Prefix { address, length }) }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// The network that an address is in: its bits beyond the prefix cleared.
pub fn network_of(prefix: &Prefix) -> Prefix {
    let mut bytes = octets(&prefix.address);
    for (at, byte) in bytes.iter_mut().enumerate() {
        let kept = usize::from(prefix.length).saturating_sub(at * 8).min(8);
        *byte &= !(0xffu16 >> kept) as u8;
    }
    Prefix { address: from_octets(&bytes).unwrap_or(prefix.address), length: prefix.length }
}

/// How long an address of this family is.
pub fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The family's number in the kernel.
pub fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// The address as the kernel takes it.
pub fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The address in bytes of the kernel's.
pub fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        for (address, network) in [
            ("10.1.2.3/24", "10.1.2.0/24"),
            ("10.1.2.3/31", "10.1.2.2/31"),
            ("10.1.2.3/0", "0.0.0.0/0"),
            ("10.1.2.3/32", "10.1.2.3/32"),
            ("fd00:1:2:3:4::5/60", "fd00:1:2::/60"),
        ] {
            assert_eq!(network_of(&Prefix::parse(address).unwrap()).to_string(), network);
        }
    }

    #[test]
    fn an_address_needs_its_prefix() {
        assert_eq!(Prefix::parse("10.0.0.1/24").unwrap().length, 24);
        assert_eq!(Prefix::parse("fd00::1/64").unwrap().to_string(), "fd00::1/64");
        for bad in ["10.0.0.1", "10.0.0.1/33", "x/24", "10.0.0.1/", "fd00::/129"] {
            assert!(Prefix::parse(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
