//! Whatever dies, and whenever: a reason that a user can read, a status that is not 0, and nothing left.

mod common;

use std::time::Duration;

use common::{Output, Rootfs, assert_clean, bundle, can_run_vms, command, finish, kill, leftovers, name, pids, run, until};
use serde_json::json;

const VICTIMS: [&str; 2] = ["qemu", "virtiofsd"];

#[test]
fn qemu_or_virtiofsd_dies_while_the_guest_boots() {
    if !can_run_vms("death at boot") {
        return;
    }
    for victim in VICTIMS {
        let name = name("boot");
        let child = command(["run", "--name", &name, "--", "sleep", "600"]).spawn().unwrap();
        // As soon as it is there: long before the agent is.
        let pid = until(victim, || pids(&name, victim).first().copied());
        kill(pid);
        let out = finish(child);
        assert_eq!(out.status, 125, "{victim}: {}", out.stderr);
        assert!(out.stderr.contains("SIGKILL"), "{victim}: {}", out.stderr);
        assert_clean(&name);
    }
}

#[test]
fn qemu_or_virtiofsd_dies_while_the_command_runs() {
    if !can_run_vms("death while running") {
        return;
    }
    let root = Rootfs::new();
    for victim in VICTIMS {
        let name = name("running");
        let mut child =
            command(["run", "--name", &name, "--rootfs", &root.arg(), "--", "sh", "-c", "echo up; exec sleep 600"]).spawn().unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        let start = std::time::Instant::now();
        kill(pids(&name, victim)[0]);
        let out = finish(child);
        assert!(start.elapsed() < Duration::from_secs(5), "{victim}: told after {:?}", start.elapsed());
        assert_eq!(out.status, 125, "{victim}: {}", out.stderr);
        let told = if victim == "qemu" { "QEMU was killed by SIGKILL" } else { "virtiofsd was killed by SIGKILL" };
        // By us, once; the log has it, too.
        let lines = out.stderr.lines().filter(|l| l.starts_with("osc: ") && l.contains(told)).count();
        assert_eq!(lines, 1, "{victim}: {}", out.stderr);
        assert_clean(&name);
    }
}

/// Runs a command that ends by itself, with a hook of the host that ends `victim` in the phase it is for.
fn killed_by_hook(phase: &str, victim: &str, signal: &str) -> (String, Output) {
    let root = Rootfs::new();
    let name = name(phase);
    // The sandbox's name stands in QEMU's arguments and in the daemon's; the first word tells which is which.
    let script = format!(
        r#"for p in /proc/[0-9]*; do
            read -r -d "" first <$p/cmdline 2>/dev/null
            case ${{first##*/}} in *{victim}*) grep -q {name} $p/cmdline && kill -{signal} ${{p#/proc/}} ;; esac
        done; true"#
    );
    let bundle = bundle(&root, &["echo", "done"], |config| {
        config["hooks"] = json!({phase: [{"path": "/bin/bash", "args": ["bash", "-c", script]}]});
    });
    let child = command(["run", "--name", &name, "--bundle", &bundle.path().to_string_lossy()]).spawn().unwrap();
    if signal == "STOP" {
        // It holds still from its hook on, whatever is asked of it then, until it dies.
        let stopped = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") T "));
        kill(until("a stopped process", || pids(&name, victim).into_iter().find(|&p| stopped(p))));
    }
    (name, finish(child))
}

#[test]
fn qemu_or_virtiofsd_dies_before_the_container_or_as_it_ends() {
    if !can_run_vms("death before and after") {
        return;
    }
    for victim in VICTIMS {
        for (phase, signal, printed) in [("createRuntime", "KILL", ""), ("poststop", "KILL", "done\n"), ("poststop", "STOP", "done\n")] {
            let (name, out) = killed_by_hook(phase, victim, signal);
            let what = format!("{victim} in {phase}, {signal}: {out:?}");
            assert_eq!((out.status, out.stdout.as_str()), (125, printed), "{what}");
            assert!(out.stderr.to_lowercase().contains(&format!("{victim} was killed by sigkill")), "{what}");
            assert_clean(&name);
        }
    }
}

#[test]
fn a_guest_whose_kernel_panics_is_told_with_its_last_words() {
    if !can_run_vms("panic") {
        return;
    }
    let root = Rootfs::new();
    let bundle = bundle(&root, &["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"], |_| ());
    let name = name("panic");
    let out = run(["run", "--name", &name, "--bundle", &bundle.path().to_string_lossy()]);
    assert_eq!(out.status, 125, "{}", out.stderr);
    for part in ["the guest kernel panicked: sysrq triggered crash", "last words"] {
        assert!(out.stderr.contains(part), "{}", out.stderr);
    }
    assert_clean(&name);
}

#[test]
fn osc_run_dies_while_its_guest_boots() {
    if !can_run_vms("death of osc run at boot") {
        return;
    }
    for victim in VICTIMS {
        let name = name("early");
        let mut child = command(["run", "--name", &name, "--", "true"]).spawn().unwrap();
        until(victim, || pids(&name, victim).first().copied());
        child.kill().unwrap();
        child.wait().unwrap();
        until("its children's end", || VICTIMS.iter().all(|v| pids(&name, v).is_empty()).then_some(()));
        assert_eq!(run(["reap"]).status, 0);
        assert_clean(&name);
    }
}

#[test]
fn osc_run_itself_dies_and_the_next_start_clears_what_it_left() {
    if !can_run_vms("death of osc run") {
        return;
    }
    let root = Rootfs::new();
    for next in ["reap", "run"] {
        let name = name("owner");
        let mut child =
            command(["run", "--name", &name, "--rootfs", &root.arg(), "--", "sh", "-c", "echo up; exec sleep 600"]).spawn().unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Its children die with it, without anybody's help.
        until("QEMU's end", || pids(&name, "qemu").is_empty().then_some(()));
        assert!(!leftovers(&name).is_empty());
        let orphans = run(["ps", "--orphans"]).stdout;
        assert!(orphans.contains(&name), "{orphans}");
        match next {
            "reap" => assert!(run(["reap"]).stdout.contains(&name)),
            _ => assert_eq!(run(["run", "--", "true"]).status, 0),
        }
        assert_clean(&name);
    }
}
