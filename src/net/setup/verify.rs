//! The way of a packet, hop by hop: does each piece exist, and do packets pass.
//!
//! Where nobody holds the tap, we do for a moment and ask the pod's gateway for its MAC, as the guest would: an answer proves
//! both redirections. Where a guest is attached its own traffic is the proof, and the counters tell of it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::view::{Device, GONE, View};
use crate::net::{Namespace, NetError, link, route, scan, tap};

/// One hop.
#[derive(Clone, Debug, Serialize)]
pub struct Hop {
    pub hop: String,
    pub ok: bool,
    pub detail: String,
}

fn hop(name: String, ok: bool, detail: impl Into<String>) -> Hop {
    Hop { hop: name, ok, detail: detail.into() }
}

/// Looks at every interface of the namespace and at what it is tied to.
pub fn walk(namespace: &Namespace) -> Result<Vec<Hop>, NetError> {
    let view = View::of(namespace)?;
    let mut hops = Vec::new();
    let interfaces: Vec<&Device> = view.devices.iter().filter(|d| !d.ours).collect();
    if interfaces.is_empty() {
        hops.push(hop("interfaces".into(), false, format!("{}: none is up or has an address: has the CNI run?", view.netns)));
    }
    for d in interfaces {
        hops.push(hop(d.name.clone(), d.up && d.carrier, state(d)));
        let Some(other) = d.redirect.first() else {
            hops.push(hop(format!("{} ->", d.name), false, "is not redirected: osc netsetup tap, or is there no VM yet?"));
            continue;
        };
        tied(&mut hops, &view, d, other);
        if hops.iter().all(|h| h.ok) {
            hops.push(packets(namespace, &view, d, other)?);
        }
    }
    Ok(hops)
}

fn state(d: &Device) -> String {
    let state = match (d.up, d.carrier) {
        (false, _) => "is down",
        (true, false) => "is up without a carrier: is the other end there and up?",
        (true, true) => "up",
    };
    format!("{state}, MAC {}, MTU {}, {}", d.mac, d.mtu, if d.addresses.is_empty() { "no address".into() } else { d.addresses.join(" ") })
}

fn tied(hops: &mut Vec<Hop>, view: &View, d: &Device, other: &str) {
    let name = |from: &str, to: &str| format!("{from} -> {to}");
    let Some(to) = view.device(other) else {
        let why = if other == GONE { "the tap is gone, its VM with it" } else { "the target is down" };
        hops.push(hop(name(&d.name, other), false, format!("{why}: osc netsetup undo --netns {}", view.netns)));
        return;
    };
    hops.push(hop(name(&d.name, &to.name), true, format!("{} packets", d.redirected)));
    let same = to.mtu == d.mtu || to.kind == "vxlan";
    let mtu = if same { String::new() } else { format!(": not the {} of {}", d.mtu, d.name) };
    hops.push(hop(to.name.clone(), to.up && same, format!("{}, MTU {}{mtu}", if to.up { "up" } else { "is down" }, to.mtu)));
    let back = to.redirect.contains(&d.name);
    let detail = if back { format!("{} packets", to.redirected) } else { "is not redirected: what the guest sends ends here".into() };
    hops.push(hop(name(&to.name, &d.name), back, detail));
}

/// What becomes of real packets.
fn packets(namespace: &Namespace, view: &View, d: &Device, other: &str) -> Result<Hop, NetError> {
    let name = format!("packets through {}", d.name);
    let Some(to) = view.device(other).filter(|t| t.kind == "tun") else {
        return Ok(hop(name, true, "the other end is not on this host: see the counters"));
    };
    if to.carrier {
        let (out, back) = (to.redirected, d.redirected);
        let detail = match (out, back) {
            (0, _) => "the guest is attached and has sent nothing yet",
            (_, 0) => "the guest sends, and nothing comes back: look at the other end with tcpdump",
            _ => "the guest is attached, packets went both ways",
        };
        return Ok(hop(name, out == 0 || back > 0, detail));
    }
    match gateway(namespace, d)? {
        None => Ok(hop(name, true, "nobody is attached, and there is no IPv4 gateway to ask")),
        Some((own, gateway)) => ask(namespace, d, &to.name, own, gateway),
    }
}

/// The interface's address, and the first gateway through it that is asked by ARP.
fn gateway(namespace: &Namespace, d: &Device) -> Result<Option<(Ipv4Addr, Ipv4Addr)>, NetError> {
    let network = scan::scan(&mut namespace.netlink()?)?;
    let Some(i) = network.interfaces.iter().find(|i| i.link.name == d.name) else { return Ok(None) };
    let v4 = |a: IpAddr| if let IpAddr::V4(a) = a { Some(a) } else { None };
    let own = i.addresses.iter().find_map(|a| v4(a.prefix.address));
    let through = |r: &&route::Route| r.link == i.link.index;
    let gateway = network.routes.iter().filter(through).find_map(|r| v4(r.gateway?));
    Ok(own.zip(gateway))
}

/// How long the gateway may take.
const ANSWER: Duration = Duration::from_secs(1);

fn ask(namespace: &Namespace, d: &Device, tap: &str, own: Ipv4Addr, gateway: Ipv4Addr) -> Result<Hop, NetError> {
    let mac: [u8; link::MAC] = link::parse_mac(&d.mac)?.try_into().map_err(|_| NetError::Invalid(d.mac.clone()))?;
    let request = arp_request(mac, own, gateway);
    let tap = tap.to_owned();
    let started = Instant::now();
    let found = namespace.inside(move || attach(&tap).and_then(|fd| exchange(fd, &request, gateway)))?;
    let name = format!("packets through {}", d.name);
    Ok(match found {
        Ok(Some(mac)) => hop(name, true, format!("{gateway} answered as {mac} in {:.1} ms", started.elapsed().as_secs_f64() * 1000.0)),
        Ok(None) => hop(name, false, format!("{gateway} does not answer ARP from {own} within {} s", ANSWER.as_secs())),
        Err(e) => hop(name, false, e.to_string()),
    })
}

/// A queue of a tap that is there, whichever kind it is.
fn attach(name: &str) -> Result<Vec<OwnedFd>, NetError> {
    tap::open(name, 1).or_else(|e| if e.errno() == Some(libc::EINVAL) { tap::open(name, 2) } else { Err(e) })
}

/// `struct virtio_net_hdr`, which precedes every frame.
const HEADER: usize = 10;

/// Sends the frame and waits for the gateway's MAC.
fn exchange(mut queues: Vec<OwnedFd>, request: &[u8], gateway: Ipv4Addr) -> Result<Option<String>, NetError> {
    queues.truncate(1);
    let mut tap = std::fs::File::from(queues.remove(0));
    let until = Instant::now() + ANSWER;
    // The carrier comes with the descriptor; the first frames may be lost to a queue that is just being set up.
    let mut buffer = vec![0; 65536];
    while Instant::now() < until {
        tap.write_all(&[&[0; HEADER], request].concat())?;
        while readable(&tap, Duration::from_millis(100))? {
            let n = tap.read(&mut buffer)?;
            if let Some(mac) = arp_reply(buffer.get(HEADER..n).unwrap_or_default(), gateway) {
                return Ok(Some(mac));
            }
        }
    }
    Ok(None)
}

fn readable(fd: &impl AsFd, limit: Duration) -> std::io::Result<bool> {
    let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    Ok(rustix::event::poll(&mut fds, Some(&limit))? > 0)
}

/// An Ethernet frame: who has `gateway`, tell `own` (RFC 826).
fn arp_request(mac: [u8; link::MAC], own: Ipv4Addr, gateway: Ipv4Addr) -> Vec<u8> {
    const ETHERNET_IPV4_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let mut frame = vec![0xff; link::MAC];
    frame.extend(mac);
    frame.extend([8, 6]);
    frame.extend(ETHERNET_IPV4_REQUEST);
    frame.extend(mac);
    frame.extend(own.octets());
    frame.extend([0; link::MAC]);
    frame.extend(gateway.octets());
    frame
}

/// The MAC in an answer of `gateway`.
fn arp_reply(frame: &[u8], gateway: Ipv4Addr) -> Option<String> {
    const REPLY: [u8; 4] = [8, 6, 0, 1];
    let sender = frame.get(28..32)?;
    let is_reply = frame[12..16] == REPLY && frame[20..22] == [0, 2];
    (is_reply && sender == gateway.octets()).then(|| link::show_mac(&frame[22..28]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_its_reply() {
        let (own, gateway) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1));
        let mut frame = arp_request([2, 0, 0, 0, 0, 1], own, gateway);
        assert_eq!(frame.len(), 42);
        assert_eq!(arp_reply(&frame, own), None);
        frame[21] = 2;
        assert_eq!(arp_reply(&frame, own).as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!((arp_reply(&frame, gateway), arp_reply(&[], gateway)), (None, None));
    }
}
