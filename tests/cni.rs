//! `ctr run --cni` with Debian's plugins: pods on a bridge reach each other, the host reaches them, and nothing stays. And what
//! the configuration says about a pod's network.

#[path = "common/cni.rs"]
mod cni;
mod common;
#[path = "common/netns.rs"]
mod netns;

use cni::{Cni, can_run_cni};
use common::containerd::{Containerd, can_run_containerd};
use common::{name, until, wait};
use netns::{Pod, sh, try_sh};

#[test]
fn pods_on_a_bridge_reach_each_other_and_the_host_reaches_them() {
    if !can_run_cni("CNI") {
        return;
    }
    let links = || sh("ip -o link | cut -d: -f2");
    let before = links();
    let (c, cni) = (Containerd::start(), Cni::new(1460));
    let server = name("cni-server");
    let serve = "mkdir /www; head -c 209715200 /dev/zero | busybox tr '\\0' 'x' > /www/large; busybox httpd -f -p 80 -h /www";
    let mut running = cni.run(&c, "", &server, serve);
    let address = until("the server's address", || {
        let out = c.exec(&server, "address", &["busybox", "ip", "-o", "addr", "show", "eth0"]).stdout;
        let of = |family: &str| -> Option<String> { Some(out.split_once(family)?.1.trim_start().split('/').next()?.to_owned()) };
        of(" inet ").zip(of(" inet6 fd00"))
    });
    let (v4, v6): (String, String) = (address.0, format!("fd00{}", address.1));
    let fetch = |to: &str| format!("printf 'GET /large HTTP/1.0\\r\\n\\r\\n' | busybox nc {to} 80 | busybox tail -c 209715200 | sha256sum");
    let sum = sh("head -c 209715200 /dev/zero | tr '\\0' 'x' | sha256sum");
    // The host, by both families.
    until("the server", || {
        try_sh(&format!("printf 'GET /none HTTP/1.0\\r\\n\\r\\n' | busybox nc {v4} 80")).1.contains("404").then_some(())
    });
    assert_eq!(sh(&fetch(&v4)), sum);
    assert!(try_sh(&format!("printf 'GET /none HTTP/1.0\\r\\n\\r\\n' | busybox nc {v6} 80")).1.contains("404"));
    // Another pod: what the CNI gave it, the host, and 200 MB whole.
    let client = name("cni-client");
    let script = format!("busybox ip -o addr; cat /sys/class/net/eth0/mtu; busybox ping -c 1 -W 5 10.222.0.1; {}", fetch(&v4));
    let out = common::finish(cni.run(&c, "", &client, &script));
    for want in ["10.222.0.", "fd00:222::", "\n1460\n", " 0% packet loss", sum.trim()] {
        assert!(out.stdout.contains(want), "{want:?} in {}{}", out.stdout, out.stderr);
    }
    c.assert_gone(&client);
    c.ctr(["task", "kill", "-s", "KILL", &server]);
    wait(&mut running);
    c.assert_gone(&server);
    drop(cni);
    assert_eq!(links(), before);
}

#[test]
fn the_configuration_decides_how_a_pod_is_attached() {
    if !can_run_containerd("the network's configuration") {
        return;
    }
    let (c, pod) = (Containerd::start(), Pod::new());
    let before = pod.pod.state();
    let (file, namespace) = (c.path("configuration.toml"), format!("network:{}", pod.pod.arg()));
    let start = |what: &str, text: &str| {
        std::fs::write(&file, text).unwrap();
        let id = name(what);
        c.background_with(&["--with-ns", &namespace, "--runtime-config-path", file.to_str().unwrap()], &id, &["sleep", "1000"]);
        id
    };
    let id = start("queues", "[hypervisor.qemu]\nnetwork_queues = 2\ndisable_vhost_net = true\n");
    let tap = pod.pod.run("ip -d link show tap0_kata");
    // The guest uses as many as it has vCPUs.
    let words: Vec<&str> = tap.split_whitespace().collect();
    let numbers = words.windows(2).filter(|w| ["numqueues", "numdisabled"].contains(&w[0]));
    assert_eq!(numbers.map(|w| w[1].parse::<u32>().unwrap()).sum::<u32>(), 2, "{tap}");
    for pid in common::pids(&id, "qemu") {
        let line = String::from_utf8(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap()).unwrap();
        assert!(line.contains("vhost=off") && !line.contains("vhost=on"), "{line}");
    }
    c.remove(&id);

    let id = start("loose", "[hypervisor.qemu]\n[runtime]\ninternetworking_model = \"none\"\ndisable_new_netns = true\n");
    let out = c.exec(&id, "look", &["ls", "/sys/class/net"]);
    assert_eq!(out.stdout, "lo\n", "{out:?}");
    assert_eq!(pod.pod.state(), before);
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let qemu = common::pids(&id, "qemu");
    assert!(!qemu.is_empty() && qemu.iter().all(|pid| of(&pid.to_string()) == of("self")));
    c.remove(&id);
    assert_eq!(pod.pod.state(), before);
}
