//! Many containers, one after the other and at once: nothing grows, nothing is left.
//!
//! `scripts/test --all` runs 200; otherwise a tenth of it shows that the test works.

mod common;

use std::fs;

use common::containerd::{Containerd, can_run_containerd};
use common::{finish, name, pids, until};

fn count() -> usize {
    if common::all() { 200 } else { 20 }
}

/// What a process holds.
#[derive(Debug)]
struct Holds {
    fds: usize,
    threads: usize,
    rss_kib: usize,
}

fn holds(pid: i32) -> Holds {
    let entries = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    Holds { fds: entries("fd"), threads: entries("task"), rss_kib: rss.split_whitespace().next().unwrap().parse().unwrap() }
}

#[test]
fn containers_in_a_row_in_a_living_sandbox_leave_its_shim_as_it_was() {
    if !can_run_containerd("soak: a living sandbox") {
        return;
    }
    let cd = Containerd::start();
    let pod = name("soak");
    cd.background_with(&["--annotation", "io.kubernetes.cri.container-type=sandbox"], &pod, &["sleep", "36000"]);
    let shim = pids(&pod, "containerd-shim")[0];
    let sandbox = format!("io.kubernetes.cri.sandbox-id={pod}");
    let start = |n: usize| {
        let options = ["--rm", "--annotation", "io.kubernetes.cri.container-type=container", "--annotation", &sandbox];
        cd.run_command(&options, &format!("{pod}-{n}"), &["sh", "-c", "echo $((6*7)); exit 3"]).spawn().unwrap()
    };
    let check = |child| {
        let out = finish(child);
        assert_eq!((out.status, out.stdout.trim()), (3, "42"), "{out:?}");
    };
    // Whatever is made once is there after a few.
    (0..5).for_each(|n| check(start(n)));
    // Four at once: the threads that serve calls are kept for the next.
    let children: Vec<_> = (900..904).map(start).collect();
    children.into_iter().for_each(check);
    let (shim_before, cd_before) = (holds(shim), holds(cd.pid()));
    (5..5 + count() / 2).for_each(|n| check(start(n)));
    for four in 0..count() / 8 {
        let children: Vec<_> = (0..4).map(|k| start(1000 + four * 4 + k)).collect();
        children.into_iter().for_each(check);
    }
    // What served the last four may still be on its way out.
    until("the threads of the last calls to end", || (holds(shim).threads <= shim_before.threads + 4).then_some(()));
    let (shim_after, cd_after) = (holds(shim), holds(cd.pid()));
    println!("shim {shim_before:?} -> {shim_after:?}, containerd {cd_before:?} -> {cd_after:?}");
    assert!(shim_after.fds <= shim_before.fds, "{shim_before:?} -> {shim_after:?}");
    // Four at once leave four threads' stacks and arenas behind, however many fours there were.
    assert!(shim_after.rss_kib <= shim_before.rss_kib + 2048, "{shim_before:?} -> {shim_after:?}");
    assert!(cd_after.fds <= cd_before.fds + 4, "{cd_before:?} -> {cd_after:?}");
    cd.remove(&pod);
}

#[test]
fn vms_in_a_row_and_four_at_a_time_leave_nothing() {
    if !can_run_containerd("soak: VMs") {
        return;
    }
    let cd = Containerd::start();
    let run = |id: &str| cd.run_command(&["--rm"], id, &["true"]).spawn().unwrap();
    let prefix = name("soak-vm");
    assert_eq!(finish(run(&format!("{prefix}-first"))).status, 0);
    let before = holds(cd.pid());
    for n in 0..count() / 5 {
        let children: Vec<_> = (0..if n % 2 == 0 { 1 } else { 4 }).map(|k| run(&format!("{prefix}-{n}-{k}"))).collect();
        for child in children {
            let out = finish(child);
            assert_eq!(out.status, 0, "{out:?}");
        }
    }
    let after = holds(cd.pid());
    println!("containerd {before:?} -> {after:?}");
    assert!(after.fds <= before.fds + 4, "{before:?} -> {after:?}");
    cd.assert_gone(&prefix);
}
