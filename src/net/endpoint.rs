//! An endpoint: one interface of a pod, tied to the guest through a tap.
//!
//! ```text
//!   eth0 (veth, macvlan, ...)   ingress --redirect--> egress   tap0_kata --fd--> QEMU --> eth0 of the guest
//!                               egress <--redirect-- ingress
//! ```
//!
//! The interface keeps its addresses, so that `ip` and `tcpdump` in the namespace show what they show for any pod, but the
//! namespace's own stack never sees a packet: the guest has the same MAC and the same addresses and answers for them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::link::{self, Link};
use super::namespace::{Id, Namespace};
use super::netlink::Netlink;
use super::scan::{self, Interface, Network};
use super::step::Step;
use super::{NetError, tap, tc, vxlan};

/// What ends the name of every tap that we make; Kata's.
const SUFFIX: &str = "_kata";

/// The kind of a tap in `IFLA_INFO_KIND`.
const TUN: &str = "tun";

/// One interface and its tap, as it is made and as a record keeps it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tie {
    pub netns: PathBuf,
    pub id: Id,
    /// The pod's interface.
    pub link: String,
    /// The tap, or whatever else the traffic goes through.
    pub tap: String,
}

/// A tied interface.
#[derive(Debug)]
pub struct Endpoint {
    pub interface: Interface,
    pub tie: Tie,
    /// The guest's ends of the tap, one for each queue.
    pub queues: Vec<OwnedFd>,
}

/// True for a tap or a tunnel that we made.
pub fn is_ours(link: &Link) -> bool {
    let numbered = |rest: Option<&str>| rest.is_some_and(|n| n.parse::<u32>().is_ok());
    link.kind == TUN && number_of(&link.name).is_some() || link.kind == vxlan::KIND && numbered(link.name.strip_prefix(vxlan::KIND))
}

/// N of `tapN_kata`.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("tap")?.strip_suffix(SUFFIX)?.parse().ok()
}

/// Opens a pod's namespace; refuses the host's own.
pub fn open(netns: &Path) -> Result<Namespace, NetError> {
    let namespace = Namespace::open(netns)?;
    if namespace.id() == Namespace::own()?.id() {
        return Err(NetError::Host(netns.to_owned()));
    }
    Ok(namespace)
}

/// What is in the namespace. Two interfaces with one MAC are refused: the guest tells them apart by nothing else.
pub fn look(namespace: &Namespace) -> Result<Network, NetError> {
    let network = scan::scan(&mut namespace.netlink()?)?;
    let all = &network.interfaces;
    for (n, one) in all.iter().enumerate() {
        if let Some(other) = all[..n].iter().find(|o| o.link.mac == one.link.mac) {
            let mac = link::show_mac(&one.link.mac);
            return Err(NetError::Invalid(format!(
                "{} and {} have the same MAC {mac}: a guest cannot tell them apart",
                other.link.name, one.link.name
            )));
        }
    }
    Ok(network)
}

/// Names of taps for `interfaces`, in their order: numbered from 0, those that are taken left out.
pub fn plan(namespace: &Namespace, interfaces: &[Interface]) -> Result<Vec<Tie>, NetError> {
    let taken: Vec<String> = link::list(&mut namespace.netlink()?)?.into_iter().map(|l| l.name).collect();
    let free = (0..).map(|n| format!("tap{n}{SUFFIX}")).filter(|name| !taken.contains(name));
    let tie =
        |(i, tap): (&Interface, String)| Tie { netns: namespace.path().to_owned(), id: namespace.id(), link: i.link.name.clone(), tap };
    Ok(interfaces.iter().zip(free).map(tie).collect())
}

/// Makes the tap of `tie` with `queues` queues and redirects its traffic and the interface's to each other. Undone whole if
/// it fails half-way. The tap is there for as long as a queue is open, or for ever if `keep`.
pub fn tie(namespace: &Namespace, tie: &Tie, queues: usize, keep: bool) -> Result<Vec<OwnedFd>, NetError> {
    let tie = tie.clone();
    namespace.inside(move || {
        let mut nl = Netlink::open()?;
        let link = link::by_name(&mut nl, &tie.link)?;
        // Before anything is changed: what is there may not be ours.
        make_way(&mut nl, &link)?;
        let mut open = Vec::new();
        let done = steps(&tie, link.mtu, queues).iter().try_for_each(|s| s.run(&mut nl, &mut open));
        match done.and_then(|()| if keep { tap::persist(&tie.tap, &open[0], true) } else { Ok(()) }) {
            Ok(()) => Ok(open),
            // The tap goes with its descriptors.
            Err(e) => {
                if let Err(e) = tc::remove_ingress(&mut nl, &link) {
                    log::warn!("undoing: {e}");
                }
                Err(e)
            }
        }
    })?
}

/// What [`tie`] does, one after the other.
pub fn steps(tie: &Tie, mtu: u32, queues: usize) -> Vec<Step> {
    let tap = || tie.tap.clone();
    let mut steps = vec![Step::Tap { tap: tap(), queues }];
    steps.extend([Step::NoLinkLocal { link: tap() }, Step::Mtu { link: tap(), mtu }, Step::Up { link: tap() }]);
    steps.extend(redirects(&tie.link, &tie.tap));
    steps
}

/// The commands that do what [`untie`] does. The tap takes its own qdisc along.
pub fn undo_commands(tie: &Tie) -> Vec<String> {
    let mut commands = Vec::new();
    if !tie.link.is_empty() {
        commands.push(format!("tc qdisc del dev {} ingress", tie.link));
    }
    if number_of(&tie.tap).is_some() || tie.tap.starts_with(vxlan::KIND) {
        commands.push(format!("ip link del dev {}", tie.tap));
    }
    commands
}

/// All that arrives at either leaves through the other.
pub fn redirects(a: &str, b: &str) -> [Step; 4] {
    let redirect = |from: &str, to: &str| Step::Redirect { from: from.into(), to: to.into() };
    [Step::Ingress { link: a.into() }, Step::Ingress { link: b.into() }, redirect(a, b), redirect(b, a)]
}

/// Bits per second into the guest (`rx`) and out of it (`tx`); 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub rx: u64,
    pub tx: u64,
}

/// What [`limit`] does: what leaves through the tap is what the guest receives.
pub fn limit_steps(tie: &Tie, rates: Rates) -> Vec<Step> {
    let all = [(&tie.tap, rates.rx), (&tie.link, rates.tx)];
    all.into_iter().filter(|l| l.1 > 0).map(|(link, bits)| Step::Limit { link: link.clone(), bits }).collect()
}

/// Limits a tie that stands.
pub fn limit(namespace: &Namespace, tie: &Tie, rates: Rates) -> Result<(), NetError> {
    let steps = limit_steps(tie, rates);
    if steps.is_empty() {
        return Ok(());
    }
    let mut nl = namespace.netlink()?;
    steps.iter().try_for_each(|s| s.run(&mut nl, &mut Vec::new()))
}

/// Removes an ingress qdisc that an earlier pod in this namespace left: one that redirects nowhere any more. One without
/// filters does nothing either.
pub(super) fn make_way(nl: &mut Netlink, link: &Link) -> Result<(), NetError> {
    if tc::ingress_of(nl, link)?.is_none() {
        return Ok(());
    }
    let filters = tc::filters(nl, link)?;
    if !filters.iter().all(|f| f.redirect == Some(0)) {
        return Err(NetError::Foreign { link: link.name.clone(), filters: filters.len() });
    }
    tc::remove_ingress(nl, link)
}

/// Takes away what [`tie`] made, or as much of it as there is. A namespace or an interface that is gone has taken it along.
pub fn untie(tie: &Tie) -> Result<(), NetError> {
    let Some(namespace) = Namespace::reopen(&tie.netns, tie.id) else { return Ok(()) };
    let mut nl = namespace.netlink()?;
    let links = link::list(&mut nl)?;
    let of = |name: &str| links.iter().find(|l| l.name == name);
    let tap = of(&tie.tap).filter(|l| is_ours(l));
    if let Some(link) = of(&tie.link) {
        tc::remove_limit(&mut nl, link)?;
        let target = tap.map_or(0, |t| t.index);
        let filters = tc::filters(&mut nl, link)?;
        // Somebody else's filters are left alone.
        if filters.iter().all(|f| matches!(f.redirect, Some(to) if to == 0 || to == target)) {
            tc::remove_ingress(&mut nl, link)?;
        }
    }
    tap.map_or(Ok(()), |tap| link::remove(&mut nl, tap))
}

/// Ties every interface of the namespace. For who has no record to keep: the shim goes step by step.
pub fn attach(netns: &Path, queues: usize, keep: bool) -> Result<(Network, Vec<Endpoint>), NetError> {
    let namespace = open(netns)?;
    let network = look(&namespace)?;
    let ties = plan(&namespace, &network.interfaces)?;
    let mut made = Vec::new();
    for (interface, one) in network.interfaces.iter().zip(ties) {
        match tie(&namespace, &one, queues, keep) {
            Ok(queues) => made.push(Endpoint { interface: interface.clone(), tie: one, queues }),
            Err(e) => {
                detach(made.iter().map(|e| &e.tie)).iter().for_each(|e| log::warn!("undoing: {e}"));
                return Err(e);
            }
        }
    }
    Ok((network, made))
}

/// Unties all; answers what could not be.
pub fn detach<'a>(ties: impl IntoIterator<Item = &'a Tie>) -> Vec<NetError> {
    ties.into_iter().filter_map(|t| untie(t).err()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_taps_are_known_by_kind_and_name() {
        let link = |name: &str, kind: &str| Link { index: 1, name: name.into(), mac: vec![], mtu: 0, flags: 0, kind: kind.into() };
        assert!(is_ours(&link("tap12_kata", "tun")));
        for (name, kind) in [("tap_kata", "tun"), ("tap0", "tun"), ("tapx_kata", "tun"), ("tap0_kata", "veth")] {
            assert!(!is_ours(&link(name, kind)), "{name} {kind}");
        }
    }

    #[test]
    fn the_hosts_namespace_is_refused() {
        let e = open(Path::new("/proc/self/ns/net")).unwrap_err().to_string();
        assert!(e.contains("host's own"), "{e}");
    }
}
