//! `scripts/bench start`: a container under a real containerd, osc beside runc, and both beside the do-nothing guest.

#[path = "../common/mod.rs"]
mod harness;

mod common;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Guest, RUNS, footprint_of, median, report, run, throughput, timed, zeroes};
use harness::containerd::{Containerd, KATA, RUNC};
use harness::{name, until};

fn main() -> ExitCode {
    let osc: PathBuf = std::env::var_os("OSC_BIN").expect("OSC_BIN names the binary").into();
    let init: PathBuf = std::env::var_os("BENCH_INIT").expect("BENCH_INIT names the do-nothing init").into();
    let dir = tempfile::tempdir().unwrap();
    run(&osc, &["image", "build", "--if-needed"]);
    let guest = Guest::new(&osc, &init, dir.path());
    let cd = Containerd::start();

    let (mut nothing, mut runc, mut kata) = (vec![], vec![], vec![]);
    // Once each beforehand: caches are warm for all.
    first_byte(&cd, RUNC);
    first_byte(&cd, KATA);
    for i in 0..RUNS {
        nothing.push(guest.power_off());
        runc.push(first_byte(&cd, RUNC));
        kata.push(first_byte(&cd, KATA));
        eprintln!("start {}/{RUNS}", i + 1);
    }
    let (mut runc_out, mut kata_out) = (vec![], vec![]);
    for i in 0..5 {
        runc_out.push(stdout(&cd, RUNC));
        kata_out.push(stdout(&cd, KATA));
        eprintln!("throughput {}/5", i + 1);
    }
    let base = median(&nothing);
    let mut rows = vec![
        timed("do-nothing guest, exec to power-off", &nothing, "ms", None, ""),
        timed("ctr run to the first byte, kata", &kata, "ms", Some(base), "<= 1.35"),
        timed("ctr run to the first byte, runc", &runc, "ms", Some(base), ""),
        timed("stdout through ctr run, kata beside runc", &kata_out, "MB/s", Some(median(&runc_out)), ""),
    ];
    let id = name("bench");
    cd.background_with(&[], &id, &["sleep", "3600"]);
    until("it runs", || (cd.state(&id) == "RUNNING").then_some(()));
    // What the start still had in hand is let go of.
    std::thread::sleep(Duration::from_secs(3));
    rows.extend(footprint_of(&id, "containerd-shim-kata"));
    cd.remove(&id);
    report("start", &rows)
}

/// From the exec of `ctr run` to the first byte of its command, ms.
fn first_byte(cd: &Containerd, runtime: &str) -> f64 {
    let id = name("bench");
    let begun = Instant::now();
    let mut child = cd.run_command(&["--rm", "--runtime", runtime], &id, &["echo", "x"]).spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    let took = begun.elapsed();
    assert_eq!(harness::finish(child).status, 0);
    took.as_secs_f64() * 1e3
}

/// stdout of a command from its first byte on, MB/s.
fn stdout(cd: &Containerd, runtime: &str) -> f64 {
    throughput(cd.run_command(&["--rm", "--runtime", runtime], &name("bench"), &["sh", "-c", &zeroes()]).spawn().unwrap())
}
