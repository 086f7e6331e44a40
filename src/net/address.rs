//! Verbs on addresses (linux/if_addr.h).

use std::net::IpAddr;

use super::link::Link;
use super::message::{Message, attributes, find, number};
use super::netlink::{ACK, CREATE, DUMP, Netlink, REPLACE, REQUEST};
use super::{NetError, Prefix, family, from_octets, octets};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// Do not look whether somebody else has it: the host's side settled that, and a guest must not wait for it.
const IFA_F_NODAD: u32 = 2;

/// The kernel shall not make the route to the address's own network.
pub const NO_PREFIX_ROUTE: u32 = 0x200;

/// `struct ifaddrmsg`.
fn fixed(prefix: &Prefix, index: u32) -> Vec<u8> {
    let mut bytes = vec![family(&prefix.address), prefix.length, 0, 0];
    bytes.extend(index.to_ne_bytes());
    bytes
}

/// Gives `link` the address; having it already is no error.
pub fn add(nl: &mut Netlink, link: &Link, prefix: &Prefix) -> Result<(), NetError> {
    add_with(nl, link, prefix, 0)
}

/// The same with flags (IFA_F_*).
pub fn add_with(nl: &mut Netlink, link: &Link, prefix: &Prefix, flags: u32) -> Result<(), NetError> {
    let flags = flags | if prefix.address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let bytes = octets(&prefix.address);
    let message = Message::new(libc::RTM_NEWADDR, REQUEST | ACK | CREATE | REPLACE, &fixed(prefix, link.index))
        .attribute(IFA_LOCAL, &bytes)
        .attribute(IFA_ADDRESS, &bytes)
        .number(IFA_FLAGS, flags);
    nl.tell(&format!("add address {prefix} to {}", link.name), message)
}

pub fn remove(nl: &mut Netlink, link: &Link, prefix: &Prefix) -> Result<(), NetError> {
    let message = Message::new(libc::RTM_DELADDR, REQUEST | ACK, &fixed(prefix, link.index)).attribute(IFA_LOCAL, &octets(&prefix.address));
    nl.tell(&format!("remove address {prefix} from {}", link.name), message)
}

/// Addresses of `link`, both families.
pub fn list(nl: &mut Netlink, link: &Link) -> Result<Vec<Prefix>, NetError> {
    Ok(dump(nl)?.into_iter().filter(|a| a.link == link.index).map(|a| a.prefix).collect())
}

/// An address as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its interface.
    pub link: u32,
    pub prefix: Prefix,
    /// The other end of a point-to-point link, where the address has one.
    pub peer: Option<IpAddr>,
    /// IFA_F_*.
    pub flags: u32,
}

/// Every address of the namespace.
pub fn dump(nl: &mut Netlink) -> Result<Vec<Address>, NetError> {
    let answers = nl.dump("list addresses", Message::new(libc::RTM_GETADDR, REQUEST | DUMP, &[0; FIXED]))?;
    Ok(answers.iter().filter_map(|a| parse(a)).collect())
}

/// Length of `struct ifaddrmsg`.
const FIXED: usize = 8;

fn parse(body: &[u8]) -> Option<Address> {
    let all = attributes(body.get(FIXED..)?);
    let (local, other) = (find(&all, IFA_LOCAL).and_then(from_octets), find(&all, IFA_ADDRESS).and_then(from_octets));
    let address = local.or(other)?;
    let flags = find(&all, IFA_FLAGS).and_then(number).unwrap_or(u32::from(*body.get(2)?));
    let link = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let prefix = Prefix { address, length: *body.get(1)? };
    Some(Address { link, prefix, peer: other.filter(|&o| o != address), flags })
}
