//! `osc run` and the commands beside it, as a user sees them, on real VMs.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Background, Rootfs, Screen, assert_clean, bundle, can_run_vms, command, finish, name, run, run_with, until};
use serde_json::json;

#[test]
fn a_command_runs_in_a_vm_and_its_status_and_streams_come_back() {
    if !can_run_vms("run") {
        return;
    }
    let name = name("streams");
    let script = "echo out; echo err >&2; cat /sys/class/dmi/id/sys_vendor /proc/sys/kernel/random/boot_id; exit 7";
    let out = run(["run", "--name", &name, "--", "sh", "-c", script]);
    assert_eq!((out.status, out.stderr.as_str()), (7, "err\n"));
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[..2], ["out", "QEMU"]);
    assert_ne!(lines[2], fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
    assert_clean(&name);
}

#[test]
fn the_hosts_root_is_read_and_what_is_written_is_thrown_away() {
    if !can_run_vms("overlay") {
        return;
    }
    let out = run(["run", "--", "sh", "-c", "echo x > /etc/osc-test-file && cat /etc/osc-test-file && head -c 4 /etc/os-release"]);
    assert_eq!((out.status, out.stdout.starts_with("x\n")), (0, true), "{}", out.stderr);
    assert!(!std::path::Path::new("/etc/osc-test-file").exists());
}

#[test]
fn a_root_file_system_user_environment_volumes_and_limits() {
    if !can_run_vms("rootfs") {
        return;
    }
    let (root, volume) = (Rootfs::new(), tempfile::tempdir().unwrap());
    fs::write(volume.path().join("file"), "from the host").unwrap();
    let v = volume.path().display();
    let script = "id; echo $A $HOME; pwd; cat /v/file; echo written > /v/new; touch /r/x; nproc_is=$(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l); \
        echo cpus $nproc_is; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; echo made > /tmp/made";
    let out = run([
        "run",
        "--rootfs",
        &root.arg(),
        "--user",
        "app",
        "--env",
        "A=b",
        "--workdir",
        "/tmp",
        "--cpus",
        "1.5",
        "--memory",
        "200M",
        "--volume",
        &format!("{v}:/v"),
        "--volume",
        &format!("{v}:/r:ro"),
        "--",
        "sh",
        "-c",
        script,
    ]);
    let text = out.stdout;
    for part in [
        "uid=1000(app) gid=1000(app) groups=29(audio),1000(app)",
        "b /home/app",
        "/tmp\n",
        "from the host",
        "cpus 2",
        "209715200",
        "150000 100000",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}{}", out.stderr);
    }
    assert!(out.stderr.contains("Read-only file system"), "{}", out.stderr);
    // The volume belongs to root: the user may not write there.
    assert!(!volume.path().join("new").exists());
    assert!(!root.path().join("tmp/made").exists(), "/tmp of the root is root's, too");
}

#[test]
fn a_command_that_is_not_there_or_not_executable() {
    if !can_run_vms("status") {
        return;
    }
    let root = Rootfs::new();
    for (command, status, part) in [
        ("no-such-command", 127, "executable file not found in $PATH"),
        ("/no/such/file", 127, "no such file"),
        ("/etc/passwd", 126, "permission denied"),
    ] {
        let name = name("status");
        let out = run(["run", "--name", &name, "--rootfs", &root.arg(), "--", command]);
        assert_eq!(out.status, status, "{}", out.stderr);
        assert!(out.stderr.contains(part) && out.stderr.contains(command), "{}", out.stderr);
        assert_clean(&name);
    }
}

#[test]
fn detached_it_is_listed_entered_read_and_stopped() {
    if !can_run_vms("detach") {
        return;
    }
    let root = Rootfs::new();
    let b = Background::start("detach", &["--rootfs", &root.arg()], &["sh", "-c", "echo to stdout; echo to stderr >&2; exec sleep 600"]);
    let ps = run(["ps", "--json"]).stdout;
    assert!(ps.lines().any(|l| l.contains(&b.name) && l.contains("\"state\":\"running\"")), "{ps}");
    let out = b.exec(&["sh", "-c", "echo in; cat; exit 3"]);
    assert_eq!((out.status, out.stdout.as_str()), (3, "in\n"), "{}", out.stderr);
    assert_eq!(run_with(b"hello", ["exec", &b.name, "--", "cat"]).stdout, "hello");
    assert_eq!(b.exec(&["no-such-command"]).status, 127);
    let logs = until("the log", || Some(run(["logs", &b.name])).filter(|l| l.stderr.contains("to stderr")));
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("to stdout\n", "to stderr\n"));
    let again = run(["run", "--name", &b.name, "--", "true"]);
    assert_eq!(again.status, 125);
    assert!(again.stderr.contains("exists already"), "{}", again.stderr);
}

#[test]
fn a_detached_command_that_ended_keeps_its_log_until_it_is_stopped() {
    if !can_run_vms("ended") {
        return;
    }
    let b = Background::start("ended", &[], &["sh", "-c", "echo done; exit 9"]);
    let row = until("its end", || {
        run(["ps", "--all", "--json"]).stdout.lines().find(|l| l.contains(&b.name) && l.contains("exited")).map(str::to_owned)
    });
    assert!(row.contains("\"exit_status\":9"), "{row}");
    assert_eq!(run(["logs", &b.name]).stdout, "done\n");
}

#[test]
fn a_hundred_megabytes_go_in_and_out_intact_while_others_are_served() {
    if !can_run_vms("bulk") {
        return;
    }
    const SIZE: usize = 100 << 20;
    let root = Rootfs::new();
    let name = name("bulk");
    let mut child = command(["run", "--name", &name, "--rootfs", &root.arg(), "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    // Not repeating within any buffer on the way.
    let data: Vec<u8> = (0..SIZE as u64 / 8).flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).is_ok());
    let mut first = vec![0; 1 << 20];
    stdout.read_exact(&mut first).unwrap();
    // The reader stalls for ten seconds: everything between it and the writer fills up, and nobody else may notice.
    let stalled = Instant::now();
    let mut took = Vec::new();
    while stalled.elapsed() < Duration::from_secs(10) {
        let start = Instant::now();
        assert_eq!(run(["exec", &name, "--", "echo", "here"]).stdout, "here\n");
        took.push(start.elapsed());
    }
    let mut rest = Vec::with_capacity(SIZE);
    stdout.read_to_end(&mut rest).unwrap();
    assert!(writer.join().unwrap());
    assert!([first, rest].concat() == data, "the bytes differ");
    assert_eq!(finish(child).status, 0);
    took.sort();
    // The whole of `osc exec`, its own start included, with another VM on the same two cores.
    let (median, p90, worst) = (took[took.len() / 2], took[took.len() * 9 / 10], took[took.len() - 1]);
    println!("{} execs beside a stalled stream: median {median:?}, p90 {p90:?}, worst {worst:?}", took.len());
    assert!(p90 < Duration::from_secs(1), "{took:?}");
    assert_clean(&name);
}

#[test]
fn a_terminal_of_its_own_with_size_and_interrupt() {
    if !can_run_vms("tty") {
        return;
    }
    let root = Rootfs::new();
    let name = name("tty");
    let script = "stty size; readlink /proc/self/fd/0; trap 'echo interrupted; exit 4' INT; trap 'stty size' WINCH; echo ready; \
        while :; do sleep 0.1; done";
    let (mut screen, mut child) =
        Screen::start(command(["run", "--name", &name, "--rootfs", &root.arg(), "--", "sh", "-c", script]), 33, 77);
    let text = screen.wait_for("ready");
    assert!(text.contains("33 77") && text.contains("/dev/pts/0"), "{text}");
    screen.resize(&child, 40, 111);
    screen.wait_for("40 111");
    screen.type_in("\x03");
    screen.wait_for("interrupted");
    assert_eq!(common::wait(&mut child), 4);
    assert_clean(&name);
}

#[test]
fn an_exec_has_a_terminal_of_its_own_with_size_and_interrupt() {
    if !can_run_vms("exec with a terminal") {
        return;
    }
    let root = Rootfs::new();
    let b = Background::start("exec-tty", &["--rootfs", &root.arg()], &["sleep", "600"]);
    let script = "stty size; readlink /proc/self/fd/0; trap 'echo interrupted; exit 6' INT; trap 'stty size' WINCH; echo ready; \
        while :; do sleep 0.1; done";
    let (mut screen, mut child) = Screen::start(command(["exec", "--tty", &b.name, "--", "sh", "-c", script]), 21, 66);
    let text = screen.wait_for("ready");
    // The size comes with the first resize where it does not come with the start.
    assert!(text.contains("/dev/pts/0"), "{text}");
    screen.resize(&child, 50, 120);
    screen.wait_for("50 120");
    screen.type_in("\x03");
    screen.wait_for("interrupted");
    assert_eq!(common::wait(&mut child), 6);
    // Told to have none, it has none, whatever its caller's is.
    let (mut screen, mut child) = Screen::start(command(["exec", "--no-tty", &b.name, "--", "sh", "-c", "stty size || echo none"]), 9, 9);
    screen.wait_for("none");
    assert_eq!(common::wait(&mut child), 0);
}

#[test]
fn a_bundles_relative_volume_is_the_bundles_and_its_hooks_run_where_the_start_fails_too() {
    if !can_run_vms("bundle") {
        return;
    }
    let root = Rootfs::new();
    let volume = json!([{"destination": "/v", "type": "bind", "source": "data/files", "options": ["bind", "ro"]}]);
    let hook =
        |dir: &str, name: &str, script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", format!("cat >{dir}/{name}; {script}")]});
    for (script, status, printed, seen) in [("true", 0, "from the bundle", "prestart poststop"), ("exit 3", 125, "", "prestart poststop")] {
        let told = tempfile::tempdir().unwrap();
        let dir = told.path().to_string_lossy().into_owned();
        let bundle = bundle(&root, &["cat", "/v/file"], |config| {
            config["mounts"].as_array_mut().unwrap().extend(volume.as_array().unwrap().iter().cloned());
            config["hooks"] = json!({"prestart": [hook(&dir, "prestart", script)], "poststop": [hook(&dir, "poststop", "true")]});
        });
        fs::create_dir_all(bundle.path().join("data/files")).unwrap();
        fs::write(bundle.path().join("data/files/file"), "from the bundle").unwrap();
        let name = name("bundle");
        // From another working directory than the bundle's.
        let out = run(["run", "--name", &name, "--bundle", &bundle.path().to_string_lossy()]);
        assert_eq!((out.status, out.stdout.as_str()), (status, printed), "{}", out.stderr);
        assert_eq!(out.stderr.contains("prestart hook /bin/sh"), status != 0, "{}", out.stderr);
        for name in seen.split(' ') {
            let state: serde_json::Value = serde_json::from_slice(&fs::read(told.path().join(name)).unwrap()).unwrap();
            assert_eq!(state["bundle"], bundle.path().canonicalize().unwrap().to_string_lossy().as_ref(), "{name}: {state}");
        }
        assert_clean(&name);
    }
}

#[test]
fn a_report_of_a_sandbox_tells_no_secret_of_its_command() {
    if !can_run_vms("report") {
        return;
    }
    const SECRET: &str = "correct-horse-battery-staple";
    let root = Rootfs::new();
    let script = format!("echo {SECRET}; echo {SECRET} >/dev/kmsg; echo {SECRET} >/tmp/file; exec sleep 600");
    let password = format!("PASSWORD={SECRET}");
    let b = Background::start("report", &["--rootfs", &root.arg(), "--env", &password], &["sh", "-c", &script]);
    until("the log", || run(["logs", &b.name]).stdout.contains(SECRET).then_some(()));
    b.exec(&["sh", "-c", &format!("echo {SECRET}")]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.tar.gz");
    // One that was there for all to read does not stay so.
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let out = run(["report", &file.to_string_lossy(), &b.name]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(&file).unwrap()).read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("osc-report/sandbox/record") && text.contains(&b.name));
    let at = text.find(SECRET).map(|at| text[at.saturating_sub(300)..].chars().take(400).collect::<String>());
    assert_eq!(at, None);
}

#[test]
fn a_signal_reaches_the_command() {
    if !can_run_vms("signal") {
        return;
    }
    let root = Rootfs::new();
    let name = name("signal");
    let script = "trap 'echo terminated; exit 5' TERM; echo ready; while :; do sleep 1; done";
    let mut child = command(["run", "--name", &name, "--rootfs", &root.arg(), "--", "sh", "-c", script]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((finish(child).status, rest.as_str()), (5, "terminated\n"));
    assert_clean(&name);
}

#[test]
fn output_to_a_closed_pipe_ends_the_command() {
    if !can_run_vms("pipe") {
        return;
    }
    let root = Rootfs::new();
    let name = name("pipe");
    let mut child =
        command(["run", "--name", &name, "--rootfs", &root.arg(), "--", "sh", "-c", "while echo y; do :; done"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    // Its status is the shell's own affair: a first process is not killed by SIGPIPE, its write fails.
    finish(child);
    assert_clean(&name);
}

#[test]
fn the_command_line_of_qemu_and_the_phases_of_a_start_are_shown() {
    if !can_run_vms("dry-run") {
        return;
    }
    let name = name("dry");
    let out = run(["run", "--name", &name, "--dry-run", "--", "true"]);
    assert_eq!(out.status, 0);
    assert!(out.stdout.contains(&format!("sandbox-{name}")) && out.stdout.contains("-sandbox on"), "{}", out.stdout);
    let out = run(["run", "--timings", "--", "true"]);
    for phase in ["guest image", "qemu", "guest boot", "total"] {
        assert!(out.stderr.contains(phase), "{}", out.stderr);
    }
    assert_clean(&name);
}
