//! Network namespaces for tests: made with `ip`, gone when dropped.
#![allow(dead_code)] // Each test binary uses its part of it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs a command to its end; its stdout. Panics with its stderr where it fails.
pub fn sh(line: &str) -> String {
    let (ok, out) = try_sh(line);
    assert!(ok, "{line}: {out}");
    out
}

/// (success, stdout or stderr)
pub fn try_sh(line: &str) -> (bool, String) {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { (true, text(&out.stdout)) } else { (false, text(&out.stderr) + &text(&out.stdout)) }
}

/// True with root and `ip`; says aloud why not.
pub fn can_make_namespaces(test: &str) -> bool {
    let ok = rustix::process::geteuid().is_root() && try_sh("ip -V").0;
    if !ok {
        println!("SKIP {test}: needs root and iproute2");
    }
    ok
}

/// A namespace with a name of its own.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(what: &str) -> Netns {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("osc{what}{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}"));
        let ns = Netns { name };
        ns.run("ip link set lo up");
        ns
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    pub fn arg(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A command in the namespace.
    pub fn run(&self, line: &str) -> String {
        sh(&format!("ip netns exec {} {line}", self.name))
    }

    pub fn try_run(&self, line: &str) -> (bool, String) {
        try_sh(&format!("ip netns exec {} {line}", self.name))
    }

    /// A command that stays in the background.
    pub fn spawn(&self, line: &str) -> Child {
        let line = format!("exec ip netns exec {} {line}", self.name);
        Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// All that a set-up may change, as text: links, addresses, routes, qdiscs, filters.
    pub fn state(&self) -> String {
        let mut text =
            self.run("ip -d -o link") + &self.run("ip -o addr") + &self.run("ip route show table all") + &self.run("ip -6 route");
        text += &self.run("tc qdisc show");
        for link in self.links() {
            text += &format!("filters of {link}: {}\n", self.try_run(&format!("tc filter show dev {link} ingress")).1);
        }
        // Link-local addresses settle in their own time.
        text.lines().filter(|l| !l.contains("fe80:")).map(|l| format!("{l}\n")).collect()
    }

    pub fn links(&self) -> Vec<String> {
        let out = self.run("ip -o link");
        out.lines().filter_map(|l| Some(l.split(": ").nth(1)?.split('@').next()?.to_owned())).collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = try_sh(&format!("ip netns del {}", self.name));
    }
}

/// A pod's namespace with a veth `eth0`, as a CNI leaves it, whose other end `eth0` is in a namespace that stands for the rest of
/// the world.
pub struct Pod {
    pub pod: Netns,
    pub peer: Netns,
}

/// What the pod's interface has.
pub const POD_V4: &str = "10.88.0.2";
pub const PEER_V4: &str = "10.88.0.1";
pub const POD_V6: &str = "fd00:88::2";
pub const PEER_V6: &str = "fd00:88::1";
pub const POD_MAC: &str = "0a:58:0a:58:00:02";

impl Pod {
    /// With addresses of both families and default routes.
    pub fn new() -> Pod {
        let pod = Pod::bare(1500);
        pod.pod.run(&format!("ip addr add {POD_V4}/24 dev eth0"));
        pod.pod.run(&format!("ip addr add {POD_V6}/64 dev eth0 nodad"));
        pod.pod.run(&format!("ip route add default via {PEER_V4}"));
        pod.pod.run(&format!("ip -6 route add default via {PEER_V6} metric 300"));
        pod
    }

    /// With a link only.
    pub fn bare(mtu: u32) -> Pod {
        let (pod, peer) = (Netns::new("pod"), Netns::new("peer"));
        let (a, b) = (&pod.name, &peer.name);
        sh(&format!("ip link add eth0 netns {a} address {POD_MAC} mtu {mtu} type veth peer name eth0 netns {b} mtu {mtu}"));
        pod.run("ip link set eth0 up");
        peer.run("ip link set eth0 up");
        peer.run(&format!("ip addr add {PEER_V4}/24 dev eth0"));
        peer.run(&format!("ip addr add {PEER_V6}/64 dev eth0 nodad"));
        Pod { pod, peer }
    }
}

/// The peer's ping of an address arrives and comes back.
pub fn ping(from: &Netns, address: &str, size: usize) {
    let command = if address.contains(':') { "ping6" } else { "ping" };
    let (ok, text) = from.try_run(&format!("busybox {command} -c 2 -W 3 -s {size} {address}"));
    assert!(ok, "{text}");
}
