//! The other end of a tap without a VM: a namespace that stands for the guest, and two threads that carry frames, as QEMU
//! would, between the pod's tap and a tap in there.
#![allow(dead_code)] // Each test binary uses its part of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use osc::net::scan::{Interface, Network};
use osc::net::{Namespace, endpoint::Endpoint, link, tap};

use super::netns::Netns;

pub struct Guest {
    pub ns: Netns,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Has the endpoints' interfaces, addresses and routes.
    pub fn new(network: &Network, endpoints: Vec<Endpoint>) -> Guest {
        let ns = Netns::new("guest");
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for mut e in endpoints {
            let name = e.interface.link.name.clone();
            let inside = Namespace::open(&ns.path()).unwrap();
            let theirs = inside.inside(move || tap::open(&name, 1)).unwrap().unwrap().remove(0);
            let ours = e.queues.remove(0);
            threads.push(carry(ours.try_clone().unwrap(), theirs.try_clone().unwrap(), stop.clone()));
            threads.push(carry(theirs, ours, stop.clone()));
            configure(&ns, &e.interface);
        }
        let mut routes: Vec<_> = network.routes.iter().collect();
        routes.sort_by_key(|r| r.gateway.is_some());
        for r in routes {
            let dev = network.name_of(r.link);
            let onlink = if r.flags & osc::net::route::ONLINK != 0 { "onlink" } else { "" };
            let dev = if dev.is_empty() { String::new() } else { format!("dev {dev} {onlink}") };
            ns.run(&format!("ip {} route add {r} {dev}", if r.ipv6 { "-6" } else { "" }));
        }
        Guest { ns, stop, threads }
    }
}

fn configure(ns: &Netns, i: &Interface) {
    let l = &i.link;
    ns.run(&format!("ip link set {} address {} mtu {} up", l.name, link::show_mac(&l.mac), l.mtu));
    for a in &i.addresses {
        ns.run(&format!("ip addr add {} dev {} {}", a.prefix, l.name, if a.prefix.address.is_ipv6() { "nodad" } else { "" }));
    }
}

fn carry(from: OwnedFd, to: OwnedFd, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut from, mut to) = (File::from(from), File::from(to));
        let mut buffer = vec![0; 70_000];
        while !stop.load(Ordering::Relaxed) {
            let mut fds = [rustix::event::PollFd::new(&from, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            if rustix::event::poll(&mut fds, Some(&limit)).unwrap_or(0) == 0 {
                continue;
            }
            let Ok(n) = from.read(&mut buffer) else { continue };
            let _ = to.write(&buffer[..n]);
        }
        let _ = from.as_fd();
    })
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| t.join().unwrap());
    }
}
