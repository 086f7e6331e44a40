//! Peer pods end to end: the adaptor as a process, pod VMs made by its provider `qemu`, and our own side of the protocol.

#[path = "common/adaptor.rs"]
mod adaptor;
mod common;
#[path = "common/netns.rs"]
mod netns;

use std::fs;
use std::time::Duration;

use adaptor::{Adaptor, LIMIT, PeerPod, healthy};
use common::Rootfs;
use common::player::{Player, delete, dial, mkfifo, reader, spec, task, until_gone, wait};
use osc::rpc::Client;
use osc::rpc::wire::agent::{self, AgentDetails, GuestDetailsRequest, GuestDetailsResponse};
use osc::rpc::wire::google::Empty;
use osc::rpc::wire::options::Options;
use osc::rpc::wire::task as wire;
use osc::vm::{Vm, port};
use prost::Message;
use serde_json::json;

fn details(client: &Client) -> AgentDetails {
    let request = GuestDetailsRequest::default();
    let answer: GuestDetailsResponse = client.call(agent::SERVICE, "GetGuestDetails", &request, LIMIT).unwrap();
    answer.agent_details.unwrap()
}

#[test]
fn a_pod_vm_is_made_reached_survives_its_adaptor_and_goes() {
    if !common::can_run_vms("a_pod_vm_is_made") || !netns::can_make_namespaces("a_pod_vm_is_made") {
        return;
    }
    let mut adaptor = Adaptor::start(&[]);
    let pod = netns::Pod::new();
    let id = common::name("peer");
    let vm = adaptor.start_vm(&id, pod.pod.path());
    let client = Client::new(vm.dial(port::AGENT).unwrap());
    assert!(healthy(&client));
    assert!(details(&client).extra_features.iter().any(|f| f == "stdio-streams"));
    // The pod's address is now the VM's: its kernel answers, through the tunnel.
    pod.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));
    pod.peer.run(&format!("busybox ping -6 -c 1 -W 5 {}", netns::POD_V6));
    // The key was in a file that is gone.
    assert!(!adaptor.dir.path().join(format!("pods/{id}/vm/initrd")).exists());

    // The adaptor dies and comes back: the same client goes on.
    adaptor.kill();
    adaptor.restart("");
    let since = std::time::Instant::now();
    assert!(healthy(&client), "{}", adaptor.log());
    assert!(since.elapsed() < Duration::from_secs(3));
    pod.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));
    let status = common::run(["adaptor", "status", "--pods-dir", &adaptor.dir.path().join("pods").to_string_lossy()]);
    assert!(status.stdout.contains("default/web") && status.stdout.contains("Running"), "{}", status.stdout);

    vm.stop(Duration::ZERO);
    assert!(vm.ended().unwrap().orderly);
    assert!(!adaptor.dir.path().join(format!("pods/{id}")).exists(), "{}", adaptor.log());
    assert!(pod.pod.links().iter().all(|l| !l.starts_with("vxlan")), "{:?}", pod.pod.links());
    adaptor.kill();
}

const APP: &str = r#"
    cat /secret/key
    cat /h1/key /h2/key; echo changed > /h1/new
    echo kept > /scratch/file; stat -c %a /scratch
    ip -4 addr show dev eth0 | grep -o "10.88.0.2/24"
    until echo | nc -w 5 10.88.0.1 7000; do sleep 0.1; done
    until grep -q two /secret/key; do sleep 0.1; done
    cat /secret/key
    echo the end > /dev/termination-log
    exit 7
"#;

#[test]
fn a_container_in_a_pod_vm_has_its_files_and_its_network() {
    if !common::can_run_vms("a_container_in_a_pod_vm") || !netns::can_make_namespaces("a_container_in_a_pod_vm") {
        return;
    }
    let mut adaptor = Adaptor::start(&[]);
    let (player, root, net) = (Player::new(), Rootfs::new(), netns::Pod::new());
    let id = common::name("remote");
    let config = player.path("configuration.toml");
    let socket = adaptor.socket();
    fs::write(&config, format!("[hypervisor.remote]\nremote_hypervisor_socket = \"{}\"\n", socket.display())).unwrap();
    let kubelet = player.path("pods/uid");
    let (secret, scratch) = (kubelet.join("volumes/kubernetes.io~secret/s"), kubelet.join("volumes/kubernetes.io~empty-dir/e"));
    let last = kubelet.join("containers/app/0123");
    common::publish(&secret, "..one", "one\n");
    fs::create_dir_all(&scratch).unwrap();
    fs::create_dir_all(last.parent().unwrap()).unwrap();
    fs::write(&last, "").unwrap();
    // Directories of the host, which the pod VM is not on.
    let hosts = ["h1", "h2"].map(|n| player.path(n));
    hosts.iter().for_each(|h| common::publish(h, "..v", "of the host\n"));

    let annotations =
        json!({"io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.SandboxID": id, "io.kubernetes.cri-o.KubeName": "web"});
    let mut spec = spec(root.path(), &["sh", "-c", APP], Some(&net.pod.path()), annotations);
    for (source, destination) in
        [(&secret, "/secret"), (&scratch, "/scratch"), (&last, "/dev/termination-log"), (&hosts[0], "/h1"), (&hosts[1], "/h2")]
    {
        let mount = json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": 50_000, "period": 100_000}});
    let bundle = player.bundle(&id, &spec);
    let log = reader(bundle.path.join("log"));
    let address = player.start_as_crio(&bundle).stdout;
    let client = dial(&address);
    let stdout = player.path("out");
    mkfifo(&stdout);
    let out = reader(stdout.clone());
    let options = Options { config_path: config.display().to_string(), ..Default::default() };
    let options = osc::rpc::wire::google::Any { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec() };
    let create = wire::CreateTaskRequest {
        id: id.clone(),
        bundle: bundle.path.display().to_string(),
        stdout: stdout.display().to_string(),
        options: Some(options),
        ..Default::default()
    };
    let created: wire::CreateTaskResponse = task(&client, "Create", create).unwrap_or_else(|e| panic!("{e}\n{}", adaptor.log()));
    let ended = wait(&address, &id);
    let _: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: id.clone(), exec_id: String::new() }).unwrap();
    let mut server = net.peer.spawn("sh -c 'echo reached | busybox nc -l -p 7000'");
    common::publish(&secret, "..two", "two\n");
    assert_eq!(ended.join().unwrap().unwrap().exit_status, 7);
    assert_eq!(out.join().unwrap(), "one\nof the host\nof the host\n755\n10.88.0.2/24\nreached\ntwo\n");
    let _ = server.kill();
    server.wait().unwrap();
    common::until("the termination message", || fs::read_to_string(&last).ok().filter(|t| t == "the end\n"));
    assert!(!scratch.join("file").exists());

    delete(&client, &id).unwrap();
    let _: Empty = task(&client, "Shutdown", wire::ShutdownRequest { id: id.clone(), now: false }).unwrap();
    until_gone(created.pid);
    let log = log.join().unwrap();
    assert!(!log.contains("level=error"), "{log}");
    assert_eq!(log.matches("it is given a copy").count(), 1, "{log}");
    assert!(!hosts[0].join("new").exists());
    common::assert_clean(&id);
    assert!(!adaptor.dir.path().join(format!("pods/{id}")).exists(), "{}", adaptor.log());
    adaptor.kill();
}

#[test]
fn a_pod_survives_a_link_that_is_cut_for_a_minute() {
    const CUT: Duration = Duration::from_secs(60);
    if !common::only_with_all("a_pod_survives_a_link") {
        return;
    }
    if !common::can_run_vms("a_pod_survives_a_link") || !netns::can_make_namespaces("a_pod_survives_a_link") {
        return;
    }
    let mut adaptor = Adaptor::start(&[]);
    let (player, root, net) = (Player::new(), Rootfs::new(), netns::Pod::new());
    let script = "n=0; while true; do n=$((n+1)); echo $n > /n; sleep 1; done";
    let pod = PeerPod::start(&adaptor.socket(), &player, spec(root.path(), &["sh", "-c", script], Some(&net.pod.path()), json!({})), &[]);
    let link = fs::read(adaptor.dir.path().join(format!("pods/{}/vm/link", pod.id))).unwrap();
    let link: serde_json::Value = serde_json::from_slice(&link).unwrap();
    let tap = link["tap"].as_str().unwrap();
    let before: u32 = pod.exec("cat /n").trim().parse().unwrap();
    netns::sh(&format!("ip link set {tap} down"));
    std::thread::sleep(CUT);
    netns::sh(&format!("ip link set {tap} up"));
    let since = std::time::Instant::now();
    let after: u32 = pod.exec("cat /n").trim().parse().unwrap();
    println!("exec answered {} ms after the link was back", since.elapsed().as_millis());
    assert!(after > before + 30, "{before} {after}");
    net.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));
    let log = pod.end();
    assert!(!log.contains("level=error"), "{log}");
    adaptor.kill();
}
