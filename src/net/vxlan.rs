//! A pod's interface tied to a VM that is somewhere else: VXLAN over the underlay (RFC 7348, `IFLA_VXLAN_*` of
//! linux/if_link.h), both ends.
//!
//! ```text
//!   worker                                               pod VM
//!   pod netns: eth0 <-redirect-> vxlan1  ~~ UDP ~~  eth0 :podns     same MAC, addresses and routes as on the worker
//! ```
//!
//! Each device is made by one call, in the namespace it is for and with its final name, MAC and MTU; its socket stays in the
//! namespace of the caller, whose routes it takes (the birth namespace). There its VNI stays taken, too, wherever the
//! device is: so a free one is found by trying.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use super::endpoint::{self, Tie};
use super::link::{self, Link};
use super::message::{Message, attributes, find, number};
use super::namespace::Namespace;
use super::netlink::{ACK, CREATE, EXCL, Netlink, REQUEST};
use super::nft::{self, Chain, Hook, Kind, Match, Rule, Table, Verdict};
use super::scan::Interface;
use super::step::Step;
use super::{NetError, Prefix, address, neighbour, octets, route, tc};

/// Where other implementations begin to count.
pub const FIRST_VNI: u32 = 555_000;

/// VNIs have 24 bits.
pub const LAST_VNI: u32 = 0x00ff_ffff;

/// IANA's port, and the other implementations'.
pub const PORT: u16 = 4789;

/// The kind in `IFLA_INFO_KIND`.
pub const KIND: &str = "vxlan";

/// Outer Ethernet, IP, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;

/// One end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub name: String,
    pub vni: u32,
    /// UDP port of both ends.
    pub port: u16,
    /// The other end; without one yet, nothing is sent.
    pub remote: Option<IpAddr>,
    pub mtu: u32,
    /// The kernel's choice if there is none.
    pub mac: Option<[u8; link::MAC]>,
}

/// A pod's interface tied to a tunnel, as it is made and as a record keeps it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tunnel {
    pub tie: Tie,
    pub vni: u32,
    pub port: u16,
}

/// What a device in the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    pub vni: u32,
    pub port: u16,
    pub remote: Option<IpAddr>,
}

fn data(message: Message, v: &Vxlan) -> Message {
    let message = message.attribute(IFLA_VXLAN_LEARNING, &[0]).attribute(IFLA_VXLAN_PORT, &v.port.to_be_bytes());
    far(message.number(IFLA_VXLAN_ID, v.vni), v.remote)
}

fn far(message: Message, remote: Option<IpAddr>) -> Message {
    match remote {
        Some(remote) => message.attribute(if remote.is_ipv4() { IFLA_VXLAN_GROUP } else { IFLA_VXLAN_GROUP6 }, &octets(&remote)),
        None => message,
    }
}

/// Makes the device in `target`, down. `birth` is a socket of the namespace whose underlay it uses.
pub fn create(birth: &mut Netlink, target: &Namespace, v: &Vxlan) -> Result<(), NetError> {
    let fd = target.fd()?;
    let mut message = Message::new(libc::RTM_NEWLINK, REQUEST | ACK | CREATE | EXCL, &link::fixed(0, 0, 0))
        .text(link::IFLA_IFNAME, &v.name)
        .number(link::IFLA_MTU, v.mtu)
        .number(link::IFLA_NET_NS_FD, fd.as_raw_fd() as u32);
    if let Some(mac) = v.mac {
        message = message.attribute(link::IFLA_ADDRESS, &mac);
    }
    let message = message.nest(link::IFLA_LINKINFO, |m| m.text(link::IFLA_INFO_KIND, KIND).nest(link::IFLA_INFO_DATA, |m| data(m, v)));
    let at = target.path().display();
    birth.tell(&format!("make VXLAN device {} with VNI {} in {at}", v.name, v.vni), message)
}

/// Gives the device its other end. One of the other family has to be made anew: the kernel changes no socket.
fn set_remote(birth: &Namespace, pod: &Namespace, nl: &mut Netlink, link: Link, v: &Vxlan) -> Result<Link, NetError> {
    let what = format!("connect {} to {}", v.name, v.remote.map(|r| r.to_string()).unwrap_or_default());
    let message = link::change(link.index, 0, 0).nest(link::IFLA_LINKINFO, |m| {
        let m = m.text(link::IFLA_INFO_KIND, KIND);
        m.nest(link::IFLA_INFO_DATA, |m| far(m.number(IFLA_VXLAN_ID, v.vni), v.remote))
    });
    match nl.tell(&what, message) {
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => {
            link::remove(nl, &link)?;
            create(&mut birth.netlink()?, pod, v)?;
            link::by_name(nl, &v.name)
        }
        other => other.map(|()| link),
    }
}

/// What the VXLAN device `name` is.
pub fn info(nl: &mut Netlink, name: &str) -> Result<Option<Info>, NetError> {
    let Some(bytes) = link::info_data(nl, name, KIND)? else { return Ok(None) };
    let all = attributes(&bytes);
    let vni = find(&all, IFLA_VXLAN_ID).and_then(number);
    let port = find(&all, IFLA_VXLAN_PORT).and_then(|p| Some(u16::from_be_bytes(p.try_into().ok()?)));
    let remote = find(&all, IFLA_VXLAN_GROUP).or(find(&all, IFLA_VXLAN_GROUP6)).and_then(super::from_octets);
    Ok(vni.zip(port).map(|(vni, port)| Info { vni, port, remote: remote.filter(|r| !r.is_unspecified()) }))
}

/// The largest packet that reaches `remote` whole inside the tunnel, by the route that the namespace of `birth` has there.
pub fn mtu_to(birth: &mut Netlink, remote: IpAddr) -> Result<u32, NetError> {
    let route = route::lookup(birth, remote)?;
    let links = link::list(birth)?;
    let device = links.iter().find(|l| l.index == route.link).ok_or_else(|| NetError::NoLink(format!("on the way to {remote}")))?;
    let underlay = if route.mtu != 0 { route.mtu.min(device.mtu) } else { device.mtu };
    let overhead = if remote.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
    Ok(underlay.saturating_sub(overhead))
}

// The worker's end.

/// Reserves a VNI for each interface of `pod`: its device is made there, with no other end yet and nothing redirected.
/// Finding it done already, it answers what is there. VNIs are tried from `first` on.
pub fn reserve(birth: &Namespace, pod: &Namespace, port: u16, first: u32) -> Result<Vec<Tunnel>, NetError> {
    let network = endpoint::look(pod)?;
    let mut made = Vec::new();
    let mut next = first;
    for (n, interface) in network.interfaces.iter().enumerate() {
        let name = format!("{KIND}{}", n + 1);
        match reserve_one(birth, pod, interface, &name, port, next) {
            Ok(tunnel) => {
                next = tunnel.vni + 1;
                made.push(tunnel);
            }
            Err(e) => {
                made.iter().filter_map(|t| remove(birth, t).err()).for_each(|e| log::warn!("undoing: {e}"));
                return Err(e);
            }
        }
    }
    Ok(made)
}

fn reserve_one(birth: &Namespace, pod: &Namespace, i: &Interface, name: &str, port: u16, first: u32) -> Result<Tunnel, NetError> {
    let tie = Tie { netns: pod.path().to_owned(), id: pod.id(), link: i.link.name.clone(), tap: name.to_owned() };
    if let Some(there) = info(&mut pod.netlink()?, name)? {
        return Ok(Tunnel { tie, vni: there.vni, port: there.port });
    }
    let mut birth = birth.netlink()?;
    for vni in first..=LAST_VNI {
        let v = Vxlan { name: name.to_owned(), vni, port, remote: None, mtu: i.link.mtu, mac: None };
        match create(&mut birth, pod, &v) {
            Ok(()) => return Ok(Tunnel { tie, vni, port }),
            // The name is free, that was seen: it is the VNI.
            Err(e) if e.errno() == Some(libc::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Err(NetError::Invalid(format!("no VNI is free between {first} and {LAST_VNI} on UDP port {port}")))
}

/// Connects a reserved tunnel to the pod VM at `remote` and redirects the interface's traffic and the tunnel's to each
/// other. May be repeated, also with another address.
pub fn connect(birth: &Namespace, tunnel: &Tunnel, remote: IpAddr) -> Result<(), NetError> {
    let Tie { netns, id, link: name, tap: device } = &tunnel.tie;
    let vanished = || NetError::Namespace { path: netns.clone(), cause: "is gone, or another one by now".into() };
    let pod = Namespace::reopen(netns, *id).ok_or_else(vanished)?;
    let mut nl = pod.netlink()?;
    let (link, mut device) = (link::by_name(&mut nl, name)?, link::by_name(&mut nl, device)?);
    let mtu = mtu_to(&mut birth.netlink()?, remote)?.min(link.mtu);
    let v = Vxlan { name: device.name.clone(), vni: tunnel.vni, port: tunnel.port, remote: Some(remote), mtu, mac: None };
    if info(&mut nl, &device.name)?.and_then(|i| i.remote) != Some(remote) {
        device = set_remote(birth, &pod, &mut nl, device, &v)?;
    }
    check_source(birth, tunnel.vni, tunnel.port, remote)?;
    if tc::filters(&mut nl, &link)?.iter().any(|f| f.redirect == Some(device.index)) {
        return Ok(());
    }
    endpoint::make_way(&mut nl, &link)?;
    let done = connect_steps(&tunnel.tie, mtu).iter().try_for_each(|s| s.run(&mut nl, &mut Vec::new()));
    done.inspect_err(|_| {
        for l in [&link, &device] {
            tc::remove_ingress(&mut nl, l).unwrap_or_else(|e| log::warn!("undoing: {e}"));
        }
    })
}

/// What [`connect`] does once the device has its other end.
pub fn connect_steps(tie: &Tie, mtu: u32) -> Vec<Step> {
    let device = || tie.tap.clone();
    let mut steps = vec![Step::NoLinkLocal { link: device() }, Step::Mtu { link: device(), mtu }, Step::Up { link: device() }];
    steps.extend(endpoint::redirects(&tie.link, &tie.tap));
    steps
}

/// The command that makes the device.
pub fn command(v: &Vxlan, target: &Namespace) -> String {
    let remote = v.remote.map(|r| format!(" remote {r}")).unwrap_or_default();
    let mac = v.mac.map(|m| format!(" address {}", link::show_mac(&m))).unwrap_or_default();
    let name = target.path().strip_prefix("/run/netns").or(target.path().strip_prefix("/var/run/netns")).unwrap_or(target.path());
    let Vxlan { name: device, vni, port, mtu, .. } = v;
    format!("ip link add {device} netns {}{mac} mtu {mtu} type vxlan id {vni}{remote} dstport {port} nolearning", name.display())
}

/// Takes a tunnel away with its redirections; what is gone already is no error. `birth` has the rule about its packets.
pub fn remove(birth: &Namespace, tunnel: &Tunnel) -> Result<(), NetError> {
    endpoint::untie(&tunnel.tie).and(uncheck_source(birth, tunnel.vni, tunnel.port))
}

/// Takes the rule about the VNI's packets away; that there is none is no error.
pub fn uncheck_source(birth: &Namespace, vni: u32, port: u16) -> Result<(), NetError> {
    nft::remove(&mut birth.inside(Netlink::netfilter)??, &table_name(vni, port))
}

fn table_name(vni: u32, port: u16) -> String {
    format!("osc_vxlan_{port}_{vni}")
}

/// Packets of the VNI are taken from `remote` only: the kernel's device looks at no sender.
pub fn source_rule(vni: u32, port: u16, remote: IpAddr) -> Table {
    let ours = || vec![Match::Protocol(nft::UDP), Match::DestPort(port), Match::Vni(vni)];
    let stranger = Rule { matches: [ours(), vec![Match::NotSource(remote)]].concat(), verdict: Verdict::Drop };
    // A sender of the other family is none of ours either.
    let unspecified: IpAddr = if remote.is_ipv4() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let other =
        Rule { matches: [ours(), vec![Match::Source(Prefix { address: unspecified, length: 0 })]].concat(), verdict: Verdict::Drop };
    let chain = Chain { kind: Kind::Filter, hook: Hook::Input, priority: RAW, rules: vec![stranger, other] };
    Table { name: table_name(vni, port), chains: vec![chain] }
}

/// Before connections are looked at.
const RAW: i32 = -300;

/// A kernel without packet rules is told of once; the tunnel works all the same.
fn check_source(birth: &Namespace, vni: u32, port: u16, remote: IpAddr) -> Result<(), NetError> {
    let made = birth.inside(Netlink::netfilter)?.and_then(|mut nl| nft::install(&mut nl, &source_rule(vni, port, remote)));
    made.or_else(|e| match e.errno() {
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT) => {
            log::warn!("VNI {vni}: the sender of its packets is not checked: {e}");
            Ok(())
        }
        _ => Err(e),
    })
}

// The pod VM's end.

/// The other end: in `podns`, an interface that is what the pod's is on the worker. `routes` name it by its index there.
/// What is there already and is the same stays; a device of another tunnel is replaced.
pub fn podvm(birth: &Namespace, podns: &Namespace, interface: &Interface, routes: &[route::Route], v: &Vxlan) -> Result<(), NetError> {
    let mut nl = podns.netlink()?;
    let same = info(&mut nl, &v.name)?.is_some_and(|i| (i.vni, i.port, i.remote) == (v.vni, v.port, v.remote));
    if !same {
        if let Ok(old) = link::by_name(&mut nl, &v.name) {
            link::remove(&mut nl, &old)?;
        }
        create(&mut birth.netlink()?, podns, v)?;
    }
    if let Some(remote) = v.remote {
        check_source(birth, v.vni, v.port, remote)?;
    }
    let lo = link::by_name(&mut nl, "lo")?;
    link::up(&mut nl, &lo, true)?;
    let link = link::by_name(&mut nl, &v.name)?;
    let done = give(&mut nl, &link, interface, routes);
    done.inspect_err(|_| link::remove(&mut nl, &link).unwrap_or_else(|e| log::warn!("undoing: {e}")))
}

fn give(nl: &mut Netlink, link: &Link, interface: &Interface, routes: &[route::Route]) -> Result<(), NetError> {
    link::up(nl, link, true)?;
    for a in &interface.addresses {
        let flags = if a.prefix_route { 0 } else { address::NO_PREFIX_ROUTE };
        address::add_with(nl, link, &a.prefix, flags)?;
    }
    let mut routes: Vec<route::Route> = routes.iter().filter(|r| r.link == 0 || r.link == interface.link.index).cloned().collect();
    // Gateways must be reachable before the routes through them.
    routes.sort_by_key(|r| r.gateway.is_some());
    for r in &mut routes {
        r.link = if r.link == 0 { 0 } else { link.index };
        route::add(nl, r)?;
    }
    interface.neighbours.iter().try_for_each(|n| neighbour::add(nl, link, &n.address, &n.mac, n.state, n.flags))
}

/// The end in the pod VM of a tunnel for `interface`, to the worker at `remote`; `mtu` is what the underlay there lets through.
pub fn other_end(interface: &Interface, tunnel: &Tunnel, remote: IpAddr, mtu: u32) -> Vxlan {
    Vxlan {
        name: interface.link.name.clone(),
        vni: tunnel.vni,
        port: tunnel.port,
        remote: Some(remote),
        mtu: interface.link.mtu.min(mtu),
        mac: interface.link.ethernet(),
    }
}
