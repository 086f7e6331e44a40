//! Verbs on routes (linux/rtnetlink.h).

use std::net::IpAddr;

use super::message::{Message, attributes, find, number};
use super::netlink::{ACK, CREATE, DUMP, Netlink, REPLACE, REQUEST};
use super::{NetError, Prefix, family, from_octets, octets};

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;

/// The gateway is reachable although no address of ours says so.
pub const ONLINK: u32 = 4;

const TABLE_MAIN: u8 = 254;
const PROTO_REDIRECT: u8 = 1;
const PROTO_KERNEL: u8 = 2;
const PROTO_BOOT: u8 = 3;
const PROTO_RA: u8 = 9;

/// RTN_*: what becomes of a packet that a route matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    #[default]
    Unicast = 1,
    /// Dropped without a word.
    Blackhole = 6,
    Unreachable = 7,
    Prohibit = 8,
    /// Looked up in the next table.
    Throw = 9,
}

/// (kind, its name in `ip route`)
const KINDS: [(Kind, &str); 5] = [
    (Kind::Unicast, "unicast"),
    (Kind::Blackhole, "blackhole"),
    (Kind::Unreachable, "unreachable"),
    (Kind::Prohibit, "prohibit"),
    (Kind::Throw, "throw"),
];

impl Kind {
    pub fn of(number: u8) -> Option<Kind> {
        KINDS.iter().find(|k| k.0 as u8 == number).map(|k| k.0)
    }

    pub fn name(self) -> &'static str {
        KINDS.iter().find(|k| k.0 == self).map_or("", |k| k.1)
    }
}

/// A route of the main table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub kind: Kind,
    /// `None`: the default.
    pub destination: Option<Prefix>,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    /// Index of the interface; 0 where a packet goes nowhere.
    pub link: u32,
    pub scope: u8,
    /// RTNH_F_*.
    pub flags: u32,
    /// 0: the interface's.
    pub mtu: u32,
    /// 0: the kernel's default.
    pub metric: u32,
    pub ipv6: bool,
    /// The kernel made it with an address, and will again.
    pub by_kernel: bool,
    /// A router told the kernel: the guest is told by itself.
    pub by_router: bool,
}

/// `struct rtmsg`.
fn fixed(route: &Route) -> Vec<u8> {
    let family = match (route.destination, route.gateway) {
        (Some(d), _) => family(&d.address),
        (_, Some(g)) => family(&g),
        _ if route.ipv6 => libc::AF_INET6 as u8,
        _ => libc::AF_INET as u8,
    };
    let length = route.destination.map(|d| d.length).unwrap_or(0);
    let mut bytes = vec![family, length, 0, 0, TABLE_MAIN, PROTO_BOOT, route.scope, route.kind as u8];
    bytes.extend(route.flags.to_ne_bytes());
    bytes
}

fn message(kind: u16, flags: u16, route: &Route) -> Message {
    let mut m = Message::new(kind, flags, &fixed(route));
    if route.link != 0 {
        m = m.number(RTA_OIF, route.link);
    }
    if let Some(d) = &route.destination {
        m = m.attribute(RTA_DST, &octets(&d.address));
    }
    if let Some(g) = &route.gateway {
        m = m.attribute(RTA_GATEWAY, &octets(g));
    }
    if let Some(s) = &route.source {
        m = m.attribute(RTA_PREFSRC, &octets(s));
    }
    if route.metric != 0 {
        m = m.number(RTA_PRIORITY, route.metric);
    }
    if route.mtu != 0 {
        m = m.nest(RTA_METRICS, |m| m.number(RTAX_MTU, route.mtu));
    }
    m
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.kind != Kind::Unicast {
            write!(f, "{} ", self.kind.name())?;
        }
        match &self.destination {
            Some(d) => write!(f, "{d}")?,
            None => write!(f, "default")?,
        }
        match &self.gateway {
            Some(g) => write!(f, " via {g}"),
            None => Ok(()),
        }
    }
}

/// Adds the route; one that is the same already is replaced.
pub fn add(nl: &mut Netlink, route: &Route) -> Result<(), NetError> {
    nl.tell(&format!("add route {route}"), message(libc::RTM_NEWROUTE, REQUEST | ACK | CREATE | REPLACE, route))
}

pub fn remove(nl: &mut Netlink, route: &Route) -> Result<(), NetError> {
    nl.tell(&format!("remove route {route}"), message(libc::RTM_DELROUTE, REQUEST | ACK, route))
}

/// The route that a packet to `address` would take.
pub fn lookup(nl: &mut Netlink, address: IpAddr) -> Result<Route, NetError> {
    let mut fixed = [0; 12];
    (fixed[0], fixed[1]) = (family(&address), super::bits(&address));
    let message = Message::new(libc::RTM_GETROUTE, REQUEST | ACK, &fixed).attribute(RTA_DST, &octets(&address));
    let answers = nl.dump(&format!("look up the route to {address}"), message)?;
    // The answer is of no table: a copy made for this one address.
    let whole = |a: &Vec<u8>| a.get(4).map(|_| [&a[..4], &[TABLE_MAIN][..], &a[5..]].concat()).and_then(|a| parse(&a));
    answers.iter().find_map(whole).ok_or_else(|| NetError::Invalid(format!("{address}: no ordinary route leads there")))
}

/// Routes of the main table, both families. One with several next hops at once is left out.
pub fn list(nl: &mut Netlink) -> Result<Vec<Route>, NetError> {
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut fixed = [0; 12];
        fixed[0] = family as u8;
        let answers = nl.dump("list routes", Message::new(libc::RTM_GETROUTE, REQUEST | DUMP, &fixed))?;
        all.extend(answers.iter().filter_map(|a| parse(a)));
    }
    Ok(all)
}

fn parse(body: &[u8]) -> Option<Route> {
    const FIXED: usize = 12;
    let [family, length, _, _, table, protocol, scope, kind, ..] = *body else { return None };
    if table != TABLE_MAIN {
        return None;
    }
    let kind = Kind::of(kind)?;
    let all = attributes(body.get(FIXED..)?);
    let address = |kind: u16| find(&all, kind).and_then(from_octets);
    let mtu = find(&all, RTA_METRICS).and_then(|m| find(&attributes(m), RTAX_MTU)).and_then(number).unwrap_or(0);
    // The kernel ties IPv6 routes that lead nowhere to the loopback.
    let link = if kind == Kind::Unicast { find(&all, RTA_OIF).and_then(number)? } else { 0 };
    Some(Route {
        kind,
        destination: address(RTA_DST).map(|address| Prefix { address, length }),
        gateway: address(RTA_GATEWAY),
        source: address(RTA_PREFSRC),
        link,
        scope,
        flags: number(body.get(8..12)?)? & ONLINK,
        mtu,
        metric: find(&all, RTA_PRIORITY).and_then(number).unwrap_or(0),
        ipv6: i32::from(family) == libc::AF_INET6,
        by_kernel: protocol == PROTO_KERNEL,
        by_router: matches!(protocol, PROTO_REDIRECT | PROTO_RA),
    })
}
