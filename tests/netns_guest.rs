//! Kinds of interfaces that this host's kernel lacks (ipvlan, vlan, macvlan, and `matchall` for the redirections): made in a
//! VM whose kernel has them, where our own `netsetup` ties and checks them. And a tap that the CNI made.

mod common;
#[path = "common/netns.rs"]
mod netns;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use common::{can_run_vms, name, osc, run};
use netns::{Netns, POD_MAC, can_make_namespaces, try_sh};
use osc::net::{Namespace, tap};
use serde_json::json;

/// In the guest: a veth whose end `lower` carries the interface `eth0` of the namespace `pod`, and `world` behind it.
const SCRIPT: &str = r#"
set -e
for m in veth ipvlan 8021q macvlan tun sch_ingress act_mirred cls_matchall; do modprobe -d /kernel $m; done
mkdir -p /run/netns
one() {
    echo "== $1"
    ip netns add world; ip netns add pod
    ip link add lower type veth peer name eth0 netns world
    ip link set lower up; ip -n world link set eth0 up
    far=eth0
    if [ $1 = vlan ]; then far=eth0.5; ip -n world link add link eth0 name $far type vlan id 5; ip -n world link set $far up; fi
    ip -n world addr add 10.88.0.1/24 dev $far
    ip link add link lower name eth0 netns pod type "$@"
    ip -n pod addr add 10.88.0.2/24 dev eth0; ip -n pod link set eth0 up; ip -n pod route add default via 10.88.0.1
    # But for the carrier, which comes when it comes.
    state() { ip -n pod -d -o link | sed 's/<[^>]*>//; s/ state [A-Z]*//'; ip netns exec pod tc qdisc; ip -n pod route; }
    state >/tmp/before
    /osc/osc netsetup tap --netns /run/netns/pod
    ip netns exec pod tc filter show dev eth0 ingress
    # The carrier of a new device takes its time.
    for _ in 1 2 3 4 5 6 7 8 9; do /osc/osc netsetup verify --netns /run/netns/pod >/tmp/verify && break; sleep 0.5; done
    cat /tmp/verify
    /osc/osc netsetup undo --netns /run/netns/pod
    state >/tmp/after
    cmp /tmp/before /tmp/after
    ip netns del pod; ip netns del world
    # A veth goes with its peer, when the kernel comes to it.
    while ip link del lower 2>/dev/null; do :; done
    echo "done $1"
}
one ipvlan mode l2
one vlan id 5
one macvlan mode bridge
"#;

/// A bundle that has this host's programs, our own, the guest kernel's modules, and the right to use them.
fn bundle() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let kernel = osc::fs::image::find(None).unwrap();
    let modules = format!("kernel/lib/modules/{}", kernel.release);
    for d in ["usr", "proc", "sys", "run", "tmp", "osc", &modules] {
        fs::create_dir_all(root.join(d)).unwrap();
    }
    for d in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{d}"), root.join(d)).unwrap();
    }
    fs::copy(osc(), root.join("osc/osc")).unwrap();
    let capabilities = ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_MODULE", "CAP_DAC_OVERRIDE"];
    let read_only = |to: &str, from: PathBuf| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "ro"]});
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "root"},
        "process": {
            "args": ["sh", "-c", SCRIPT], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/usr/sbin:/usr/bin"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            read_only("/usr", "/usr".into()),
            read_only(&format!("/{modules}"), kernel.modules),
        ],
        "linux": {
            "namespaces": namespaces,
            "devices": [{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}],
            "resources": {"devices": [{"allow": true, "access": "rwm"}]},
        },
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn ipvlan_vlan_and_macvlan_are_tied_where_the_kernel_has_them() {
    if !can_run_vms("ipvlan, vlan, macvlan") || !can_make_namespaces("ipvlan, vlan, macvlan") {
        return;
    }
    let (bundle, name) = (bundle(), name("kinds"));
    let out = run(["run", "--network", "none", "--name", &name, "--bundle", &bundle.path().to_string_lossy()]);
    println!("{}{}", out.stdout, out.stderr);
    assert_eq!(out.status, 0);
    for kind in ["ipvlan", "vlan", "macvlan"] {
        let part = out.stdout.split(&format!("== {kind}\n")).nth(1).and_then(|t| t.split(&format!("done {kind}\n")).next()).unwrap();
        for want in ["matchall", "Egress Redirect to device tap0_kata", "10.88.0.1 answered as"] {
            assert!(part.contains(want), "{kind}: {want}");
        }
        assert!(!part.contains("BROKEN"), "{kind}");
    }
    common::assert_clean(&name);
}

/// Reads frames until one has `payload` behind its header.
fn receive(queue: &mut File, payload: &[u8]) {
    let mut buffer = [0; 2048];
    loop {
        let n = queue.read(&mut buffer).unwrap();
        if buffer[..n].ends_with(payload) {
            return;
        }
    }
}

#[test]
fn a_tap_that_the_cni_made_is_the_pods_interface() {
    if !can_make_namespaces("a tap as the pod's interface") || !std::path::Path::new("/dev/net/tun").exists() {
        return;
    }
    let ns = Netns::new("tap");
    let namespace = Namespace::open(&ns.path()).unwrap();
    // Whoever the CNI left at the other end: a switch of user space, a tunnel.
    let mut cni = File::from(namespace.inside(|| tap::open("eth0", 1)).unwrap().unwrap().remove(0));
    ns.run(&format!("ip link set eth0 address {POD_MAC}"));
    ns.run("ip addr add 10.88.0.2/24 dev eth0");
    ns.run("ip link set eth0 up");
    let before = ns.state();
    let tied = run(["netsetup", "tap", "--netns", &ns.arg()]);
    assert!(tied.status == 0 && tied.stdout.starts_with("eth0 <-> tap0_kata"), "{tied:?}");
    let mut guest = File::from(namespace.inside(|| tap::open("tap0_kata", 1)).unwrap().unwrap().remove(0));
    let verified = run(["netsetup", "verify", "--netns", &ns.arg()]);
    assert!(verified.status == 0 && !verified.stdout.contains("BROKEN"), "{verified:?}");
    // The header of virtio-net, addresses, a type for experiments (IEEE 802, 0x88b5), what is told.
    let frame = |to: [u8; 6], text: &[u8]| [&[0; 10][..], &to, &[2, 0, 0, 0, 0, 9], &[0x88, 0xb5], text].concat();
    cni.write_all(&frame([0x0a, 0x58, 0x0a, 0x58, 0, 2], &[b'i'; 64])).unwrap();
    receive(&mut guest, &[b'i'; 64]);
    guest.write_all(&frame([2, 0, 0, 0, 0, 9], &[b'o'; 64])).unwrap();
    receive(&mut cni, &[b'o'; 64]);
    drop(guest);
    assert_eq!(run(["netsetup", "undo", "--netns", &ns.arg()]).status, 0);
    assert_eq!(ns.state(), before);
    assert!(try_sh(&format!("ip -n {} link show tap0_kata", ns.name)).1.contains("does not exist"));
}
