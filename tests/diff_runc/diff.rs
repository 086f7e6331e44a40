//! `scripts/diff-runc`: bundles around one OCI field each, run by runc and by osc, and what a probe sees in both.
//! What a VM necessarily shows otherwise stands in `expected`, each line with its reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

/// A bundle: its name and what it changes in the base configuration.
type Case = (&'static str, fn(&mut Value));

fn base(root: &Path) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": root, "readonly": false},
        "hostname": "diff",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/probe"],
            "env": ["PATH=/bin:/", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
                "effective": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
                "permitted": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

fn mount(c: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    c["mounts"].as_array_mut().unwrap().push(json!({"destination": destination, "type": kind, "source": source, "options": options}));
}

fn volume(c: &mut Value, destination: &str, options: &[&str]) {
    let source = VOLUME.lock().unwrap().clone();
    mount(c, destination, "bind", &source, options);
}

fn without(c: &mut Value, namespace: &str) {
    c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != namespace);
}

fn seccomp(c: &mut Value, calls: &[&str], profile: Value) {
    c["process"]["args"] = json!([&["/probe", "calls"], calls].concat());
    c["linux"]["seccomp"] = profile;
}

/// The directory that volumes are bound from.
static VOLUME: Mutex<String> = Mutex::new(String::new());

const CASES: &[Case] = &[
    ("base", |_| ()),
    ("args", |c| c["process"]["args"] = json!(["/probe", "args", "a b", "", "*"])),
    ("args by PATH", |c| c["process"]["args"] = json!(["probe", "args", "found"])),
    ("exit 0", |c| c["process"]["args"] = json!(["/probe", "exit", "0"])),
    ("exit 42", |c| c["process"]["args"] = json!(["/probe", "exit", "42"])),
    ("exit 255", |c| c["process"]["args"] = json!(["/probe", "exit", "255"])),
    ("killed by SIGTERM", |c| c["process"]["args"] = json!(["/probe", "kill", "15"])),
    ("killed by SIGSEGV", |c| c["process"]["args"] = json!(["/probe", "kill", "11"])),
    ("env", |c| c["process"]["env"] = json!(["PATH=/bin", "A=1", "B=x y", "EMPTY="])),
    ("env with HOME", |c| c["process"]["env"] = json!(["PATH=/bin", "HOME=/elsewhere"])),
    ("cwd", |c| c["process"]["cwd"] = json!("/etc")),
    ("cwd that is not there", |c| c["process"]["cwd"] = json!("/made/for/it")),
    ("uid and gid", |c| c["process"]["user"] = json!({"uid": 1000, "gid": 1001})),
    ("additional groups", |c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 29, 50]})),
    ("umask", |c| c["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 63})),
    ("root with another group", |c| c["process"]["user"] = json!({"uid": 0, "gid": 7})),
    ("no capabilities", |c| c["process"]["capabilities"] = json!({})),
    ("all sets", |c| {
        let some = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
        c["process"]["capabilities"] =
            json!({"bounding": some, "effective": some, "permitted": some, "inheritable": some, "ambient": some});
    }),
    ("ambient for a user", |c| {
        let some = json!(["CAP_NET_BIND_SERVICE"]);
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["process"]["capabilities"] =
            json!({"bounding": some, "effective": some, "permitted": some, "inheritable": some, "ambient": some});
    }),
    ("bounding wider than effective", |c| {
        c["process"]["capabilities"] = json!({"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]})
    }),
    ("capabilities of a user", |c| c["process"]["user"] = json!({"uid": 1000, "gid": 1000})),
    ("new privileges allowed", |c| c["process"]["noNewPrivileges"] = json!(false)),
    ("rlimits", |c| {
        c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
            {"type": "RLIMIT_STACK", "hard": 16777216, "soft": 4194304}, {"type": "RLIMIT_CPU", "hard": 100, "soft": 50}])
    }),
    ("oomScoreAdj", |c| c["process"]["oomScoreAdj"] = json!(500)),
    ("hostname", |c| c["hostname"] = json!("another-name")),
    ("no hostname", |c| {
        c.as_object_mut().unwrap().remove("hostname");
    }),
    ("read-only root", |c| c["root"]["readonly"] = json!(true)),
    ("tmpfs", |c| mount(c, "/tmp", "tmpfs", "tmpfs", &["size=1m", "mode=1777", "noexec"])),
    ("tmpfs read-only", |c| mount(c, "/tmp", "tmpfs", "tmpfs", &["ro", "nosuid", "nodev"])),
    ("tmpfs that copies up", |c| mount(c, "/etc", "tmpfs", "tmpfs", &["tmpcopyup", "nosuid"])),
    ("bind", |c| volume(c, "/volume", &["bind"])),
    ("bind read-only", |c| volume(c, "/ro", &["bind", "ro"])),
    ("rbind", |c| volume(c, "/rw", &["rbind", "rw"])),
    ("bind nosuid, nodev, noexec", |c| volume(c, "/volume", &["bind", "nosuid", "nodev", "noexec"])),
    ("bind noatime", |c| volume(c, "/volume", &["bind", "noatime"])),
    ("bind private", |c| volume(c, "/volume", &["rbind", "rprivate"])),
    ("bind slave", |c| volume(c, "/volume", &["rbind", "rslave"])),
    ("bind shared", |c| volume(c, "/volume", &["rbind", "rshared"])),
    ("bind of a file", |c| {
        let source = format!("{}/file", VOLUME.lock().unwrap());
        mount(c, "/etc/bound", "bind", &source, &["bind"]);
    }),
    ("bind deep in what is not there", |c| volume(c, "/not/there/yet", &["bind"])),
    ("bind onto a link", |c| volume(c, "/link/volume", &["bind"])),
    ("proc with options", |c| c["mounts"][0]["options"] = json!(["nosuid", "noexec", "nodev"])),
    ("sysfs writable", |c| c["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev"])),
    ("no cgroup mount", |c| {
        c["mounts"].as_array_mut().unwrap().pop();
    }),
    ("no mqueue, no shm", |c| {
        c["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev/mqueue" && m["destination"] != "/dev/shm")
    }),
    ("device", |c| {
        c["linux"]["devices"] = json!([{"path": "/dev/my-null", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0},
            {"path": "/dev/my-fifo", "type": "p", "fileMode": 384}])
    }),
    ("device with owner", |c| {
        c["linux"]["devices"] = json!([{"path": "/dev/my-zero", "type": "c", "major": 1, "minor": 5, "fileMode": 416, "uid": 7, "gid": 8}])
    }),
    ("device in a directory", |c| {
        c["linux"]["devices"] = json!([{"path": "/dev/deep/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 438}])
    }),
    ("device refused by its cgroup", |c| {
        c["linux"]["devices"] = json!([{"path": "/dev/my-kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 438}])
    }),
    ("device allowed by its cgroup", |c| {
        c["linux"]["devices"] = json!([{"path": "/dev/my-kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 438}]);
        c["linux"]["resources"]["devices"] =
            json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"}]);
    }),
    ("all devices allowed", |c| c["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}])),
    ("masked file and directory", |c| c["linux"]["maskedPaths"] = json!(["/masked-file", "/masked-dir", "/not-there"])),
    ("nothing masked", |c| c["linux"]["maskedPaths"] = json!([])),
    ("read-only path", |c| c["linux"]["readonlyPaths"] = json!(["/ro", "/not-there"])),
    ("nothing read-only", |c| c["linux"]["readonlyPaths"] = json!([])),
    ("sysctl of ipc", |c| c["linux"]["sysctl"] = json!({"kernel.shmmax": "4194304", "fs.mqueue.msg_max": "20"})),
    ("memory limit", |c| c["linux"]["resources"]["memory"] = json!({"limit": 104857600})),
    ("cpu quota", |c| c["linux"]["resources"]["cpu"] = json!({"quota": 50000, "period": 100000})),
    ("cpu period alone", |c| c["linux"]["resources"]["cpu"] = json!({"period": 50000})),
    ("pids limit", |c| c["linux"]["resources"]["pids"] = json!({"limit": 77})),
    ("hostname without a uts namespace", |c| without(c, "uts")),
    ("no ipc namespace", |c| without(c, "ipc")),
    ("no cgroup namespace", |c| without(c, "cgroup")),
    ("root private", |c| c["linux"]["rootfsPropagation"] = json!("rprivate")),
    ("root shared", |c| c["linux"]["rootfsPropagation"] = json!("rshared")),
    ("root slave", |c| c["linux"]["rootfsPropagation"] = json!("rslave")),
    ("seccomp: an errno", |c| {
        seccomp(
            c,
            &["getppid", "mkdir"],
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]}),
        )
    }),
    ("seccomp: an errno of choice", |c| {
        let rule = json!({"names": ["getppid", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99});
        seccomp(c, &["getppid", "getcwd"], json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    }),
    ("seccomp: several actions", |c| {
        seccomp(
            c,
            &["getppid", "mkdir", "mount", "unshare"],
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"}, {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["mount"], "action": "SCMP_ACT_TRAP"}, {"names": ["unshare"], "action": "SCMP_ACT_LOG"}]}),
        )
    }),
    ("seccomp: arguments", |c| {
        seccomp(
            c,
            &["socket", "socketunix", "personality0", "personality8"],
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}, {"index": 0, "value": 4294967295u32, "op": "SCMP_CMP_NE"}]}]}),
        )
    }),
    ("seccomp: only one architecture", |c| {
        seccomp(
            c,
            &["getpid32", "getppid"],
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]}),
        )
    }),
    ("seccomp: 32-bit programs too", |c| {
        seccomp(
            c,
            &["getpid32", "getppid"],
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{"names": ["getppid", "getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}]}),
        )
    }),
    ("seccomp without no_new_privs", |c| {
        c["process"]["noNewPrivileges"] = json!(false);
        seccomp(
            c,
            &["getppid"],
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]}),
        )
    }),
    ("hook in the container", |c| {
        c["hooks"] = json!({"startContainer": [{"path": "/bin/busybox", "args": ["busybox", "touch", "/etc/made-by-hook"]}]})
    }),
    ("a program that is not there", |c| c["process"]["args"] = json!(["no-such-program"])),
    ("a program that is not executable", |c| c["process"]["args"] = json!(["/etc/passwd"])),
    ("an unknown capability", |c| c["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_NO_SUCH"])),
    ("a sysctl that no namespace owns", |c| c["linux"]["sysctl"] = json!({"kernel.panic": "1"})),
    ("a hook that fails", |c| c["hooks"] = json!({"prestart": [{"path": "/bin/false"}]})),
];

/// What one run showed: its exit status and the probe's lines by key.
#[derive(Default)]
struct Seen {
    status: i32,
    lines: BTreeMap<String, Vec<String>>,
    stderr: String,
}

fn see(mut command: Command) -> Seen {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let mut seen =
        Seen { status: out.status.code().unwrap_or(-1), stderr: String::from_utf8_lossy(&out.stderr).into_owned(), ..Default::default() };
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let (key, value) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
        seen.lines.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    seen
}

/// `case<TAB>key<TAB>reason`; `*` stands for every case.
fn expected() -> Vec<(String, String)> {
    let text = include_str!("expected");
    let rows = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    rows.map(|l| l.split('\t').collect::<Vec<_>>()).map(|f| (f[0].to_owned(), f[1].to_owned())).collect()
}

fn make_root(dir: &Path, probe: &Path) -> PathBuf {
    let root = dir.join("root");
    for d in ["bin", "etc", "proc", "sys", "dev", "tmp", "ro", "rw", "volume", "masked-dir", "target"] {
        fs::create_dir_all(root.join(d)).unwrap();
    }
    fs::copy(probe, root.join("probe")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("/target", root.join("link")).unwrap();
    for (file, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("masked-file", "secret"),
        ("masked-dir/in", "secret"),
    ] {
        fs::write(root.join(file), text).unwrap();
    }
    root
}

fn main() {
    let osc = std::env::var("OSC_BIN").expect("OSC_BIN names the binary");
    let probe = std::env::var("PROBE").expect("PROBE names the probe");
    let only: Vec<String> = std::env::args().skip(1).collect();
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("source");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "in the volume").unwrap();
    *VOLUME.lock().unwrap() = volume.to_string_lossy().into_owned();
    let cases: Vec<&Case> = CASES.iter().filter(|c| only.is_empty() || only.iter().any(|o| c.0.contains(o.as_str()))).collect();
    let expected = expected();
    let (next, same, differ, known) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    // Two VMs at a time: as many as a small machine has cores.
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (cases, expected, next, same, differ, known) = (&cases, &expected, &next, &same, &differ, &known);
            let (osc, probe, dir) = (&osc, &probe, dir.path());
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some((name, change)) = cases.get(i) else { return };
                    let case_dir = dir.join(format!("case-{i}"));
                    let run = |tool: &str| {
                        // A root of its own for each: what one leaves there the other must not see.
                        let bundle = case_dir.join(tool);
                        fs::create_dir_all(&bundle).unwrap();
                        let mut config = base(&make_root(&bundle, Path::new(probe)));
                        change(&mut config);
                        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
                        let id = format!("diff-{}-{worker}-{i}", std::process::id());
                        let mut command = if tool == "runc" { Command::new("runc") } else { Command::new(osc) };
                        if tool == "runc" {
                            command.args(["run", "--bundle"]).arg(&bundle).arg(&id);
                        } else {
                            command.args(["run", "--network", "none", "--name", &id, "--bundle"]).arg(&bundle);
                        }
                        see(command)
                    };
                    let (theirs, ours) = (run("runc"), run("osc"));
                    let (mut unexpected, mut report) = (0, String::new());
                    let mut compare = |key: &str, a: String, b: String| {
                        if a == b {
                            return;
                        }
                        if expected
                            .iter()
                            .any(|(c, k)| (c == "*" || c == name) && (k == key || k.strip_suffix('*').is_some_and(|p| key.starts_with(p))))
                        {
                            known.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                        unexpected += 1;
                        report.push_str(&format!("DIFFER {name}: {key}: runc={a:?} osc={b:?}\n"));
                    };
                    // Whatever failed: runc says 1 for its own failures, osc 125 and a shell's numbers.
                    let failed = |s: i32| if [1, 125, 126, 127].contains(&s) { "failed".to_owned() } else { s.to_string() };
                    compare("status", failed(theirs.status), failed(ours.status));
                    let both_ran = failed(theirs.status) == failed(ours.status);
                    let keys: std::collections::BTreeSet<&String> =
                        theirs.lines.keys().chain(ours.lines.keys()).filter(|_| both_ran).collect();
                    for key in keys {
                        let of = |s: &Seen| s.lines.get(key).map(|v| v.join("\n")).unwrap_or_else(|| "(nothing)".into());
                        let (a, b) = (of(&theirs), of(&ours));
                        if key == "mount" {
                            let set = |t: &str| t.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
                            let (a, b) = (set(&a), set(&b));
                            for line in a.symmetric_difference(&b) {
                                let place = line.split(' ').next().unwrap_or_default();
                                let side =
                                    |s: &std::collections::BTreeSet<String>| if s.contains(line) { line.clone() } else { String::new() };
                                compare(&format!("mount {place}"), side(&a), side(&b));
                            }
                        } else {
                            compare(key, a, b);
                        }
                    }
                    if unexpected == 0 {
                        same.fetch_add(1, Ordering::Relaxed);
                    } else {
                        differ.fetch_add(1, Ordering::Relaxed);
                        for (tool, seen) in [("runc", &theirs), ("osc", &ours)] {
                            seen.stderr.lines().take(4).for_each(|l| report.push_str(&format!("       {name}: {tool} says: {l}\n")));
                        }
                        print!("{report}");
                    }
                    let _ = fs::remove_dir_all(&case_dir);
                }
            });
        }
    });
    let (same, differ, known) = (same.into_inner(), differ.into_inner(), known.into_inner());
    println!("{known} expected differences of a VM (tests/diff_runc/expected)");
    println!("{same} same, {differ} differ");
    std::process::exit(i32::from(differ > 0));
}
