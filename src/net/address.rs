//! Verbs on addresses (linux/if_addr.h).

use super::link::Link;
use super::message::{Message, attributes, find};
use super::netlink::{ACK, CREATE, DUMP, Netlink, REPLACE, REQUEST};
use super::{NetError, Prefix, family, from_octets, octets};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Do not look whether somebody else has it: the host's side settled that, and a guest must not wait for it.
const IFA_F_NODAD: u8 = 2;

/// `struct ifaddrmsg`.
fn fixed(prefix: &Prefix, flags: u8, index: u32) -> Vec<u8> {
    let mut bytes = vec![family(&prefix.address), prefix.length, flags, 0];
    bytes.extend(index.to_ne_bytes());
    bytes
}

/// Gives `link` the address; having it already is no error.
pub fn add(nl: &mut Netlink, link: &Link, prefix: &Prefix) -> Result<(), NetError> {
    let flags = if prefix.address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let bytes = octets(&prefix.address);
    let message = Message::new(libc::RTM_NEWADDR, REQUEST | ACK | CREATE | REPLACE, &fixed(prefix, flags, link.index))
        .attribute(IFA_LOCAL, &bytes)
        .attribute(IFA_ADDRESS, &bytes);
    nl.tell(&format!("add address {prefix} to {}", link.name), message)
}

pub fn remove(nl: &mut Netlink, link: &Link, prefix: &Prefix) -> Result<(), NetError> {
    let message =
        Message::new(libc::RTM_DELADDR, REQUEST | ACK, &fixed(prefix, 0, link.index)).attribute(IFA_LOCAL, &octets(&prefix.address));
    nl.tell(&format!("remove address {prefix} from {}", link.name), message)
}

/// Addresses of `link`, both families.
pub fn list(nl: &mut Netlink, link: &Link) -> Result<Vec<Prefix>, NetError> {
    const FIXED: usize = 8;
    let answers = nl.dump("list addresses", Message::new(libc::RTM_GETADDR, REQUEST | DUMP, &[0; FIXED]))?;
    let parse = |body: &Vec<u8>| {
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        let all = attributes(body.get(FIXED..)?);
        let bytes = find(&all, IFA_LOCAL).or(find(&all, IFA_ADDRESS))?;
        (index == link.index).then_some(Prefix { address: from_octets(bytes)?, length: *body.get(1)? })
    };
    Ok(answers.iter().filter_map(parse).collect())
}
