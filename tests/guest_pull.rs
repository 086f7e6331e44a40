//! Images that the guest pulls: over the pod's network from a real registry, in a VM of this host's and in a pod VM.

#[path = "common/adaptor.rs"]
mod adaptor;
mod common;
#[path = "common/netns.rs"]
mod netns;
#[path = "common/registry.rs"]
mod registry;

use std::fs;
use std::path::{Path, PathBuf};

use adaptor::Adaptor;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::player::{Player, delete, dial, kill, mkfifo, reader, spec, task, until_gone, wait};
use common::{Rootfs, assert_clean, can_run_vms, name};
use netns::{PEER_V4, Pod, can_make_namespaces};
use osc::rpc::Client;
use osc::rpc::wire::containerd::Mount;
use osc::rpc::wire::google::{Any, Empty};
use osc::rpc::wire::options::Options;
use osc::rpc::wire::task as wire;
use prost::Message;
use registry::{Pushed, Registry, can_run_registry, push};
use serde_json::{Value, json};

/// What the node's container manager is told of a registry, for as long as a test lasts.
struct Hosts(PathBuf);

impl Hosts {
    fn plain_http(registry: &str) -> Hosts {
        let dir = Path::new("/etc/containerd/certs.d").join(registry);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts.toml"), format!("server = \"http://{registry}\"\n")).unwrap();
        Hosts(dir)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_dir(Path::new("/etc/containerd/certs.d"));
    }
}

/// An address of this host that a pod VM reaches (TEST-NET-1).
const HERE: &str = "192.0.2.77";

struct Here;

impl Here {
    fn new() -> Here {
        netns::sh(&format!("ip addr add {HERE}/32 dev lo"));
        Here
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let _ = netns::try_sh(&format!("ip addr del {HERE}/32 dev lo"));
    }
}

/// busybox, and something to tell it by.
fn layers() -> [Pushed; 2] {
    let root = Rootfs::new();
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.append_dir_all(".", root.path()).unwrap();
    let mut second = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(7);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    second.append_data(&mut header, "etc/hello", &b"pulled\n"[..]).unwrap();
    [Pushed::gzip(tar.into_inner().unwrap()), Pushed::zstd(second.into_inner().unwrap())]
}

/// A pod of two containers, as CRI-O makes one.
struct Containers<'a> {
    player: Player,
    net: &'a Pod,
    sandbox: String,
    options: Option<Any>,
}

impl Containers<'_> {
    fn create(&self, id: &str, kind: &str, image: &str, root: &Path, args: &[&str], rootfs: Vec<Mount>) -> (String, Client, String) {
        let annotations = json!({
            "io.kubernetes.cri-o.ContainerType": kind, "io.kubernetes.cri-o.SandboxID": self.sandbox,
            "io.kubernetes.cri-o.ImageName": image, "io.kubernetes.cri-o.KubeName": "web",
        });
        let bundle = self.player.bundle(id, &spec(root, args, Some(&self.net.pod.path()), annotations));
        let log = reader(bundle.path.join("log"));
        let address = self.player.start_as_crio(&bundle).stdout;
        let client = dial(&address);
        let stdout = self.player.path(&format!("{id}.out"));
        mkfifo(&stdout);
        let out = reader(stdout.clone());
        let create = wire::CreateTaskRequest {
            id: id.into(),
            bundle: bundle.path.display().to_string(),
            stdout: stdout.display().to_string(),
            options: self.options.clone(),
            rootfs,
            ..Default::default()
        };
        let created: Result<wire::CreateTaskResponse, _> = task(&client, "Create", create);
        let error = match created {
            Ok(_) => {
                let ended = (kind == "container").then(|| wait(&address, id));
                let _: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: id.into(), exec_id: String::new() }).unwrap();
                match ended {
                    Some(ended) => {
                        assert_eq!(ended.join().unwrap().unwrap().exit_status, 0);
                        out.join().unwrap()
                    }
                    None => String::new(),
                }
            }
            Err(e) => e.message,
        };
        drop(log);
        (address, client, error)
    }
}

/// A mount of a snapshotter whose images the guest pulls.
fn virtual_volume(image: &str) -> Vec<Mount> {
    let volume: Value =
        json!({"volume_type": "image_guest_pull", "source": image, "fs_type": "overlay", "options": [], "image_pull": {"metadata": {}}});
    let option = format!("io.katacontainers.volume={}", BASE64_STANDARD.encode(volume.to_string()));
    vec![Mount { r#type: "fuse.nydus-overlayfs".into(), source: "overlay".into(), options: vec![option], ..Default::default() }]
}

#[test]
fn a_vm_of_this_host_pulls_what_a_snapshotter_leaves_to_it() {
    let test = "a_vm_of_this_host_pulls";
    if !can_run_registry(test) || !can_run_vms(test) || !can_make_namespaces(test) {
        return;
    }
    let net = Pod::new();
    let address = format!("{PEER_V4}:5000");
    let registry = in_peer(&net, &address);
    let _hosts = Hosts::plain_http(&address);
    let sandbox = name("pull");
    let pod = Containers { player: Player::new(), net: &net, sandbox: sandbox.clone(), options: None };
    let image = registry.image("test/app:latest");
    let nothing = tempfile::tempdir().unwrap();
    let (_, client, said) = pod.create(&sandbox, "sandbox", "pause", nothing.path(), &["/pause"], virtual_volume("pause"));
    assert_eq!(said, "");
    let pid = pid(&client, &sandbox);
    let app = name("pull-app");
    let (_, other, said) = pod.create(&app, "container", &image, nothing.path(), &["cat", "/etc/hello"], virtual_volume(&image));
    assert_eq!(said, "pulled\n");
    delete(&other, &app).unwrap();
    // What cannot be pulled is told to whoever asked.
    let missing = registry.image("test/none:v1");
    let (_, _, said) = pod.create(&name("pull-none"), "container", &missing, nothing.path(), &["true"], virtual_volume(&missing));
    assert!(said.contains("test/none") && said.contains("has no manifests/v1"), "{said}");
    end(&client, &sandbox, pid);
    assert_clean(&sandbox);
}

#[test]
fn a_pod_vm_pulls_where_the_configuration_says_so() {
    let test = "a_pod_vm_pulls";
    if !can_run_registry(test) || !can_run_vms(test) || !can_make_namespaces(test) {
        return;
    }
    let mut adaptor = Adaptor::start(&[]);
    let net = Pod::new();
    // The VM's own network leads to this host.
    let here = Here::new();
    let address = format!("{HERE}:{}", registry::free_port());
    let registry = Registry::with(&address, json!({}), json!({}), None);
    registry.push("test/app", &layers());
    let _hosts = Hosts::plain_http(&address);
    let (sandbox, root, player) = (name("peerpull"), Rootfs::new(), Player::new());
    let config = player.path("configuration.toml");
    let text = format!(
        "[runtime]\nexperimental_force_guest_pull = true\n[hypervisor.remote]\nremote_hypervisor_socket = \"{}\"\n",
        adaptor.socket().display()
    );
    fs::write(&config, text).unwrap();
    let options = Options { config_path: config.display().to_string(), ..Default::default() };
    let options = Some(Any { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec() });
    let pod = Containers { player, net: &net, sandbox: sandbox.clone(), options };
    // The sandbox's own root is the host's.
    let (_, client, said) = pod.create(&sandbox, "sandbox", "pause", root.path(), &["sleep", "3600"], Vec::new());
    assert_eq!(said, "", "{}", adaptor.log());
    let pid = pid(&client, &sandbox);
    let nothing = tempfile::tempdir().unwrap();
    let app = name("peerpull-app");
    let image = registry.image("test/app:latest");
    let (_, other, said) = pod.create(&app, "container", &image, nothing.path(), &["cat", "/etc/hello"], Vec::new());
    assert_eq!(said, "pulled\n", "{}", adaptor.log());
    delete(&other, &app).unwrap();
    let (_, _, said) = pod.create(&name("peerpull-none"), "container", "", nothing.path(), &["true"], Vec::new());
    assert!(said.contains("nobody says what it is called"), "{said}");
    end(&client, &sandbox, pid);
    assert_clean(&sandbox);
    assert!(adaptor.is_empty(), "{}", adaptor.log());
    adaptor.kill();
    drop(here);
}

/// A registry on the other end of the pod's network, with the image.
fn in_peer(net: &Pod, address: &str) -> Registry {
    let registry = Registry::with(address, json!({}), json!({}), Some(&net.peer.name));
    let namespace = osc::net::Namespace::open(&net.peer.path()).unwrap();
    let base = format!("http://{address}");
    // Compressed here: a thread in a namespace has a small stack.
    let layers = layers();
    namespace.inside(move || push(&base, None, "test/app", &layers)).unwrap();
    registry
}

fn pid(client: &Client, id: &str) -> u32 {
    let request = wire::ConnectRequest { id: id.into() };
    let answer: wire::ConnectResponse = task(client, "Connect", request).unwrap();
    answer.shim_pid
}

fn end(client: &Client, sandbox: &str, pid: u32) {
    kill(client, sandbox, 9).unwrap();
    common::until("the sandbox's own container", || delete(client, sandbox).ok());
    let _: Empty = task(client, "Shutdown", wire::ShutdownRequest { id: sandbox.into(), now: false }).unwrap();
    until_gone(pid);
}
