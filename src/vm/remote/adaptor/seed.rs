//! What a pod VM is given at its making: `apf.json` in a cloud-config.

use std::net::IpAddr;

use super::journal::Entry;
use crate::error::{At, Failure, Result, Stage};
use crate::net::link::show_mac;
use crate::net::scan::{Interface, Network};
use crate::net::vxlan::Tunnel;
use crate::net::{Namespace, NetError, Prefix, address, endpoint, link, route};
use crate::rpc::wire::apf::{self, Apf, PodNeighbor, PodNetwork, PodRoute};

/// ((a certificate, its key), the authority's certificate), PEM.
pub type Signed = ((String, String), String);

/// The pod's network as the VM is to have it, the worker's address still missing.
pub fn networks(entry: &Entry) -> Result<Vec<PodNetwork>> {
    if entry.tunnels.is_empty() {
        return Ok(Vec::new());
    }
    let network = endpoint::look(&Namespace::open(&entry.netns)?)?;
    let of = |t: &Tunnel| network.interfaces.iter().find(|i| i.link.name == t.tie.link).map(|i| one(i, &network, t));
    Ok(entry.tunnels.iter().filter_map(of).collect())
}

fn one(i: &Interface, network: &Network, tunnel: &Tunnel) -> PodNetwork {
    let ips: Vec<String> = i.addresses.iter().map(|a| a.prefix.to_string()).collect();
    let routes = network.routes.iter().filter(|r| r.link == i.link.index).map(|r| PodRoute {
        dst: r.destination.map(|d| d.to_string()).unwrap_or_else(|| if r.ipv6 { "::/0".into() } else { "0.0.0.0/0".into() }),
        gw: r.gateway.map(|g| g.to_string()).unwrap_or_default(),
        dev: i.link.name.clone(),
        protocol: "boot".into(),
        scope: if r.gateway.is_none() { "link".into() } else { String::new() },
        metric: r.metric,
        onlink: r.flags & route::ONLINK != 0,
    });
    let neighbors =
        i.neighbours.iter().map(|n| PodNeighbor { ip: n.address.to_string(), hw_addr: show_mac(&n.mac), dev: i.link.name.clone() });
    PodNetwork {
        podip: ips.first().cloned().unwrap_or_default(),
        pod_hw_addr: show_mac(&i.link.mac),
        interface: i.link.name.clone(),
        tunnel_type: "vxlan".into(),
        routes: routes.collect(),
        neighbors: neighbors.collect(),
        mtu: i.link.mtu,
        vxlan_port: tunnel.port,
        vxlan_id: tunnel.vni,
        more_ips: ips.into_iter().skip(1).collect(),
        no_prefix_routes: i.addresses.iter().filter(|a| !a.prefix_route).map(|a| a.prefix.to_string()).collect(),
        ..Default::default()
    }
}

/// The address by which pod VMs reach this worker: of `interface`, else of the one that the default route goes through.
pub fn worker_address(interface: &str) -> Result<Prefix, NetError> {
    let mut nl = Namespace::own()?.netlink()?;
    let link = if interface.is_empty() {
        let default = route::list(&mut nl)?.into_iter().filter(|r| r.destination.is_none() && r.link != 0).min_by_key(|r| r.metric);
        let index = default.ok_or_else(|| NetError::Invalid("no default route: name the interface with --host-interface".into()))?.link;
        link::list(&mut nl)?.into_iter().find(|l| l.index == index).ok_or_else(|| NetError::NoLink(index.to_string()))?
    } else {
        link::by_name(&mut nl, interface)?
    };
    let addresses = address::list(&mut nl, &link)?;
    addresses.into_iter().next().ok_or_else(|| NetError::Invalid(format!("{}: has no address", link.name)))
}

/// The cloud-config of a VM that reaches this worker at `worker`.
///
/// `signed` is the VM's certificate and key, and the authority's certificate, PEM; without it the VM serves everybody.
pub fn user_data(entry: &Entry, networks: &[PodNetwork], worker: Prefix, signed: Option<&Signed>) -> Result<String> {
    let mut networks = networks.to_vec();
    networks.iter_mut().for_each(|n| n.worker_node_ip = worker.to_string());
    let ((certificate, key), ca) = signed.cloned().unwrap_or_default();
    let apf = Apf {
        pod_network: networks.first().cloned(),
        pod_namespace: entry.namespace.clone(),
        pod_name: entry.pod.clone(),
        tls_server_key: key,
        tls_server_cert: certificate,
        tls_client_ca: ca,
        pod_networks: if networks.len() > 1 || networks.iter().any(|n| !n.more_ips.is_empty()) { networks } else { Vec::new() },
        ..Default::default()
    };
    let content = serde_json::to_string(&apf).at(Stage::Agent, || "apf.json")?;
    // JSON is YAML, and needs no rules of its own for what a string may hold.
    let config = serde_json::json!({ "write_files": [{ "path": apf::PATH, "content": content }] });
    Ok(format!("#cloud-config\n{config}\n"))
}

/// `podvm-<pod>-<8 of the sandbox>`, a name for any cloud.
pub fn vm_name(pod: &str, sandbox: &str) -> String {
    /// The longest that a DNS label, and so a certificate's name, may be.
    const LONGEST: usize = 63;
    const SHORT: usize = 8;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let id: String = sandbox.chars().filter(char::is_ascii_alphanumeric).take(SHORT).map(plain).collect();
    let room = LONGEST - "podvm--".len() - id.len();
    let pod: String = pod.chars().map(plain).take(room).collect();
    let pod = pod.trim_matches('-');
    if pod.is_empty() { format!("podvm-{id}") } else { format!("podvm-{pod}-{id}") }
}

/// The address that is first in `addresses`.
pub fn first(addresses: &[IpAddr], name: &str) -> Result<IpAddr> {
    addresses.first().copied().ok_or_else(|| Failure::new(Stage::Network, format!("{name}: the provider named no address")))
}

#[cfg(test)]
mod tests {
    use super::super::pki::Authority;
    use super::*;

    #[test]
    fn names_are_labels() {
        assert_eq!(vm_name("web-0", "0123456789abcdef"), "podvm-web-0-01234567");
        assert_eq!(vm_name("", "ab"), "podvm-ab");
        let long = vm_name(&"X.y_".repeat(40), "0123456789");
        assert!(long.len() <= 63 && long.starts_with("podvm-x-y-x-y") && long.ends_with("-01234567"), "{long}");
    }

    #[test]
    fn user_data_holds_the_keys_and_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::of(dir.path()).unwrap();
        let signed = (authority.server("podvm-web-1").unwrap(), authority.pem());
        let entry = Entry { pod: "web".into(), name: "podvm-web-1".into(), ..Entry::new("s1") };
        let networks = [PodNetwork { podip: "10.1.0.2/24".into(), vxlan_id: 555_001, ..Default::default() }];
        let text = user_data(&entry, &networks, Prefix::parse("10.0.0.5/16").unwrap(), Some(&signed)).unwrap();
        let body: serde_json::Value = serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        assert_eq!(body["write_files"][0]["path"], apf::PATH);
        let apf: Apf = serde_json::from_str(body["write_files"][0]["content"].as_str().unwrap()).unwrap();
        assert_eq!(apf.networks()[0].worker_node_ip, "10.0.0.5/16");
        assert!(apf.tls_server_key.contains("PRIVATE KEY") && apf.tls_client_ca.contains("CERTIFICATE"));
        let plain = user_data(&entry, &[], Prefix::parse("10.0.0.5/16").unwrap(), None).unwrap();
        assert!(!plain.contains("PRIVATE"));
    }
}
