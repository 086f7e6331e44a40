//! Quick calls stay quick beside calls that wait and calls that are large.

mod common;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Background, Rootfs, can_run_vms};
use osc::rpc::wire::google::{Any, Empty};
use osc::rpc::wire::oci::Process;
use osc::rpc::wire::task::{ExecProcessRequest, StartRequest, StartResponse, StateRequest, StateResponse, WaitRequest, WaitResponse};
use osc::rpc::{Client, Code, Stream};

const TASK: &str = "containerd.task.v2.Task";

#[test]
fn state_is_answered_at_once_beside_a_wait_and_large_calls() {
    if !can_run_vms("latency") {
        return;
    }
    let root = Rootfs::new();
    let b = Background::start("latency", &["--rootfs", &root.arg()], &["sleep", "600"]);
    let client = Client::new(Stream::from(UnixStream::connect(format!("/run/osc/{}/shim.sock", b.name)).unwrap()));
    let waiting = client.clone();
    let id = b.name.clone();
    let wait = std::thread::spawn(move || {
        let _: Result<WaitResponse, _> = waiting.call(TASK, "Wait", &WaitRequest { id, ..Default::default() }, None);
    });
    // Nearly 4 MiB of environment, through to the guest, which refuses it: the call itself is what counts.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (large, stopping, id) = (client.clone(), stop.clone(), b.name.clone());
    let bulk = std::thread::spawn(move || {
        let env: Vec<String> = (0..30).map(|i| format!("V{i}={}", "x".repeat(120_000))).collect();
        let process = Process { args: vec!["true".into()], env, ..Default::default() };
        let mut sent = 0;
        while !stopping.load(std::sync::atomic::Ordering::Relaxed) {
            let exec_id = format!("large-{sent}");
            let spec = Some(Any { type_url: "x/Process".into(), value: serde_json::to_vec(&process).unwrap() });
            let request = ExecProcessRequest { id: id.clone(), exec_id: exec_id.clone(), spec, ..Default::default() };
            let added: Result<Empty, _> = large.call(TASK, "Exec", &request, None);
            added.unwrap();
            let _: Result<StartResponse, _> = large.call(TASK, "Start", &StartRequest { id: id.clone(), exec_id }, None);
            sent += 1;
        }
        sent
    });
    let mut took = Vec::new();
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let start = Instant::now();
        let state: StateResponse = client.call(TASK, "State", &StateRequest { id: b.name.clone(), ..Default::default() }, None).unwrap();
        took.push(start.elapsed());
        assert_eq!(state.status, 2);
        std::thread::sleep(Duration::from_millis(2));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let sent = bulk.join().unwrap();
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    println!("{} State calls beside {sent} large ones: median {:?}, p99 {p99:?}", took.len(), took[took.len() / 2]);
    assert!(sent > 0 && p99 < Duration::from_millis(50), "p99 {p99:?}, {sent} large calls");
    let unknown: Result<StateResponse, _> = client.call(TASK, "State", &StateRequest { id: "no-such".into(), ..Default::default() }, None);
    assert_eq!(unknown.unwrap_err().code, Code::NotFound);
    drop(b);
    wait.join().unwrap();
}
