//! `osc run`, whose network is `public` unless told otherwise: the internet, and nothing else.

mod common;
#[path = "common/netns.rs"]
mod netns;

use common::{Rootfs, can_run_vms, run};
use netns::{Netns, sh, try_sh};

/// A server somewhere else that this host reaches by a link of its own; the link and its routes go when dropped.
struct World {
    ns: Netns,
    link: String,
}

impl World {
    fn new() -> World {
        let ns = Netns::new("world");
        let link = format!("oscw{}", std::process::id());
        sh(&format!("ip link add {link} type veth peer name eth0 netns {}", ns.name));
        sh(&format!("ip addr add 203.0.113.254/24 dev {link}; ip link set {link} up"));
        for address in ["203.0.113.1/24", "10.213.0.1/32", "169.254.169.254/32"] {
            ns.run(&format!("ip addr add {address} dev eth0"));
        }
        ns.run("ip link set eth0 up");
        for range in ["10.213.0.0/16", "169.254.169.254/32"] {
            sh(&format!("ip route add {range} via 203.0.113.1 dev {link}"));
        }
        ns.run("busybox httpd -p 80 -h /etc");
        World { ns, link }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (_, pids) = try_sh(&format!("ip netns pids {}", self.ns.name));
        pids.lines().filter_map(|p| p.parse().ok()).for_each(common::kill);
        let _ = try_sh(&format!("ip link del {}", self.link));
    }
}

/// The tests here compare all that the host has: one at a time.
static HOST: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn host() -> String {
    sh("ip -o link | sed 's/^[0-9]*: //'; ip route; nft list ruleset")
}

#[test]
fn the_internet_answers_and_what_is_private_does_not() {
    if !can_run_vms("public network") || !try_sh("nft --version").0 {
        println!("SKIP public network: needs nft to compare the rules");
        return;
    }
    let _alone = HOST.lock().unwrap_or_else(|p| p.into_inner());
    let world = World::new();
    let before = host();
    let root = Rootfs::new();
    for applet in ["nc", "grep", "printf"] {
        let _ = std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet));
    }
    // A server of this host's own, which must not be reached by any of its addresses.
    let own = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = own.local_addr().unwrap().port();
    let serving = own.try_clone().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        while let Ok((mut tcp, _)) = serving.accept() {
            let _ = tcp.write_all(b"HTTP/1.0 200 OK\r\n\r\nx");
        }
    });
    let ask =
        |to: &str| format!("printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {to} 2>/dev/null | grep -q HTTP && echo yes || echo no;");
    let script = [
        ask("203.0.113.1 80"),
        ask("10.213.0.1 80"),
        ask("169.254.169.254 80"),
        ask(&format!("203.0.113.254 {port}")),
        ask(&format!("100.127.0.1 {port}")),
        "grep -c nameserver /etc/resolv.conf".to_owned(),
    ]
    .concat();
    let go = |extra: &[&str]| {
        let root = root.arg();
        let args = ["run", "--rootfs", &root];
        run(args.iter().chain(extra).chain(&["--", "sh", "-c", &script]))
    };
    let out = go(&[]);
    assert!(out.stdout.starts_with("yes\nno\nno\nno\nno\n"), "{}{}", out.stdout, out.stderr);
    assert_eq!(host(), before);
    let out = go(&["--allow", "10.213.0.0/16"]);
    assert!(out.stdout.starts_with("yes\nyes\nno\nno\nno\n"), "{}{}", out.stdout, out.stderr);
    assert_eq!(host(), before);
    drop(world);
}

#[test]
fn a_killed_run_leaves_nothing_that_reap_does_not_find() {
    if !can_run_vms("sweeping a public network") || !try_sh("nft --version").0 {
        return;
    }
    let _alone = HOST.lock().unwrap_or_else(|p| p.into_inner());
    let before = host();
    let root = Rootfs::new();
    let b = common::Background::start("public", &["--rootfs", &root.arg()], &["sleep", "1000"]);
    assert!(host().contains("oscpub"));
    common::pids(&b.name, "osc").into_iter().for_each(common::kill);
    common::until("QEMU to go with its owner", || common::pids(&b.name, "qemu").is_empty().then_some(()));
    assert_eq!(run(["reap"]).status, 0);
    assert_eq!(host(), before);
}

#[test]
fn ranges_go_with_a_public_network_only() {
    for other in [["--network", "none"], ["--netns", "/run/netns/none"]] {
        let out = run(["run", "--allow", "10.0.0.0/8"].iter().chain(&other).chain(&["--", "true"]));
        assert!(out.status == 125 && out.stderr.contains("public network"), "{}", out.stderr);
    }
    let out = run(["run", "--allow", "10.0.0.0", "--", "true"]);
    assert!(out.status == 2 && out.stderr.contains("prefix"), "{}", out.stderr);
}

#[test]
fn who_may_make_no_network_is_told_of_the_way_without() {
    if !can_run_vms("no right to make a network") || !try_sh("setpriv --version").0 {
        return;
    }
    let _alone = HOST.lock().unwrap_or_else(|p| p.into_inner());
    let before = host();
    let name = common::name("noright");
    let go = |network: &str| {
        let osc = common::osc();
        try_sh(&format!("setpriv --bounding-set -net_admin {} run --name {name} {network} -- echo there 2>&1", osc.display()))
    };
    let (ok, text) = go("");
    assert!(!ok && text.contains("CAP_NET_ADMIN") && text.contains("--network none"), "{text}");
    common::assert_clean(&name);
    assert_eq!(host(), before);
    assert_eq!(go("--network none"), (true, "there\n".to_owned()));
}
