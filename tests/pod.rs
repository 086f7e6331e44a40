//! A pod of several containers in one VM, driven by a real containerd with the annotations of Kubernetes' managers.

mod common;
#[path = "common/pod.rs"]
mod pod;

use common::containerd::{Containerd, can_run_containerd};
use common::name;
use pod::Pod;

#[test]
fn containers_come_and_go_in_a_living_sandbox() {
    if !can_run_containerd("pod: containers") {
        return;
    }
    let cd = Containerd::start();
    let pod = Pod::start(&cd, "life", &[]);
    let (a, b) = (format!("{}-a", pod.id), format!("{}-b", pod.id));
    for round in 0..2 {
        for id in [&a, &b] {
            let added = pod.add(id, &["--detach"], &["sleep", "3600"]);
            assert_eq!(added.status, 0, "round {round}: {added:?}");
        }
        // One VM: one kernel, whose boot id all see.
        let boot = pod.exec(&a, "cat /proc/sys/kernel/random/boot_id");
        assert_eq!(pod.exec(&b, "cat /proc/sys/kernel/random/boot_id"), boot);
        // The same id again while it lives is refused, and harms nobody.
        let again = pod.add(&a, &["--detach"], &["true"]);
        assert!(again.status != 0 && again.stderr.contains("already exists"), "{again:?}");
        pod.delete(&a);
        assert_eq!(pod.exec(&b, "cat /proc/sys/kernel/random/boot_id"), boot);
        // A container that ends by itself, and one that restarts under its own name.
        assert_eq!(pod.add(&a, &["--rm"], &["sh", "-c", "exit 4"]).status, 4);
        pod.delete(&b);
    }
    let ids: Vec<String> = (0..4).map(|n| format!("{}-x{n}", pod.id)).collect();
    assert_eq!(pod.add(&a, &["--detach"], &["sleep", "3600"]).status, 0);
    let execs: Vec<_> =
        ids.iter().map(|x| cd.command(["task", "exec", "--exec-id", x, &a, "sh", "-c", "echo $((40+2))"]).spawn().unwrap()).collect();
    for exec in execs {
        let out = common::finish(exec);
        assert_eq!((out.status, out.stdout.trim()), (0, "42"), "{out:?}");
    }
    pod.delete(&a);
    pod.end();
}

#[test]
fn the_vm_grows_with_its_containers_and_shrinks_when_they_go() {
    if !can_run_containerd("pod: sizes") {
        return;
    }
    let cd = Containerd::start();
    let pod = Pod::start(&cd, "size", &[]);
    let (a, b) = (format!("{}-a", pod.id), format!("{}-b", pod.id));
    let memory = "free | grep Mem | awk '{print int(($2 + 1023) / 1024)}'";
    let online = "cat /sys/devices/system/cpu/online";
    assert_eq!(pod.add(&b, &["--detach"], &["sleep", "3600"]).status, 0);
    assert_eq!(pod.exec(&b, online), "0");
    let base: u64 = pod.exec(&b, memory).parse().unwrap();
    // The article's example: 1 vCPU and 2 GiB, and a container limited to 2 CPUs and 4 GiB: 3 vCPUs and 6 GiB.
    let limits = ["--detach", "--cpus", "2", "--memory-limit", "4294967296"];
    assert_eq!(pod.add(&a, &limits, &["sleep", "3600"]).status, 0);
    assert_eq!(pod.exec(&a, online), "0-2");
    assert_eq!(pod.exec(&a, "nproc"), "3");
    let grown: u64 = pod.exec(&a, memory).parse().unwrap();
    // The guest kernel keeps a little of each block for its own tables.
    assert!((3900..=4096).contains(&(grown - base)), "{base} -> {grown} MiB");
    // Usable in every container, also one that was there before.
    assert_eq!(pod.exec(&b, "nproc"), "3");
    // Interrupts of virtio queues are not all on the first processor.
    let affinities = pod
        .exec(&b, "for i in $(grep virtio /proc/interrupts | grep -v config | cut -d: -f1); do cat /proc/irq/$i/smp_affinity_list; done");
    let distinct: std::collections::BTreeSet<&str> = affinities.lines().collect();
    assert!(distinct.len() >= 3, "{affinities}");
    pod.delete(&a);
    assert_eq!(pod.exec(&b, online), "0");
    // And again: what went offline comes back.
    assert_eq!(pod.add(&a, &limits, &["sleep", "3600"]).status, 0);
    assert_eq!(pod.exec(&a, online), "0-2");
    pod.delete(&a);
    pod.delete(&b);
    pod.end();
}

#[test]
fn annotations_change_the_size_and_what_they_may_not_is_refused() {
    if !can_run_containerd("pod: annotations") {
        return;
    }
    let cd = Containerd::start();
    let pod = Pod::start(
        &cd,
        "annotated",
        &[
            "--annotation",
            "io.katacontainers.config.hypervisor.default_vcpus=2",
            "--annotation",
            "io.katacontainers.config.hypervisor.default_memory=512",
        ],
    );
    assert_eq!(pod.exec(&pod.id, "nproc"), "2");
    let mib: u64 = pod.exec(&pod.id, "free | grep Mem | awk '{print int($2 / 1024)}'").parse().unwrap();
    assert!((400..=512).contains(&mib), "{mib}");
    pod.end();
    let id = name("refused");
    let out = cd.run(&["--annotation", "io.katacontainers.config.hypervisor.path=/bin/false"], &id, &["true"]);
    assert!(out.status != 0 && out.stderr.contains("path"), "{out:?}");
    cd.ctr(["container", "rm", &id]);
    cd.assert_gone(&id);
}
