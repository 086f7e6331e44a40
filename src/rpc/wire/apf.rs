//! `apf.json`: what an adaptor tells the forwarder in its pod VM (`/run/peerpod/apf.json`; older ones call it `daemon.json`).
//!
//! The field's names and meanings; a key that is missing has its Go zero value. What goes beyond them is optional on both
//! sides: `pod-networks` for pods with more than one interface or address.

use serde::{Deserialize, Serialize};

/// Where it lies in the pod VM.
pub const PATH: &str = "/run/peerpod/apf.json";

/// The pod's network namespace in the pod VM.
pub const POD_NETNS: &str = "/run/netns/podns";

/// Where a forwarder listens.
pub const PORT: u16 = 15150;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Apf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_network: Option<PodNetwork>,
    pub pod_namespace: String,
    pub pod_name: String,
    /// PEM, PKCS#8.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_server_key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_server_cert: String,
    /// Whose callers the forwarder lets in.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_client_ca: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_min_version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_cipher_suites: Vec<String>,
    /// Ours: every interface of the pod, where one with one address does not say it all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pod_networks: Vec<PodNetwork>,
}

/// An interface of the pod and its tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PodNetwork {
    /// With its prefix length.
    pub podip: String,
    pub pod_hw_addr: String,
    pub interface: String,
    /// With its prefix length.
    pub worker_node_ip: String,
    /// `vxlan`
    pub tunnel_type: String,
    #[serde(deserialize_with = "null_is_none")]
    pub routes: Vec<PodRoute>,
    #[serde(deserialize_with = "null_is_none")]
    pub neighbors: Vec<PodNeighbor>,
    pub mtu: u32,
    pub index: u32,
    pub vxlan_port: u16,
    pub vxlan_id: u32,
    /// The tunnel goes through an interface of its own.
    pub dedicated: bool,
    pub external_net_via_pod_vm: bool,
    /// Ours: addresses beyond the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more_ips: Vec<String>,
    /// Ours: of `podip` and `more-ips`, those whose network the kernel shall make no route to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_prefix_routes: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodRoute {
    /// A prefix; the default is `0.0.0.0/0` or `::/0`.
    pub dst: String,
    /// Empty for what is on the link.
    pub gw: String,
    pub dev: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// Ours.
    #[serde(skip_serializing_if = "is_zero")]
    pub metric: u32,
    /// Ours: the gateway is on the link although no address says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub onlink: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PodNeighbor {
    pub ip: String,
    #[serde(alias = "hwaddr", alias = "hw_addr")]
    pub hw_addr: String,
    pub dev: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Go writes an empty list as null.
fn null_is_none<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(d)?.unwrap_or_default())
}

impl Apf {
    /// Its interfaces: ours where there are any, else the one of the field.
    pub fn networks(&self) -> &[PodNetwork] {
        if self.pod_networks.is_empty() { self.pod_network.as_slice() } else { &self.pod_networks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_field_writes_is_read() {
        let text = r#"{"pod-network":{"podip":"10.244.1.21/24","pod-hw-addr":"0a:58:0a:f4:01:15","interface":"eth0",
            "worker-node-ip":"10.224.0.5/16","tunnel-type":"vxlan","routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1","dev":"eth0",
            "protocol":"boot"}],"neighbors":null,"mtu":1500,"index":2,"vxlan-port":4789,"vxlan-id":555002,"dedicated":false,
            "external-net-via-pod-vm":false},"pod-namespace":"default","pod-name":"web","tls-server-key":"k","sc-pp-prv":""}"#;
        let apf: Apf = serde_json::from_str(text).unwrap();
        let [network] = apf.networks() else { panic!("{apf:?}") };
        assert_eq!((network.vxlan_id, network.routes[0].gw.as_str(), network.neighbors.len()), (555_002, "10.244.1.1", 0));
        assert_eq!((apf.pod_name.as_str(), apf.tls_server_key.as_str()), ("web", "k"));
        let again: Apf = serde_json::from_str(&serde_json::to_string(&apf).unwrap()).unwrap();
        assert_eq!(again, apf);
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        for bad in ["", "{", r#"{"pod-network":{"vxlan-id":"x"}}"#, r#"{"pod-network":7}"#] {
            assert!(serde_json::from_str::<Apf>(bad).is_err(), "{bad}");
        }
    }
}
