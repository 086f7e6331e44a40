//! `ctr run --cni` with Debian's plugins: pods on a bridge reach each other, the host reaches them, and nothing stays.

mod common;
#[path = "common/netns.rs"]
mod netns;

use std::process::{Child, Command, Stdio};

use common::containerd::{Containerd, IMAGE, KATA, can_run_containerd};
use common::{name, until, wait};
use netns::{sh, try_sh};

const PLUGINS: &str = "/usr/lib/cni";

/// A CNI configuration that only our `ctr` sees: in a mount namespace of its own, where it looks for one.
struct Cni {
    dir: tempfile::TempDir,
    bridge: String,
}

impl Cni {
    fn new() -> Cni {
        let dir = tempfile::tempdir().unwrap();
        let bridge = format!("osccni{}", std::process::id() % 10_000);
        let ipam = serde_json::json!({
            "type": "host-local",
            "dataDir": dir.path().join("leases"),
            "ranges": [[{"subnet": "10.222.0.0/24"}], [{"subnet": "fd00:222::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        let conf = serde_json::json!({
            "cniVersion": "0.4.0", "name": "osc-test",
            "plugins": [{"type": "bridge", "bridge": bridge, "isGateway": true, "mtu": 1460, "ipam": ipam}],
        });
        std::fs::write(dir.path().join("10-osc.conflist"), conf.to_string()).unwrap();
        Cni { dir, bridge }
    }

    /// `ctr run --cni` in the foreground.
    fn run(&self, c: &Containerd, id: &str, command: &str) -> Child {
        let place = format!(
            "mount -t tmpfs t /opt && mkdir -p /opt/cni && ln -s {PLUGINS} /opt/cni/bin && mount -t tmpfs t /etc/cni && mkdir /etc/cni/net.d \
             && cp {} /etc/cni/net.d && exec ctr -a {} run --rm --cni --runtime {KATA} {IMAGE} {id} sh -c \"$0\"",
            self.dir.path().join("10-osc.conflist").display(),
            c.address()
        );
        let mut run = Command::new("unshare");
        run.args(["-m", "sh", "-c", &place, command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        run.spawn().unwrap()
    }
}

impl Drop for Cni {
    fn drop(&mut self) {
        let _ = try_sh(&format!("ip link del {}", self.bridge));
    }
}

#[test]
fn pods_on_a_bridge_reach_each_other_and_the_host_reaches_them() {
    if !can_run_containerd("CNI") {
        return;
    }
    if !std::path::Path::new(PLUGINS).join("bridge").exists() {
        println!("SKIP CNI: needs containernetworking-plugins");
        return;
    }
    let links = || sh("ip -o link | cut -d: -f2");
    let before = links();
    let (c, cni) = (Containerd::start(), Cni::new());
    let server = name("cni-server");
    let serve = "mkdir /www; head -c 209715200 /dev/zero | busybox tr '\\0' 'x' > /www/large; busybox httpd -f -p 80 -h /www";
    let mut running = cni.run(&c, &server, serve);
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
    let out = common::finish(cni.run(&c, &client, &script));
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
