//! Kata's management socket, `osc metrics`, `osc monitor` and `osc top`, on pods of a real containerd.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::containerd::{Containerd, can_run_containerd};
use common::{assert_clean, command, finish, kill, name, osc, pids, run, until};

/// Every metric that Kata's documents name and that this runtime can fill: what there is of Go's own runtime has nothing
/// behind it here. A guest without a disk has no `kata_guest_diskstat`.
const OF_A_SANDBOX: &[&str] = &[
    "kata_agent_io_stat",
    "kata_agent_proc_stat",
    "kata_agent_proc_status",
    "kata_agent_process_cpu_seconds_total",
    "kata_agent_process_max_fds",
    "kata_agent_process_open_fds",
    "kata_agent_process_resident_memory_bytes",
    "kata_agent_process_start_time_seconds",
    "kata_agent_process_virtual_memory_bytes",
    "kata_agent_scrape_count",
    "kata_agent_threads",
    "kata_agent_total_rss",
    "kata_agent_total_time",
    "kata_agent_total_vm",
    "kata_guest_cpu_time",
    "kata_guest_filesystem_bytes",
    "kata_guest_filesystem_inodes",
    "kata_guest_load",
    "kata_guest_meminfo",
    "kata_guest_netdev_stat",
    "kata_guest_tasks",
    "kata_guest_vm_stat",
    "kata_hypervisor_fds",
    "kata_hypervisor_io_stat",
    "kata_hypervisor_netdev",
    "kata_hypervisor_proc_stat",
    "kata_hypervisor_proc_status",
    "kata_hypervisor_threads",
    "kata_shim_agent_rpc_durations_histogram_milliseconds_bucket",
    "kata_shim_fds",
    "kata_shim_io_stat",
    "kata_shim_netdev",
    "kata_shim_pod_overhead_cpu",
    "kata_shim_pod_overhead_memory_in_bytes",
    "kata_shim_proc_stat",
    "kata_shim_proc_status",
    "kata_shim_process_cpu_seconds_total",
    "kata_shim_process_max_fds",
    "kata_shim_process_open_fds",
    "kata_shim_process_resident_memory_bytes",
    "kata_shim_process_start_time_seconds",
    "kata_shim_process_virtual_memory_bytes",
    "kata_shim_process_virtual_memory_max_bytes",
    "kata_shim_rpc_durations_histogram_milliseconds_bucket",
    "kata_shim_threads",
    "kata_virtiofsd_fds",
    "kata_virtiofsd_io_stat",
    "kata_virtiofsd_proc_stat",
    "kata_virtiofsd_proc_status",
    "kata_virtiofsd_threads",
];

const OF_THE_MONITOR: &[&str] = &[
    "kata_monitor_process_cpu_seconds_total",
    "kata_monitor_process_max_fds",
    "kata_monitor_process_open_fds",
    "kata_monitor_process_resident_memory_bytes",
    "kata_monitor_process_start_time_seconds",
    "kata_monitor_process_virtual_memory_bytes",
    "kata_monitor_process_virtual_memory_max_bytes",
    "kata_monitor_running_shim_count",
    "kata_monitor_scrape_count",
    "kata_monitor_scrape_durations_histogram_milliseconds_bucket",
    "kata_monitor_scrape_failed_count",
];

/// Names of all samples.
fn names(text: &str) -> BTreeSet<&str> {
    text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect()
}

fn assert_has(text: &str, wanted: &[&str]) {
    let names = names(text);
    let missing: Vec<&&str> = wanted.iter().filter(|w| !names.contains(**w)).collect();
    assert!(missing.is_empty(), "no sample of {missing:?} in:\n{text}");
}

/// The value of the sample that begins so.
fn value(text: &str, start: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("no {start} in:\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// What a text for Prometheus may not be: a family in two places, a sample twice, a number that is none.
fn assert_well_formed(text: &str) {
    let (mut families, mut samples) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(rest.split(' ').next().unwrap()), "{line}: announced twice");
        } else if !line.starts_with('#') {
            let (sample, number) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            assert!(samples.insert(sample), "{sample}: twice");
            number.parse::<f64>().unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}

/// `osc monitor` on a port of its own.
struct Monitor {
    child: Child,
    address: String,
}

impl Monitor {
    fn start() -> Monitor {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let child = command(["monitor", "--listen-address", &address]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("monitor", || TcpStream::connect(&address).ok());
        Monitor { child, address }
    }

    fn ask(&self, request: &str) -> (u16, String) {
        exchange(TcpStream::connect(&self.address).unwrap(), request)
    }

    fn get(&self, path: &str) -> String {
        let (status, body) = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn proc_field(pid: i32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn assert_near(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= want * 0.25 + 16.0, "{what}: {got}, /proc says {want}");
}

#[test]
fn every_figure_is_there_and_agrees_with_proc() {
    if !can_run_containerd("metrics") {
        return;
    }
    let cd = Containerd::start();
    let (a, b) = (name("metrics-a"), name("metrics-b"));
    let pod = |key: &str, value: &str| format!("io.kubernetes.cri.sandbox-{key}={value}");
    let (named, space) = (pod("name", "web"), pod("namespace", "shop"));
    let secret = "SECRET=mellon-3141";
    cd.background_with(
        &["--annotation", &named, "--annotation", &space, "--env", secret],
        &a,
        &["sh", "-c", "while :; do sleep 0.1; done"],
    );
    cd.background(&b);
    let out = run(["metrics", &a]);
    assert_eq!(out.status, 0, "{out:?}");
    let text = out.stdout;
    assert_has(&text, OF_A_SANDBOX);
    assert_well_formed(&text);
    assert!(text.contains("cri_name=\"web\",cri_namespace=\"shop\""), "{text}");

    let (shim, qemu) = (pids(&a, "containerd-shim")[0], pids(&a, "qemu")[0]);
    for (prefix, pid) in [("kata_shim", shim), ("kata_hypervisor", qemu)] {
        assert_near(prefix, value(&text, &format!("{prefix}_threads ")), proc_field(pid, "Threads:"));
        let rss = value(&text, &format!("{prefix}_proc_status{{item=\"vmrss\"}}"));
        assert_near(prefix, rss / 1024.0, proc_field(pid, "VmRSS:"));
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert_near(prefix, value(&text, &format!("{prefix}_fds ")), fds as f64);
    }
    // The guest's own figures are what a container sees in its /proc.
    let total = value(&text, "kata_guest_meminfo{item=\"mem_total\"}") / 1024.0;
    let seen = cd.exec(&a, "e1", &["grep", "MemTotal", "/proc/meminfo"]).stdout;
    assert_eq!(seen.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap(), total);
    let overhead = value(&text, "kata_shim_pod_overhead_memory_in_bytes ");
    assert!((20e6..2e9).contains(&overhead), "{overhead}");
    assert!(value(&text, "kata_shim_rpc_durations_histogram_milliseconds_count{action=\"create\"}") >= 1.0);
    assert!(value(&text, "kata_shim_agent_rpc_durations_histogram_milliseconds_count{action=\"grpc.CreateContainerRequest\"}") >= 1.0);
    // Counters count.
    let again = run(["metrics", &a]).stdout;
    assert_eq!(value(&again, "kata_agent_scrape_count "), value(&text, "kata_agent_scrape_count ") + 1.0);

    all_sandboxes(&a, &b);
    hang(&a);
    // No line of a log, no record has what only the container may know.
    assert!(!cd.log().contains("mellon"), "{}", cd.log());
    assert!(!fs::read_to_string(format!("/run/osc/{a}/record")).unwrap().contains("mellon"));
    assert!(cd.log().lines().any(|l| l.contains(&a)), "no line names the sandbox");
    cd.remove(&a);
    cd.remove(&b);
    assert_clean(&a);
}

/// The monitor sees both, as one text; one that dies disappears.
fn all_sandboxes(a: &str, b: &str) {
    let monitor = Monitor::start();
    let ids = monitor.get("/sandboxes");
    assert!(ids.lines().any(|l| l == a) && ids.lines().any(|l| l == b), "{ids}");
    let text = monitor.get("/metrics");
    assert_has(&text, OF_A_SANDBOX);
    assert_has(&text, OF_THE_MONITOR);
    assert_well_formed(&text);
    assert!(
        text.contains(&format!("kata_shim_threads{{sandbox_id=\"{a}\",cri_uid=\"\",cri_name=\"web\",cri_namespace=\"shop\"}} ")),
        "{text}"
    );
    assert!(value(&text, "kata_monitor_running_shim_count ") >= 2.0);
    assert_has(&monitor.get(&format!("/metrics?sandbox={b}")), OF_A_SANDBOX);
    let url = monitor.get(&format!("/agent-url?sandbox={b}"));
    assert!(url.starts_with("virtio-serial://") || url.starts_with("vsock://"), "{url}");

    let top = run(["top", "--once", "-d", "0.5"]).stdout;
    assert!(top.contains("shop/web") && top.contains(&a[..16]), "{top}");
    let json = run(["top", "--once", "--json", "-d", "0.5"]).stdout;
    let row = json.lines().find(|l| l.contains(a)).unwrap();
    let row: serde_json::Value = serde_json::from_str(row).unwrap();
    assert!(row["vcpus"] == 1 && row["memory"].as_u64().unwrap() > 1 << 30 && row["overhead"].as_u64().unwrap() > 0, "{row}");

    // A sandbox that ends is in none of the answers.
    let gone = common::Background::start("metrics-gone", &["--memory", "256M"], &["sleep", "3600"]);
    let id = gone.name.clone();
    assert!(monitor.get("/sandboxes").lines().any(|l| l == id));
    assert_has(&monitor.get(&format!("/metrics?sandbox={id}")), &["kata_guest_load", "kata_shim_fds"]);
    kill(pids(&id, "osc").into_iter().find(|p| fs::read_link(format!("/proc/{p}/exe")).is_ok_and(|e| e == osc())).unwrap());
    until("gone from the list", || (!monitor.get("/sandboxes").contains(&id)).then_some(()));
    assert!(!monitor.get("/metrics").contains(&id));
    assert_eq!(monitor.ask(&format!("GET /metrics?sandbox={id} HTTP/1.1\r\n\r\n")).0, 404);
    let out = run(["metrics", &id]);
    assert!(out.status != 0 && out.stderr.contains(&id), "{out:?}");
    run(["reap"]);
    assert_clean(&id);

    for (request, status) in [
        ("GET /none HTTP/1.1\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\n\r\n", 405),
        ("GET /agent-url HTTP/1.1\r\n\r\n", 400),
        ("GET /agent-url?sandbox=none HTTP/1.1\r\n\r\n", 404),
        ("nonsense\r\n\r\n", 400),
    ] {
        assert_eq!(monitor.ask(request).0, status, "{request}");
    }
    // Clients that say nothing hold up nobody.
    let _idle: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(&monitor.address).unwrap()).collect();
    let began = Instant::now();
    monitor.get("/sandboxes");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

/// Clients of a shim that say nothing, or half of something: others are served, and the shim forgets them.
fn hang(id: &str) {
    let socket = format!("/run/kata/{id}/shim-monitor.sock");
    let shim = pids(id, "containerd-shim")[0];
    // Those that serve the Task API may stay for the next call.
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{shim}/task")).unwrap().flatten();
        tasks.filter(|t| fs::read_to_string(t.path().join("comm")).is_ok_and(|c| c.trim() == "http")).count()
    };
    let mut idle: Vec<UnixStream> = (0..4).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    idle[0].write_all(b"GET /metr").unwrap();
    until("they are served", || (threads() == 4).then_some(()));
    assert_eq!(run(["metrics", id]).status, 0);
    assert_eq!(exchange(UnixStream::connect(&socket).unwrap(), "GET /none HTTP/1.1\r\n\r\n").0, 404);
    let exec = finish(command(["exec", id, "--", "true"]).spawn().unwrap());
    assert_eq!(exec.status, 0, "{exec:?}");
    until("threads of idle clients are gone", || (threads() == 0).then_some(()));
}

/// Every name in the dashboard is one that is told.
#[test]
fn the_dashboard_asks_for_what_there_is() {
    let text = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/grafana/pods.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut asked = 0;
    for target in dashboard["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap()) {
        let expression = target["expr"].as_str().unwrap();
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|w| w.starts_with("kata_")) {
            assert!(OF_A_SANDBOX.contains(&name) || OF_THE_MONITOR.contains(&name), "{name} in {expression}");
            asked += 1;
        }
    }
    assert!(asked >= 12, "{asked}");
}
