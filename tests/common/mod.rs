//! What every end-to-end test needs: the binary, a run with a deadline, a root file system, and the list of what a sandbox
//! must not leave behind.
#![allow(dead_code)] // Each test binary uses its part of it.

pub mod containerd;
pub mod player;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What anything here may take at most: a loaded host under TCG is slow.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The binary under test: `$OSC_BIN` (the release build that scripts/test makes), else what cargo built.
pub fn osc() -> PathBuf {
    let built = option_env!("CARGO_BIN_EXE_osc").map(PathBuf::from);
    std::env::var_os("OSC_BIN").map(PathBuf::from).or(built).expect("OSC_BIN names the binary")
}

/// True where VMs can run; says aloud why not.
pub fn can_run_vms(test: &str) -> bool {
    let missing = [
        (rustix::process::geteuid().is_root(), "root"),
        (osc::vm::qemu::find(None).is_ok(), "QEMU"),
        (osc::fs::virtiofsd::find(None).is_ok(), "virtiofsd"),
        (osc::fs::image::find(None).is_ok(), "a guest kernel"),
    ];
    let missing: Vec<&str> = missing.iter().filter(|m| !m.0).map(|m| m.1).collect();
    if !missing.is_empty() {
        println!("SKIP {test}: needs {}", missing.join(", "));
    }
    missing.is_empty()
}

/// Whether what takes long is tested, too.
pub fn all() -> bool {
    std::env::var_os("OSC_TEST_ALL").is_some()
}

/// True there; says aloud where not.
pub fn only_with_all(test: &str) -> bool {
    if !all() {
        println!("{test}: only where everything is tested (OSC_TEST_ALL)");
    }
    all()
}

/// A name that no other test has.
pub fn name(test: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{test}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Output {
    /// As a shell tells it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(osc());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs osc to its end.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    finish(command(args).spawn().unwrap())
}

/// The same with bytes on stdin.
pub fn run_with<S: AsRef<OsStr>>(stdin: &[u8], args: impl IntoIterator<Item = S>) -> Output {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    let writer = std::thread::spawn(move || drop(pipe.write_all(&bytes)));
    let output = finish(child);
    writer.join().unwrap();
    output
}

/// Waits for a child; kills it when it takes too long, which fails the test.
pub fn finish(mut child: Child) -> Output {
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = child.stdout.take().map(|s| read(Box::new(s)));
    let stderr = child.stderr.take().map(|s| read(Box::new(s)));
    let status = wait(&mut child);
    let text = |t: Option<std::thread::JoinHandle<String>>| t.map(|t| t.join().unwrap()).unwrap_or_default();
    Output { status, stdout: text(stdout), stderr: text(stderr) }
}

/// The exit status of a child that ends within the limit.
pub fn wait(child: &mut Child) -> i32 {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().or(status.signal().map(|s| 128 + s)).unwrap();
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("{} did not end within {} s", child.id(), LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `what` holds.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {} s", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A root file system of busybox alone.
pub struct Rootfs(tempfile::TempDir);

impl Rootfs {
    pub fn new() -> Rootfs {
        let dir = tempfile::tempdir().unwrap();
        for d in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir(dir.path().join(d)).unwrap();
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists()).expect("busybox-static is installed");
        fs::copy(busybox, dir.path().join("bin/busybox")).unwrap();
        for applet in [
            "sh",
            "cat",
            "echo",
            "id",
            "free",
            "awk",
            "grep",
            "nproc",
            "cut",
            "ps",
            "env",
            "kill",
            "dd",
            "ip",
            "nc",
            "ping",
            "mount",
            "hostname",
            "seq",
            "md5sum",
            "timeout",
            "tr",
            "df",
            "ls",
            "sleep",
            "sha256sum",
            "head",
            "stat",
            "true",
            "wc",
            "touch",
            "stty",
            "readlink",
        ] {
            std::os::unix::fs::symlink("busybox", dir.path().join("bin").join(applet)).unwrap();
        }
        fs::write(dir.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n").unwrap();
        fs::write(dir.path().join("etc/group"), "root:x:0:\napp:x:1000:\naudio:x:29:app\n").unwrap();
        Rootfs(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn arg(&self) -> String {
        self.0.path().to_string_lossy().into_owned()
    }
}

/// An OCI bundle: a directory with a config.json that `change` has had its way with.
pub fn bundle(root: &Rootfs, args: &[&str], change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let namespaces = ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| serde_json::json!({"type": kind}));
    let mut config = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": root.path()},
        "process": {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": namespaces}
    });
    change(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// A terminal whose slave a child has; what it shows is read at the master.
pub struct Screen {
    master: fs::File,
    seen: String,
}

impl Screen {
    /// Starts `command` on a terminal of `rows` and `columns`.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> (Screen, Child) {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let ours = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(ours()).stdout(ours()).stderr(ours()).spawn().unwrap();
        (Screen { master: pty.master.into(), seen: String::new() }, child)
    }

    /// Everything seen, once `text` is in it.
    pub fn wait_for(&mut self, text: &str) -> &str {
        let mut buffer = [0; 4096];
        while !self.seen.contains(text) {
            let n = self.master.read(&mut buffer).unwrap_or_else(|e| panic!("{e} before {text:?} in {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        &self.seen
    }

    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// As a terminal emulator does it whose window was resized; the signal goes to `child`, who is no group's foreground.
    pub fn resize(&mut self, child: &Child, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    }
}

/// Everything on this host that has `name` in it: processes, mounts, directories, sockets, cgroups, loop devices, links.
pub fn leftovers(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.parse::<u32>().is_ok_and(|p| p != std::process::id()) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(name) {
                found.push(format!("process {pid}: {line}"));
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|l| l.contains(name)).map(|l| format!("mount {l}")));
    for dir in ["/run/osc", "/run/kata-containers/shared/sandboxes", "/var/lib/osc", "/run/containerd/s"] {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        found.extend(entries.filter(|e| e.file_name().to_string_lossy().contains(name)).map(|e| e.path().display().to_string()));
    }
    for base in ["/sys/fs/cgroup", "/sys/class/net", "/sys/block"] {
        walk(Path::new(base), 4, &mut |path| {
            if path.file_name().is_some_and(|n| n.to_string_lossy().contains(name)) {
                found.push(path.display().to_string());
            }
        });
    }
    found
}

fn walk(dir: &Path, depth: u32, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        visit(&entry.path());
        if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), depth - 1, visit);
        }
    }
}

/// Asserts that nothing of `name` is left.
pub fn assert_clean(name: &str) {
    let left = leftovers(name);
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

/// Processes of a sandbox by what they are: `qemu`, `virtiofsd`.
pub fn pids(name: &str, what: &str) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args: Vec<String> = line.split(|&b| b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            args[0].rsplit('/').next().unwrap_or_default().contains(what) && args.iter().any(|a| a.contains(name))
        })
        .collect()
}

pub fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

/// Starts a sandbox that waits in the background; ended when dropped.
pub struct Background {
    pub name: String,
}

impl Background {
    pub fn start(test: &str, extra: &[&str], command: &[&str]) -> Background {
        let name = name(test);
        let args =
            ["run", "--detach", "--name", &name].into_iter().chain(extra.iter().copied()).chain(["--"]).chain(command.iter().copied());
        let out = run(args);
        assert_eq!((out.status, out.stdout.trim()), (0, name.as_str()), "{}", out.stderr);
        Background { name }
    }

    pub fn exec(&self, command: &[&str]) -> Output {
        run(["exec", &self.name, "--"].into_iter().chain(command.iter().copied()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        run(["stop", "-t", "1", &self.name]);
        if !std::thread::panicking() {
            assert_clean(&self.name);
        }
    }
}

/// A volume as the kubelet's atomic writer leaves it: `..data` names the current version.
#[allow(dead_code)] // Each test binary uses its part of it.
pub fn publish(dir: &Path, version: &str, value: &str) {
    use std::os::unix::fs::symlink;
    fs::create_dir_all(dir.join(version)).unwrap();
    fs::write(dir.join(version).join("key"), value).unwrap();
    if !dir.join("key").is_symlink() {
        symlink("..data/key", dir.join("key")).unwrap();
    }
    symlink(version, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}
