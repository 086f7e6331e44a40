//! The pod's network: what the CNI left in its namespace becomes the guest's.
//!
//! On the host each interface is tied to a tap ([`crate::net::endpoint`]), recorded before and after; in the guest the
//! agent gives the virtio-net device at its other end the same name, MAC, MTU, addresses, routes and neighbours.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::agent::Agent;
use super::record::{Record, Thing};
use crate::error::{At, Result, Stage};
use crate::net::endpoint::{self, Endpoint};
use crate::net::scan::{Interface, Network};
use crate::net::{Namespace, link, route};
use crate::rpc::Status;
use crate::rpc::wire::{agent as wire, types};
use crate::vm::Device;

/// Queue pairs that a NIC has at most: more CPUs share them.
const MOST_QUEUES: usize = 64;

const VHOST_NET: &str = "/dev/vhost-net";

/// Ties every interface of the namespace at `netns` to a tap for `vcpus` vCPUs. On an error the record says what stands.
pub(super) fn attach(netns: &Path, vcpus: u32, record: &Record) -> Result<(Network, Vec<Endpoint>)> {
    let namespace = endpoint::open(netns)?;
    let network = endpoint::look(&namespace)?;
    let endpoints = tie_all(&namespace, &network.interfaces, vcpus, record)?;
    Ok((network, endpoints))
}

fn tie_all(namespace: &Namespace, interfaces: &[Interface], vcpus: u32, record: &Record) -> Result<Vec<Endpoint>> {
    let queues = (vcpus as usize).clamp(1, MOST_QUEUES);
    let ties = endpoint::plan(namespace, interfaces)?;
    let one = |(interface, tie): (&Interface, endpoint::Tie)| {
        let thing = Thing::Endpoint { tie: tie.clone() };
        record.intent(thing.clone()).at(Stage::Network, || "record")?;
        let queues = endpoint::tie(namespace, &tie, queues, false)?;
        record.done(thing).at(Stage::Network, || "record")?;
        Ok(Endpoint { interface: interface.clone(), tie, queues })
    };
    interfaces.iter().zip(ties).map(one).collect()
}

/// The VM's end of an endpoint.
pub(super) fn device(endpoint: Endpoint) -> Device {
    let vhost = vhost(endpoint.queues.len());
    let link = endpoint.interface.link;
    Device::Nic { id: nic_id(link.index), mac: link.ethernet().unwrap_or_default(), mtu: link.mtu, queues: endpoint.queues, vhost }
}

/// What the VM knows the interface with this index by.
fn nic_id(index: u32) -> String {
    format!("nic{index}")
}

/// A worker of the kernel for each queue, where the host has them.
fn vhost(queues: usize) -> Vec<OwnedFd> {
    let open = |_| std::fs::File::options().read(true).write(true).open(VHOST_NET).map(OwnedFd::from);
    (0..queues).map(open).collect::<std::io::Result<_>>().unwrap_or_default()
}

/// Makes the guest's network what the namespace's is.
pub(super) fn configure(agent: &Agent, network: &Network) -> Result<(), Status> {
    for interface in &network.interfaces {
        let request = wire::UpdateInterfaceRequest { interface: Some(wire_interface(interface)) };
        let _: types::Interface = agent.ask("UpdateInterface", &request)?;
    }
    let routes = network.routes.iter().map(|r| wire_route(r, network)).collect();
    let _: wire::Routes = agent.ask("UpdateRoutes", &wire::UpdateRoutesRequest { routes: Some(wire::Routes { routes }) })?;
    let arp_neighbors: Vec<types::ArpNeighbor> = network.interfaces.iter().flat_map(wire_neighbours).collect();
    if arp_neighbors.is_empty() {
        return Ok(());
    }
    agent.tell("AddARPNeighbors", &wire::AddArpNeighborsRequest { neighbors: Some(wire::ArpNeighbors { arp_neighbors }) })
}

fn wire_interface(i: &Interface) -> types::Interface {
    let address = |a: &crate::net::scan::Own| types::IpAddress {
        family: family(a.prefix.address.is_ipv6()),
        address: a.prefix.address.to_string(),
        mask: a.prefix.length.to_string(),
        flags: if a.prefix_route { 0 } else { crate::net::address::NO_PREFIX_ROUTE },
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
    let one = |n: &crate::net::neighbour::Neighbour| types::ArpNeighbor {
        to_ip_address: Some(types::IpAddress { family: family(n.address.is_ipv6()), address: n.address.to_string(), ..Default::default() }),
        device: i.link.name.clone(),
        lladdr: link::show_mac(&n.mac),
        state: n.state.into(),
        flags: n.flags.into(),
    };
    i.neighbours.iter().map(one).collect()
}
