//! Verbs on neighbours: who has which address on a link (linux/neighbour.h).

use std::net::IpAddr;

use super::link::Link;
use super::message::Message;
use super::netlink::{ACK, CREATE, Netlink, REPLACE, REQUEST};
use super::{NetError, family, octets};

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
