//! What is in a namespace, for people and for scripts.

use serde::Serialize;

use crate::net::netlink::Netlink;
use crate::net::{Namespace, NetError, address, endpoint, link, route, tc, vxlan};

/// In place of the name of a device that a redirection led to and that is no more.
pub const GONE: &str = "(gone)";

#[derive(Clone, Debug, Serialize)]
pub struct View {
    pub netns: String,
    /// The loopback and what is down without an address are left out.
    pub devices: Vec<Device>,
    pub routes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub name: String,
    /// `veth`, `tun`, `vxlan`; empty for hardware.
    pub kind: String,
    pub mac: String,
    pub mtu: u32,
    pub up: bool,
    /// Somebody is at the other end: a veth's peer is up, a tap is open.
    pub carrier: bool,
    /// Made by osc.
    pub ours: bool,
    pub addresses: Vec<String>,
    /// Where a VXLAN device leads: `VNI 555000 to 192.0.2.1:4789`.
    pub tunnel: Option<String>,
    /// Where what arrives here is sent; [`GONE`] for a device that is no more.
    pub redirect: Vec<String>,
    /// Packets that went that way.
    pub redirected: u32,
    /// Filters on its ingress that are no redirections.
    pub other_filters: usize,
    pub ingress_qdisc: bool,
}

impl View {
    pub fn of(namespace: &Namespace) -> Result<View, NetError> {
        let mut nl = namespace.netlink()?;
        let links = link::list(&mut nl)?;
        let addresses = address::dump(&mut nl)?;
        let shown = |l: &&link::Link| {
            !l.has(libc::IFF_LOOPBACK) && (l.has(libc::IFF_UP) || endpoint::is_ours(l) || addresses.iter().any(|a| a.link == l.index))
        };
        let devices = links.iter().filter(shown).map(|l| device(&mut nl, l, &links, &addresses)).collect::<Result<_, _>>()?;
        let name = |index: u32| links.iter().find(|l| l.index == index).map_or(String::new(), |l| format!(" dev {}", l.name));
        let routes = route::list(&mut nl)?.iter().map(|r| format!("{r}{}{}", name(r.link), more(r))).collect();
        Ok(View { netns: namespace.path().display().to_string(), devices, routes })
    }

    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|d| d.name == name)
    }
}

fn device(nl: &mut Netlink, l: &link::Link, all: &[link::Link], addresses: &[address::Address]) -> Result<Device, NetError> {
    let filters = tc::filters(nl, l)?;
    let name = |index: u32| all.iter().find(|l| l.index == index).map_or(GONE.to_owned(), |l| l.name.clone());
    let redirections = || filters.iter().filter_map(|f| Some((f.redirect?, f.packets)));
    Ok(Device {
        name: l.name.clone(),
        kind: l.kind.clone(),
        mac: link::show_mac(&l.mac),
        mtu: l.mtu,
        up: l.has(libc::IFF_UP),
        carrier: l.has(libc::IFF_LOWER_UP),
        ours: endpoint::is_ours(l),
        addresses: addresses.iter().filter(|a| a.link == l.index).map(|a| a.prefix.to_string()).collect(),
        tunnel: if l.kind == vxlan::KIND { vxlan::info(nl, &l.name)?.map(|i| tunnel(&i)) } else { None },
        redirect: redirections().map(|r| name(r.0)).collect(),
        redirected: redirections().map(|r| r.1).sum(),
        other_filters: filters.iter().filter(|f| f.redirect.is_none()).count(),
        ingress_qdisc: tc::ingress_of(nl, l)?.is_some(),
    })
}

fn tunnel(i: &vxlan::Info) -> String {
    let remote = i.remote.map_or("nowhere yet".into(), |r| std::net::SocketAddr::new(r, i.port).to_string());
    format!("VNI {} to {remote}", i.vni)
}

/// What the route's short form does not say.
fn more(r: &route::Route) -> String {
    let mut text = String::new();
    let mut add = |label: &str, value: Option<String>| value.into_iter().for_each(|v| text.push_str(&format!(" {label} {v}")));
    add("src", r.source.map(|s| s.to_string()));
    add("metric", (r.metric != 0).then(|| r.metric.to_string()));
    add("mtu", (r.mtu != 0).then(|| r.mtu.to_string()));
    if r.flags & route::ONLINK != 0 {
        text.push_str(" onlink");
    }
    text
}
