//! `scripts/bench net`: a guest behind its tap and the redirections, beside the very same guest with its tap bridged to the
//! veth; and a VXLAN tunnel, both ends, beside the plain veth. Interleaved in one run, so that the host's mood is the same.

#[path = "../common/mod.rs"]
mod harness;
#[path = "../common/netns.rs"]
mod netns;

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{RUNS, median, report, timed};
use harness::{bundle, command, finish, name, osc, until};
use netns::{Netns, PEER_V4, POD_MAC, POD_V4, Pod};
use osc::net::netlink::Netlink;
use osc::net::{Namespace, endpoint};
use serde_json::json;

const TAP: &str = "tap0_kata";

/// The guest's echo: whatever comes goes back.
const ECHO: u16 = 7000;

/// What is sent and awaited each time, and how often in a round.
const REQUEST: [u8; 64] = [7; 64];
const REQUESTS: usize = 200;

/// iperf3's own port, and the length of a round, s.
const IPERF: u16 = 5201;
const ROUND: &str = "2";

fn main() -> ExitCode {
    let guest = Guest::start();
    let (mut redirected, mut bridged) = (Figures::default(), Figures::default());
    let (mut veth, mut vxlan) = (vec![], vec![]);
    let (plain, tunnel) = (Pod::new(), Tunnel::new());
    for i in 0..RUNS {
        redirected.add(&guest.pod);
        guest.bridge();
        bridged.add(&guest.pod);
        guest.redirect();
        veth.push(between(&plain.pod, &plain.peer));
        vxlan.push(between(&tunnel.podns, &tunnel.pod.peer));
        eprintln!("net {}/{RUNS}", i + 1);
    }
    let rows = [
        timed("into the guest, its tap bridged", &bridged.into, "MB/s", None, ""),
        timed("into the guest, redirected", &redirected.into, "MB/s", Some(median(&bridged.into)), ">= 0.90"),
        timed("out of the guest, its tap bridged", &bridged.out, "MB/s", None, ""),
        timed("out of the guest, redirected", &redirected.out, "MB/s", Some(median(&bridged.out)), ">= 0.90"),
        timed("a request's way there and back, its tap bridged", &bridged.latency, "us", None, ""),
        timed("a request's way there and back, redirected", &redirected.latency, "us", Some(median(&bridged.latency)), "<= 1.15"),
        timed("between namespaces, plain veth", &veth, "MB/s", None, ""),
        timed("between namespaces, VXLAN", &vxlan, "MB/s", Some(median(&veth)), ">= 0.70"),
    ];
    report("net", &rows)
}

/// What is measured of a guest.
#[derive(Default)]
struct Figures {
    into: Vec<f64>,
    out: Vec<f64>,
    latency: Vec<f64>,
}

impl Figures {
    fn add(&mut self, pod: &Pod) {
        self.into.push(iperf(&pod.peer, ""));
        self.out.push(iperf(&pod.peer, "-R"));
        self.latency.push(latency(&pod.peer));
    }
}

/// MB/s from a client in `from` to the server at [`POD_V4`].
fn iperf(from: &Netns, more: &str) -> f64 {
    // A server that has just served somebody takes a moment to listen again.
    until("iperf3", || {
        let text = from.try_run(&format!("iperf3 -c {POD_V4} -t {ROUND} -J {more}")).1;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        json["end"]["sum_received"]["bits_per_second"].as_f64()
    }) / 8e6
}

/// MB/s between two namespaces of this host.
fn between(server: &Netns, client: &Netns) -> f64 {
    let mut serving = server.spawn("iperf3 -s");
    until("iperf3", || server.run("ss -tln").contains(&format!(":{IPERF} ")).then_some(()));
    let rate = iperf(client, "");
    serving.kill().unwrap();
    serving.wait().unwrap();
    rate
}

/// The median of a round of requests, us.
fn latency(from: &Netns) -> f64 {
    let round = || {
        let mut tcp = TcpStream::connect((POD_V4, ECHO)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut ask = || {
            let begun = Instant::now();
            tcp.write_all(&REQUEST).unwrap();
            tcp.read_exact(&mut [0; REQUEST.len()]).unwrap();
            begun.elapsed().as_secs_f64() * 1e6
        };
        (0..REQUESTS).map(|_| ask()).collect::<Vec<f64>>()
    };
    median(&Namespace::open(&from.path()).unwrap().inside(round).unwrap())
}

/// A guest with iperf3 and an echo, which has the network of `pod`.
struct Guest {
    pod: Pod,
    name: String,
    run: Option<std::process::Child>,
    _bundle: tempfile::TempDir,
    _root: harness::Rootfs,
}

impl Guest {
    fn start() -> Guest {
        let (pod, root) = (Pod::new(), harness::Rootfs::new());
        // This host's programs.
        fs::create_dir(root.path().join("usr")).unwrap();
        for d in ["lib", "lib64"] {
            symlink(format!("usr/{d}"), root.path().join(d)).unwrap();
        }
        let script = format!("busybox nc -ll -p {ECHO} -e cat & while :; do /usr/bin/iperf3 -s; done >/dev/null 2>&1");
        let bundle = bundle(&root, &["sh", "-c", &script], |c| {
            let usr = json!({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]});
            c["mounts"].as_array_mut().unwrap().push(usr);
        });
        let directory = bundle.path().display().to_string();
        let name = name("net");
        let run = command(["run", "--name", &name, "--netns", &pod.pod.arg(), "--bundle", &directory]).spawn().unwrap();
        let guest = Guest { pod, name, run: Some(run), _bundle: bundle, _root: root };
        until("the guest's echo", || guest.pod.peer.try_run(&format!("busybox nc -w 1 {POD_V4} {ECHO} </dev/null")).0.then_some(()));
        // The pod's interface is going to change under it; it would follow.
        guest.signal(rustix::process::Signal::STOP);
        // What the start still had in hand is let go of.
        std::thread::sleep(Duration::from_secs(2));
        guest
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.run.as_ref().and_then(|r| rustix::process::Pid::from_raw(r.id() as i32)).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The tap's and the veth's traffic through a bridge. The veth has another MAC then: a bridge keeps what is for its own.
    fn bridge(&self) {
        let ip = |line: &str| self.pod.pod.run(line);
        for device in ["eth0", TAP] {
            ip(&format!("tc qdisc del dev {device} ingress"));
        }
        ip("ip addr flush dev eth0");
        ip("ip link set eth0 address 02:00:00:00:00:77");
        ip("ip link add br0 type bridge");
        for line in ["set br0 address 02:00:00:00:00:77", "set eth0 master br0", "set tap0_kata master br0", "set br0 up"] {
            ip(&format!("ip link {line}"));
        }
        netns::ping(&self.pod.peer, POD_V4, 56);
    }

    /// As it was.
    fn redirect(&self) {
        self.pod.pod.run("ip link del br0");
        self.pod.pod.run(&format!("ip link set eth0 address {POD_MAC}"));
        self.pod.pod.run(&format!("ip addr add {POD_V4}/24 dev eth0"));
        let steps = endpoint::redirects("eth0", TAP);
        let run = move || Netlink::open().and_then(|mut nl| steps.iter().try_for_each(|s| s.run(&mut nl, &mut Vec::new())));
        Namespace::open(&self.pod.pod.path()).unwrap().inside(run).unwrap().unwrap();
        netns::ping(&self.pod.peer, POD_V4, 56);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::CONT);
        harness::run(["stop", "-t", "0", &self.name]);
        finish(self.run.take().unwrap());
    }
}

/// A pod whose interface is in a pod VM's namespace, over a veth as the underlay.
struct Tunnel {
    pod: Pod,
    podns: Netns,
    _ends: [Netns; 2],
}

impl Tunnel {
    fn new() -> Tunnel {
        let (worker, vm) = (Netns::new("worker"), Netns::new("vm"));
        netns::sh(&format!("ip link add ens0 netns {} type veth peer name ens0 netns {}", worker.name, vm.name));
        for (ns, address) in [(&worker, "192.0.2.1"), (&vm, "192.0.2.2")] {
            ns.run(&format!("ip addr add {address}/24 dev ens0"));
            ns.run("ip link set ens0 up");
        }
        let (pod, podns, osc) = (Pod::new(), Netns::new("podns"), osc().display().to_string());
        worker.run(&format!("{osc} netsetup vxlan worker --netns {} --remote 192.0.2.2 --vni 7", pod.pod.arg()));
        let interface = format!("--mac {POD_MAC} --address {POD_V4}/24 --gateway {PEER_V4}");
        vm.run(&format!("{osc} netsetup vxlan podvm --netns {} --remote 192.0.2.1 --vni 7 {interface}", podns.arg()));
        netns::ping(&pod.peer, POD_V4, 56);
        Tunnel { pod, podns, _ends: [worker, vm] }
    }
}
