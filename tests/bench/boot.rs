//! `scripts/bench boot`: how long a start takes, what a sandbox costs, and how fast bytes move, each as a ratio to what the
//! same kernel and the same QEMU do with nothing of ours in the guest. Everything in one run, interleaved; medians.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use common::{BLOCK, Guest, RUNS, Row, TOTAL, footprint_of, median, report, run, throughput, timed, zeroes};
use serde_json::json;

fn main() -> ExitCode {
    let osc: PathBuf = std::env::var_os("OSC_BIN").expect("OSC_BIN names the binary").into();
    let init: PathBuf = std::env::var_os("BENCH_INIT").expect("BENCH_INIT names the do-nothing init").into();
    let dir = tempfile::tempdir().unwrap();
    run(&osc, &["image", "build", "--if-needed"]);
    let guest = Guest::new(&osc, &init, dir.path());

    let virtme = virtme_ng(&guest, dir.path());
    let (mut nothing, mut ready, mut whole, mut public, mut theirs) = (vec![], vec![], vec![], vec![], vec![]);
    for i in 0..RUNS {
        nothing.push(guest.power_off());
        let start = Instant::now();
        let text = run(&osc, &["run", "--network", "none", "--timings", "--", "true"]).1;
        whole.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        run(&osc, &["run", "--", "true"]);
        public.push(start.elapsed().as_secs_f64() * 1e3);
        ready.push(phase(&text, "qemu") + phase(&text, "guest boot"));
        if let Some(script) = &virtme {
            let start = Instant::now();
            run(Path::new("unshare"), &["--mount", "sh", "-ec", script]);
            theirs.push(start.elapsed().as_secs_f64() * 1e3);
        }
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
    let mut rows = vec![
        timed("do-nothing guest, exec to power-off", &nothing, "ms", None, ""),
        timed("exec of QEMU to agent ready", &ready, "ms", Some(base), "<= 1.15"),
        timed("osc run --network none -- true, whole", &whole, "ms", Some(base), ""),
        timed("osc run -- true, whole", &public, "ms", Some(base), ""),
        timed("stdout, 64 KiB blocks", &out, "MB/s", Some(median(&raw_out)), ">= 0.5"),
        timed("stdin, 64 KiB blocks", &inward, "MB/s", Some(median(&raw_in)), ""),
        timed("initrd build", &builds, "ms", None, ""),
    ];
    if !theirs.is_empty() {
        rows.insert(3, timed("vng -- true, the same kernel and root", &theirs, "ms", Some(base), ""));
    }
    rows.extend(footprint(&osc));
    rows.extend(sizes(&osc));
    report("boot", &rows)
}

/// A script that runs `true` under virtme-ng with the kernel that osc boots; `None` where virtme-ng is not installed.
fn virtme_ng(guest: &Guest, dir: &Path) -> Option<String> {
    let virtme = std::env::var("BENCH_VNG").ok().filter(|v| !v.is_empty())?;
    // Images lie below the release of their kernel.
    let names = guest.kernel().ancestors().skip(1).filter_map(|dir| dir.file_name()?.to_str());
    let kernels = |release: &str| {
        let source = ["/lib/modules", "/var/cache/kata-containers/kernels"].map(|base| format!("{base}/{release}"));
        Some((release.to_owned(), source.into_iter().find(|s| Path::new(s).join("vmlinuz").exists())?))
    };
    let (release, source) = names.into_iter().find_map(kernels)?;
    // It knows a kernel's modules by the kernel's name, and looks for them in one place.
    let modules = match source.strip_prefix("/var") {
        Some(_) => format!(
            "mkdir -p /lib/modules; mount -t tmpfs modules /lib/modules; mkdir /lib/modules/{release}; \
             mount --bind {source}/modules /lib/modules/{release};"
        ),
        None => String::new(),
    };
    let kernel = dir.join(format!("vmlinuz-{release}"));
    fs::copy(Path::new(&source).join("vmlinuz"), &kernel).unwrap();
    let accel = if Path::new("/dev/kvm").exists() { "" } else { "--disable-kvm" };
    Some(format!(
        "{modules} export PYTHONPATH={virtme} PATH={virtme}/bin:$PATH; exec vng {accel} -r {} -- true </dev/null",
        kernel.display()
    ))
}

/// A phase's length in what `--timings` draws, ms.
fn phase(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line[name.len()..].split_ascii_whitespace().next().unwrap().parse().unwrap()
}

/// stdout of a command, from its first line on, MB/s.
fn stdout(osc: &Path) -> f64 {
    let args = ["run", "--network", "none", "--", "sh", "-c", &zeroes()];
    throughput(Command::new(osc).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
}

/// stdin of a command, MB/s.
fn stdin(osc: &Path) -> f64 {
    let script = "echo; cat >/dev/null; echo";
    let mut child = Command::new(osc)
        .args(["run", "--network", "none", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
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
        .args(["run", "--network", "none", "--name", &name, "--bundle", &bundle.path().to_string_lossy()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Two seconds into its three it idles.
    std::thread::sleep(Duration::from_secs(4));
    let mut rows = footprint_of(&name, "osc");
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
