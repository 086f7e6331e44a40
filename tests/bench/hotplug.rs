//! `scripts/bench hotplug`: from the request for 2 vCPUs and 1 GiB until a container has them, beside the time that the guest's
//! kernel takes to bring the same processors and memory blocks online.

#[path = "../common/mod.rs"]
mod harness;

mod common;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{RUNS, median, report, run, timed};
use harness::containerd::Containerd;
use harness::{name, until};
use osc::rpc::wire::google::{Any, Empty};
use osc::rpc::wire::task::UpdateTaskRequest;
use osc::rpc::{Client, Stream};

/// What is asked for, in addition to 1 vCPU and 2 GiB.
const MEMORY: i64 = 1 << 30;

fn main() -> ExitCode {
    let osc: PathBuf = std::env::var_os("OSC_BIN").expect("OSC_BIN names the binary").into();
    run(&osc, &["image", "build", "--if-needed"]);
    let cd = Containerd::start();
    let (mut ours, mut kernels) = (vec![], vec![]);
    for i in 0..RUNS {
        // Each in a VM of its own: a processor that was plugged once stays plugged.
        let (ms, kernel) = one(&cd);
        ours.push(ms);
        kernels.push(kernel);
        eprintln!("hotplug {}/{RUNS}: {ms:.1} ms, the kernel {kernel:.1} ms", i + 1);
    }
    report(
        "hotplug",
        &[
            timed("2 vCPUs and 1 GiB brought online by the kernel", &kernels, "ms", None, ""),
            timed("the same, from the request to usable", &ours, "ms", Some(median(&kernels)), "<= 1.5"),
        ],
    )
}

/// (ours, the kernel's own), ms.
fn one(cd: &Containerd) -> (f64, f64) {
    let id = name("bench");
    cd.background_with(&["--privileged"], &id, &["sleep", "3600"]);
    until("it runs", || (cd.state(&id) == "RUNNING").then_some(()));
    let exec = |script: &str| {
        let out = cd.exec(&id, &name("exec"), &["sh", "-c", script]);
        assert_eq!(out.status, 0, "{script}: {out:?}");
        out.stdout.trim().to_owned()
    };
    let total = || exec("grep MemTotal /proc/meminfo | awk '{print $2}'").parse::<i64>().unwrap();
    let blocks = || exec("ls -d /sys/devices/system/memory/memory[0-9]*");
    let (memory, there) = (total(), blocks());
    let client = Client::new(Stream::from(UnixStream::connect(format!("/run/osc/{id}/shim.sock")).unwrap()));
    let resources = serde_json::json!({"cpu": {"quota": 200_000, "period": 100_000}, "memory": {"limit": MEMORY}});
    let any = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: serde_json::to_vec(&resources).unwrap(),
    };
    let request = UpdateTaskRequest { id: id.clone(), resources: Some(any), ..Default::default() };
    let begun = Instant::now();
    let _: Empty = client.call("containerd.task.v2.Task", "Update", &request, Some(Duration::from_secs(60))).unwrap();
    let took = begun.elapsed().as_secs_f64() * 1e3;
    // The answer says that all of it is there.
    assert_eq!(exec("nproc; grep Cpus_allowed_list /proc/self/status | cut -f2"), "3\n0-2");
    assert!(total() - memory > MEMORY / 1024 * 95 / 100, "{memory} KiB, then {}", total());
    let there: Vec<&str> = there.lines().collect();
    let all = blocks();
    let new: Vec<&str> = all.lines().filter(|b| !there.contains(b)).collect();
    let kernel = again(&exec, &new);
    cd.remove(&id);
    (took, kernel)
}

/// Takes the processors and blocks offline, and times how long the kernel takes to have them online again, ms. Its own clock:
/// in nanoseconds, and read without a program of ours. A block that holds something by now stays, and is taken to cost what
/// the others do.
fn again(exec: &dyn Fn(&str) -> String, blocks: &[&str]) -> f64 {
    let states: String = blocks.iter().map(|b| format!("{b}/state ")).collect();
    let script = format!(
        "cpus='/sys/devices/system/cpu/cpu1/online /sys/devices/system/cpu/cpu2/online'
         now() {{ awk '/^now at/ {{ print $3; exit }}' /proc/timer_list; }}
         for f in $cpus; do echo 0 >$f || exit 1; done
         free= n=0
         for f in {states}; do if (echo offline >$f) 2>/dev/null; then free=\"$free $f\"; n=$((n+1)); fi; done
         a=$(now)
         for f in $cpus; do echo 1 >$f || exit 1; done
         b=$(now)
         for f in $free; do echo online >$f || exit 1; done
         c=$(now)
         d=$(now)
         echo $a $b $c $d $n"
    );
    let clock: Vec<f64> = exec(&script).split(' ').map(|n| n.parse().unwrap()).collect();
    let &[a, b, c, d, free] = clock.as_slice() else { panic!("{clock:?}") };
    assert!(free > 0.0, "every one of {} blocks is in use", blocks.len());
    // Reading the clock takes its time, too.
    let reading = d - c;
    ((b - a - reading) + (c - b - reading) * blocks.len() as f64 / free) / 1e6
}
