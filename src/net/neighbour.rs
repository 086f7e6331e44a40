//! Verbs on neighbours: who has which address on a link (linux/neighbour.h).

use std::net::IpAddr;

use super::link::Link;
use super::message::{Message, attributes, find};
use super::netlink::{ACK, CREATE, DUMP, Netlink, REPLACE, REQUEST};
use super::{NetError, family, from_octets, octets};

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// Never asked for, never forgotten.
pub const PERMANENT: u16 = 0x80;

/// Writes down that `address` is at `mac` on `link`.
pub fn add(nl: &mut Netlink, link: &Link, address: &IpAddr, mac: &[u8], state: u16, flags: u8) -> Result<(), NetError> {
    // struct ndmsg
    let mut fixed = vec![family(address), 0, 0, 0];
    fixed.extend(link.index.to_ne_bytes());
    fixed.extend(state.to_ne_bytes());
    fixed.extend([flags, 0]);
    let message = Message::new(libc::RTM_NEWNEIGH, REQUEST | ACK | CREATE | REPLACE, &fixed)
        .attribute(NDA_DST, &octets(address))
        .attribute(NDA_LLADDR, mac);
    nl.tell(&format!("add neighbour {address} on {}", link.name), message)
}

/// A neighbour that is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface.
    pub link: u32,
    pub address: IpAddr,
    pub mac: Vec<u8>,
    /// NUD_*.
    pub state: u16,
    /// NTF_*.
    pub flags: u8,
}

/// Every neighbour of the namespace that has a MAC.
pub fn list(nl: &mut Netlink) -> Result<Vec<Neighbour>, NetError> {
    let answers = nl.dump("list neighbours", Message::new(libc::RTM_GETNEIGH, REQUEST | DUMP, &[0; FIXED]))?;
    Ok(answers.iter().filter_map(|a| parse(a)).collect())
}

/// Length of `struct ndmsg`.
const FIXED: usize = 12;

fn parse(body: &[u8]) -> Option<Neighbour> {
    let all = attributes(body.get(FIXED..)?);
    Some(Neighbour {
        link: u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?),
        address: find(&all, NDA_DST).and_then(from_octets)?,
        mac: find(&all, NDA_LLADDR)?.to_vec(),
        state: u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?),
        flags: *body.get(10)?,
    })
}
