//! Calls about the guest's network: the host says what the CNI gave the pod, the guest makes it so.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{AgentService, Answer, DONE, invalid};
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::route::{self, Kind, Route};
use crate::net::{NetError, Prefix, address, channels, neighbour};
use crate::rpc::wire::agent::{
    AddArpNeighborsRequest, Interfaces, ListInterfacesRequest, ListRoutesRequest, Routes, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use crate::rpc::wire::google::Empty;
use crate::rpc::wire::types::{Interface, IpAddress, IpFamily, Route as WireRoute};
use crate::rpc::{Code, Status};

/// How long an interface that was just plugged may take to appear.
const APPEARS: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);

fn status(e: NetError) -> Status {
    let code = match &e {
        NetError::Invalid(_) => Code::InvalidArgument,
        NetError::NoLink(_) => Code::NotFound,
        _ => Code::Internal,
    };
    Status::new(code, e.to_string())
}

impl AgentService {
    /// Finds the interface by its MAC (else by its name) and gives it name, MTU, flags and addresses. Exactly these: an
    /// address that is not listed goes.
    pub(super) fn update_interface(&self, r: UpdateInterfaceRequest) -> Answer<Interface> {
        let wanted = r.interface.ok_or_else(|| invalid("UpdateInterface without an interface"))?;
        let prefixes = wanted.ip_addresses.iter().map(|a| Ok((prefix(a)?, a.flags))).collect::<Answer<Vec<_>>>()?;
        let mac = if wanted.hw_addr.is_empty() { None } else { Some(link::parse_mac(&wanted.hw_addr).map_err(status)?) };
        let mut nl = Netlink::open().map_err(status)?;
        let found = appear(&mut nl, &wanted, mac.as_deref()).map_err(status)?;
        configure(&mut nl, &wanted, &prefixes, found).map_err(status)?;
        Ok(wanted)
    }

    /// The routes of the pod, besides those that the kernel makes by itself; what else was there goes.
    pub(super) fn update_routes(&self, r: UpdateRoutesRequest) -> Answer<Routes> {
        let wanted = r.routes.ok_or_else(|| invalid("UpdateRoutes without routes"))?;
        let mut nl = Netlink::open().map_err(status)?;
        let links = link::list(&mut nl).map_err(status)?;
        let mut routes = wanted.routes.iter().map(|w| parse(w, &links)).collect::<Answer<Vec<_>>>()?;
        let ours = |o: &Route| !o.by_kernel && !o.by_router && !is_loopback(&links, o.link);
        let there: Vec<Route> = route::list(&mut nl).map_err(status)?.into_iter().filter(ours).collect();
        // What stays is not touched: packets go on.
        for old in there.iter().filter(|o| !routes.iter().any(|r| same(o, r))) {
            route::remove(&mut nl, old).map_err(status)?;
        }
        routes.retain(|r| !there.iter().any(|o| same(o, r)));
        // What is reachable directly first: gateways must be before the routes through them.
        routes.sort_by_key(|r| r.gateway.is_some());
        routes.iter().try_for_each(|r| add_route(&mut nl, r)).map_err(status)?;
        Ok(wanted)
    }

    pub(super) fn list_interfaces(&self, _: ListInterfacesRequest) -> Answer<Interfaces> {
        let mut nl = Netlink::open().map_err(status)?;
        let links = link::list(&mut nl).map_err(status)?;
        let interfaces = links.iter().map(|l| show(&mut nl, l)).collect::<Result<_, _>>().map_err(status)?;
        Ok(Interfaces { interfaces })
    }

    pub(super) fn list_routes(&self, _: ListRoutesRequest) -> Answer<Routes> {
        let mut nl = Netlink::open().map_err(status)?;
        let links = link::list(&mut nl).map_err(status)?;
        let routes = route::list(&mut nl).map_err(status)?;
        Ok(Routes { routes: routes.iter().map(|r| show_route(r, &links)).collect() })
    }

    pub(super) fn add_neighbours(&self, r: AddArpNeighborsRequest) -> Answer<Empty> {
        let wanted = r.neighbors.map(|n| n.arp_neighbors).unwrap_or_default();
        let mut nl = Netlink::open().map_err(status)?;
        for n in wanted {
            let text = n.to_ip_address.map(|a| a.address).unwrap_or_default();
            let address: IpAddr = text.parse().map_err(|_| invalid(format!("neighbour {text:?} is no address")))?;
            let mac = link::parse_mac(&n.lladdr).map_err(status)?;
            let link = link::by_name(&mut nl, &n.device).map_err(status)?;
            let state = if n.state == 0 { neighbour::PERMANENT } else { n.state as u16 };
            neighbour::add(&mut nl, &link, &address, &mac, state, n.flags as u8).map_err(status)?;
        }
        DONE
    }
}

/// A gateway may be out of reach by now: the host's kernel keeps the route that it was in when the address went.
fn add_route(nl: &mut Netlink, wanted: &Route) -> Result<(), NetError> {
    match route::add(nl, wanted) {
        Err(e) if wanted.gateway.is_some() && matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            route::add(nl, &Route { flags: wanted.flags | route::ONLINK, ..wanted.clone() })
        }
        other => other,
    }
}

/// True for what adding `wanted` would give.
fn same(there: &Route, wanted: &Route) -> bool {
    // The kernel fills in a metric where none is asked for.
    let metric = there.metric == wanted.metric || wanted.metric == 0;
    let of = |r: &Route| (r.kind, r.destination, r.gateway, r.link, r.ipv6, r.mtu);
    metric && of(there) == of(wanted) && (wanted.source.is_none() || there.source == wanted.source)
}

/// A queue pair of every interface for every CPU, now that there are more. Fewer than that only cost speed.
pub(super) fn spread_queues() {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let links = Netlink::open().and_then(|mut nl| link::list(&mut nl)).unwrap_or_default();
    for link in links.iter().filter(|l| l.ethernet().is_some() && !l.has(libc::IFF_LOOPBACK)) {
        if let Err(e) = channels::enable(link, cpus) {
            log::warn!("{e}");
        }
    }
}

fn is_loopback(links: &[Link], index: u32) -> bool {
    links.iter().any(|l| l.index == index && l.flags & libc::IFF_LOOPBACK as u32 != 0)
}

/// Waits for an interface that may have been plugged a moment ago.
fn appear(nl: &mut Netlink, wanted: &Interface, mac: Option<&[u8]>) -> Result<Link, NetError> {
    let until = Instant::now() + APPEARS;
    loop {
        let found = match mac {
            Some(mac) => link::by_mac(nl, mac),
            None => link::by_name(nl, &wanted.name),
        };
        match found {
            Err(NetError::NoLink(_)) if Instant::now() < until => std::thread::sleep(LOOK),
            other => return other,
        }
    }
}

fn configure(nl: &mut Netlink, wanted: &Interface, prefixes: &[(Prefix, u32)], mut found: Link) -> Result<(), NetError> {
    if !wanted.name.is_empty() && found.name != wanted.name {
        link::up(nl, &found, false)?;
        make_room(nl, &wanted.name, found.index)?;
        link::rename(nl, &found, &wanted.name)?;
        found.name = wanted.name.clone();
    }
    if wanted.mtu != 0 && u64::from(found.mtu) != wanted.mtu {
        link::set_mtu(nl, &found, u32::try_from(wanted.mtu).unwrap_or(u32::MAX))?;
    }
    let no_arp = libc::IFF_NOARP as u32;
    if wanted.raw_flags & no_arp != 0 {
        link::set_flags(nl, &found, no_arp)?;
    }
    link::up(nl, &found, true)?;
    for old in address::list(nl, &found)?.iter().filter(|old| !prefixes.iter().any(|p| p.0 == **old) && !link_local(&old.address)) {
        address::remove(nl, &found, old)?;
    }
    prefixes.iter().try_for_each(|(prefix, flags)| address::add_with(nl, &found, prefix, *flags))
}

/// Interfaces may trade names: whoever has the name now is called otherwise until its own turn.
fn make_room(nl: &mut Netlink, name: &str, index: u32) -> Result<(), NetError> {
    match link::by_name(nl, name) {
        Ok(other) if other.index != index => {
            link::up(nl, &other, false)?;
            link::rename(nl, &other, &format!("tmp{}", other.index))
        }
        Ok(_) | Err(NetError::NoLink(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

/// The kernel makes these by itself.
fn link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80)
}

fn prefix(a: &IpAddress) -> Answer<Prefix> {
    Prefix::parse(&format!("{}/{}", a.address, a.mask)).map_err(status)
}

fn parse(w: &WireRoute, links: &[Link]) -> Answer<Route> {
    let address = |text: &str| match text.split('/').next().unwrap_or_default() {
        "" => Ok(None),
        a => a.parse::<IpAddr>().map(Some).map_err(|_| invalid(format!("route: {text:?} is no address"))),
    };
    let kind = match u8::try_from(w.kind) {
        Ok(0) => Kind::Unicast,
        Ok(number) => Kind::of(number).ok_or_else(|| invalid(format!("route to {:?} of kind {number}", w.dest)))?,
        Err(_) => return Err(invalid(format!("route to {:?} of kind {}", w.dest, w.kind))),
    };
    let link = match kind {
        Kind::Unicast => links.iter().find(|l| l.name == w.device).ok_or_else(|| status(NetError::NoLink(w.device.clone())))?.index,
        _ => 0,
    };
    let destination = if w.dest.is_empty() { None } else { Some(Prefix::parse(&w.dest).map_err(status)?) };
    Ok(Route {
        kind,
        // A prefix of length 0 is the default by another name.
        destination: destination.filter(|d| d.length != 0),
        gateway: address(&w.gateway)?,
        source: address(&w.source)?,
        link,
        scope: w.scope as u8,
        flags: w.flags & route::ONLINK,
        mtu: w.mtu,
        metric: w.metric,
        ipv6: w.family == IpFamily::V6 as i32 || destination.is_some_and(|d| d.address.is_ipv6()),
        by_kernel: false,
        by_router: false,
    })
}

fn show(nl: &mut Netlink, l: &Link) -> Result<Interface, NetError> {
    let prefixes = address::list(nl, l)?;
    let ip_addresses = prefixes.iter().map(|p| IpAddress {
        family: if p.address.is_ipv6() { IpFamily::V6 } else { IpFamily::V4 } as i32,
        address: p.address.to_string(),
        mask: p.length.to_string(),
        ..Default::default()
    });
    Ok(Interface {
        device: l.name.clone(),
        name: l.name.clone(),
        ip_addresses: ip_addresses.collect(),
        mtu: l.mtu.into(),
        hw_addr: link::show_mac(&l.mac),
        r#type: l.kind.clone(),
        raw_flags: l.flags,
        ..Default::default()
    })
}

fn show_route(r: &Route, links: &[Link]) -> WireRoute {
    let text = |a: &Option<IpAddr>| a.map(|a| a.to_string()).unwrap_or_default();
    WireRoute {
        dest: r.destination.map(|d| d.to_string()).unwrap_or_default(),
        gateway: text(&r.gateway),
        device: links.iter().find(|l| l.index == r.link).map(|l| l.name.clone()).unwrap_or_default(),
        source: text(&r.source),
        scope: r.scope.into(),
        family: if r.ipv6 { IpFamily::V6 } else { IpFamily::V4 } as i32,
        flags: r.flags,
        mtu: r.mtu,
        metric: r.metric,
        kind: if r.kind == Kind::Unicast { 0 } else { r.kind as u32 },
    }
}
