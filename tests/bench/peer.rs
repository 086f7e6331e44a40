//! `scripts/bench peer`: a pod VM of the provider `qemu` beside the do-nothing guest, phase by phase; the tunnel beside a plain veth; what
//! a pod VM's disk takes.

#[path = "../common/adaptor.rs"]
mod adaptor;
#[path = "common.rs"]
mod bench;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/netns.rs"]
mod netns;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use adaptor::{Adaptor, healthy};
use bench::{Guest, RUNS, Row, median, report, run, swallow, timed};
use netns::{Netns, POD_V4, Pod, sh};
use osc::net::vxlan::{self, FIRST_VNI, PORT};
use osc::net::{Namespace, endpoint};
use osc::rpc::Client;
use osc::vm::remote::Remote;
use osc::vm::{Vm, port};

/// What is sent to measure a network.
const TOTAL: usize = 1 << 30;
const BLOCK: usize = 256 << 10;
const SINK: u16 = 7000;

/// A pod VM's image of the field, MB (`field/peerpods.md`, section 6).
const FIELD_IMAGE: f64 = 631.0 * 1.048_576;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("sink") => {
            sink();
            return ExitCode::SUCCESS;
        }
        Some("source") => {
            source(&args[2]);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let osc: PathBuf = std::env::var_os("OSC_BIN").expect("OSC_BIN names the binary").into();
    let init: PathBuf = std::env::var_os("BENCH_INIT").expect("BENCH_INIT names the do-nothing init").into();
    let dir = tempfile::tempdir().unwrap();
    run(&osc, &["image", "build", "--if-needed"]);
    let guest = Guest::new(&osc, &init, dir.path());
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut adaptor = Adaptor::start(&["--metrics", &metrics]);
    let (mut nothing, mut start, mut phases) = (vec![], vec![], BTreeMap::<String, Vec<f64>>::new());
    // Once beforehand: caches are warm for both.
    guest.power_off();
    pod_vm(&adaptor);
    let mut sums = phase_sums(&metrics);
    for i in 0..RUNS {
        nothing.push(guest.power_off());
        start.push(pod_vm(&adaptor));
        let now = phase_sums(&metrics);
        for (phase, sum) in &now {
            phases.entry(phase.clone()).or_default().push((sum - sums.get(phase).copied().unwrap_or_default()) * 1e3);
        }
        sums = now;
        eprintln!("peer {}/{RUNS}", i + 1);
    }
    adaptor.kill();
    let base = median(&nothing);
    let mut rows = vec![
        timed("do-nothing guest, exec to power-off", &nothing, "ms", None, ""),
        timed("CreateVM to the agent's answer", &start, "ms", Some(base), "<= 1.3"),
    ];
    for (phase, name) in [
        ("create", "  of it: the provider makes the VM"),
        ("boot", "  of it: until its forwarder answers"),
        ("delete", "afterwards: the VM goes"),
    ] {
        rows.extend(phases.get(phase).map(|list| timed(name, list, "ms", None, "")));
    }
    let (mut plain, mut tunnel) = (vec![], vec![]);
    for _ in 0..5 {
        plain.push(through_veth());
        tunnel.push(through_tunnel());
    }
    rows.push(timed("TCP through a veth", &plain, "MB/s", None, ""));
    rows.push(timed("TCP through the tunnel", &tunnel, "MB/s", Some(median(&plain)), ""));
    let disk = dir.path().join("disk.qcow2");
    run(&osc, &["image", "build", "--disk", "qcow2", "--output", &disk.to_string_lossy()]);
    let size = std::fs::metadata(&disk).unwrap().len() as f64 / 1e6;
    rows.push(Row {
        name: "pod VM disk (qcow2) beside the field's",
        value: size,
        unit: "MB",
        quartiles: None,
        baseline: Some(FIELD_IMAGE),
        goal: "<= 0.1",
    });
    report("peer", &rows)
}

/// From CreateVM until the agent has answered, ms.
fn pod_vm(adaptor: &Adaptor) -> f64 {
    let plan = adaptor.plan(&common::name("bench"), Default::default());
    let begun = Instant::now();
    let vm = Remote::start(plan).unwrap_or_else(|e| panic!("{e}\n{}", adaptor.log()));
    let client = Client::new(vm.dial(port::AGENT).unwrap());
    assert!(healthy(&client));
    let took = begun.elapsed();
    drop(client);
    vm.stop(Duration::ZERO);
    took.as_secs_f64() * 1e3
}

/// Seconds that each phase has taken so far.
fn phase_sums(metrics: &str) -> BTreeMap<String, f64> {
    let text = osc::rpc::http::get(TcpStream::connect(metrics).unwrap(), "/metrics", Duration::from_secs(5)).unwrap().1;
    let sums = text.lines().filter(|l| l.contains("_sum{phase=\""));
    sums.filter_map(|l| {
        let (phase, rest) = l.split_once("phase=\"")?.1.split_once('"')?;
        Some((phase.to_owned(), rest.split_whitespace().last()?.parse().ok()?))
    })
    .collect()
}

/// From the rest of the world to a pod on this host.
fn through_veth() -> f64 {
    let pod = Pod::new();
    throughput(&pod.peer, &pod.pod)
}

/// To a pod that is elsewhere: the worker and the VM are namespaces on a veth.
fn through_tunnel() -> f64 {
    let (worker, vm, pod, podns) = (Netns::new("worker"), Netns::new("vm"), Pod::new(), Netns::new("podns"));
    sh(&format!("ip link add ens0 netns {} type veth peer name ens0 netns {}", worker.name, vm.name));
    for (ns, address) in [(&worker, "192.0.2.1"), (&vm, "192.0.2.2")] {
        ns.run(&format!("ip addr add {address}/24 dev ens0"));
        ns.run("ip link set ens0 up");
    }
    let open = |ns: &Netns| Namespace::open(&ns.path()).unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let network = endpoint::look(&open(&pod.pod)).unwrap();
    for tunnel in vxlan::reserve(&open(&worker), &open(&pod.pod), PORT, FIRST_VNI).unwrap() {
        vxlan::connect(&open(&worker), &tunnel, ip("192.0.2.2")).unwrap();
        let interface = network.interfaces.iter().find(|i| i.link.name == tunnel.tie.link).unwrap();
        let mtu = vxlan::mtu_to(&mut open(&vm).netlink().unwrap(), ip("192.0.2.1")).unwrap();
        let end = vxlan::other_end(interface, &tunnel, ip("192.0.2.1"), mtu);
        vxlan::podvm(&open(&vm), &open(&podns), interface, &network.routes, &end).unwrap();
    }
    throughput(&pod.peer, &podns)
}

/// MB/s of one TCP connection.
fn throughput(from: &Netns, to: &Netns) -> f64 {
    let me = std::env::current_exe().unwrap();
    let inside = |ns: &Netns| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &ns.name]).arg(&me).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    };
    let mut sink = inside(to).arg("sink").spawn().unwrap();
    let mut out = sink.stdout.take().unwrap();
    // It says so when it listens.
    out.read_exact(&mut [0; 1]).unwrap();
    assert!(inside(from).args(["source", POD_V4]).status().unwrap().success());
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    sink.wait().unwrap();
    TOTAL as f64 / 1e6 / text.trim().parse::<f64>().unwrap()
}

/// Takes one connection; says how many seconds it took from its first byte.
fn sink() {
    let listener = TcpListener::bind(("0.0.0.0", SINK)).unwrap();
    println!();
    std::io::stdout().flush().unwrap();
    let mut stream = listener.accept().unwrap().0;
    let mut block = vec![0; BLOCK];
    let moved = stream.read(&mut block).unwrap();
    let begun = Instant::now();
    swallow(&mut stream, &mut block, moved, TOTAL);
    println!("{}", begun.elapsed().as_secs_f64());
}

fn source(address: &str) {
    let mut stream = TcpStream::connect((address, SINK)).unwrap();
    let block = vec![0; BLOCK];
    for _ in 0..TOTAL / BLOCK {
        stream.write_all(&block).unwrap();
    }
}
