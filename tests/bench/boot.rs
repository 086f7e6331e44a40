//! `scripts/bench boot`: how long a start takes, what a sandbox costs, and how fast bytes move, each as a ratio to what the
//! same kernel and the same QEMU do with nothing of ours in the guest. Everything in one run, interleaved; medians.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use osc::process::{Ended, Spawn};
use serde_json::json;

const RUNS: usize = 11;

/// What is moved to measure throughput: as in the guest's `init`.
const TOTAL: usize = 100 << 20;
const BLOCK: usize = 64 << 10;

/// A figure and what it is compared with.
struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    quartiles: Option<(f64, f64)>,
    baseline: Option<f64>,
    goal: &'static str,
}

fn main() {
    let osc: PathBuf = std::env::var_os("OSC_BIN").expect("OSC_BIN names the binary").into();
    let init: PathBuf = std::env::var_os("BENCH_INIT").expect("BENCH_INIT names the do-nothing init").into();
    let dir = tempfile::tempdir().unwrap();
    run(&osc, &["image", "build", "--if-needed"]);
    let guest = Guest::new(&osc, &init, dir.path());

    let (mut nothing, mut ready, mut whole) = (vec![], vec![], vec![]);
    for i in 0..RUNS {
        nothing.push(guest.power_off());
        let start = Instant::now();
        let text = run(&osc, &["run", "--timings", "--", "true"]).1;
        whole.push(start.elapsed().as_secs_f64() * 1e3);
        ready.push(phase(&text, "qemu") + phase(&text, "guest boot"));
        eprintln!("boot {}/{RUNS}", i + 1);
    }
    let (mut raw_out, mut raw_in, mut out, mut inward) = (vec![], vec![], vec![], vec![]);
    for i in 0..RUNS.min(5) {
        raw_out.push(guest.transfer("out"));
        out.push(stdout(&osc));
        raw_in.push(guest.transfer("in"));
        inward.push(stdin(&osc));
        eprintln!("throughput {}/5", i + 1);
    }
    let builds = (0..RUNS).map(|_| build(&osc, dir.path())).collect::<Vec<_>>();

    let base = median(&nothing);
    let timed = |name, list: &[f64], unit, baseline, goal| Row {
        name,
        value: median(list),
        unit,
        quartiles: Some((quantile(list, 0.25), quantile(list, 0.75))),
        baseline,
        goal,
    };
    let mut rows = vec![
        timed("do-nothing guest, exec to power-off", &nothing, "ms", None, ""),
        timed("exec of QEMU to agent ready", &ready, "ms", Some(base), "<= 1.15"),
        timed("osc run -- true, whole", &whole, "ms", Some(base), ""),
        timed("stdout, 64 KiB blocks", &out, "MB/s", Some(median(&raw_out)), ">= 0.5"),
        timed("stdin, 64 KiB blocks", &inward, "MB/s", Some(median(&raw_in)), ""),
        timed("initrd build", &builds, "ms", None, ""),
    ];
    rows.extend(footprint(&osc));
    rows.extend(sizes(&osc));
    report(&rows);
}

fn run(osc: &Path, args: &[&str]) -> (String, String) {
    let out = Command::new(osc).args(args).stdin(Stdio::null()).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(out.status.success(), "osc {args:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

/// A phase's length in what `--timings` draws, ms.
fn phase(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line[name.len()..].split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn quantile(list: &[f64], q: f64) -> f64 {
    let mut sorted = list.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn median(list: &[f64]) -> f64 {
    quantile(list, 0.5)
}

/// The guest with nothing of ours in it: osc's own kernel, QEMU options and initrd, with another PID 1 in front.
struct Guest {
    program: PathBuf,
    args: Vec<String>,
    initrd: PathBuf,
}

impl Guest {
    fn new(osc: &Path, init: &Path, dir: &Path) -> Guest {
        let line = run(osc, &["run", "--dry-run", "--", "true"]).0;
        let mut words = shell_words(&line).into_iter();
        let program = words.next().unwrap().into();
        let mut args: Vec<String> = words.collect();
        let value = |args: &[String], flag: &str| args[args.iter().position(|a| a == flag).unwrap() + 1].clone();
        // Ours first, raw; what follows is theirs, compressed. The kernel unpacks one after the other.
        let initrd = dir.join("initrd");
        let mut archive = Vec::new();
        let data = fs::read(init).unwrap();
        let mut w = cpio::newc::Builder::new("bench-init").mode(0o100755).write(&mut archive, data.len() as u32);
        w.write_all(&data).unwrap();
        w.finish().unwrap();
        let mut archive = cpio::newc::trailer(archive).unwrap();
        archive.resize(archive.len().next_multiple_of(512), 0);
        archive.extend(fs::read(value(&args, "-initrd")).unwrap());
        fs::write(&initrd, archive).unwrap();
        // The share needs a daemon, and QMP somebody who listens.
        remove(&mut args, |a| a.starts_with("socket,id=slot") || a.starts_with("vhost-user-fs-pci"));
        remove(&mut args, |a| a.starts_with("file,id=console") || a == "chardev:console");
        remove(&mut args, |a| a.starts_with("socket,id=qmp") || a == "chardev=qmp,mode=control");
        args.extend(["-serial", "null"].map(str::to_owned));
        Guest { program, args, initrd }
    }

    fn start(&self, mode: &str, mux: OwnedFd) -> osc::process::Child {
        let mut args = self.args.clone();
        let at = |args: &[String], flag: &str| args.iter().position(|a| a == flag).unwrap() + 1;
        let i = at(&args, "-initrd");
        args[i] = self.initrd.to_string_lossy().into_owned();
        let a = at(&args, "-append");
        args[a].push_str(&format!(" rdinit=/bench-init bench={mode}"));
        let agent = UnixStream::pair().unwrap();
        // The numbers that the options name: 4 the agent's port, 5 the mux's.
        Spawn::new(&self.program).args(args).fd(agent.0, 4).fd(mux, 5).death_signal(libc::SIGKILL).start().unwrap()
    }

    /// From exec to the end, ms.
    fn power_off(&self) -> f64 {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let child = self.start("off", theirs.into());
        let ended = child.wait_within(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(ended, Some(Ended::Exited(0)), "the do-nothing guest");
        start.elapsed().as_secs_f64() * 1e3
    }

    /// Throughput of a bare port, MB/s.
    fn transfer(&self, mode: &str) -> f64 {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let child = self.start(mode, theirs.into());
        let mut block = vec![0; BLOCK];
        ours.read_exact(&mut block[..1]).unwrap();
        let start = Instant::now();
        if mode == "out" {
            let mut moved = 0;
            while moved < TOTAL {
                moved += ours.read(&mut block).unwrap();
            }
        } else {
            for _ in 0..TOTAL / BLOCK {
                ours.write_all(&block).unwrap();
            }
            ours.read_exact(&mut block[..1]).unwrap();
        }
        let took = start.elapsed();
        child.signal(libc::SIGKILL);
        child.wait().unwrap();
        TOTAL as f64 / 1e6 / took.as_secs_f64()
    }
}

/// Takes out the values that `wanted` names, with the option before each.
fn remove(args: &mut Vec<String>, wanted: impl Fn(&str) -> bool) {
    while let Some(i) = args.iter().position(|a| wanted(a)) {
        args.drain(i - 1..=i);
    }
}

/// The words of a line as `osc run --dry-run` quotes them.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.trim().chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words
}

const SCRIPT: &str = "echo; cat /dev/zero";

/// stdout of a command, from its first line on, MB/s.
fn stdout(osc: &Path) -> f64 {
    let mut child = Command::new(osc).args(["run", "--", "sh", "-c", SCRIPT]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut from = child.stdout.take().unwrap();
    let mut block = vec![0; BLOCK];
    from.read_exact(&mut block[..1]).unwrap();
    let start = Instant::now();
    let mut moved = 0;
    while moved < TOTAL {
        moved += from.read(&mut block).unwrap();
    }
    let took = start.elapsed();
    drop(from);
    child.wait().unwrap();
    TOTAL as f64 / 1e6 / took.as_secs_f64()
}

/// stdin of a command, MB/s.
fn stdin(osc: &Path) -> f64 {
    let script = "echo; cat >/dev/null; echo";
    let mut child = Command::new(osc).args(["run", "--", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut line = [0];
    from.read_exact(&mut line).unwrap();
    let start = Instant::now();
    let block = vec![0; BLOCK];
    for _ in 0..TOTAL / BLOCK {
        to.write_all(&block).unwrap();
    }
    drop(to);
    from.read_exact(&mut line).unwrap();
    let took = start.elapsed();
    child.wait().unwrap();
    TOTAL as f64 / 1e6 / took.as_secs_f64()
}

/// One image build, ms, as it says itself.
fn build(osc: &Path, dir: &Path) -> f64 {
    let out = dir.join("image");
    let text = run(osc, &["image", "build", "--output", &out.to_string_lossy()]).0;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    words[words.iter().position(|w| *w == "in").unwrap() + 1].parse().unwrap()
}

/// RSS and PSS of every process of a sandbox with one idle container.
fn footprint(osc: &Path) -> Vec<Row> {
    let bundle = tempfile::tempdir().unwrap();
    // Without a PID namespace the container sees the guest's PID 1, the agent.
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "/"},
        "process": {"args": ["/bin/sh", "-c", "sleep 3; grep VmRSS /proc/1/status"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin:/usr/bin"]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "mount"}]}
    });
    fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let name = format!("bench-{}", std::process::id());
    let mut child = Command::new(osc)
        .args(["run", "--name", &name, "--bundle", &bundle.path().to_string_lossy()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Two seconds into its three it idles.
    std::thread::sleep(Duration::from_secs(4));
    let rollup = |pid: i32, key: &str| -> f64 {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    };
    let of = |what: &str| -> Vec<i32> {
        let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        all.filter(|pid| {
            let line = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned();
            let program = line.split('\0').next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
            line.contains(&name) && program.starts_with(what)
        })
        .collect()
    };
    let mut rows = Vec::new();
    for (what, rss, pss) in [
        ("osc", "RSS of osc run (the shim), one idle container", "PSS of osc run"),
        ("qemu", "RSS of QEMU", "PSS of QEMU"),
        ("virtiofsd", "RSS of virtiofsd", "PSS of virtiofsd"),
    ] {
        let pids = of(what);
        let sum = |key: &str| pids.iter().map(|&p| rollup(p, key)).sum::<f64>();
        let goal = if what == "osc" { "<= 4096" } else { "" };
        rows.push(Row { name: rss, value: sum("Rss:"), unit: "KiB", quartiles: None, baseline: None, goal });
        rows.push(Row { name: pss, value: sum("Pss:"), unit: "KiB", quartiles: None, baseline: None, goal: "" });
    }
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    let agent = text.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(f64::NAN);
    rows.push(Row {
        name: "RSS of the agent, one idle container",
        value: agent,
        unit: "KiB",
        quartiles: None,
        baseline: None,
        goal: "<= 4096",
    });
    rows
}

fn sizes(osc: &Path) -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    run(osc, &["image", "build", "--output", &dir.path().to_string_lossy()]);
    let initrd = fs::read_dir(dir.path()).unwrap().flatten().find(|e| e.file_name().to_string_lossy().ends_with(".initrd")).unwrap();
    let row = |name, value, goal| Row { name, value, unit: "bytes", quartiles: None, baseline: None, goal };
    vec![
        row("binary", fs::metadata(osc).unwrap().len() as f64, "<= 5000000"),
        row("initrd", initrd.metadata().unwrap().len() as f64, "<= 5000000"),
    ]
}

fn report(rows: &[Row]) {
    println!("{:<48} {:>10} {:<6} {:>19} {:>8} {:<10}", "", "median", "", "quartiles", "ratio", "goal");
    let mut list = Vec::new();
    let mut missed = false;
    for r in rows {
        let ratio = r.baseline.map(|b| r.value / b);
        let quartiles = r.quartiles.map(|(a, b)| format!("{a:.1} .. {b:.1}")).unwrap_or_default();
        let shown = ratio.map(|x| format!("{x:.2}")).unwrap_or_default();
        let holds = holds(r.goal, ratio.unwrap_or(r.value));
        missed |= !holds;
        let mark = if holds { "" } else { "  MISSED" };
        println!("{:<48} {:>10.1} {:<6} {quartiles:>19} {shown:>8} {:<10}{mark}", r.name, r.value, r.unit, r.goal);
        list.push(json!({"name": r.name, "value": r.value, "unit": r.unit, "baseline": r.baseline, "ratio": ratio, "goal": r.goal}));
    }
    fs::create_dir_all("target/bench").unwrap();
    fs::write("target/bench/boot.json", serde_json::to_string_pretty(&list).unwrap()).unwrap();
    std::process::exit(i32::from(missed));
}

fn holds(goal: &str, value: f64) -> bool {
    match goal.split_once(' ') {
        Some(("<=", n)) => value <= n.parse::<f64>().unwrap(),
        Some((">=", n)) => value >= n.parse::<f64>().unwrap(),
        _ => true,
    }
}
