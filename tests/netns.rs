//! Endpoints and `osc netsetup` in namespaces of their own: checked with `ip` and `tc`, and by packets. No VM.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/netns.rs"]
mod netns;

use std::path::Path;

use common::run;
use guest::Guest;
use netns::{Netns, PEER_V4, POD_V4, POD_V6, Pod, can_make_namespaces, ping, sh, try_sh};
use osc::net::{NetError, endpoint};

fn attach(pod: &Pod) -> (osc::net::scan::Network, Vec<endpoint::Endpoint>) {
    endpoint::attach(&pod.pod.path(), 1, false).unwrap()
}

#[test]
fn packets_of_both_families_pass_and_nothing_stays() {
    if !can_make_namespaces("packets through a tap") {
        return;
    }
    let pod = Pod::new();
    let before = pod.pod.state();
    let (network, endpoints) = attach(&pod);
    let ties: Vec<_> = endpoints.iter().map(|e| e.tie.clone()).collect();
    assert_eq!(ties[0].tap, "tap0_kata");
    for (from, to) in [("eth0", "tap0_kata"), ("tap0_kata", "eth0")] {
        let filter = pod.pod.run(&format!("tc filter show dev {from} parent ffff:"));
        assert!(filter.contains(&format!("mirred (Egress Redirect to device {to}) stolen")), "{filter}");
    }
    let guest = Guest::new(&network, endpoints);
    for address in [POD_V4, POD_V6] {
        ping(&pod.peer, address, 56);
        // In fragments.
        ping(&pod.peer, address, 4000);
    }
    ping(&guest.ns, PEER_V4, 56);
    drop(guest);
    assert!(endpoint::detach(&ties).is_empty());
    assert_eq!(pod.pod.state(), before);
    // Once more is no error.
    assert!(endpoint::detach(&ties).is_empty());
}

#[test]
fn two_interfaces_have_a_tap_each() {
    if !can_make_namespaces("two interfaces") {
        return;
    }
    let pod = Pod::new();
    sh(&format!("ip link add net1 netns {} type veth peer name eth1 netns {}", pod.pod.name, pod.peer.name));
    pod.pod.run("ip addr add 10.89.0.2/24 dev net1");
    pod.pod.run("ip link set net1 up");
    pod.peer.run("ip addr add 10.89.0.1/24 dev eth1");
    pod.peer.run("ip link set eth1 up");
    let (network, endpoints) = attach(&pod);
    let ties: Vec<_> = endpoints.iter().map(|e| (e.tie.link.clone(), e.tie.tap.clone())).collect();
    assert_eq!(ties, [("eth0".into(), "tap0_kata".into()), ("net1".into(), "tap1_kata".into())]);
    let _guest = Guest::new(&network, endpoints);
    ping(&pod.peer, POD_V4, 56);
    ping(&pod.peer, "10.89.0.2", 56);
}

#[test]
fn the_mtu_is_the_interfaces() {
    if !can_make_namespaces("MTU") {
        return;
    }
    for mtu in [9000, 1280] {
        let pod = Pod::bare(mtu);
        pod.pod.run(&format!("ip addr add {POD_V4}/24 dev eth0"));
        let (network, endpoints) = attach(&pod);
        assert!(pod.pod.run("ip link show tap0_kata").contains(&format!("mtu {mtu} ")));
        let _guest = Guest::new(&network, endpoints);
        pod.peer.run("sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6'");
        ping(&pod.peer, POD_V4, 56);
        // As large as one packet can be: 20 bytes of IP and 8 of ICMP besides. Counted, so that fragments would show.
        let packets = || {
            let stats = pod.pod.run("cat /sys/class/net/tap0_kata/statistics/tx_packets");
            stats.trim().parse::<u64>().unwrap()
        };
        let before = packets();
        ping(&pod.peer, POD_V4, mtu as usize - 28);
        assert!(packets() - before <= 3, "fragments: {} packets", packets() - before);
    }
}

#[test]
fn an_address_alone_with_a_gateway_outside_it() {
    if !can_make_namespaces("Calico's routes") {
        return;
    }
    let pod = Pod::bare(1450);
    pod.pod.run("ip addr add 10.88.0.5/32 dev eth0");
    pod.pod.run("ip route add 169.254.1.1 dev eth0 scope link");
    pod.pod.run("ip route add default via 169.254.1.1 dev eth0");
    pod.pod.run("ip route add 10.90.0.0/16 via 10.88.9.9 dev eth0 onlink mtu 1300 metric 7 src 10.88.0.5");
    pod.pod.run("ip route add blackhole 10.99.0.0/16");
    pod.pod.run("ip route add unreachable 10.98.0.0/16");
    pod.pod.run("ip -6 route add blackhole fd99::/64");
    pod.peer.run("ip addr add 169.254.1.1/32 dev eth0");
    let (network, endpoints) = attach(&pod);
    let own = &endpoints[0].interface.addresses[0];
    assert_eq!((own.prefix.to_string().as_str(), own.prefix_route), ("10.88.0.5/32", true));
    let routes: Vec<String> = network.routes.iter().map(|r| format!("{r} scope {}", r.scope)).collect();
    for want in [
        "default via 169.254.1.1 scope 0",
        "169.254.1.1/32 scope 253",
        "blackhole 10.99.0.0/16 scope 0",
        "unreachable 10.98.0.0/16 scope 0",
        "blackhole fd99::/64 scope 0",
    ] {
        assert!(routes.iter().any(|r| r == want), "{want} in {routes:?}");
    }
    let far = network.routes.iter().find(|r| r.to_string() == "10.90.0.0/16 via 10.88.9.9").unwrap();
    assert_eq!((far.mtu, far.metric, far.flags), (1300, 7, osc::net::route::ONLINK));
    assert_eq!(far.source, Some("10.88.0.5".parse().unwrap()));
    let guest = Guest::new(&network, endpoints);
    ping(&guest.ns, "169.254.1.1", 56);
}

#[test]
fn a_prefix_route_that_a_cni_removed_stays_removed() {
    if !can_make_namespaces("ptp's routes") {
        return;
    }
    let pod = Pod::bare(1500);
    pod.pod.run(&format!("ip addr add {POD_V4}/24 dev eth0"));
    pod.pod.run("ip route del 10.88.0.0/24");
    pod.pod.run(&format!("ip route add {PEER_V4} dev eth0 scope link"));
    pod.pod.run(&format!("ip route add 10.88.0.0/24 via {PEER_V4} src {POD_V4}"));
    let (network, endpoints) = attach(&pod);
    assert!(!endpoints[0].interface.addresses[0].prefix_route);
    let routes: Vec<String> = network.routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, [format!("10.88.0.0/24 via {PEER_V4}"), format!("{PEER_V4}/32")]);
}

#[test]
fn a_namespace_that_has_vanished_is_a_teardown_done() {
    if !can_make_namespaces("vanished namespace") {
        return;
    }
    let pod = Pod::new();
    let (_, endpoints) = attach(&pod);
    let ties: Vec<_> = endpoints.iter().map(|e| e.tie.clone()).collect();
    let name = pod.pod.name.clone();
    sh(&format!("ip netns del {name}"));
    assert!(endpoint::detach(&ties).is_empty());
    // Another one under its name is left alone.
    sh(&format!("ip netns add {name}"));
    pod.pod.run("ip tuntap add dev tap0_kata mode tap");
    assert!(endpoint::detach(&ties).is_empty());
    assert_eq!(pod.pod.links(), ["lo", "tap0_kata"]);
}

#[test]
fn what_a_dead_vm_left_makes_way_and_what_others_did_does_not() {
    if !can_make_namespaces("leftover and foreign qdiscs") {
        return;
    }
    let pod = Pod::new();
    drop(attach(&pod));
    // The taps went with their descriptors; the interface's qdisc redirects nowhere.
    assert!(pod.pod.run("tc qdisc show dev eth0 ingress").contains("ingress"));
    drop(attach(&pod));
    pod.pod.run("tc qdisc del dev eth0 ingress");
    pod.pod.run("tc qdisc add dev eth0 ingress");
    pod.pod.run("tc filter add dev eth0 parent ffff: protocol ip u32 match ip dst 10.9.9.9 flowid 1:1");
    let before = pod.pod.state();
    let e = endpoint::attach(&pod.pod.path(), 1, false).unwrap_err();
    assert!(matches!(&e, NetError::Foreign { link, filters: 1 } if link == "eth0"), "{e}");
    assert_eq!(pod.pod.state(), before);
}

#[test]
fn twenty_set_ups_at_once() {
    if !can_make_namespaces("twenty at once") {
        return;
    }
    let pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    let before: Vec<String> = pods.iter().map(|p| p.pod.state()).collect();
    let made: Vec<_> = std::thread::scope(|s| {
        let all: Vec<_> = pods.iter().map(|p| s.spawn(|| attach(p).1)).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    std::thread::scope(|s| {
        for endpoints in &made {
            s.spawn(|| assert!(endpoint::detach(endpoints.iter().map(|e| &e.tie)).is_empty()));
        }
    });
    drop(made);
    for (pod, before) in pods.iter().zip(before) {
        assert_eq!(pod.pod.state(), before);
    }
}

#[test]
fn a_qdisc_that_others_make_and_unmake_meanwhile_is_waited_for() {
    if !can_make_namespaces("EBUSY") {
        return;
    }
    use osc::net::{Namespace, link, tc};
    let pod = Pod::new();
    let namespace = Namespace::open(&pod.pod.path()).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut nl = namespace.netlink().unwrap();
            let eth0 = link::by_name(&mut nl, "eth0").unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = tc::redirect(&mut nl, &eth0, &eth0);
                let _ = tc::filters(&mut nl, &eth0);
            }
        });
        let mut nl = namespace.netlink().unwrap();
        let eth0 = link::by_name(&mut nl, "eth0").unwrap();
        for _ in 0..200 {
            tc::add_ingress(&mut nl, &eth0).unwrap();
            tc::remove_ingress(&mut nl, &eth0).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn bad_input_changes_nothing_and_names_what_is_wrong() {
    if !can_make_namespaces("bad input") {
        return;
    }
    let pod = Pod::new();
    sh(&format!("ip link add net1 netns {} type veth peer name eth1 netns {}", pod.pod.name, pod.peer.name));
    pod.pod.run("ip link set net1 up");
    pod.pod.run(&format!("ip link set net1 address {}", netns::POD_MAC));
    let before = pod.pod.state();
    let e = endpoint::attach(&pod.pod.path(), 1, false).unwrap_err().to_string();
    assert!(e.contains("eth0 and net1 have the same MAC"), "{e}");
    assert_eq!(pod.pod.state(), before);
    pod.pod.run("ip link del net1");

    // A device that vanishes half-way.
    let namespace = endpoint::open(&pod.pod.path()).unwrap();
    let network = endpoint::look(&namespace).unwrap();
    let ties = endpoint::plan(&namespace, &network.interfaces).unwrap();
    pod.pod.run("ip link del eth0");
    let before = pod.pod.state();
    let e = endpoint::tie(&namespace, &ties[0], 1, false).unwrap_err().to_string();
    assert_eq!(e, "no interface eth0");
    assert_eq!(pod.pod.state(), before);

    for (path, why) in
        [("/run/netns/no-such", "No such file"), ("/etc/hostname", "no network namespace"), ("/proc/self/ns/net", "host's own")]
    {
        let e = endpoint::attach(Path::new(path), 1, false).unwrap_err().to_string();
        assert!(e.contains(path) && e.contains(why), "{e}");
        for command in ["tap", "undo"] {
            let out = run(["netsetup", command, "--netns", path]);
            assert!(out.status == 125 && out.stderr.contains(why), "{out:?}");
        }
    }

    let (place, before) = (pod.pod.arg(), pod.pod.state());
    let end = ["--netns", &place, "--remote", "192.0.2.1", "--vni", "7", "--mac", netns::POD_MAC, "--address", "10.0.0.1"];
    let out = run(["netsetup", "vxlan", "podvm"].iter().chain(&end));
    assert!(out.status == 125 && out.stderr.contains("prefix"), "{out:?}");
    assert_eq!(pod.pod.state(), before);
    // Where not even root's own files are readable to others, the program is copied.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("osc").display().to_string();
    sh(&format!("cp {} {program}; chmod 755 {program} {}", common::osc().display(), dir.path().display()));
    let told = try_sh(&format!("setpriv --reuid 65534 {program} netsetup tap --netns /proc/self/ns/net"));
    assert!(!told.0 && told.1.contains("needs root") && told.1.contains("sudo"), "{told:?}");
}

/// Links, filters and routes as `ip` and `tc` tell them, without what differs from one namespace to the next.
fn shown(ns: &Netns) -> String {
    let links: String = ns
        .run("ip -d link")
        .replace("NO-CARRIER,", "")
        .split_whitespace()
        .scan("", |last, word| {
            let skip = ["link/ether", "link-netns", "link-netnsid", "state"].contains(last);
            *last = word;
            Some(if skip { "*" } else { word })
        })
        .map(|w| format!("{w} "))
        .collect();
    let filters = ["eth0", "tap0_kata"].map(|d| ns.run(&format!("tc filter show dev {d} parent ffff:"))).concat();
    let filters: String = filters.lines().filter(|l| !l.contains(" index ")).map(|l| format!("{l}\n")).collect();
    format!("{links}\n{filters}\n{}\n{}", ns.run("ip route"), ns.run("ip -6 route show default"))
}

#[test]
fn the_commands_of_a_dry_run_do_the_same() {
    if !can_make_namespaces("dry run") {
        return;
    }
    for queues in ["1", "4"] {
        let (ours, by_hand) = (Pod::new(), Pod::new());
        let untouched = by_hand.pod.state();
        let tap = |netns: &str, extra: &[&str]| {
            let out = run(["netsetup", "tap", "--netns", netns, "--queues", queues].iter().chain(extra));
            assert_eq!(out.status, 0, "{}", out.stderr);
            out.stdout
        };
        let told = tap(&ours.pod.arg(), &[]);
        assert!(told.contains("eth0 <-> tap0_kata"), "{told}");
        let commands = tap(&by_hand.pod.arg(), &["--dry-run"]);
        assert_eq!(by_hand.pod.state(), untouched);
        sh(&format!("set -e\n{commands}"));
        assert_eq!(shown(&by_hand.pod), shown(&ours.pod));
        // And back: by command and by hand.
        let undo = run(["netsetup", "undo", "--netns", &by_hand.pod.arg(), "--dry-run"]);
        sh(&format!("set -e\n{}", undo.stdout));
        assert_eq!(by_hand.pod.state(), untouched);
        let before = ours.pod.state();
        assert!(before.contains("tap0_kata"));
        let undo = run(["netsetup", "undo", "--netns", &ours.pod.arg()]);
        assert_eq!((undo.status, undo.stdout.as_str()), (0, "eth0 <-> tap0_kata undone\n"));
        assert!(!ours.pod.state().contains("tap0_kata") && !ours.pod.state().contains("ingress"), "{}", ours.pod.state());
    }
}

#[test]
fn inspect_draws_and_verify_walks_hop_by_hop() {
    if !can_make_namespaces("inspect and verify") {
        return;
    }
    let pod = Pod::new();
    let netns = pod.pod.arg();
    let netsetup = |args: &[&str]| run(["netsetup"].iter().chain(args).chain(&["--netns", netns.as_str()]));
    // Before: not tied.
    let out = netsetup(&["verify"]);
    assert!(out.status == 1 && out.stdout.contains("BROKEN eth0 ->"), "{out:?}");
    assert_eq!(netsetup(&["tap"]).status, 0);
    let again = netsetup(&["tap"]);
    assert!(again.status == 125 && again.stderr.contains("tied already"), "{again:?}");

    let drawn = netsetup(&["inspect"]).stdout;
    for want in ["eth0 (veth)", "tap0_kata (tun)", "nobody is attached", "10.88.0.2/24", "default via 10.88.0.1 dev eth0"] {
        assert!(drawn.contains(want), "{want} in\n{drawn}");
    }
    println!("{drawn}");
    let file = tempfile::NamedTempFile::new().unwrap();
    netsetup(&["inspect", "--svg", file.path().to_str().unwrap()]);
    assert!(std::fs::read_to_string(file.path()).unwrap().contains("tap0_kata"));
    let json: serde_json::Value = serde_json::from_str(&netsetup(&["inspect", "--json"]).stdout).unwrap();
    assert_eq!(json["devices"][0]["redirect"][0], "tap0_kata");

    // With packets of its own: the gateway answers through both redirections.
    let out = netsetup(&["verify"]);
    assert!(out.status == 0 && out.stdout.contains("10.88.0.1 answered as"), "{}", out.stdout);
    // Each thing that can be broken is named at its hop.
    for (break_it, repair, hop) in [
        ("ip link set tap0_kata down", "ip link set tap0_kata up", "BROKEN tap0_kata"),
        ("tc qdisc del dev tap0_kata ingress", "", "BROKEN tap0_kata -> eth0"),
        ("ip link del tap0_kata", "", "BROKEN eth0 -> (gone)"),
    ] {
        pod.pod.run(break_it);
        let out = netsetup(&["verify"]);
        assert!(out.status == 1 && out.stdout.contains(hop), "{break_it}: {}", out.stdout);
        if !repair.is_empty() {
            pod.pod.run(repair);
        }
    }
    assert_eq!(netsetup(&["undo"]).status, 0);
    assert!(!pod.pod.state().contains("ingress"));
    pod.peer.run("ip link set eth0 down");
    let out = netsetup(&["verify"]);
    assert!(out.stdout.contains("without a carrier"), "{}", out.stdout);
}

/// Mbit/s of a transfer from a server in `from` to a client in `to`.
fn rate(from: &Netns, address: &str, to: &Netns) -> f64 {
    use std::io::{Read, Write};
    const BYTES: usize = 6 << 20;
    let inside = |ns: &Netns| osc::net::Namespace::open(&ns.path()).unwrap();
    let listener = inside(from).inside(|| std::net::TcpListener::bind(("0.0.0.0", 9)).unwrap()).unwrap();
    let address: std::net::SocketAddr = format!("{address}:9").parse().unwrap();
    let mut stream = inside(to).inside(move || std::net::TcpStream::connect(address).unwrap()).unwrap();
    let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(&vec![7; BYTES]).unwrap());
    // The burst is not the rate.
    let mut head = vec![0; 1 << 20];
    stream.read_exact(&mut head).unwrap();
    let started = std::time::Instant::now();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    server.join().unwrap();
    assert_eq!(rest.len(), BYTES - head.len());
    rest.len() as f64 * 8.0 / 1e6 / started.elapsed().as_secs_f64()
}

#[test]
fn rates_are_limited_each_way() {
    if !can_make_namespaces("rate limits") {
        return;
    }
    let pod = Pod::new();
    let before = pod.pod.state();
    let (network, endpoints) = attach(&pod);
    let tie = endpoints[0].tie.clone();
    let namespace = endpoint::open(&pod.pod.path()).unwrap();
    endpoint::limit(&namespace, &tie, endpoint::Rates { rx: 40_000_000, tx: 20_000_000 }).unwrap();
    let shown = pod.pod.run("tc qdisc show");
    assert!(shown.contains("tbf 5c0: dev tap0_kata root") && shown.contains("rate 20Mbit"), "{shown}");
    let guest = Guest::new(&network, endpoints);
    let (rx, tx) = (rate(&pod.peer, PEER_V4, &guest.ns), rate(&guest.ns, POD_V4, &pod.peer));
    println!("into the guest {rx:.1} of 40 Mbit/s, out of it {tx:.1} of 20 Mbit/s");
    // Payload: headers take 5 percent.
    assert!((34.0..=42.0).contains(&rx) && (17.0..=21.0).contains(&tx), "{rx} {tx}");
    drop(guest);
    assert!(endpoint::detach([&tie]).is_empty());
    assert_eq!(pod.pod.state(), before);
    // The commands of a dry run are the same.
    let steps = endpoint::limit_steps(&tie, endpoint::Rates { rx: 0, tx: 20_000_000 });
    pod.pod.run(&steps[0].to_string());
    let by_hand = pod.pod.run("tc qdisc show dev eth0");
    pod.pod.run("tc qdisc del dev eth0 root");
    steps[0].run(&mut namespace.netlink().unwrap(), &mut Vec::new()).unwrap();
    assert_eq!(pod.pod.run("tc qdisc show dev eth0"), by_hand);
}

#[test]
fn rules_are_what_nft_makes_of_their_text() {
    use osc::net::nft::{self, Chain, Hook, Kind, Match, Rule, TCP, Table, UDP, Verdict};
    use osc::net::{Namespace, Prefix, netlink::Netlink};
    if !can_make_namespaces("packet rules") || !netns::try_sh("nft --version").0 {
        println!("SKIP rules against nft: needs nft");
        return;
    }
    let to = |text: &str| Match::Dest(Prefix::parse(text).unwrap());
    let rule = |matches: Vec<Match>, verdict| Rule { matches, verdict };
    let filter = vec![
        rule(vec![Match::Established], Verdict::Accept),
        rule(vec![Match::In("eth0".into()), to("10.0.0.0/9")], Verdict::Drop),
        rule(vec![to("fd00::/7"), Match::Out("a".into())], Verdict::Reject),
        rule(
            vec![Match::Protocol(UDP), Match::DestPort(4789), Match::Vni(555_000), Match::NotSource("192.0.2.1".parse().unwrap())],
            Verdict::Drop,
        ),
    ];
    let output = vec![rule(vec![to("127.0.0.1/32"), Match::Protocol(TCP)], Verdict::Redirect(4711))];
    let post = vec![rule(vec![Match::Source(Prefix::parse("10.1.2.0/24").unwrap())], Verdict::Masquerade)];
    let chain = |kind, hook, priority, rules| Chain { kind, hook, priority, rules };
    let table = Table {
        name: "osc_test".into(),
        chains: vec![
            chain(Kind::Filter, Hook::Input, 0, filter),
            chain(Kind::Nat, Hook::Output, -100, output),
            chain(Kind::Nat, Hook::Postrouting, 100, post),
        ],
    };
    let (ours, theirs) = (Netns::new("rules"), Netns::new("nft"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), table.to_string()).unwrap();
    theirs.run(&format!("nft -f {}", file.path().display()));
    let mut nl = Namespace::open(&ours.path()).unwrap().inside(Netlink::netfilter).unwrap().unwrap();
    // Made, made again, removed, removed again.
    nft::install(&mut nl, &table).unwrap();
    nft::install(&mut nl, &table).unwrap();
    assert_eq!(ours.run("nft list ruleset"), theirs.run("nft list ruleset"));
    nft::remove(&mut nl, "osc_test").unwrap();
    nft::remove(&mut nl, "osc_test").unwrap();
    assert_eq!(ours.run("nft list ruleset"), "");
    // An error is the kernel's, and nothing is half made.
    let bad = Table { name: "osc_bad".into(), chains: vec![chain(Kind::Nat, Hook::Forward, 0, vec![])] };
    let e = nft::install(&mut nl, &bad).unwrap_err().to_string();
    assert!(e.contains("make nftables table osc_bad"), "{e}");
    assert_eq!(ours.run("nft list ruleset"), "");
}
