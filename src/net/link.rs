//! Verbs on network interfaces (linux/if_link.h).

use super::NetError;
use super::message::{Message, attributes, find, number, text};
use super::netlink::{ACK, CREATE, DUMP, EXCL, Netlink, REQUEST};

pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
pub(super) const IFLA_NET_NS_FD: u16 = 28;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;

/// No link-local address of its own.
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Bytes of an Ethernet address.
pub const MAC: usize = 6;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Empty for one without (a tunnel).
    pub mac: Vec<u8>,
    pub mtu: u32,
    /// IFF_*.
    pub flags: u32,
    /// `veth`, `vxlan`; empty for hardware.
    pub kind: String,
}

impl Link {
    pub fn has(&self, flag: libc::c_int) -> bool {
        self.flags & flag as u32 != 0
    }

    /// Its Ethernet address, where it has one.
    pub fn ethernet(&self) -> Option<[u8; MAC]> {
        self.mac.as_slice().try_into().ok()
    }
}

/// `struct ifinfomsg`.
pub(super) fn fixed(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for n in [index, flags, change] {
        bytes.extend(n.to_ne_bytes());
    }
    bytes
}

/// Every interface of the namespace.
pub fn list(nl: &mut Netlink) -> Result<Vec<Link>, NetError> {
    let answers = nl.dump("list interfaces", Message::new(libc::RTM_GETLINK, REQUEST | DUMP, &fixed(0, 0, 0)))?;
    Ok(answers.iter().filter_map(|a| parse(a)).collect())
}

fn parse(body: &[u8]) -> Option<Link> {
    const FIXED: usize = 16;
    let word = |at: usize| number(body.get(at..at + 4)?);
    let all = attributes(body.get(FIXED..)?);
    let kind = find(&all, IFLA_LINKINFO).and_then(|info| find(&attributes(info), IFLA_INFO_KIND)).map(text);
    Some(Link {
        index: word(4)?,
        name: find(&all, IFLA_IFNAME).map(text)?,
        mac: find(&all, IFLA_ADDRESS).map(<[u8]>::to_vec).unwrap_or_default(),
        mtu: find(&all, IFLA_MTU).and_then(number).unwrap_or(0),
        flags: word(8)?,
        kind: kind.unwrap_or_default(),
    })
}

/// What the driver says of the interface `name` (`IFLA_INFO_DATA`), if it is of this kind.
pub fn info_data(nl: &mut Netlink, name: &str, kind: &str) -> Result<Option<Vec<u8>>, NetError> {
    const FIXED: usize = 16;
    let answers = nl.dump("list interfaces", Message::new(libc::RTM_GETLINK, REQUEST | DUMP, &fixed(0, 0, 0)))?;
    Ok(answers.iter().filter(|a| parse(a).is_some_and(|l| l.name == name && l.kind == kind)).find_map(|a| {
        let info = find(&attributes(a.get(FIXED..)?), IFLA_LINKINFO)?;
        find(&attributes(info), IFLA_INFO_DATA).map(<[u8]>::to_vec)
    }))
}

pub fn by_name(nl: &mut Netlink, name: &str) -> Result<Link, NetError> {
    list(nl)?.into_iter().find(|l| l.name == name).ok_or_else(|| NetError::NoLink(name.into()))
}

pub fn by_mac(nl: &mut Netlink, mac: &[u8]) -> Result<Link, NetError> {
    list(nl)?.into_iter().find(|l| l.mac == mac).ok_or_else(|| NetError::NoLink(format!("with MAC {}", show_mac(mac))))
}

fn set(nl: &mut Netlink, what: String, message: Message) -> Result<(), NetError> {
    nl.tell(&what, message)
}

pub(super) fn change(index: u32, flags: u32, mask: u32) -> Message {
    Message::new(libc::RTM_NEWLINK, REQUEST | ACK, &fixed(index, flags, mask))
}

pub fn up(nl: &mut Netlink, link: &Link, up: bool) -> Result<(), NetError> {
    let flag = libc::IFF_UP as u32;
    set(nl, format!("set {} {}", link.name, if up { "up" } else { "down" }), change(link.index, if up { flag } else { 0 }, flag))
}

pub fn set_flags(nl: &mut Netlink, link: &Link, flags: u32) -> Result<(), NetError> {
    set(nl, format!("set flags of {}", link.name), change(link.index, flags, flags))
}

/// The interface must be down.
pub fn rename(nl: &mut Netlink, link: &Link, name: &str) -> Result<(), NetError> {
    set(nl, format!("rename {} to {name}", link.name), change(link.index, 0, 0).text(IFLA_IFNAME, name))
}

pub fn set_mtu(nl: &mut Netlink, link: &Link, mtu: u32) -> Result<(), NetError> {
    set(nl, format!("set MTU {mtu} of {}", link.name), change(link.index, 0, 0).number(IFLA_MTU, mtu))
}

/// The kernel shall not give `link` a link-local address: it is no host's. A kernel without IPv6 gives none anyway.
pub fn no_link_local(nl: &mut Netlink, link: &Link) -> Result<(), NetError> {
    let message = change(link.index, 0, 0)
        .nest(IFLA_AF_SPEC, |m| m.nest(libc::AF_INET6 as u16, |m| m.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])));
    match nl.tell(&format!("take the link-local address of {}", link.name), message) {
        Err(e) if matches!(e.errno(), Some(libc::EAFNOSUPPORT | libc::EINVAL)) => Ok(()),
        other => other,
    }
}

/// A pair of interfaces: `name` here, `peer` in the namespace that `netns` is a descriptor of. Both are down.
pub fn add_veth(nl: &mut Netlink, name: &str, peer: &str, netns: i32) -> Result<(), NetError> {
    const VETH_INFO_PEER: u16 = 1;
    let other = |m: Message| m.raw(&fixed(0, 0, 0)).text(IFLA_IFNAME, peer).number(IFLA_NET_NS_FD, netns as u32);
    let message = Message::new(libc::RTM_NEWLINK, REQUEST | ACK | CREATE | EXCL, &fixed(0, 0, 0)).text(IFLA_IFNAME, name);
    let message = message.nest(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| m.nest(VETH_INFO_PEER, other)));
    nl.tell(&format!("make veth {name}"), message)
}

/// Removes the interface; that it is gone already is no error.
pub fn remove(nl: &mut Netlink, link: &Link) -> Result<(), NetError> {
    match nl.tell(&format!("remove {}", link.name), Message::new(libc::RTM_DELLINK, REQUEST | ACK, &fixed(link.index, 0, 0))) {
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// `02:00:00:00:00:01`
pub fn parse_mac(text: &str) -> Result<Vec<u8>, NetError> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok().filter(|_| b.len() == 2)).collect();
    bytes.filter(|b| b.len() == 6).ok_or_else(|| NetError::Invalid(format!("{text:?} is no MAC address")))
}

pub fn show_mac(mac: &[u8]) -> String {
    mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_and_a_stranger_is_not() {
        let mut nl = Netlink::open().unwrap();
        let lo = by_name(&mut nl, "lo").unwrap();
        assert_eq!((lo.index, lo.flags & libc::IFF_LOOPBACK as u32 != 0), (1, true));
        assert!(matches!(by_name(&mut nl, "no-such"), Err(NetError::NoLink(n)) if n == "no-such"));
    }

    #[test]
    fn a_refusal_names_the_call_and_the_device() {
        let mut nl = Netlink::open().unwrap();
        let ghost = Link { index: 0x7fff_0000, name: "ghost".into(), mac: vec![], mtu: 0, flags: 0, kind: String::new() };
        let e = up(&mut nl, &ghost, true).unwrap_err();
        assert!(e.to_string().contains("set ghost up"), "{e}");
    }

    #[test]
    fn macs() {
        assert_eq!(show_mac(&parse_mac("52:54:00:12:34:56").unwrap()), "52:54:00:12:34:56");
        for bad in ["", "52:54", "52:54:00:12:34:5g", "5254:00:12:34:56:1"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
