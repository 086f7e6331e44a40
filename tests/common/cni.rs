//! A CNI network of a test's own, with Debian's plugins, for `ctr run --cni`.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::containerd::{Containerd, IMAGE, KATA, can_run_containerd};
use crate::netns::try_sh;

const PLUGINS: &str = "/usr/lib/cni";

/// True where pods can have a bridge; says aloud why not.
pub fn can_run_cni(test: &str) -> bool {
    if !can_run_containerd(test) {
        return false;
    }
    let there = Path::new(PLUGINS).join("bridge").exists();
    if !there {
        println!("SKIP {test}: needs containernetworking-plugins");
    }
    there
}

/// A CNI configuration that only our `ctr` sees: in a mount namespace of its own, where it looks for one. Pods get addresses of
/// 10.222.0.0/24 and fd00:222::/64; the bridge, which the host has .1 of, goes when this is dropped.
pub struct Cni {
    dir: tempfile::TempDir,
    bridge: String,
}

impl Cni {
    pub fn new(mtu: u32) -> Cni {
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
            "plugins": [{"type": "bridge", "bridge": bridge, "isGateway": true, "mtu": mtu, "ipam": ipam}],
        });
        std::fs::write(dir.path().join("10-osc.conflist"), conf.to_string()).unwrap();
        Cni { dir, bridge }
    }

    /// `ctr run --cni` in the foreground.
    pub fn run(&self, c: &Containerd, options: &str, id: &str, command: &str) -> Child {
        let place = format!(
            "mount -t tmpfs t /opt && mkdir -p /opt/cni && ln -s {PLUGINS} /opt/cni/bin && mount -t tmpfs t /etc/cni && mkdir /etc/cni/net.d \
             && cp {} /etc/cni/net.d && exec ctr -a {} run --rm --cni --runtime {KATA} {options} {IMAGE} {id} sh -c \"$0\"",
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
