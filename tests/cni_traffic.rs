//! Two VMs on a bridge of jumbo packets, under containerd with CNI: every kind of traffic, both ways, and what it carries whole.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/netns.rs"]
mod netns;

use std::cell::Cell;
use std::process::Child;

use cni::{Cni, can_run_cni};
use common::containerd::Containerd;
use common::{name, until, wait};
use netns::{Netns, sh, try_sh};

/// What is always moved, and in `scripts/test --all`; bytes.
const ALWAYS: u64 = 100 << 20;
const ALL: u64 = 1 << 30;

/// How long a transfer may take, seconds.
const TRANSFER: u32 = 900;

/// A pod that waits, and is told what to do.
struct Pod<'a> {
    c: &'a Containerd,
    id: String,
    running: Child,
    execs: Cell<u32>,
    v4: String,
    v6: String,
    mac: String,
}

impl<'a> Pod<'a> {
    /// With this host's programs, and `data` on /data.
    fn start(c: &'a Containerd, cni: &Cni, what: &str, data: &str) -> Pod<'a> {
        let id = name(what);
        let mount = |from: &str, to: &str| format!("--mount type=bind,src={from},dst={to},options=rbind:ro");
        let mounts = [mount("/usr", "/usr"), mount("/usr/lib", "/lib"), mount("/usr/lib64", "/lib64"), mount(data, "/data")].join(" ");
        let running = cni.run(c, &mounts, &id, "sleep 100000");
        let mut pod = Pod { c, id, running, execs: Cell::default(), v4: String::new(), v6: String::new(), mac: String::new() };
        let text = until("the pod's addresses", || {
            let out = pod.c.exec(&pod.id, &pod.exec_id(), &["sh", "-c", "busybox ip -o addr show eth0; cat /sys/class/net/eth0/address"]);
            (out.status == 0 && out.stdout.contains("fd00:222::")).then_some(out.stdout)
        });
        let of = |family: &str| text.split(family).nth(1).unwrap().trim_start().split('/').next().unwrap().to_owned();
        (pod.v4, pod.v6) = (of(" inet "), format!("fd00:222::{}", of(" inet6 fd00:222::")));
        text.trim().lines().last().unwrap().clone_into(&mut pod.mac);
        pod
    }

    fn exec_id(&self) -> String {
        self.execs.set(self.execs.get() + 1);
        format!("e{}", self.execs.get())
    }

    fn spawn(&self, script: &str) -> Child {
        let id = self.exec_id();
        let script = format!("PATH=/bin:/usr/bin; {script}");
        let args = ["task", "exec", "--exec-id", &id, &self.id, "timeout", &TRANSFER.to_string(), "sh", "-c", &script];
        self.c.command(args).spawn().unwrap()
    }

    fn sh(&self, script: &str) -> String {
        ended(self.spawn(script), script)
    }

    /// A socat that stays.
    fn serve(&self, addresses: &str) {
        self.sh(&format!("socat -b 65000 -u {addresses} >/dev/null 2>&1 </dev/null &"));
    }

    /// Packets that had to be cut in pieces, of either family.
    fn fragments(&self) -> (u64, u64) {
        let text = self
            .sh("awk '/^Ip:/ { if (n) print $n; else for (i = 1; i <= NF; i++) if ($i == \"FragCreates\") n = i }' /proc/net/snmp; \
             awk '/^Ip6FragCreates/ { print $2 }' /proc/net/snmp6");
        let mut numbers = text.split_whitespace().map(|n| n.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}

/// Bridged packets are the bridge's affair alone for as long as this is there: `br_netfilter` loses IPv4 fragments between
/// plain namespaces, too (seen with Linux 6.18).
struct Unfiltered(Option<String>);

impl Unfiltered {
    const FILE: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

    fn set() -> Unfiltered {
        let before = std::fs::read_to_string(Unfiltered::FILE).ok();
        if before.is_some() {
            std::fs::write(Unfiltered::FILE, "0").unwrap();
        }
        Unfiltered(before)
    }
}

impl Drop for Unfiltered {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(Unfiltered::FILE, before.trim());
        }
    }
}

/// Its stdout; transfers take longer than what tests run otherwise.
fn ended(child: Child, what: &str) -> String {
    let out = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{what}: {}{}", text(&out.stdout), text(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn sum(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// `bytes` of /data/file from one pod to the other, by the address given.
fn transfer(from: &Pod, to: &Pod, address: &str, bytes: u64, want: &str) {
    let begun = std::time::Instant::now();
    let receiver = to.spawn("socat -u -b 65536 TCP6-LISTEN:7000,reuseaddr - | md5sum");
    from.sh(&format!("socat -u -b 65536 FILE:/data/file,readbytes={bytes} TCP:{address}:7000,retry=100,interval=0.3"));
    assert_eq!(sum(&ended(receiver, "receive")), want, "{bytes} bytes to {address}");
    println!("{} MiB to {address}: {:.1} s", bytes >> 20, begun.elapsed().as_secs_f64());
}

/// Datagrams come back as they were: small, one packet, a jumbo packet, in fragments.
fn datagrams(from: &Pod, to: &str) {
    for size in [10, 1400, 8900, 30_000] {
        let script = format!("head -c {size} /data/file >/tmp/d; socat -t 2 -b 65000 - {to} </tmp/d | cmp - /tmp/d && echo same");
        // A datagram may be lost.
        let came = (0..3).any(|_| ended_or(from.spawn(&script)).contains("same"));
        assert!(came, "{size} bytes to {to}");
    }
}

fn ended_or(child: Child) -> String {
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}

/// A packet of 8900 bytes goes in one piece, one of 20000 in several.
fn packets(a: &Pod, b: &Pod) {
    let begin = a.fragments();
    a.sh(&format!("busybox ping -c 2 -W 10 -s 8900 {} && busybox ping6 -c 2 -W 10 -s 8900 {}", b.v4, b.v6));
    assert_eq!(a.fragments(), begin, "jumbo packets are cut");
    a.sh(&format!("busybox ping -c 2 -W 10 -s 20000 {} && busybox ping6 -c 2 -W 10 -s 20000 {}", b.v4, b.v6));
    let end = a.fragments();
    assert!(end.0 >= begin.0 + 6 && end.1 >= begin.1 + 6, "{begin:?} {end:?}");
}

/// What `b` receives of a group that only it has joined.
fn multicast(a: &Pod, b: &Pod) {
    b.serve("UDP4-RECV:7002,ip-add-membership=239.1.2.3:eth0 CREATE:/tmp/four");
    b.serve("UDP6-RECV:7003,ipv6-join-group=[ff15::99]:eth0 CREATE:/tmp/six");
    let send = format!(
        "echo to-the-group | socat -u - UDP4-DATAGRAM:239.1.2.3:7002,ip-multicast-if={}; echo to-the-group | socat -u - UDP6-DATAGRAM:[ff15::99]:7003",
        a.v4
    );
    until("a packet of each group", || {
        a.sh(&send);
        let got = b.sh("cat /tmp/four /tmp/six 2>/dev/null | sort | uniq -c; wc -c /tmp/four /tmp/six | grep -c ' 0 '; true");
        (got.contains("to-the-group") && got.trim_end().ends_with("\n0")).then_some(())
    });
}

#[test]
fn two_vms_exchange_all_kinds_of_traffic() {
    if !can_run_cni("traffic between VMs") {
        return;
    }
    if !try_sh("socat -V").0 {
        println!("SKIP traffic between VMs: needs socat");
        return;
    }
    let host = || sh("ip -o link | cut -d: -f2; ip route");
    let before = host();
    let bytes = if common::all() { ALL } else { ALWAYS };
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("file").display().to_string();
    sh(&format!("head -c {bytes} /dev/urandom >{file}"));
    let (whole, part) = (sh(&format!("md5sum <{file}")), sh(&format!("head -c {ALWAYS} {file} | md5sum")));
    let _unfiltered = Unfiltered::set();
    let (c, cni) = (Containerd::start(), Cni::new(9000));
    let dir = data.path().display().to_string();
    let [a, b] = ["traffic-a", "traffic-b"].map(|what| Pod::start(&c, &cni, what, &dir));
    assert_eq!(a.sh("cat /sys/class/net/eth0/mtu"), "9000\n");

    // The first packet of all to the other pod's IPv6 address: its MAC was asked for, not told.
    a.sh(&format!("busybox ping6 -c 1 -W 10 {}", b.v6));
    let near = a.sh("busybox ip -6 neigh show dev eth0");
    let line = near.lines().find(|l| l.starts_with(&format!("{} ", b.v6))).unwrap_or_else(|| panic!("{} in {near}", b.v6));
    assert!(line.contains(&b.mac) && !line.contains("PERMANENT"), "{line}");

    packets(&a, &b);
    for pod in [&a, &b] {
        pod.sh("socat -b 65000 UDP6-RECVFROM:7001,fork PIPE >/dev/null 2>&1 </dev/null &");
    }
    datagrams(&a, &format!("UDP:{}:7001", b.v4));
    datagrams(&b, &format!("UDP6:[{}]:7001", a.v6));
    multicast(&a, &b);
    transfer(&a, &b, &b.v4, bytes, sum(&whole));
    transfer(&b, &a, &format!("[{}]", a.v6), ALWAYS, sum(&part));
    outside(&a);

    for mut pod in [a, b] {
        c.ctr(["task", "kill", "-s", "KILL", &pod.id]);
        wait(&mut pod.running);
        c.assert_gone(&pod.id);
    }
    drop(cni);
    assert_eq!(host(), before);
}

/// A server that is on no network of pods, and knows the way back.
fn outside(pod: &Pod) {
    let (world, link) = (Netns::new("outside"), format!("osco{}", std::process::id()));
    sh(&format!("ip link add {link} type veth peer name eth0 netns {}", world.name));
    sh(&format!("ip addr add 203.0.113.254/24 dev {link}; ip link set {link} up"));
    world.run("ip addr add 203.0.113.1/24 dev eth0");
    world.run("ip link set eth0 up");
    world.run("ip route add default via 203.0.113.254");
    let mut server = world.spawn("socat TCP4-LISTEN:80,reuseaddr,fork SYSTEM:'echo $SOCAT_PEERADDR'");
    let seen = pod.sh("socat -T 20 - TCP:203.0.113.1:80,retry=50,interval=0.3 </dev/null");
    let _ = server.kill();
    let _ = server.wait();
    let _ = try_sh(&format!("ip link del {link}"));
    assert_eq!(seen.trim(), pod.v4);
}
