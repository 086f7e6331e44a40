//! The VM's own network, and the pod's beside it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::seed::{Ethernet, NetworkConfig};
use super::{dhcp, malformed};
use crate::agent::boot;
use crate::agent::guest::Guest;
use crate::error::{At, Failure, Result, Stage};
use crate::net::link::{self, Link};
use crate::net::neighbour::{Neighbour, PERMANENT};
use crate::net::netlink::Netlink;
use crate::net::route::{self, ONLINK, Route};
use crate::net::scan::{Interface, Own};
use crate::net::vxlan::{self, Vxlan};
use crate::net::{Namespace, Prefix, address};
use crate::rpc::wire::apf::{Apf, PodNetwork};

/// How long an interface may take to appear.
const APPEARS: Duration = Duration::from_secs(60);

/// Before the number of an interface of the VM itself.
const OWN: &str = "vm";

/// The scope of what is on the link (RT_SCOPE_LINK).
const SCOPE_LINK: u8 = 253;

/// Sets up the VM's interfaces as its network configuration says, or the first one as a DHCP server does.
pub fn own(guest: &Guest, config: &NetworkConfig) -> Result<()> {
    boot::loopback_up().at(Stage::Network, || "loopback")?;
    let mut nl = Netlink::open()?;
    let mut servers = Vec::new();
    if config.ethernets.is_empty() {
        servers.extend(by_dhcp(guest, &mut nl)?.iter().map(|a| format!("nameserver {a}\n")));
    }
    for (n, (name, wanted)) in config.ethernets.iter().enumerate() {
        let find = || link::list(&mut Netlink::open().ok()?).ok()?.into_iter().find(|l| is(l, name, wanted));
        let link = guest
            .events
            .until(Some(APPEARS), find)
            .ok_or_else(|| Failure::new(Stage::Network, format!("interface {name} ({}) did not appear", wanted.r#match.macaddress)))?;
        // The pod's interfaces have names of their own, and older kernels take a name for taken that the VM's has.
        let link = Link { name: format!("{OWN}{n}"), ..link };
        link::rename(&mut nl, &link, &link.name)?;
        if let Some(mtu) = wanted.mtu {
            link::set_mtu(&mut nl, &link, mtu)?;
        }
        link::up(&mut nl, &link, true)?;
        for text in &wanted.addresses {
            address::add(&mut nl, &link, &Prefix::parse(text)?)?;
        }
        if let Some(gateway) = &wanted.gateway4 {
            route::add(&mut nl, &Route { gateway: Some(ip(gateway)?), link: link.index, ..Default::default() })?;
        }
        servers.extend(wanted.nameservers.addresses.iter().map(|a| format!("nameserver {a}\n")));
    }
    if !servers.is_empty() {
        std::fs::write("/etc/resolv.conf", servers.concat()).at(Stage::Network, || "resolv.conf")?;
    }
    Ok(())
}

fn by_dhcp(guest: &Guest, nl: &mut Netlink) -> Result<Vec<std::net::Ipv4Addr>> {
    let first = || link::list(&mut Netlink::open().ok()?).ok()?.into_iter().find(|l| l.ethernet().is_some() && !l.has(libc::IFF_LOOPBACK));
    let link = guest.events.until(Some(APPEARS), first).ok_or_else(|| Failure::new(Stage::Network, "no network interface appeared"))?;
    let link = Link { name: format!("{OWN}0"), ..link };
    link::rename(nl, &link, &link.name)?;
    link::up(nl, &link, true)?;
    dhcp::configure(&link)
}

fn is(link: &Link, name: &str, wanted: &Ethernet) -> bool {
    let mac = &wanted.r#match.macaddress;
    if mac.is_empty() { link.name == name } else { link::parse_mac(mac).is_ok_and(|m| m == link.mac) }
}

fn ip(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| malformed(format!("{text:?} is no address")))
}

/// Makes the pod's namespace at `path`, unless it is there, and in it the pod's interfaces, each the end of a tunnel. `need` sees
/// to it that the kernel has tunnels.
pub fn pod(apf: &Apf, path: &Path, need: &dyn Fn() -> Result<()>) -> Result<()> {
    let birth = Namespace::own()?;
    let podns = match Namespace::open(path) {
        Ok(there) => there,
        Err(_) => make_namespace(path)?,
    };
    podns.inside(boot::loopback_up)?.at(Stage::Network, || "loopback of the pod")?;
    if apf.networks().is_empty() {
        return Ok(());
    }
    need()?;
    for n in apf.networks() {
        if n.tunnel_type != "vxlan" {
            return Err(malformed(format!("tunnel-type {:?}: only vxlan is known", n.tunnel_type)));
        }
        let worker = Prefix::parse(&n.worker_node_ip)?.address;
        let mtu = vxlan::mtu_to(&mut birth.netlink()?, worker)?;
        let (interface, routes) = interface(n)?;
        let v = Vxlan {
            name: n.interface.clone(),
            vni: n.vxlan_id,
            port: n.vxlan_port,
            remote: Some(worker),
            mtu: mtu.min(n.mtu),
            mac: interface.link.ethernet(),
        };
        vxlan::podvm(&birth, &podns, &interface, &routes, &v)?;
    }
    Ok(())
}

/// A network namespace with a name.
fn make_namespace(path: &Path) -> Result<Namespace> {
    let at = path.to_owned();
    let made = crate::thread::start("podns", move || -> std::io::Result<()> {
        std::fs::create_dir_all(at.parent().unwrap_or(Path::new("/run/netns")))?;
        std::fs::File::create(&at)?;
        // SAFETY: a system call without pointers; only this thread changes over, and it ends here.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(rustix::mount::mount_bind("/proc/thread-self/ns/net", &at)?)
    });
    let made = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    made.at(Stage::Network, || format!("make {}", path.display()))?;
    Ok(Namespace::open(path)?)
}

/// By which routes and neighbours name the interface; it has another one where it is made.
const INDEX: u32 = 1;

/// The pod's interface and its routes as the adaptor describes them.
fn interface(n: &PodNetwork) -> Result<(Interface, Vec<Route>)> {
    let own = |text: &String| -> Result<Own> { Ok(Own { prefix: Prefix::parse(text)?, prefix_route: !n.no_prefix_routes.contains(text) }) };
    let link =
        Link { index: INDEX, name: n.interface.clone(), mac: link::parse_mac(&n.pod_hw_addr)?, mtu: n.mtu, flags: 0, kind: String::new() };
    let addresses = std::iter::once(&n.podip).chain(&n.more_ips).map(own).collect::<Result<Vec<_>>>()?;
    let neighbours = n
        .neighbors
        .iter()
        .filter(|x| x.dev.is_empty() || x.dev == n.interface)
        .map(|x| Ok(Neighbour { link: INDEX, address: ip(&x.ip)?, mac: link::parse_mac(&x.hw_addr)?, state: PERMANENT, flags: 0 }));
    let neighbours = neighbours.collect::<Result<Vec<_>>>()?;
    // The kernel makes the routes that addresses bring.
    let routes = n.routes.iter().filter(|r| r.protocol != "kernel" && (r.dev.is_empty() || r.dev == n.interface)).map(|r| {
        let destination = Prefix::parse(&r.dst)?;
        let gateway = if r.gw.is_empty() { None } else { Some(ip(&r.gw)?) };
        Ok(Route {
            destination: (destination.length != 0).then_some(destination),
            gateway,
            link: INDEX,
            scope: if gateway.is_none() && destination.address.is_ipv4() { SCOPE_LINK } else { 0 },
            flags: if r.onlink { ONLINK } else { 0 },
            metric: r.metric,
            ipv6: destination.address.is_ipv6(),
            ..Default::default()
        })
    });
    let routes = routes.collect::<Result<Vec<_>>>()?;
    Ok((Interface { link, addresses, neighbours }, routes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::apf::{PodNeighbor, PodRoute};

    #[test]
    fn an_interface_as_the_field_describes_it() {
        let route = |dst: &str, gw: &str, protocol: &str| PodRoute {
            dst: dst.into(),
            gw: gw.into(),
            dev: "eth0".into(),
            protocol: protocol.into(),
            ..Default::default()
        };
        let n = PodNetwork {
            podip: "10.244.1.21/24".into(),
            pod_hw_addr: "0a:58:0a:f4:01:15".into(),
            interface: "eth0".into(),
            mtu: 1500,
            routes: vec![route("0.0.0.0/0", "10.244.1.1", "boot"), route("10.244.1.0/24", "", "kernel"), route("169.254.1.1/32", "", "")],
            neighbors: vec![PodNeighbor { ip: "169.254.1.1".into(), hw_addr: "ee:ee:ee:ee:ee:ee".into(), dev: "eth0".into() }],
            ..Default::default()
        };
        let (interface, routes) = interface(&n).unwrap();
        assert_eq!(interface.addresses[0].prefix.to_string(), "10.244.1.21/24");
        assert_eq!(routes.iter().map(Route::to_string).collect::<Vec<_>>(), ["default via 10.244.1.1", "169.254.1.1/32"]);
        assert_eq!((routes[1].scope, interface.neighbours.len()), (SCOPE_LINK, 1));
        let bad = PodNetwork { podip: "10.0.0.1".into(), pod_hw_addr: "0a:58:0a:f4:01:15".into(), ..Default::default() };
        assert!(super::interface(&bad).is_err());
    }
}
