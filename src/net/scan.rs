//! What the CNI left in a pod's network namespace: the interfaces that the guest is to have, with all that belongs to them.

use super::address::{self, Address, NO_PREFIX_ROUTE};
use super::link::{self, Link};
use super::neighbour::{self, Neighbour, PERMANENT};
use super::netlink::Netlink;
use super::route::{self, Route};
use super::{NetError, Prefix, endpoint, network_of};

/// An interface of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub link: Link,
    pub addresses: Vec<Own>,
    /// Neighbours that the guest need not ask for.
    pub neighbours: Vec<Neighbour>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    pub prefix: Prefix,
    /// The kernel keeps a route to the address's network; some CNIs remove it, and the guest shall not have it either.
    pub prefix_route: bool,
}

/// A pod's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// In the order of their indices.
    pub interfaces: Vec<Interface>,
    /// Those through these interfaces, and those that lead nowhere; without the ones that addresses bring with them.
    pub routes: Vec<Route>,
}

impl Network {
    /// The name of the interface with this index.
    pub fn name_of(&self, index: u32) -> &str {
        self.interfaces.iter().find(|i| i.link.index == index).map_or("", |i| &i.link.name)
    }
}

/// Looks at the namespace of `nl`.
pub fn scan(nl: &mut Netlink) -> Result<Network, NetError> {
    let (links, addresses) = (link::list(nl)?, address::dump(nl)?);
    let (routes, neighbours) = (route::list(nl)?, neighbour::list(nl)?);
    let mut interfaces: Vec<Interface> =
        links.into_iter().filter(|l| wanted(l, &addresses)).map(|l| Interface::new(l, &addresses, &routes, &neighbours)).collect();
    interfaces.sort_by_key(|i| i.link.index);
    let routes = routes.into_iter().filter(|r| !r.by_router && belongs(r, &interfaces) && !implied(r, &interfaces)).collect();
    Ok(Network { interfaces, routes })
}

impl Interface {
    fn new(link: Link, addresses: &[Address], routes: &[Route], neighbours: &[Neighbour]) -> Interface {
        let own = addresses.iter().filter(|a| a.link == link.index && !link_local(&a.prefix));
        let own = own.map(|a| Own { prefix: a.prefix, prefix_route: a.peer.is_none() && has_prefix_route(a, routes) }).collect();
        let permanent = |n: &&Neighbour| n.link == link.index && n.state & PERMANENT != 0 && n.mac.len() == link::MAC;
        let neighbours = neighbours.iter().filter(permanent).cloned().collect();
        Interface { link, addresses: own, neighbours }
    }
}

/// Interfaces that the guest is to have: those that are up or have an address. The loopback is the guest's own, our taps
/// are the other ends, and the tunnels that the kernel puts into every namespace are neither up nor addressed.
fn wanted(link: &Link, addresses: &[Address]) -> bool {
    if link.has(libc::IFF_LOOPBACK) || endpoint::is_ours(link) {
        return false;
    }
    let used = link.has(libc::IFF_UP) || addresses.iter().any(|a| a.link == link.index);
    if used && link.ethernet().is_none() {
        log::warn!("{}: no Ethernet device ({}): the guest goes without it", link.name, link.kind);
    }
    used && link.ethernet().is_some()
}

/// The kernel makes these by itself, in the guest as on the host.
fn link_local(prefix: &Prefix) -> bool {
    matches!(prefix.address, std::net::IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfe80)
}

fn has_prefix_route(a: &Address, routes: &[Route]) -> bool {
    let network = network_of(&a.prefix);
    // An address that is alone in its network never has one.
    let alone = a.prefix.length == super::bits(&a.prefix.address);
    a.flags & NO_PREFIX_ROUTE == 0
        && (alone || routes.iter().any(|r| r.by_kernel && r.link == a.link && r.destination == Some(network) && r.gateway.is_none()))
}

fn belongs(route: &Route, interfaces: &[Interface]) -> bool {
    route.link == 0 || interfaces.iter().any(|i| i.link.index == route.link)
}

/// A route that the guest's kernel makes with the address.
fn implied(route: &Route, interfaces: &[Interface]) -> bool {
    let of_an_address = || {
        let all = interfaces.iter().filter(|i| i.link.index == route.link).flat_map(|i| &i.addresses);
        all.filter(|a| a.prefix_route).any(|a| route.destination == Some(network_of(&a.prefix)))
    };
    route.by_kernel && (route.destination.is_some_and(|d| link_local(&d)) || of_an_address())
}
