//! A pod's network namespace becomes the guest's network: real VMs, real packets.

mod common;
#[path = "common/netns.rs"]
mod netns;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use common::{Background, Rootfs, can_run_vms, run, until};
use netns::{Netns, PEER_V4, PEER_V6, POD_MAC, POD_V4, POD_V6, Pod, sh};

/// A root file system with the network's applets.
fn root() -> Rootfs {
    let root = Rootfs::new();
    for applet in ["nc", "ip", "ping", "ping6", "httpd"] {
        let link = root.path().join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link).unwrap();
        }
    }
    root
}

/// Runs a script in a VM that has the network of `pod`.
fn in_vm(pod: &Pod, root: &Rootfs, script: &str) -> common::Output {
    run(["run", "--rootfs", &root.arg(), "--netns", &pod.pod.arg(), "--", "sh", "-c", script])
}

#[test]
fn the_guest_has_the_pods_interface_and_reaches_the_other_end() {
    if !can_run_vms("pod network") {
        return;
    }
    let (pod, root) = (Pod::new(), root());
    pod.pod.run("ip neigh add 10.88.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    pod.pod.run("ip route add blackhole 10.99.0.0/16");
    pod.pod.run("ip route add 10.77.0.0/16 via 10.88.0.9 metric 42 mtu 1400");
    let before = pod.pod.state();
    let script = format!(
        "ping -c 2 -W 5 {PEER_V4} >/dev/null && echo four; ping6 -c 2 -W 5 {PEER_V6} >/dev/null && echo six; \
         cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip -o addr show eth0; ip route; ip -6 route; ip neigh"
    );
    let out = in_vm(&pod, &root, &script);
    println!("{}\n{}", out.stdout, out.stderr);
    for want in [
        "four\n",
        "six\n",
        POD_MAC,
        "\n1500\n",
        "10.88.0.2/24",
        "fd00:88::2/64",
        "default via 10.88.0.1 dev eth0",
        "10.77.0.0/16 via 10.88.0.9 dev eth0  metric 42",
        "blackhole 10.99.0.0/16",
        "default via fd00:88::1 dev eth0  metric 300",
        "10.88.0.77 dev eth0 lladdr 02:00:00:00:00:77",
    ] {
        assert!(out.stdout.contains(want), "{want:?} in\n{}\n{}", out.stdout, out.stderr);
    }
    assert_eq!(pod.pod.state(), before);
}

#[test]
fn the_other_end_reaches_a_server_in_the_guest_by_both_families() {
    if !can_run_vms("server on the pod network") {
        return;
    }
    let (pod, root) = (Pod::new(), root());
    let before = pod.pod.state();
    let script = "while :; do nc -l -p 80 -e echo served; done";
    let extra = ["--rootfs", &root.arg(), "--cpus", "2", "--netns", &pod.pod.arg()];
    let b = Background::start("serve", &extra, &["sh", "-c", script]);
    for address in [POD_V4, POD_V6] {
        let ask = || pod.peer.try_run(&format!("busybox nc -w 5 {address} 80 </dev/null"));
        let answer = until("an answer of the guest", || Some(ask()).filter(|a| a.0 && !a.1.is_empty()));
        assert_eq!(answer.1, "served\n");
    }
    // What a debugger on the host sees: the pod's own interface, and the redirections.
    let filters = pod.pod.run("tc filter show dev eth0 ingress");
    assert!(filters.contains("Egress Redirect to device tap0_kata"), "{filters}");
    let tap = pod.pod.run("ip -d link show tap0_kata");
    assert!(tap.contains("multi_queue numqueues 2") && tap.contains("vnet_hdr on") && tap.contains("mtu 1500"), "{tap}");
    drop(b);
    assert_eq!(pod.pod.state(), before);
}

#[test]
fn a_namespace_that_is_none_ends_the_start_and_nothing_stays() {
    if !can_run_vms("bad namespace") {
        return;
    }
    let root = root();
    for (path, why) in
        [("/run/netns/no-such", "No such file"), ("/proc/self/ns/mnt", "no network namespace"), ("/proc/self/ns/net", "host's own")]
    {
        let name = common::name("badns");
        let out = run(["run", "--name", &name, "--rootfs", &root.arg(), "--netns", path, "--", "true"]);
        assert_eq!(out.status, 125);
        assert!(out.stderr.contains("network:") && out.stderr.contains(path) && out.stderr.contains(why), "{}", out.stderr);
        common::assert_clean(&name);
    }
}

#[test]
fn a_network_that_is_filled_changed_and_emptied_later_is_followed() {
    if !can_run_vms("late network") {
        return;
    }
    let root = root();
    let (late, peer) = (Netns::new("late"), Netns::new("latepeer"));
    let untouched = late.state();
    let b = Background::start("late", &["--rootfs", &root.arg(), "--netns", &late.arg()], &["sleep", "1000"]);
    assert_eq!(b.exec(&["ls", "/sys/class/net"]).stdout, "lo\n");
    let guest = |script: &str| b.exec(&["sh", "-c", script]).stdout;

    // Filled.
    sh(&format!("ip link add eth0 netns {} type veth peer name eth0 netns {}", late.name, peer.name));
    peer.run("ip addr add 10.70.0.1/24 dev eth0");
    peer.run("ip link set eth0 up");
    late.run("ip addr add 10.70.0.2/24 dev eth0");
    late.run("ip link set eth0 up");
    late.run("ip route add default via 10.70.0.1");
    until("the guest's default route", || guest("ip route").contains("default via 10.70.0.1").then_some(()));
    let ping = guest("ping -c 2 -W 5 10.70.0.1");
    assert!(ping.contains(" 0% packet loss"), "{ping}");

    // Changed: an address, a route, a second interface with a name between.
    late.run("ip addr add 10.71.0.2/24 dev eth0");
    late.run("ip addr del 10.70.0.2/24 dev eth0");
    late.run("ip route add 10.99.0.0/16 via 10.71.0.9");
    until("the new address", || {
        let text = guest("ip addr show eth0; ip route");
        (text.contains("10.71.0.2/24") && !text.contains("10.70.0.2") && text.contains("10.99.0.0/16 via 10.71.0.9")).then_some(())
    });
    sh(&format!("ip link add net1 netns {} mtu 1400 type veth peer name net1 netns {}", late.name, peer.name));
    late.run("ip addr add fd71::2/64 dev net1 nodad");
    late.run("ip link set net1 up");
    peer.run("ip link set net1 up");
    peer.run("ip addr add fd71::1/64 dev net1 nodad");
    until("the second interface", || guest("ip addr show net1").contains("fd71::2/64").then_some(()));
    assert_eq!(guest("cat /sys/class/net/net1/mtu"), "1400\n");
    let ping = guest("ping6 -c 2 -W 5 fd71::1");
    assert!(ping.contains(" 0% packet loss"), "{ping}");

    // Emptied, and what the guest still has goes on.
    late.run("ip link del net1");
    until("one interface", || (guest("ls /sys/class/net") == "eth0\nlo\n").then_some(()));
    late.run("ip link del eth0");
    until("no interface", || (guest("ls /sys/class/net") == "lo\n").then_some(()));
    until("the taps to go", || (late.links() == ["lo"]).then_some(()));
    drop(b);
    assert_eq!(late.state(), untouched);
}

#[test]
fn what_a_killed_run_left_in_the_namespace_is_swept() {
    if !can_run_vms("sweeping a network") {
        return;
    }
    let (pod, root) = (Pod::new(), root());
    let before = pod.pod.state();
    let b = Background::start("killed", &["--rootfs", &root.arg(), "--netns", &pod.pod.arg()], &["sleep", "1000"]);
    common::pids(&b.name, "osc").into_iter().for_each(common::kill);
    until("QEMU to go with its owner", || common::pids(&b.name, "qemu").is_empty().then_some(()));
    assert_ne!(pod.pod.state(), before);
    assert_eq!(run(["reap"]).status, 0);
    assert_eq!(pod.pod.state(), before);
}

/// A connection that is dialled inside the pod's namespace on the host, as kubelet does.
fn dial(pod: &Pod, address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    osc::net::Namespace::open(&pod.pod.path()).unwrap().inside(move || TcpStream::connect(address)).unwrap()
}

/// Asks a web server for a file; the file. `half` ends our direction at once: a server whose queue overflows (busybox's holds
/// nine) may reset such connections, on any loopback.
fn get(mut tcp: TcpStream, file: &str, half: bool) -> std::io::Result<Vec<u8>> {
    tcp.write_all(format!("GET /{file} HTTP/1.0\r\n\r\n").as_bytes())?;
    if half {
        tcp.shutdown(std::net::Shutdown::Write)?;
    }
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    Ok(answer.split_off(head + 4))
}

#[test]
fn the_pods_localhost_is_the_guests() {
    if !can_run_vms("port-forward") {
        return;
    }
    let (pod, root) = (Pod::new(), root());
    let before = (pod.pod.state(), pod.pod.try_run("nft list ruleset"));
    let bytes: Vec<u8> = (0..100 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::create_dir(root.path().join("www")).unwrap();
    std::fs::write(root.path().join("www/large"), &bytes).unwrap();
    (0..50).for_each(|n| std::fs::write(root.path().join(format!("www/{n}")), vec![n; 100_000]).unwrap());
    let script = "httpd -p 127.0.0.1:7 -h /www; httpd -p [::1]:8 -h /www; sleep 1000";
    let b = Background::start("forward", &["--rootfs", &root.arg(), "--netns", &pod.pod.arg()], &["sh", "-c", script]);
    for address in ["127.0.0.1:7", "[::1]:8"] {
        let answer = until("an answer of the guest's loopback", || get(dial(&pod, address).ok()?, "7", true).ok());
        assert!(answer == [7; 100_000]);
    }
    // Many at once, each with bytes of its own.
    let all: Vec<_> = (0..50u8)
        .map(|n| {
            let tcp = dial(&pod, "127.0.0.1:7").unwrap();
            std::thread::spawn(move || assert!(get(tcp, &n.to_string(), false).unwrap() == vec![n; 100_000], "{n}"))
        })
        .collect();
    all.into_iter().for_each(|t| t.join().unwrap());
    let started = std::time::Instant::now();
    assert!(get(dial(&pod, "127.0.0.1:7").unwrap(), "large", true).unwrap() == bytes);
    println!("100 MiB in {:.1} s", started.elapsed().as_secs_f64());
    // A port where nobody listens.
    let refused = dial(&pod, "127.0.0.1:9").and_then(|mut tcp| tcp.read(&mut [0]));
    assert!(matches!(&refused, Err(e) if [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused].contains(&e.kind())), "{refused:?}");
    // The server for 127.0.0.1 is not there for the world.
    assert!(!pod.peer.try_run(&format!("busybox nc -w 2 {POD_V4} 7 </dev/null")).0);
    drop(b);
    assert_eq!((pod.pod.state(), pod.pod.try_run("nft list ruleset")), before);
}
