//! What the benchmarks share: figures and their table, the do-nothing guest, the footprint of a sandbox.
#![allow(dead_code)] // Each benchmark uses its part of it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use osc::process::{Ended, Spawn};
use serde_json::json;

/// Interleaved runs of what is timed.
pub const RUNS: usize = 11;

/// What is moved to measure throughput: as in the guest's `init`.
pub const TOTAL: usize = 100 << 20;
pub const BLOCK: usize = 64 << 10;

/// A figure and what it is compared with.
pub struct Row {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub quartiles: Option<(f64, f64)>,
    pub baseline: Option<f64>,
    pub goal: &'static str,
}

/// A row of measurements: their median and quartiles.
pub fn timed(name: &'static str, list: &[f64], unit: &'static str, baseline: Option<f64>, goal: &'static str) -> Row {
    Row { name, value: median(list), unit, quartiles: Some((quantile(list, 0.25), quantile(list, 0.75))), baseline, goal }
}

pub fn run(osc: &Path, args: &[&str]) -> (String, String) {
    let out = Command::new(osc).args(args).stdin(Stdio::null()).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(out.status.success(), "osc {args:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

pub fn quantile(list: &[f64], q: f64) -> f64 {
    let mut sorted = list.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

pub fn median(list: &[f64]) -> f64 {
    quantile(list, 0.5)
}

/// The guest with nothing of ours in it: osc's own kernel, QEMU options and initrd, with another PID 1 in front.
pub struct Guest {
    program: PathBuf,
    args: Vec<String>,
    initrd: PathBuf,
}

impl Guest {
    pub fn new(osc: &Path, init: &Path, dir: &Path) -> Guest {
        let mut guest = Guest::whole(osc, init, dir);
        // The share needs a daemon.
        remove(&mut guest.args, |a| a.starts_with("socket,id=slot") || a.starts_with("vhost-user-fs-pci"));
        guest
    }

    /// With its share, whose daemon listens at `socket`.
    pub fn with_share(osc: &Path, init: &Path, dir: &Path, socket: &Path) -> Guest {
        let mut guest = Guest::whole(osc, init, dir);
        let share = guest.args.iter_mut().find(|a| a.starts_with("socket,id=slot")).unwrap();
        *share = format!("{}path={}", share.split("path=").next().unwrap(), socket.display());
        guest
    }

    fn whole(osc: &Path, init: &Path, dir: &Path) -> Guest {
        let line = run(osc, &["run", "--network", "none", "--dry-run", "--", "true"]).0;
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
        // QMP needs somebody who listens.
        remove(&mut args, |a| a.starts_with("file,id=console") || a == "chardev:console");
        remove(&mut args, |a| a.starts_with("socket,id=qmp") || a == "chardev=qmp,mode=control");
        args.extend(["-serial", "null"].map(str::to_owned));
        Guest { program, args, initrd }
    }

    pub fn start(&self, mode: &str, mux: OwnedFd) -> osc::process::Child {
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

    /// The kernel that osc boots.
    pub fn kernel(&self) -> &Path {
        Path::new(&self.args[self.args.iter().position(|a| a == "-kernel").unwrap() + 1])
    }

    /// From exec to the end, ms.
    pub fn power_off(&self) -> f64 {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let child = self.start("off", theirs.into());
        let ended = child.wait_within(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(ended, Some(Ended::Exited(0)), "the do-nothing guest");
        start.elapsed().as_secs_f64() * 1e3
    }

    /// Throughput of a bare port, MB/s.
    pub fn transfer(&self, mode: &str) -> f64 {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let child = self.start(mode, theirs.into());
        let mut block = vec![0; BLOCK];
        ours.read_exact(&mut block[..1]).unwrap();
        let start = Instant::now();
        if mode == "out" {
            swallow(&mut ours, &mut block, 0, TOTAL);
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

/// Prints the table and writes it to target/bench; the status says whether a goal was missed.
#[must_use]
pub fn report(name: &str, rows: &[Row]) -> ExitCode {
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
    fs::write(format!("target/bench/{name}.json"), serde_json::to_string_pretty(&list).unwrap()).unwrap();
    ExitCode::from(u8::from(missed))
}

fn holds(goal: &str, value: f64) -> bool {
    match goal.split_once(' ') {
        Some(("<=", n)) => value <= n.parse::<f64>().unwrap(),
        Some((">=", n)) => value >= n.parse::<f64>().unwrap(),
        _ => true,
    }
}

/// Reads until `moved` bytes have become `total`.
pub fn swallow(from: &mut impl Read, block: &mut [u8], mut moved: usize, total: usize) {
    while moved < total {
        let n = from.read(block).unwrap();
        assert!(n > 0, "{moved} bytes came");
        moved += n;
    }
}

/// A script that says when it begins, then writes [`TOTAL`] bytes in blocks of [`BLOCK`]: what is measured is the way of the
/// bytes, not a program that reads its source one by one.
pub fn zeroes() -> String {
    format!("echo; dd if=/dev/zero bs={BLOCK} count={} 2>/dev/null", TOTAL / BLOCK)
}

/// Reads what a command with [`zeroes`] writes, from its first byte on, MB/s.
pub fn throughput(mut child: Child) -> f64 {
    let mut from = child.stdout.take().unwrap();
    let mut block = vec![0; BLOCK];
    from.read_exact(&mut block[..1]).unwrap();
    let begun = Instant::now();
    swallow(&mut from, &mut block, 0, TOTAL);
    let took = begun.elapsed();
    child.wait().unwrap();
    TOTAL as f64 / 1e6 / took.as_secs_f64()
}

/// RSS and PSS of a sandbox's processes on the host; `shim` is what its own process is called.
pub fn footprint_of(sandbox: &str, shim: &str) -> Vec<Row> {
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
            line.contains(sandbox) && program.starts_with(what)
        })
        .collect()
    };
    let mut rows = Vec::new();
    for (what, rss, pss) in [
        (shim, "RSS of the shim, one idle container", "PSS of the shim"),
        ("qemu", "RSS of QEMU", "PSS of QEMU"),
        ("virtiofsd", "RSS of virtiofsd", "PSS of virtiofsd"),
    ] {
        let pids = of(what);
        assert!(!pids.is_empty(), "no process {what} of {sandbox}");
        let sum = |key: &str| pids.iter().map(|&p| rollup(p, key)).sum::<f64>();
        let goal = if what == shim { "<= 4096" } else { "" };
        rows.push(Row { name: rss, value: sum("Rss:"), unit: "KiB", quartiles: None, baseline: None, goal });
        rows.push(Row { name: pss, value: sum("Pss:"), unit: "KiB", quartiles: None, baseline: None, goal: "" });
    }
    rows
}
