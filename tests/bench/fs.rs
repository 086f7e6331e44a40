//! `scripts/bench fs`: a volume in a container beside the same directory in the do-nothing guest, mounted there by hand from
//! the same daemon with the same options. Each run has files that nobody in its guest has read.

mod common;
mod files;

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use common::{Guest, Row, median, report, run};
use osc::fs::virtiofsd::{Options, Virtiofsd};

const RUNS: usize = 5;

fn main() -> ExitCode {
    let osc: PathBuf = std::env::var_os("OSC_BIN").expect("OSC_BIN names the binary").into();
    let init: PathBuf = std::env::var_os("BENCH_INIT").expect("BENCH_INIT names the do-nothing init").into();
    let dir = tempfile::tempdir().unwrap();
    run(&osc, &["image", "build", "--if-needed"]);
    let socket = dir.path().join("virtiofsd.sock");
    let guest = Guest::with_share(&osc, &init, dir.path(), &socket);
    let (mut by_hand, mut in_pod) = (vec![], vec![]);
    for n in 0..RUNS {
        let tree = || {
            let tree = tempfile::tempdir_in(dir.path()).unwrap();
            files::lay_out(tree.path()).unwrap();
            tree
        };
        by_hand.push(hand_mounted(&guest, tree().path(), &socket));
        in_pod.push(container(&osc, &init, tree().path()));
        eprintln!("fs {}/{RUNS}", n + 1);
    }
    let column = |runs: &[Vec<f64>], step: usize| runs.iter().map(|r| r[step]).collect::<Vec<f64>>();
    let rows: Vec<Row> = files::STEPS
        .iter()
        .enumerate()
        .map(|(n, name)| Row {
            name,
            // Speed: how often it could be done in a second.
            value: 1.0 / median(&column(&in_pod, n)),
            unit: "/s",
            quartiles: None,
            baseline: Some(1.0 / median(&column(&by_hand, n))),
            goal: ">= 0.95",
        })
        .collect();
    report("fs", &rows)
}

/// Seconds of each step.
fn seconds(from: impl BufRead) -> Vec<f64> {
    let lines: Vec<String> = from.lines().map_while(Result::ok).map(|l| l.trim().to_owned()).take_while(|l| l != "end").collect();
    let value = |step: &&str| lines.iter().find_map(|l| l.strip_prefix(*step)?.trim().parse().ok());
    let all: Option<Vec<f64>> = files::STEPS.iter().map(value).collect();
    all.unwrap_or_else(|| panic!("{lines:?}"))
}

fn hand_mounted(guest: &Guest, tree: &Path, socket: &Path) -> Vec<f64> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let daemon = Virtiofsd::start(&Options::default(), tree, listener, &()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = guest.start("fs", theirs.into());
    ours.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let list = seconds(BufReader::new(&ours));
    child.signal(libc::SIGKILL);
    child.wait().unwrap();
    daemon.stop();
    list
}

fn container(osc: &Path, init: &Path, tree: &Path) -> Vec<f64> {
    let (program, volume) = (format!("{}:/program:ro", init.display()), format!("{}:/v", tree.display()));
    let args = ["run", "--network", "none", "--volume", &program, "--volume", &volume, "--env", "BENCH_FILES=/v", "--", "/program"];
    seconds(BufReader::new(run(osc, &args).0.as_bytes()))
}
