//! Peer pods' tunnels, both ends, in namespaces: a worker with its pod, and a pod VM, over a veth as the underlay.

mod common;
#[path = "common/netns.rs"]
mod netns;

use std::net::IpAddr;

use common::run;
use netns::{Netns, PEER_V4, PEER_V6, POD_MAC, POD_V4, POD_V6, Pod, can_make_namespaces, ping, sh};
use osc::net::scan::Interface;
use osc::net::vxlan::{self, FIRST_VNI, PORT, Tunnel};
use osc::net::{Namespace, endpoint};

/// A worker and a pod VM that see each other by both families.
struct Underlay {
    worker: Netns,
    vm: Netns,
}

const WORKER_V4: &str = "192.0.2.1";
const VM_V4: &str = "192.0.2.2";
const WORKER_V6: &str = "2001:db8::1";
const VM_V6: &str = "2001:db8::2";

impl Underlay {
    fn new(mtu: u32) -> Underlay {
        let (worker, vm) = (Netns::new("worker"), Netns::new("vm"));
        sh(&format!("ip link add ens0 netns {} mtu {mtu} type veth peer name ens0 netns {} mtu {mtu}", worker.name, vm.name));
        for (ns, v4, v6) in [(&worker, WORKER_V4, WORKER_V6), (&vm, VM_V4, VM_V6)] {
            ns.run(&format!("ip addr add {v4}/24 dev ens0"));
            ns.run(&format!("ip addr add {v6}/64 dev ens0 nodad"));
            ns.run("ip link set ens0 up");
        }
        Underlay { worker, vm }
    }
}

fn open(ns: &Netns) -> Namespace {
    Namespace::open(&ns.path()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Both ends for every interface of `pod`.
fn tie(u: &Underlay, pod: &Pod, podns: &Netns, worker: &str, vm: &str) -> Vec<Tunnel> {
    let network = endpoint::look(&open(&pod.pod)).unwrap();
    let tunnels = vxlan::reserve(&open(&u.worker), &open(&pod.pod), PORT, FIRST_VNI).unwrap();
    for tunnel in &tunnels {
        vxlan::connect(&open(&u.worker), tunnel, ip(vm)).unwrap();
        let interface: &Interface = network.interfaces.iter().find(|i| i.link.name == tunnel.tie.link).unwrap();
        let mtu = vxlan::mtu_to(&mut open(&u.vm).netlink().unwrap(), ip(worker)).unwrap();
        let v = vxlan::other_end(interface, tunnel, ip(worker), mtu);
        vxlan::podvm(&open(&u.vm), &open(podns), interface, &network.routes, &v).unwrap();
        // Done already: nothing changes.
        let before = podns.state();
        vxlan::podvm(&open(&u.vm), &open(podns), interface, &network.routes, &v).unwrap();
        assert_eq!(podns.state(), before);
    }
    let before = pod.pod.state();
    assert_eq!(vxlan::reserve(&open(&u.worker), &open(&pod.pod), PORT, FIRST_VNI).unwrap(), tunnels);
    tunnels.iter().for_each(|t| vxlan::connect(&open(&u.worker), t, ip(vm)).unwrap());
    assert_eq!(pod.pod.state(), before);
    tunnels
}

#[test]
fn the_pod_is_in_the_vm_and_the_worker_sees_no_difference() {
    if !can_make_namespaces("VXLAN") {
        return;
    }
    for (worker, vm, mtu) in [(WORKER_V4, VM_V4, 1450_u32), (WORKER_V6, VM_V6, 1430)] {
        let (u, pod, podns) = (Underlay::new(1500), Pod::new(), Netns::new("podns"));
        pod.pod.run("ip neigh add 10.88.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
        let rules = || u.worker.try_run("nft list ruleset");
        let before = (pod.pod.state(), u.worker.state(), rules());
        let tunnels = tie(&u, &pod, &podns, worker, vm);
        for address in [POD_V4, POD_V6] {
            ping(&pod.peer, address, 56);
            // More than an underlay packet holds: IPv4 carries it in fragments, IPv6 has none of those for tunnels.
            let large = if worker.contains(':') { mtu as usize - 48 } else { 3000 };
            ping(&pod.peer, address, large);
        }
        ping(&podns, PEER_V4, 56);
        ping(&podns, PEER_V6, 56);
        let eth0 = podns.run("ip -d addr show eth0");
        for want in [POD_MAC, &format!("mtu {mtu} "), "10.88.0.2/24", "fd00:88::2/64", "nolearning", "vxlan id 555000"] {
            assert!(eth0.contains(want), "{want} in {eth0}");
        }
        assert!(podns.run("ip route").contains("default via 10.88.0.1 dev eth0"));
        assert!(podns.run("ip -6 route").contains("default via fd00:88::1 dev eth0 metric 300"));
        assert!(podns.run("ip neigh").contains("10.88.0.77 dev eth0 lladdr 02:00:00:00:00:77 PERMANENT"));
        let device = pod.pod.run("ip -d link show vxlan1");
        assert!(device.contains(&format!("mtu {mtu} ")) && device.contains(&format!("remote {vm} ")), "{device}");
        tunnels.iter().for_each(|t| vxlan::remove(&open(&u.worker), t).unwrap());
        assert_eq!((pod.pod.state(), u.worker.state(), rules()), before);
        tunnels.iter().for_each(|t| vxlan::remove(&open(&u.worker), t).unwrap());
    }
}

#[test]
fn a_sender_that_is_not_the_other_end_is_not_heard() {
    if !can_make_namespaces("VXLAN source check") {
        return;
    }
    let (u, pod, podns) = (Underlay::new(1500), Pod::new(), Netns::new("podns"));
    tie(&u, &pod, &podns, WORKER_V4, VM_V4);
    ping(&pod.peer, POD_V4, 56);
    // The same packets from another address of the VM's.
    u.vm.run("ip addr add 192.0.2.3/24 dev ens0");
    let received = || pod.pod.run("cat /sys/class/net/vxlan1/statistics/rx_packets").trim().parse::<u64>().unwrap();
    let before = received();
    // By hand: a VXLAN header, then a broadcast frame.
    let vni = 555_000u32.to_be_bytes();
    let mut packet = vec![8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    packet.extend([0xff; 6]);
    packet.extend([2, 0, 0, 0, 0, 3, 8, 6]);
    packet.extend([0; 46]);
    let send = |from: &'static str| {
        let packet = packet.clone();
        let sent = open(&u.vm).inside(move || std::net::UdpSocket::bind((from, 0)).unwrap().send_to(&packet, (WORKER_V4, PORT)).unwrap());
        assert!(sent.unwrap() > 0);
    };
    send("192.0.2.3");
    assert_eq!(received(), before);
    send(VM_V4);
    common::until("the right sender to be heard", || (received() > before).then_some(()));
}

#[test]
fn jumbo_frames_where_the_underlay_has_them() {
    if !can_make_namespaces("VXLAN MTU") {
        return;
    }
    let (u, pod, podns) = (Underlay::new(9000), Pod::new(), Netns::new("podns"));
    tie(&u, &pod, &podns, WORKER_V4, VM_V4);
    // The pod's own is less than what the underlay lets through.
    assert!(podns.run("ip link show eth0").contains("mtu 1500 "));
    ping(&pod.peer, POD_V4, 1472);
}

#[test]
fn a_vni_that_is_taken_is_passed_over_wherever_its_device_is() {
    if !can_make_namespaces("VNI collision") {
        return;
    }
    let u = Underlay::new(1500);
    let (elsewhere, pod) = (Netns::new("elsewhere"), Pod::new());
    // Two interfaces, and two VNIs taken by devices of the worker, one of which has moved away.
    sh(&format!("ip link add net1 netns {} type veth peer name eth1 netns {}", pod.pod.name, pod.peer.name));
    pod.pod.run("ip addr add 10.89.0.2/24 dev net1");
    pod.pod.run("ip link set net1 up");
    pod.peer.run("ip addr add 10.89.0.1/24 dev eth1");
    pod.peer.run("ip link set eth1 up");
    u.worker.run("ip link add vxa type vxlan id 555000 remote 192.0.2.9 dstport 4789");
    u.worker.run("ip link add vxb type vxlan id 555002 remote 192.0.2.9 dstport 4789");
    u.worker.run(&format!("ip link set vxb netns {}", elsewhere.name));
    let podns = Netns::new("podns");
    let tunnels = tie(&u, &pod, &podns, WORKER_V4, VM_V4);
    assert_eq!(tunnels.iter().map(|t| (t.tie.tap.as_str(), t.vni)).collect::<Vec<_>>(), [("vxlan1", 555_001), ("vxlan2", 555_003)]);
    ping(&pod.peer, POD_V4, 56);
    ping(&pod.peer, "10.89.0.2", 56);
    // Another pod of the same worker.
    let other = Pod::new();
    let more = vxlan::reserve(&open(&u.worker), &open(&other.pod), PORT, FIRST_VNI).unwrap();
    assert_eq!(more[0].vni, 555_004);
    // None left: said, and nothing stays.
    let third = Pod::new();
    let before = third.pod.state();
    u.worker.run("ip link add vxc type vxlan id 16777215 remote 192.0.2.9 dstport 4789");
    let e = vxlan::reserve(&open(&u.worker), &open(&third.pod), PORT, vxlan::LAST_VNI).unwrap_err().to_string();
    assert!(e.contains("no VNI is free"), "{e}");
    assert_eq!(third.pod.state(), before);
}

#[test]
fn teardown_when_the_namespace_has_gone_frees_the_vni() {
    if !can_make_namespaces("VXLAN teardown") {
        return;
    }
    let (u, pod, podns) = (Underlay::new(1500), Pod::new(), Netns::new("podns"));
    let tunnels = tie(&u, &pod, &podns, WORKER_V4, VM_V4);
    drop(pod);
    tunnels.iter().for_each(|t| vxlan::remove(&open(&u.worker), t).unwrap());
    let e = vxlan::connect(&open(&u.worker), &tunnels[0], ip(VM_V4)).unwrap_err().to_string();
    assert!(e.contains("is gone"), "{e}");
    let next = Pod::new();
    // The kernel takes a namespace apart in its own time.
    common::until("the VNI to be free again", || {
        let t = vxlan::reserve(&open(&u.worker), &open(&next.pod), PORT, FIRST_VNI).unwrap();
        let free = t[0].vni == FIRST_VNI;
        t.iter().for_each(|t| vxlan::remove(&open(&u.worker), t).unwrap());
        free.then_some(())
    });
}

#[test]
fn by_hand_and_by_the_commands_of_a_dry_run() {
    if !can_make_namespaces("netsetup vxlan") {
        return;
    }
    let u = Underlay::new(1500);
    let osc = common::osc().display().to_string();
    let (hand, told) = ((Pod::new(), Netns::new("podns")), (Pod::new(), Netns::new("podns")));
    let worker = |pod: &Pod, vni: &str, more: &str| {
        let line = format!("{osc} netsetup vxlan worker --netns {} --remote {VM_V4} --vni {vni} {more}", pod.pod.arg());
        u.worker.run(&line)
    };
    let podvm = |ns: &Netns, vni: &str, more: &str| {
        let place = format!("--netns {} --remote {WORKER_V4} --vni {vni}", ns.arg());
        let what = format!("--mac {POD_MAC} --address {POD_V4}/24 --address {POD_V6}/64 --gateway {PEER_V4}");
        u.vm.run(&format!("{osc} netsetup vxlan podvm {place} {what} {more}"))
    };
    assert!(worker(&told.0, "7", "").contains("eth0 <-> vxlan1  VNI 7  to 192.0.2.2:4789"));
    podvm(&told.1, "7", "");
    let script = worker(&hand.0, "8", "--dry-run");
    assert!(!hand.0.pod.state().contains("vxlan1"));
    run_in(&u.worker, &script);
    run_in(&u.vm, &podvm(&hand.1, "8", "--dry-run"));
    for (pod, podns) in [&hand, &told] {
        ping(&pod.peer, POD_V4, 56);
        ping(podns, PEER_V4, 56);
    }
    let filters = |pod: &Pod| ["eth0", "vxlan1"].map(|d| pod.pod.run(&format!("tc filter show dev {d} parent ffff:"))).concat();
    assert_eq!(filters(&hand.0), filters(&told.0));
    let shown = |ns: &Netns| ns.run("ip route") + &ns.run("ip -6 route") + &ns.run("ip -o -d link show eth0").replace("id 8 ", "id 7 ");
    assert_eq!(strip(&shown(&hand.1)), strip(&shown(&told.1)));
    // Seen and undone like a tap.
    let drawn = run(["netsetup", "inspect", "--netns", &told.0.pod.arg()]).stdout;
    assert!(drawn.contains("vxlan1 (vxlan)") && drawn.contains("VNI 7 to 192.0.2.2:4789"), "{drawn}");
    let verified = run(["netsetup", "verify", "--netns", &told.0.pod.arg()]);
    assert_eq!(verified.status, 0, "{}", verified.stdout);
    assert_eq!(run(["netsetup", "undo", "--netns", &told.0.pod.arg()]).status, 0);
    assert_eq!(told.0.pod.links(), ["lo", "eth0"]);
}

/// Device indices and namespace numbers differ.
fn strip(text: &str) -> String {
    text.split_whitespace().filter(|w| !w.contains("@if") && w.parse::<u32>().is_err() && !w.ends_with(':')).collect::<Vec<_>>().join(" ")
}

fn run_in(ns: &Netns, script: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("set -e\n{script}")).unwrap();
    ns.run(&format!("sh {}", file.path().display()));
}
