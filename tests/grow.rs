//! A VM that grows and shrinks again and again under load: what the field's runtimes are reported to get wrong, each by its
//! number in Kata's list of issues.
//!
//! `scripts/test --all` runs twenty rounds; otherwise two show that the test works.

mod common;
#[path = "common/netns.rs"]
mod netns;
#[path = "common/pod.rs"]
mod pod;

use common::containerd::{Containerd, can_run_containerd};
use common::{name, until};
use netns::POD_V4;
use pod::Pod;

fn rounds() -> usize {
    if common::all() { 20 } else { 2 }
}

/// Every container of `ids` may use just the processors that are online, and these are `online`.
fn assert_online(pod: &Pod, ids: &[&str], online: &str) {
    let script = "cat /sys/devices/system/cpu/online; grep Cpus_allowed_list /proc/self/status | cut -f2; nproc";
    let last: u32 = online.rsplit('-').next().unwrap().parse().unwrap();
    for id in ids {
        assert_eq!(pod.exec(id, script), format!("{online}\n{online}\n{}", last + 1), "container {id}");
    }
}

/// What each processor has taken of the network's receive queues so far.
fn inputs(pod: &Pod) -> Vec<u64> {
    let mut sums = Vec::new();
    // The share's and the console's queues are virtio's, too, but called otherwise.
    for line in pod.exec(&pod.id, "grep 'virtio.*-input' /proc/interrupts").lines() {
        let counts: Vec<u64> = line.split_whitespace().skip(1).map_while(|w| w.parse().ok()).collect();
        sums.resize(sums.len().max(counts.len()), 0);
        sums.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
    }
    sums
}

#[test]
fn processors_come_and_go_under_load() {
    if !can_run_containerd("grow: processors") || !netns::can_make_namespaces("grow: processors") {
        return;
    }
    let cd = Containerd::start();
    let net = netns::Pod::new();
    let with = format!("network:{}", net.pod.arg());
    let pod = Pod::start(&cd, "grow", &["--with-ns", &with]);
    let [load, two, five] = ["load", "two", "five"].map(|n| format!("{}-{n}", pod.id));
    let busy = ["sh", "-c", "while :; do i=$((i+1)); [ $((i % 5000)) != 0 ] || echo $i >/tmp/n; done"];
    assert_eq!(pod.add(&load, &["--detach"], &busy).status, 0);
    let add = |id: &str, cpus: &str| {
        let out = pod.add(id, &["--detach", "--cpus", cpus], &["sleep", "36000"]);
        assert_eq!(out.status, 0, "{out:?}");
    };
    for round in 0..rounds() {
        assert_online(&pod, &[&pod.id, &load], "0");
        add(&two, "2");
        assert_online(&pod, &[&pod.id, &load, &two], "0-2");
        add(&five, "5");
        assert_online(&pod, &[&pod.id, &load, &two, &five], "0-7");
        if round == 0 {
            interrupts_are_spread(&pod, &net);
        }
        pod.delete(&five);
        assert_online(&pod, &[&load, &two], "0-2");
        pod.delete(&two);
        println!("round {}: 1, 3, 8, 3, 1 vCPUs", round + 1);
    }
    assert_online(&pod, &[&pod.id, &load], "0");
    // The load has not noticed.
    let count = || pod.exec(&load, "cat /tmp/n").parse::<u64>().unwrap();
    let before = count();
    until("the load goes on", || (count() > before).then_some(()));
    pod.delete(&load);
    pod.end();
}

fn interrupts_are_spread(pod: &Pod, net: &netns::Pod) {
    let before = inputs(pod);
    // Every datagram is a flow of its own.
    net.peer.run(&format!("bash -c 'for i in $(seq 400); do echo x >/dev/udp/{POD_V4}/9; done'"));
    let risen = until("datagrams on several processors", || {
        let risen = inputs(pod).iter().zip(&before).filter(|(now, then)| now > then).count();
        (risen >= 2).then_some(risen)
    });
    println!("virtio-input interrupts of {risen} of 8 processors rose under traffic");
}

#[test]
fn memory_grows_in_ten_steps_and_shrinks_while_the_workload_runs() {
    if !can_run_containerd("grow: memory") {
        return;
    }
    const STEPS: u64 = 10;
    const STEP_MIB: u64 = 256;
    let cd = Containerd::start();
    let vcpus = ["--annotation", "io.katacontainers.config.hypervisor.default_memory=512"];
    let pod = Pod::start(&cd, "growmem", &vcpus);
    let load = format!("{}-load", pod.id);
    // Takes memory, gives it back, and looks whether what it had written is what it reads.
    let script = "while :; do s=$(awk 'BEGIN { s = \"ab\"; while (length(s) < 8388608) s = s s; print s }' | md5sum); \
                  echo \"$s\" >>/tmp/sums; done";
    assert_eq!(pod.add(&load, &["--detach"], &["sh", "-c", script]).status, 0);
    let total = || pod.exec(&load, "grep MemTotal /proc/meminfo | awk '{print int($2 / 1024)}'").parse::<u64>().unwrap();
    let base = total();
    let step = |n: u64| format!("{}-{n}", pod.id);
    let limit = (STEP_MIB << 20).to_string();
    for n in 1..=STEPS {
        let out = pod.add(&step(n), &["--detach", "--memory-limit", &limit], &["sleep", "36000"]);
        assert_eq!(out.status, 0, "{out:?}");
        let grown = total() - base;
        // The kernel keeps a little of each block for its own tables.
        assert!((n * STEP_MIB * 95 / 100..=n * STEP_MIB).contains(&grown), "step {n}: {grown} MiB more");
    }
    for n in (1..=STEPS).rev() {
        pod.delete(&step(n));
    }
    let left = total().saturating_sub(base);
    println!("memory: {base} MiB, {} MiB more in {STEPS} steps, {left} MiB more after they went", STEPS * STEP_MIB);
    // What the kernel has put into a block stays there.
    assert!(left <= STEPS * STEP_MIB / 4, "{left} MiB were not given back");
    let lines = || pod.exec(&load, "wc -l </tmp/sums").parse::<u64>().unwrap();
    let before = lines();
    until("the workload goes on", || (lines() > before).then_some(()));
    assert_eq!(pod.exec(&load, "awk '!seen[$0]++' /tmp/sums | wc -l"), "1");
    pod.delete(&load);
    pod.end();
}

#[test]
fn a_limit_that_cannot_be_had_is_told_and_costs_nothing() {
    if !can_run_containerd("grow: too much") {
        return;
    }
    let cd = Containerd::start();
    let pod = Pod::start(&cd, "growbad", &[]);
    let (large, fine) = (name("large"), name("fine"));
    let out = pod.add(&large, &["--detach", "--memory-limit", &(1u64 << 50).to_string()], &["true"]);
    assert!(out.status != 0 && out.stderr.contains("default_maxmemory"), "{out:?}");
    cd.ctr(["container", "rm", &large]);
    // More processors than there can be are capped, with a quota that still holds.
    let out = pod.add(&fine, &["--detach", "--cpus", "100"], &["sleep", "3600"]);
    assert_eq!(out.status, 0, "{out:?}");
    let online: u32 = pod.exec(&fine, "nproc").parse().unwrap();
    assert!((2..=240).contains(&online), "{online}");
    pod.delete(&fine);
    pod.end();
}

/// Where a report of the field is answered.
enum Answer {
    /// A test: the file, the function.
    Test(&'static str, &'static str),
    /// Why it cannot happen here.
    Never(&'static str),
}

use Answer::{Never, Test};

/// (number in Kata's list, what was reported, the answer)
const ISSUES: &[(&str, &str, Answer)] = &[
    ("1880", "failed to online N CPU(s) after 100 retries", Test("tests/grow.rs", "processors_come_and_go_under_load")),
    (
        "2130",
        "the agent fails where udev has brought the CPU online already",
        Test("src/agent/service/online.rs", "what_is_offline_and_only_that_is_brought_online"),
    ),
    ("agent#181", "udev and the agent race for a CPU", Never("the guest has no udev: the agent alone acts on the kernel's events")),
    ("1195", "all virtio-net interrupts stay on the boot CPU", Test("tests/grow.rs", "processors_come_and_go_under_load")),
    (
        "2071",
        "requests without limits make 1 vCPU only",
        Never("requests arrive as shares and weigh containers in the guest; default_vcpus sizes such pods"),
    ),
    ("2875", "hosts of 256 CPUs: maxcpus beyond what QEMU takes", Test("src/shim/sandbox/boot.rs", "what_a_configuration_changes")),
    ("5050", "CPUs of a second container are not usable in the first", Test("tests/grow.rs", "processors_come_and_go_under_load")),
    ("5550", "a VM is not resized back", Test("tests/grow.rs", "processors_come_and_go_under_load")),
    ("9873", "sizes of several containers are not summed", Test("src/shim/sandbox/size.rs", "the_sum_rule")),
    ("12277", "fractions of CPUs are rounded one by one", Test("src/shim/sandbox/size.rs", "the_sum_rule")),
    ("12155", "s390x: hot-plug", Never("x86_64 only")),
    ("13440", "QEMU ends at a hot-plug and the shim is stuck", Test("tests/kill_matrix.rs", "whatever_dies_is_told_and_leaves_nothing")),
    (
        "13439, 13447",
        "the annotation default_vcpus is ignored",
        Test("tests/pod.rs", "annotations_change_the_size_and_what_they_may_not_is_refused"),
    ),
    (
        "13816",
        "the shim's own affinity limits default_max_vcpus",
        Never("an affinity only lowers the most, to 8 at least; nothing is refused for it"),
    ),
    ("9351", "128 GiB: slow, or fails", Never("one virtio-mem device grows block by block; no map of the whole is made beforehand")),
    (
        "runtime#1244",
        "the map of hot-added memory does not fit the memory there is",
        Test("tests/grow.rs", "memory_grows_in_ten_steps_and_shrinks_while_the_workload_runs"),
    ),
    (
        "4847",
        "at most 48 times the memory there is",
        Test("tests/grow.rs", "memory_grows_in_ten_steps_and_shrinks_while_the_workload_runs"),
    ),
    ("1621", "a hot-plug that fails is not told", Test("tests/grow.rs", "a_limit_that_cannot_be_had_is_told_and_costs_nothing")),
    (
        "3426",
        "memory that is no multiple of a block never comes online",
        Test("src/vm/qemu/hotplug.rs", "memory_comes_in_whole_blocks_and_has_an_end"),
    ),
    ("4516", "a limit above the host's memory", Test("tests/grow.rs", "a_limit_that_cannot_be_had_is_told_and_costs_nothing")),
    (
        "6129",
        "QEMU is killed because the pod's overhead is too small",
        Test("src/shim/sandbox/cgroup.rs", "memory_goes_beside_the_pod_unless_told_otherwise"),
    ),
];

#[test]
fn every_report_of_the_field_has_its_answer() {
    println!("{:<14} {:<66} answer", "Kata issue", "report");
    for (number, report, answer) in ISSUES {
        match answer {
            Never(why) => println!("{number:<14} {report:<66} cannot happen: {why}"),
            Test(file, function) => {
                println!("{number:<14} {report:<66} {file} {function}");
                let text = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
                assert!(text.contains(&format!("fn {function}()")), "{file} has no {function}");
            }
        }
    }
}
