//! Whatever dies, and whenever: a reason that a user can read, a status that is not 0, and nothing left.

mod common;

use std::time::Duration;

use common::{Rootfs, assert_clean, can_run_vms, command, finish, kill, leftovers, name, pids, run, until};

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
        assert!(out.stderr.contains(told), "{victim}: {}", out.stderr);
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
