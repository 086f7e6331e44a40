//! `osc run --network public`: a namespace of the sandbox's own with a way out to the internet, and to nothing else.
//!
//! ```text
//!   host: oscpub0 100.127.0.1 ===veth=== eth0 100.127.0.2 :netns     NAT, and rules on oscpub0 in the table of its name
//! ```
//!
//! What is private, the host's own or link-local (cloud metadata is) is refused, unless a range is allowed by name; so is
//! everything that would come in. The host's name servers may be asked. IPv4 only.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::error::{At, Result, Stage};
use crate::net::netlink::Netlink;
use crate::net::nft::{self, Chain, Hook, Kind, Match, Rule, Table, Verdict};
use crate::net::route::Route;
use crate::net::{Namespace, NetError, Prefix, address, link, route};
use crate::shim::sandbox::record::{Record, Thing};

/// What the names of the host's ends, and of their tables, begin with.
const NAME: &str = "oscpub";

/// Networks of four addresses each from 100.127.0.0 on: shared address space, which no host on the internet has (RFC 6598).
const FIRST: Ipv4Addr = Ipv4Addr::new(100, 127, 0, 0);
const MOST: u32 = 1 << 14;
const LENGTH: u8 = 30;

/// Not the internet (IANA's special-purpose registry), but for what documentation and benchmarks use.
const BLOCKED: [&str; 11] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

const DNS: u16 = 53;

/// Where name servers are listed; the second is what a local one hands its questions on to.
const RESOLV: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Where a host names none that a guest could ask.
const FALLBACK: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

/// The host's IPv4 name servers that are not on its own loopback.
pub fn name_servers() -> Vec<IpAddr> {
    let read = |file: &&str| servers(&std::fs::read_to_string(file).unwrap_or_default());
    RESOLV.iter().map(read).find(|found| !found.is_empty()).unwrap_or_else(|| vec![FALLBACK.into()])
}

fn servers(text: &str) -> Vec<IpAddr> {
    let server = |l: &str| l.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    text.lines().filter_map(server).filter(|a| a.is_ipv4() && !a.is_loopback()).collect()
}

/// Makes the namespace and its way out; answers its path, in the sandbox's own directory. `allow` opens ranges that are
/// refused otherwise. On an error the record says what stands.
pub fn make(allow: &[Prefix], record: &Record) -> Result<PathBuf> {
    try_make(allow, record).map_err(|e| e.way_out(WAY_OUT))
}

/// It is the default, so that whoever has asked for no network may meet a host that cannot.
const WAY_OUT: &str = "a public network takes CAP_NET_ADMIN, veth and nf_tables; --network none goes without";

fn try_make(allow: &[Prefix], record: &Record) -> Result<PathBuf> {
    let netns = record.dir().join("netns");
    // By number: the name of the host's end is taken by whoever makes it first.
    let mut number = 0;
    loop {
        let name = format!("{NAME}{number}");
        let thing = Thing::Public { netns: netns.clone(), name: name.clone() };
        if taken(&name)? {
            number += 1;
            continue;
        }
        record.intent(thing.clone()).at(Stage::Network, || "record")?;
        match connect(&netns, &name, number, allow) {
            Ok(()) => {
                record.done(thing).at(Stage::Network, || "record")?;
                return Ok(netns);
            }
            // Another sandbox was quicker; what is there under this name is its own.
            Err(e) if e.errno() == Some(libc::EEXIST) && number < MOST => {
                record.gone(thing).at(Stage::Network, || "record")?;
                number += 1;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn taken(name: &str) -> Result<bool, NetError> {
    Ok(link::list(&mut Netlink::open()?)?.iter().any(|l| l.name == name))
}

/// Undoes it, or as much of it as there is.
pub fn undo(netns: &Path, name: &str) -> Result<(), NetError> {
    let closed = close(name);
    crate::fs::mount::detach(netns)
        .or_else(|e| if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) { Ok(()) } else { Err(e) })?;
    crate::fs::share::gone_is_fine(std::fs::remove_file(netns))?;
    closed
}

/// Takes away the way out. The rules last: without them it would be open.
fn close(name: &str) -> Result<(), NetError> {
    let mut nl = Netlink::open()?;
    let link = link::list(&mut nl)?.into_iter().find(|l| l.name == name);
    if let Some(link) = &link {
        link::remove(&mut nl, link)?;
    }
    let removed = Netlink::netfilter().and_then(|mut nl| nft::remove(&mut nl, name));
    match removed.as_ref().err().and_then(NetError::errno) {
        // A kernel without rules has none; and whoever may make neither a link nor rules has made none.
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => Ok(()),
        Some(libc::EPERM) if link.is_none() => Ok(()),
        _ => removed,
    }
}

fn connect(netns: &Path, name: &str, number: u32, allow: &[Prefix]) -> Result<(), NetError> {
    let namespace = if netns.exists() { Namespace::open(netns)? } else { new_namespace(netns)? };
    let mut nl = Netlink::open()?;
    link::add_veth(&mut nl, name, "eth0", namespace.fd()?.as_raw_fd())?;
    // The rules before the way.
    let [host, guest] = [1, 2].map(|n| Ipv4Addr::from(u32::from(FIRST) + number * 4 + n));
    nft::install(&mut Netlink::netfilter()?, &table(name, guest, allow))?;
    let ours = link::by_name(&mut nl, name)?;
    address::add(&mut nl, &ours, &Prefix { address: host.into(), length: LENGTH })?;
    link::up(&mut nl, &ours, true)?;
    forward()?;
    let mut inside = namespace.netlink()?;
    let theirs = link::by_name(&mut inside, "eth0")?;
    address::add(&mut inside, &theirs, &Prefix { address: guest.into(), length: LENGTH })?;
    for l in [link::by_name(&mut inside, "lo")?, theirs.clone()] {
        link::up(&mut inside, &l, true)?;
    }
    route::add(&mut inside, &Route { gateway: Some(host.into()), link: theirs.index, ..Default::default() })
}

/// A namespace that stays when its maker ends: bound to a file.
fn new_namespace(netns: &Path) -> Result<Namespace, NetError> {
    std::fs::File::create(netns)?;
    let target = netns.to_owned();
    let made = crate::thread::try_start("netns", move || {
        // SAFETY: only this thread changes over, and it ends here.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &target)
    })?;
    made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(std::io::Error::from)?;
    Namespace::open(netns)
}

/// The host routes for the guest. It stays so: others may have come to rely on it.
fn forward() -> Result<(), NetError> {
    const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
    let on = || -> std::io::Result<()> {
        if std::fs::read_to_string(FORWARD)?.trim() == "0" {
            std::fs::write(FORWARD, "1")?;
            log::info!("network: {FORWARD} is 1 from now on");
        }
        Ok(())
    };
    on().map_err(|error| NetError::Refused { what: format!("turn on {FORWARD}"), error, text: String::new() })
}

fn table(name: &str, guest: Ipv4Addr, allow: &[Prefix]) -> Table {
    let rule = |matches, verdict| Rule { matches, verdict };
    let from = || Match::In(name.to_owned());
    let to = |p: &Prefix| Match::Dest(*p);
    let one = |address: IpAddr| Prefix { address, length: crate::net::bits(&address) };
    let ask = |server: &IpAddr| {
        [nft::UDP, nft::TCP].map(|p| rule(vec![from(), to(&one(*server)), Match::Protocol(p), Match::DestPort(DNS)], Verdict::Accept))
    };
    let open =
        || name_servers().iter().flat_map(ask).chain(allow.iter().map(|p| rule(vec![from(), to(p)], Verdict::Accept))).collect::<Vec<_>>();
    let blocked = BLOCKED.iter().filter_map(|b| Prefix::parse(b).ok()).map(|b| rule(vec![from(), to(&b)], Verdict::Reject));
    // What is for the host itself is refused whole, but for answers to what it asked for.
    let mut input = vec![rule(vec![from(), Match::Established], Verdict::Accept)];
    input.extend(open());
    input.push(rule(vec![from()], Verdict::Reject));
    let mut forward = vec![rule(vec![Match::Out(name.to_owned()), Match::Established], Verdict::Accept)];
    forward.push(rule(vec![Match::Out(name.to_owned())], Verdict::Drop));
    // Nobody but the guest's own address comes from there.
    forward.push(rule(vec![from(), Match::NotSource(guest.into())], Verdict::Drop));
    forward.extend(open());
    forward.extend(blocked);
    let masquerade = vec![rule(vec![Match::Source(one(guest.into()))], Verdict::Masquerade)];
    let chain = |kind, hook, priority, rules| Chain { kind, hook, priority, rules };
    Table {
        name: name.into(),
        chains: vec![
            chain(Kind::Filter, Hook::Input, 0, input),
            chain(Kind::Filter, Hook::Forward, 0, forward),
            chain(Kind::Nat, Hook::Postrouting, SRCNAT, masquerade),
        ],
    }
}

/// The priority of source NAT.
const SRCNAT: i32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_a_guest_can_ask() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver fd00::1\nsearch a\nnameserver 1.1.1.1\n";
        assert_eq!(servers(text), ["10.0.0.2".parse::<IpAddr>().unwrap(), "1.1.1.1".parse().unwrap()]);
    }

    #[test]
    fn what_is_allowed_comes_before_what_is_blocked() {
        let text = table("oscpub0", Ipv4Addr::new(100, 127, 0, 2), &[Prefix::parse("10.1.0.0/16").unwrap()]).to_string();
        let forward = &text[text.find("chain forward").unwrap()..];
        assert!(forward.find("daddr 10.1.0.0/16 accept").unwrap() < forward.find("daddr 10.0.0.0/8 reject").unwrap(), "{text}");
        assert!(forward.contains("ip saddr != 100.127.0.2 drop") && forward.contains("daddr 169.254.0.0/16 reject"), "{text}");
    }
}
