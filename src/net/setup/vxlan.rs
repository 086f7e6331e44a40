//! `osc netsetup vxlan`: either end of a peer pod's tunnel, by hand.

use std::net::IpAddr;

use clap::Subcommand;

use super::{Change, in_namespace, json};
use crate::error::{Failure, Result, Stage};
use crate::net::namespace::Namespace;
use crate::net::scan::{Interface, Own};
use crate::net::vxlan::{self, FIRST_VNI, PORT, Tunnel, Vxlan};
use crate::net::{NetError, Prefix, endpoint, link, route};

/// Either end of a peer pod's tunnel
#[derive(Subcommand, Debug)]
pub enum Ends {
    /// On the worker: tie the pod's interfaces to the VM at --remote
    Worker(Worker),
    /// In the pod VM: make the pod's interface, tied to the worker at --remote
    Podvm(Podvm),
}

#[derive(clap::Args, Debug)]
pub struct Far {
    /// Underlay address of the other end, IPv4 or IPv6
    #[arg(long, value_name = "IP")]
    pub remote: IpAddr,
    /// UDP port of both ends
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub port: u16,
}

#[derive(clap::Args, Debug)]
pub struct Worker {
    #[command(flatten)]
    pub change: Change,
    #[command(flatten)]
    pub far: Far,
    /// The first VNI to try; one that is taken is passed over
    #[arg(long, value_name = "N", default_value_t = FIRST_VNI)]
    pub vni: u32,
}

#[derive(clap::Args, Debug)]
pub struct Podvm {
    #[command(flatten)]
    pub change: Change,
    #[command(flatten)]
    pub far: Far,
    /// The VNI that the worker's end has
    #[arg(long, value_name = "N")]
    pub vni: u32,
    /// Name of the pod's interface
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    pub name: String,
    /// Its MAC, as on the worker
    #[arg(long, value_name = "MAC")]
    pub mac: String,
    /// Its MTU; less where the underlay demands it
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub mtu: u32,
    /// Its address with a prefix length; may be given several times
    #[arg(long, value_name = "IP/LEN", required = true)]
    pub address: Vec<String>,
    /// Default gateway; may be given once for each family
    #[arg(long, value_name = "IP")]
    pub gateway: Vec<IpAddr>,
}

impl Ends {
    pub fn run(&self) -> Result<i32> {
        match self {
            Ends::Worker(w) => w.run(),
            Ends::Podvm(p) => p.run(),
        }
    }
}

impl Worker {
    fn run(&self) -> Result<i32> {
        let (birth, pod) = (Namespace::own()?, endpoint::open(&self.change.place.netns)?);
        let network = endpoint::look(&pod)?;
        if network.interfaces.is_empty() {
            let cause = format!("{}: no interface to tie (none is up or has an address)", pod.path().display());
            return Err(Failure::new(Stage::Network, cause).way_out("let the CNI, or `ip link`, put one there first"));
        }
        if self.change.dry_run {
            return self.dry_run(&birth, &pod, &network.interfaces);
        }
        let tunnels = vxlan::reserve(&birth, &pod, self.far.port, self.vni)?;
        for tunnel in &tunnels {
            vxlan::connect(&birth, tunnel, self.far.remote).inspect_err(|_| {
                tunnels.iter().filter_map(|t| vxlan::remove(&birth, t).err()).for_each(|e| log::warn!("undoing: {e}"));
            })?;
        }
        if self.change.place.json {
            return json(&tunnels);
        }
        tunnels.iter().for_each(|t| println!("{} <-> {}  VNI {}  to {}:{}", t.tie.link, t.tie.tap, t.vni, self.far.remote, t.port));
        Ok(0)
    }

    fn dry_run(&self, birth: &Namespace, pod: &Namespace, interfaces: &[Interface]) -> Result<i32> {
        let mtu = vxlan::mtu_to(&mut birth.netlink()?, self.far.remote)?;
        for (n, i) in interfaces.iter().enumerate() {
            let (name, vni) = (format!("{}{}", vxlan::KIND, n + 1), self.vni + n as u32);
            let v = Vxlan { name: name.clone(), vni, port: self.far.port, remote: Some(self.far.remote), mtu: i.link.mtu, mac: None };
            println!("{}", vxlan::command(&v, pod));
            print!("{}", rule(&v));
            let tie = endpoint::Tie { netns: pod.path().to_owned(), id: pod.id(), link: i.link.name.clone(), tap: name };
            let steps = vxlan::connect_steps(&tie, mtu.min(i.link.mtu));
            steps.iter().for_each(|s| println!("{}", in_namespace(pod.path(), &s.to_string())));
        }
        Ok(0)
    }
}

impl Podvm {
    fn run(&self) -> Result<i32> {
        let (birth, podns) = (Namespace::own()?, endpoint::open(&self.change.place.netns)?);
        let interface = self.interface()?;
        let routes: Vec<route::Route> = self.gateway.iter().map(default).collect();
        let tie = endpoint::Tie { netns: podns.path().to_owned(), id: podns.id(), link: self.name.clone(), tap: String::new() };
        let tunnel = Tunnel { tie, vni: self.vni, port: self.far.port };
        let mtu = vxlan::mtu_to(&mut birth.netlink()?, self.far.remote)?;
        let v = vxlan::other_end(&interface, &tunnel, self.far.remote, mtu);
        if self.change.dry_run {
            println!("{}", vxlan::command(&v, &podns));
            print!("{}", rule(&v));
            let mut commands = vec!["ip link set dev lo up".to_owned(), format!("ip link set dev {} up", v.name)];
            let nodad = |p: &Prefix| if p.address.is_ipv6() { " nodad" } else { "" };
            commands.extend(interface.addresses.iter().map(|a| format!("ip addr add {} dev {}{}", a.prefix, v.name, nodad(&a.prefix))));
            let ip = |r: &route::Route| if r.ipv6 { "ip -6" } else { "ip" };
            commands.extend(routes.iter().map(|r| format!("{} route add {r} dev {}", ip(r), v.name)));
            commands.iter().for_each(|c| println!("{}", in_namespace(podns.path(), c)));
            return Ok(0);
        }
        vxlan::podvm(&birth, &podns, &interface, &routes, &v)?;
        if self.change.place.json {
            return json(&tunnel);
        }
        println!("{}  MAC {}  MTU {}  VNI {}  to {}:{}", v.name, self.mac, v.mtu, v.vni, self.far.remote, v.port);
        Ok(0)
    }

    /// The pod's interface as the worker has it.
    fn interface(&self) -> Result<Interface, NetError> {
        let link = link::Link {
            index: INDEX,
            name: self.name.clone(),
            mac: link::parse_mac(&self.mac)?,
            mtu: self.mtu,
            flags: 0,
            kind: String::new(),
        };
        let own = |text: &String| Prefix::parse(text).map(|prefix| Own { prefix, prefix_route: true });
        Ok(Interface { link, addresses: self.address.iter().map(own).collect::<Result<_, _>>()?, neighbours: Vec::new() })
    }
}

/// The command that has the sender of its packets checked.
fn rule(v: &Vxlan) -> String {
    let table = v.remote.map(|r| vxlan::source_rule(v.vni, v.port, r).to_string()).unwrap_or_default();
    format!("nft -f - <<'END'\n{table}END\n")
}

/// (VNI, port) of every tunnel in the namespace: there are rules about their packets where we are.
pub fn rules_of(namespace: &Namespace) -> Result<Vec<(u32, u16)>, NetError> {
    let mut nl = namespace.netlink()?;
    let links = link::list(&mut nl)?;
    let infos = links.iter().filter(|l| l.kind == vxlan::KIND).map(|l| vxlan::info(&mut nl, &l.name)).collect::<Result<Vec<_>, _>>()?;
    Ok(infos.into_iter().flatten().map(|i| (i.vni, i.port)).collect())
}

pub fn remove_rules(tunnels: &[(u32, u16)]) -> Result<(), NetError> {
    let birth = Namespace::own()?;
    tunnels.iter().try_for_each(|(vni, port)| vxlan::uncheck_source(&birth, *vni, *port))
}

/// By which the routes name the interface; it is another one where it is made.
const INDEX: u32 = 1;

fn default(gateway: &IpAddr) -> route::Route {
    route::Route { gateway: Some(*gateway), link: INDEX, ipv6: gateway.is_ipv6(), ..Default::default() }
}
