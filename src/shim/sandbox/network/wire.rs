//! A pod's network in the agent's words.

use crate::net::scan::{Interface, Network, Own};
use crate::net::{address, link, neighbour, route};
use crate::rpc::Status;
use crate::rpc::wire::{agent as wire, types};
use crate::shim::sandbox::agent::Agent;

/// Gives the guest's device with this MAC everything that the interface has.
pub fn update_interface(agent: &Agent, interface: &Interface) -> Result<(), Status> {
    let request = wire::UpdateInterfaceRequest { interface: Some(wire_interface(interface)) };
    agent.ask::<_, types::Interface>("UpdateInterface", &request).map(drop)
}

/// The pod's routes, and no others.
pub fn update_routes(agent: &Agent, network: &Network) -> Result<(), Status> {
    let routes = network.routes.iter().map(|r| wire_route(r, network)).collect();
    let request = wire::UpdateRoutesRequest { routes: Some(wire::Routes { routes }) };
    agent.ask::<_, wire::Routes>("UpdateRoutes", &request).map(drop)
}

/// Permanent neighbours, where there are any.
pub fn add_neighbours(agent: &Agent, network: &Network) -> Result<(), Status> {
    let arp_neighbors: Vec<types::ArpNeighbor> = network.interfaces.iter().flat_map(wire_neighbours).collect();
    if arp_neighbors.is_empty() {
        return Ok(());
    }
    agent.tell("AddARPNeighbors", &wire::AddArpNeighborsRequest { neighbors: Some(wire::ArpNeighbors { arp_neighbors }) })
}

fn wire_interface(i: &Interface) -> types::Interface {
    let address = |a: &Own| types::IpAddress {
        family: family(a.prefix.address.is_ipv6()),
        address: a.prefix.address.to_string(),
        mask: a.prefix.length.to_string(),
        flags: if a.prefix_route { 0 } else { address::NO_PREFIX_ROUTE },
    };
    types::Interface {
        device: i.link.name.clone(),
        name: i.link.name.clone(),
        ip_addresses: i.addresses.iter().map(address).collect(),
        mtu: i.link.mtu.into(),
        hw_addr: link::show_mac(&i.link.mac),
        r#type: i.link.kind.clone(),
        raw_flags: i.link.flags & libc::IFF_NOARP as u32,
        ..Default::default()
    }
}

fn family(ipv6: bool) -> i32 {
    if ipv6 { types::IpFamily::V6 as i32 } else { types::IpFamily::V4 as i32 }
}

fn wire_route(r: &route::Route, network: &Network) -> types::Route {
    let text = |a: Option<std::net::IpAddr>| a.map(|a| a.to_string()).unwrap_or_default();
    types::Route {
        dest: r.destination.map(|d| d.to_string()).unwrap_or_default(),
        gateway: text(r.gateway),
        device: network.name_of(r.link).to_owned(),
        source: text(r.source),
        scope: r.scope.into(),
        family: family(r.ipv6),
        flags: r.flags,
        mtu: r.mtu,
        metric: r.metric,
        kind: if r.kind == route::Kind::Unicast { 0 } else { r.kind as u32 },
    }
}

fn wire_neighbours(i: &Interface) -> Vec<types::ArpNeighbor> {
    let one = |n: &neighbour::Neighbour| types::ArpNeighbor {
        to_ip_address: Some(types::IpAddress { family: family(n.address.is_ipv6()), address: n.address.to_string(), ..Default::default() }),
        device: i.link.name.clone(),
        lladdr: link::show_mac(&n.mac),
        state: n.state.into(),
        flags: n.flags.into(),
    };
    i.neighbours.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Prefix;

    fn interface() -> Interface {
        let link =
            link::Link { index: 7, name: "eth0".into(), mac: vec![2, 0, 0, 0, 0, 1], mtu: 1450, flags: 0x10043, kind: "veth".into() };
        let own = |text, prefix_route| Own { prefix: Prefix::parse(text).unwrap(), prefix_route };
        let near =
            neighbour::Neighbour { link: 7, address: "10.0.0.9".parse().unwrap(), mac: vec![2, 0, 0, 0, 0, 9], state: 0x80, flags: 0 };
        Interface { link, addresses: vec![own("10.0.0.2/24", true), own("fd00::2/64", false)], neighbours: vec![near] }
    }

    #[test]
    fn an_interface() {
        let i = wire_interface(&interface());
        assert_eq!((i.name.as_str(), i.hw_addr.as_str(), i.mtu, i.raw_flags), ("eth0", "02:00:00:00:00:01", 1450, 0));
        let addresses: Vec<_> = i.ip_addresses.iter().map(|a| (a.family, a.address.as_str(), a.mask.as_str(), a.flags)).collect();
        assert_eq!(addresses, [(0, "10.0.0.2", "24", 0), (1, "fd00::2", "64", address::NO_PREFIX_ROUTE)]);
        let n = wire_neighbours(&interface());
        assert_eq!((n[0].device.as_str(), n[0].lladdr.as_str(), n[0].state), ("eth0", "02:00:00:00:00:09", 0x80));
    }

    #[test]
    fn routes() {
        let network = Network { interfaces: vec![interface()], routes: vec![] };
        let far = route::Route {
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: Some("10.0.0.2".parse().unwrap()),
            link: 7,
            flags: route::ONLINK,
            mtu: 1300,
            metric: 5,
            ..Default::default()
        };
        let w = wire_route(&far, &network);
        assert_eq!((w.dest.as_str(), w.gateway.as_str(), w.device.as_str(), w.source.as_str()), ("", "10.0.0.1", "eth0", "10.0.0.2"));
        assert_eq!((w.flags, w.mtu, w.metric, w.kind), (route::ONLINK, 1300, 5, 0));
        let destination = Some(Prefix::parse("fd99::/64").unwrap());
        let w = wire_route(&route::Route { kind: route::Kind::Blackhole, destination, ipv6: true, ..Default::default() }, &network);
        assert_eq!((w.dest.as_str(), w.device.as_str(), w.family, w.kind), ("fd99::/64", "", 1, 6));
    }
}
