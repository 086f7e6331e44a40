//! One container, from its creation to its end: what is asked of it in between.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::json;

use super::{Bench, Container, PATIENCE, output, with_bench};
use crate::agent::stdio::{Given, Made};
use crate::process::Ended;
use crate::rpc::wire::oci::{LinuxResources, Process, Spec};
use crate::rpc::{Code, Status};

/// A small container that runs `script`.
fn spec(bench: &Bench, script: &str) -> Spec {
    bench.spec(&json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 66}], "oomScoreAdj": 5
        },
        "root": {"path": "rootfs"},
        "hostname": "life",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}
        ],
        "linux": {
            "cgroupsPath": format!("/{}", bench.id()),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}, {"type": "time"}],
            "timeOffsets": {"boottime": {"secs": 8640000, "nanosecs": 0}}
        }
    }))
}

fn process(script: &str) -> Process {
    Process {
        args: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: vec!["PATH=/bin".into(), "X=1".into()],
        cwd: "/etc".into(),
        ..Default::default()
    }
}

/// Creates a container that runs `script`.
fn created(bench: &Bench, script: &str) -> Container {
    let (_, given) = output();
    Container::create(&bench.id(), &spec(bench, script), given, &bench.env).unwrap().0
}

/// What an exec prints.
fn exec(container: &Container, process: &Process) -> Result<String, Status> {
    let (outputs, given) = output();
    let made = container.exec("e", process, given)?;
    assert!(made.process.wait_for(PATIENCE).is_some());
    let (stdout, stderr) = outputs();
    Ok(stdout + &stderr)
}

#[test]
fn a_container_waits_to_be_started_and_is_then_told_from_others() {
    with_bench("life::a_container_waits_to_be_started_and_is_then_told_from_others", |bench| {
        let (outputs, given) = output();
        let (container, made) = Container::create(&bench.id(), &spec(bench, "echo started; exit 3"), given, &bench.env).unwrap();
        assert_eq!(container.pids().unwrap(), [made.process.pid()]);
        assert_eq!(made.process.ended(), None);
        // It has no descriptor of ours but the socket it waits on.
        let fds = fs::read_dir(format!("/proc/{}/fd", made.process.pid())).unwrap().count();
        assert!(fds <= 6, "{fds}");
        container.start().unwrap();
        assert_eq!(made.process.wait_for(PATIENCE), Some(Ended::Exited(3)));
        assert_eq!(outputs().0, "started\n");
        assert_eq!(container.start().unwrap_err().code, Code::FailedPrecondition);
        assert_eq!(exec(&container, &process("true")).unwrap_err().code, Code::FailedPrecondition);
        container.delete().unwrap();
        container.delete().unwrap();
        assert!(!container.cgroup().exists());
    });
}

#[test]
fn one_that_was_never_started_is_deleted() {
    with_bench("life::one_that_was_never_started_is_deleted", |bench| {
        let (_, given) = output();
        let (container, made) = Container::create(&bench.id(), &spec(bench, "echo no"), given, &bench.env).unwrap();
        container.delete().unwrap();
        assert!(made.process.ended().is_some() && !container.cgroup().exists());
    });
}

#[test]
fn a_failed_creation_leaves_nothing() {
    with_bench("life::a_failed_creation_leaves_nothing", |bench| {
        let fail = |change: &dyn Fn(&mut Spec)| {
            let mut spec = spec(bench, "true");
            change(&mut spec);
            let failure = Container::create(&bench.id(), &spec, output().1, &bench.env).err().expect("it was made");
            assert!(!Path::new("/sys/fs/cgroup").join(bench.id()).exists(), "{failure}");
            failure
        };
        let args =
            |args: &'static [&str]| move |s: &mut Spec| s.process.as_mut().unwrap().args = args.iter().map(|a| a.to_string()).collect();
        let missing = fail(&args(&["nosuch"]));
        assert_eq!((missing.code, missing.message.as_str()), (Code::NotFound, "exec \"nosuch\": executable file not found in $PATH"));
        assert_eq!(fail(&args(&["/no/such"])).code, Code::NotFound);
        assert_eq!(fail(&args(&["/bin/text"])).code, Code::PermissionDenied);
        assert_eq!(fail(&args(&["/etc"])).code, Code::PermissionDenied);
        assert_eq!(fail(&args(&[])).code, Code::InvalidArgument);
        let at_proc = fail(&|s| s.mounts[0].source = "\0".into());
        assert!(at_proc.message.contains("at /proc"), "{at_proc}");
        assert_eq!(fail(&|s| s.root = None).code, Code::InvalidArgument);
        assert!(fail(&|s| s.root.as_mut().unwrap().path = "/no/such/root".into()).message.contains("/no/such/root"));
        assert_eq!(fail(&|s| s.linux.as_mut().unwrap().cgroups_path = "/a/../../b".into()).code, Code::InvalidArgument);
        assert_eq!(fail(&|s| s.linux.as_mut().unwrap().namespaces.retain(|n| n.r#type != "mount")).code, Code::InvalidArgument);
        assert_eq!(fail(&|s| s.process.as_mut().unwrap().rlimits[0].soft = 99).code, Code::InvalidArgument);
        // A script whose interpreter is not there is found out by the kernel, at the start.
        let mut spec = spec(bench, "true");
        args(&["/bin/bad-shebang"])(&mut spec);
        let (container, made) = Container::create(&bench.id(), &spec, output().1, &bench.env).unwrap();
        assert_eq!(container.start().unwrap_err().code, Code::NotFound);
        assert!(made.process.wait_for(PATIENCE).is_some());
        container.delete().unwrap();
    });
}

#[test]
fn an_exec_is_where_the_first_process_is() {
    with_bench("life::an_exec_is_where_the_first_process_is", |bench| {
        let container = created(bench, "trap 'exit 0' TERM; while :; do sleep 0.05; done");
        container.start().unwrap();
        let where_it_is = "for n in pid mnt uts ipc net cgroup time user; do [ /proc/1/ns/$n -ef /proc/self/ns/$n ] || echo another $n; done
            pwd; hostname; echo $X $HOME; grep -E 'NoNew|CapEff|Umask' /proc/self/status; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj
            cut -d: -f3 /proc/self/cgroup | tail -1; ls /proc/self/fd | wc -l; [ $(cut -d. -f1 /proc/uptime) -gt 8640000 ] && echo later";
        let shown = exec(&container, &process(where_it_is)).unwrap();
        let expected = "/etc\nlife\n1 /root\nUmask:\t0022\nCapEff:\t0000000000000020\nNoNewPrivs:\t0\n66\n77\n5\n/\n4\nlater\n";
        assert_eq!(shown, expected);
        let mut other = process("id -u; grep -E 'NoNew|CapBnd' /proc/self/status; ulimit -n; cat /proc/self/oom_score_adj; umask");
        other.user = Some(crate::rpc::wire::oci::User { uid: 1000, gid: 1000, umask: Some(0o77), ..Default::default() });
        other.capabilities = Some(Default::default());
        other.no_new_privileges = true;
        other.oom_score_adj = 9;
        other.rlimits = vec![crate::rpc::wire::oci::PosixRlimit { r#type: "RLIMIT_NOFILE".into(), soft: 30, hard: 30 }];
        assert_eq!(exec(&container, &other).unwrap(), "1000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n30\n9\n0077\n");
        let mut missing = process("");
        missing.args = vec!["nosuch".into()];
        assert_eq!(exec(&container, &missing).unwrap_err().code, Code::NotFound);
        missing.args = vec!["/bin/sh".into()];
        missing.cwd = "/no/such".into();
        assert!(exec(&container, &missing).unwrap_err().message.contains("/no/such"));
        assert_eq!(container.pids().unwrap().len(), 2, "the shell and its sleep");
        container.delete().unwrap();
    });
}

#[test]
fn pause_signals_and_update() {
    with_bench("life::pause_signals_and_update", |bench| {
        let script = "trap 'echo >/tmp/got; exec sleep 1000' USR1; sleep 1000 & while :; do wait; done";
        let (container, made) = Container::create(&bench.id(), &spec(bench, script), output().1, &bench.env).unwrap();
        container.start().unwrap();
        while container.pids().unwrap().len() < 2 {
            std::thread::yield_now();
        }
        container.pause().unwrap();
        assert_eq!(exec(&container, &process("true")).unwrap_err().code, Code::FailedPrecondition);
        assert!(fs::read_to_string(container.cgroup().join("cgroup.events")).unwrap().contains("frozen 1"));
        container.resume().unwrap();
        assert_eq!(exec(&container, &process("echo on")).unwrap(), "on\n");
        // To all of them: the sleep dies of it, the shell's handler runs.
        container.signal_all(libc::SIGUSR1).unwrap();
        assert_eq!(exec(&container, &process("while [ ! -f /tmp/got ]; do sleep 0.01; done; echo got")).unwrap(), "got\n");
        // The sleep that was hit is gone when its turn comes, not when the signal was sent.
        while container.pids().unwrap() != [made.process.pid()] {
            std::thread::yield_now();
        }
        container.update(&LinuxResources::default()).unwrap();
        let stats = container.stats().unwrap();
        assert!(stats.cpu_stats.unwrap().cpu_usage.unwrap().total_usage > 0);
        container.signal_all(libc::SIGKILL).unwrap();
        assert_eq!(made.process.wait_for(PATIENCE), Some(Ended::Signaled(libc::SIGKILL)));
        container.delete().unwrap();
    });
}

#[test]
fn a_paused_container_with_cgroups_of_its_own_is_deleted() {
    with_bench("life::a_paused_container_with_cgroups_of_its_own_is_deleted", |bench| {
        let container = created(bench, "sleep 1000 & sleep 1000 & wait");
        container.start().unwrap();
        while container.pids().unwrap().len() < 3 {
            std::thread::yield_now();
        }
        let inner = container.cgroup().join("inner/deeper");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), container.pids().unwrap()[2].to_string()).unwrap();
        assert_eq!(container.pids().unwrap().len(), 3);
        container.pause().unwrap();
        container.delete().unwrap();
        assert!(!container.cgroup().exists());
    });
}

#[test]
fn threads_in_cgroups_of_their_own_are_the_containers_still() {
    with_bench("life::threads_in_cgroups_of_their_own_are_the_containers_still", |bench| {
        let container = created(bench, "sleep 1000");
        container.start().unwrap();
        let pid = container.pids().unwrap();
        let inner = container.cgroup().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("cgroup.type"), "threaded").unwrap();
        fs::write(inner.join("cgroup.threads"), pid[0].to_string()).unwrap();
        assert_eq!(container.pids().unwrap(), pid);
        assert_eq!(exec(&container, &process("echo in")).unwrap(), "in\n");
        container.delete().unwrap();
    });
}

#[test]
fn a_terminal_is_the_containers_own() {
    with_bench("life::a_terminal_is_the_containers_own", |bench| {
        let shown = |made: Made| {
            let mut master = fs::File::from(made.terminal.expect("a master"));
            let mut text = Vec::new();
            let mut block = [0; 4096];
            // EIO once nobody has the other end.
            while let Ok(n) = master.read(&mut block) {
                text.extend_from_slice(&block[..n]);
            }
            assert!(made.process.wait_for(PATIENCE).is_some());
            String::from_utf8(text).unwrap()
        };
        let script = "stty size; tty; ls -l /dev/console | cut -c1-10; stat -c %u /dev/pts/0; [ /dev/console -ef /dev/pts/0 ] && echo same
            awk '$5==\"/dev/console\" { print $4, $9 }' /proc/self/mountinfo; echo >/dev/tty; ls /proc/self/fd | wc -l; read line; echo got $line";
        let mut spec = spec(bench, script);
        let first = spec.process.as_mut().unwrap();
        first.terminal = true;
        first.console_size = Some(crate::rpc::wire::oci::Box { height: 33, width: 101 });
        first.user = Some(crate::rpc::wire::oci::User { uid: 1000, gid: 1000, ..Default::default() });
        let (container, made) = Container::create(&bench.id(), &spec, Given::Terminal, &bench.env).unwrap();
        container.start().unwrap();
        fs::File::from(made.terminal.as_ref().unwrap().try_clone().unwrap()).write_all(b"input\n").unwrap();
        let text = shown(made).replace("\r\n", "\n").replacen("input\n", "", 1);
        assert_eq!(text, "33 101\n/dev/pts/0\ncrw--w----\n1000\nsame\n/0 devpts\n\n4\ngot input\n");
        container.delete().unwrap();

        let container = created(bench, "sleep 1000");
        container.start().unwrap();
        let mut process = process("tty; stty size; ls /proc/self/fd | wc -l");
        process.terminal = true;
        process.console_size = Some(crate::rpc::wire::oci::Box { height: 9, width: 8 });
        assert_eq!(shown(container.exec("e", &process, Given::Terminal).unwrap()), "/dev/pts/0\r\n9 8\r\n4\r\n");
        container.delete().unwrap();
    });
}

#[test]
fn containers_may_share_a_pid_namespace() {
    with_bench("life::containers_may_share_a_pid_namespace", |bench| {
        let first = created(bench, "sleep 1000");
        first.start().unwrap();
        let pid = first.pids().unwrap()[0];
        let namespace = std::sync::Arc::new(fs::File::open(format!("/proc/{pid}/ns/pid")).unwrap().into());
        let env = super::Env { reaper: bench.env.reaper.clone(), pid_namespace: Some(namespace) };
        let mut spec = spec(bench, "tr '\\0' ' ' </proc/1/cmdline; [ $$ -gt 1 ] && echo >/tmp/done; sleep 1000");
        spec.linux.as_mut().unwrap().cgroups_path = format!("/{}/beside", bench.id());
        let (outputs, given) = output();
        let (second, made) = Container::create("second", &spec, given, &env).unwrap();
        second.start().unwrap();
        let script = "while [ ! -f /tmp/done ]; do sleep 0.01; done; tr '\\0' ' ' </proc/1/cmdline";
        let shown = exec(&second, &process(script)).unwrap();
        assert_eq!(shown, "sleep 1000 ");
        second.delete().unwrap();
        assert!(made.process.ended().is_some() && first.pids().unwrap() == [pid], "the first lives on");
        assert_eq!(outputs().0, "sleep 1000 ");
        first.delete().unwrap();
    });
}

#[test]
fn what_becomes_a_container_cannot_be_written_through() {
    with_bench("life::what_becomes_a_container_cannot_be_written_through", |bench| {
        // CVE-2019-5736: a script that names /proc/self/exe as its interpreter has the runtime execute itself inside.
        let script = "cat >/bin/evil <<'E'\n#!/proc/self/exe\nE\nchmod 755 /bin/evil; sleep 1000";
        let container = created(bench, script);
        container.start().unwrap();
        // The waiting role's file, as the container would reach it.
        let (_, given) = output();
        let mut other = spec(bench, "true");
        other.linux.as_mut().unwrap().cgroups_path = format!("/{}/other", bench.id());
        let (waiting, made) = Container::create("other", &other, given, &bench.env).unwrap();
        let exe = format!("/proc/{}/exe", made.process.pid());
        assert!(fs::metadata(&exe).is_ok());
        let refused = fs::File::options().write(true).open(&exe).unwrap_err();
        assert!(matches!(refused.raw_os_error(), Some(libc::EROFS | libc::ETXTBSY)), "{refused}");
        let options = fs::read_to_string(format!("/proc/{}/fdinfo/{}", std::process::id(), 0)).unwrap_or_default();
        assert!(options.contains("flags"));
        waiting.delete().unwrap();
        container.delete().unwrap();
    });
}
