//! Containers of a real containerd in VMs: what `ctr` shows is what it shows with runc.

mod common;

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::containerd::{Containerd, KATA, RUNC, can_run_containerd};
use common::{Output, finish, name, until};
use sha2::{Digest, Sha256};

#[test]
fn both_streams_and_the_exit_status_arrive() {
    if !can_run_containerd("containerd: streams") {
        return;
    }
    let cd = Containerd::start();
    let id = name("streams");
    let out = cd.run(&["--rm"], &id, &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((out.status, out.stdout.as_str(), out.stderr.as_str()), (7, "out\n", "err\n"));
    cd.assert_gone(&id);
}

/// One line of the comparison: what was asked, and what each runtime answered.
struct Row {
    what: &'static str,
    answers: Vec<String>,
}

/// What differs by nature: (row, why).
const DIFFERENT: &[(&str, &str)] = &[
    ("exec of a missing command", "runc's text names itself"),
    ("run of a missing command", "runc's text names itself"),
    ("exec while paused", "runc says unknown, osc the code: failed precondition"),
    ("delete while it runs", "containerd passes on the shim's own words"),
    ("kill of a stopped task", "runc says not found; CRI-O takes that for a failed stop, Kata and osc answer OK"),
];

#[test]
fn ctr_shows_what_it_shows_with_runc() {
    if !can_run_containerd("containerd: as with runc") {
        return;
    }
    let cd = Containerd::start();
    let mut rows: Vec<Row> = Vec::new();
    for runtime in [RUNC, KATA] {
        let id = name("table");
        let mut row = |what: &'static str, out: Output| {
            let answer = format!("{} | {} | {}", out.status, out.stdout.trim(), out.stderr.trim()).replace(&id, "ID");
            let answer: String = answer.split_whitespace().collect::<Vec<_>>().join(" ");
            match rows.iter_mut().find(|r| r.what == what) {
                Some(row) => row.answers.push(answer),
                None => rows.push(Row { what, answers: vec![answer] }),
            }
        };
        // A pid is the host's, and one process stands for a VM.
        let states = |id: &str| Output { status: 0, stdout: cd.state(id), stderr: String::new() };
        cd.background_with(&["--runtime", runtime], &id, &["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"]);
        row("state while it runs", states(&id));
        row("exec", cd.exec(&id, "e1", &["sh", "-c", "echo out; echo err >&2; exit 3"]));
        let mut child = cd.command(["task", "exec", "--exec-id", "e2", &id, "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through stdin\n").unwrap();
        row("exec with stdin", finish(child));
        row("exec of a missing command", cd.exec(&id, "e3", &["no-such-command"]));
        let mut listed = cd.ctr(["task", "ps", &id]);
        listed.stdout = listed.stdout.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        row("ps", listed);
        let mut metrics = cd.ctr(["task", "metrics", &id]);
        let positive =
            |name: &str| metrics.stdout.lines().any(|l| l.starts_with(name) && l.split_whitespace().last().is_some_and(|v| v != "0"));
        metrics.stdout = ["memory.usage_in_bytes", "cpuacct.usage"].map(|n| format!("{n} {}", positive(n))).join(", ");
        row("metrics", metrics);
        row("pause", cd.ctr(["task", "pause", &id]));
        row("state while paused", states(&id));
        row("exec while paused", cd.exec(&id, "e4", &["true"]));
        row("resume", cd.ctr(["task", "resume", &id]));
        row("state after resume", states(&id));
        row("delete while it runs", cd.ctr(["task", "delete", &id]));
        row("kill", cd.ctr(["task", "kill", "-s", "TERM", &id]));
        until("the trap's exit", || (cd.state(&id) == "STOPPED").then_some(()));
        row("kill of a stopped task", cd.ctr(["task", "kill", "-s", "TERM", &id]));
        let mut deleted = cd.ctr(["task", "delete", &id]);
        deleted.stderr = deleted.stderr.split("msg=").nth(1).unwrap_or_default().to_owned();
        row("delete", deleted);
        row("state after delete", states(&id));
        row("container rm", cd.ctr(["container", "rm", &id]));
        row("run of a missing command", cd.run(&["--rm", "--runtime", runtime], &id, &["no-such-command"]));
        cd.ctr(["container", "rm", &id]);
        row("env, cwd", cd.run(&["--rm", "--runtime", runtime, "--env", "A=b", "--cwd", "/tmp"], &id, &["sh", "-c", "echo $A; pwd"]));
        row("read-only root", cd.run(&["--rm", "--runtime", runtime, "--read-only"], &id, &["sh", "-c", "touch /x"]));
        row("ends by a signal", cd.run(&["--rm", "--runtime", runtime], &id, &["sh", "-c", "kill -9 $$"]));
        cd.assert_gone(&id);
    }
    let mut differ = Vec::new();
    for Row { what, answers } in &rows {
        let (runc, kata) = (&answers[0], &answers[1]);
        let expected = DIFFERENT.iter().find(|d| d.0 == *what);
        let verdict = match (runc == kata, expected) {
            (true, _) => "same".to_owned(),
            (false, Some((_, why))) => format!("expected: {why}"),
            (false, None) => {
                differ.push(*what);
                "DIFFERS".to_owned()
            }
        };
        println!("{what:<28} {verdict}\n    runc {runc}\n    kata {kata}");
    }
    assert!(differ.is_empty(), "{differ:?}");
}

#[test]
fn a_terminal_works() {
    if !can_run_containerd("containerd: terminal") {
        return;
    }
    let cd = Containerd::start();
    let id = name("tty");
    let inner =
        format!("stty rows 33 cols 101; exec ctr -a {} run --rm -t --runtime {KATA} {} {id} sh", cd.address(), common::containerd::IMAGE);
    let mut child = std::process::Command::new("script")
        .args(["-qec", &inner, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"readlink /proc/self/fd/0; stty size; exit 9\n").unwrap();
    let out = finish(child);
    drop(stdin);
    assert!(out.stdout.contains("/dev/pts/0") && out.stdout.contains("33 101"), "{out:?}");
    assert_eq!(out.status, 9, "{out:?}");
    cd.assert_gone(&id);
}

#[test]
fn a_hundred_megabytes_go_in_and_come_out_intact() {
    if !can_run_containerd("containerd: 100 MB") {
        return;
    }
    let cd = Containerd::start();
    let id = name("bulk");
    let mut x = 88_172_645_463_325_252u64;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .take(100_000_000 / 8)
    .flatten()
    .collect();
    let sum = Sha256::digest(&data);
    let mut child = cd.run_command(&["--rm"], &id, &["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&data));
    let mut copied = Vec::new();
    std::io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut copied).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(finish(child).status, 0);
    assert_eq!((copied.len(), Sha256::digest(&copied)), (100_000_000, sum));
    cd.assert_gone(&id);
}

#[test]
fn eight_containers_start_at_once() {
    if !can_run_containerd("containerd: eight at once") {
        return;
    }
    let cd = Containerd::start();
    let ids: Vec<String> = (0..8).map(|_| name("eight")).collect();
    let children: Vec<_> = ids.iter().map(|id| cd.run_command(&["--rm"], id, &["sh", "-c", "echo $((6*7))"]).spawn().unwrap()).collect();
    for child in children {
        let out = finish(child);
        assert_eq!((out.status, out.stdout.trim()), (0, "42"), "{out:?}");
    }
    ids.iter().for_each(|id| cd.assert_gone(id));
}

#[test]
fn a_containerd_that_restarts_finds_its_tasks() {
    if !can_run_containerd("containerd: restart") {
        return;
    }
    let mut cd = Containerd::start();
    let id = name("restart");
    cd.background(&id);
    cd.restart();
    assert_eq!(cd.state(&id), "RUNNING");
    assert_eq!(cd.exec(&id, "e1", &["echo", "here"]).stdout, "here\n");
    assert_eq!(cd.ctr(["task", "kill", "-s", "TERM", &id]).status, 0);
    until("the trap's exit", || (cd.state(&id) == "STOPPED").then_some(()));
    cd.remove(&id);
}

#[test]
fn events_come_in_order_and_each_once() {
    if !can_run_containerd("containerd: events") {
        return;
    }
    let cd = Containerd::start();
    let id = name("events");
    let mut events = cd.command(["events"]).spawn().unwrap();
    let log = cd.path("events");
    let (mut from, to) = (events.stdout.take().unwrap(), log.clone());
    std::thread::spawn(move || std::io::copy(&mut from, &mut fs::File::create(to).unwrap()));
    // The subscription is there once it shows something.
    until("events", || {
        cd.ctr(["namespace", "label", "default", "x=y"]);
        fs::read_to_string(&log).ok().filter(|t| !t.is_empty())
    });
    cd.background(&id);
    cd.exec(&id, "e1", &["true"]);
    cd.ctr(["task", "pause", &id]);
    cd.ctr(["task", "resume", &id]);
    cd.remove(&id);
    let seen = until("the last event", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let topics: Vec<String> = text
            .lines()
            .filter(|l| l.contains(&id))
            .filter_map(|l| l.split_whitespace().find(|w| w.starts_with("/tasks/")))
            .map(str::to_owned)
            .collect();
        topics.last().is_some_and(|t| t == "/tasks/delete").then_some(topics)
    });
    let _ = events.kill();
    let _ = events.wait();
    let expected = ["create", "start", "exec-added", "exec-started", "exit", "delete", "paused", "resumed", "exit", "delete"];
    // The exec's own exit and delete come before the pause; each is told once by the shim, delete by the shim alone.
    assert_eq!(seen, expected.map(|t| format!("/tasks/{t}")));
}

#[test]
fn the_binary_is_replaced_under_a_running_pod() {
    if !can_run_containerd("containerd: replaced binary") {
        return;
    }
    let cd = Containerd::start();
    let id = name("replaced");
    cd.background(&id);
    let (old, new) = (cd.path("bin/osc"), cd.path("bin/osc.new"));
    fs::copy(&old, &new).unwrap();
    fs::rename(&new, &old).unwrap();
    assert_eq!(cd.exec(&id, "e1", &["echo", "still"]).stdout, "still\n");
    cd.remove(&id);
}

#[test]
fn an_exec_answers_while_a_reader_stalls() {
    if !can_run_containerd("containerd: stalled reader") {
        return;
    }
    let cd = Containerd::start();
    let id = name("stall");
    // Nobody reads this command's output yet: its pipe fills and stays full.
    let stalled = cd.run_command(&["--rm"], &id, &["head", "-c", "30000000", "/dev/zero"]).spawn().unwrap();
    until("it runs", || (cd.state(&id) == "RUNNING").then_some(()));
    let begun = Instant::now();
    assert_eq!(cd.exec(&id, "e1", &["echo", "alive"]).stdout, "alive\n");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let out = finish(stalled);
    assert_eq!((out.status, out.stdout.len()), (0, 30_000_000));
    cd.assert_gone(&id);
}

/// `osc ps`, `exec`, `logs` and `stop` find a sandbox whoever started it.
#[test]
fn sandboxes_of_containerd_are_seen_by_osc() {
    if !can_run_containerd("containerd: live view") {
        return;
    }
    let cd = Containerd::start();
    let id = name("live");
    cd.background(&id);
    let listed = common::run(["ps"]).stdout;
    let line = listed.lines().find(|l| l.starts_with(&id)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("running") && line.contains("containerd default"), "{line}");
    let out = common::run(["exec", &id, "--", "sh", "-c", "echo inside; exit 6"]);
    assert_eq!((out.status, out.stdout.trim()), (6, "inside"), "{out:?}");
    assert_eq!(common::run(["logs", "--console", &id]).status, 0);
    let out = common::run(["logs", &id]);
    assert!(out.status != 0 && out.stderr.contains("--console"), "{out:?}");
    cd.remove(&id);
}

/// A guest that does not come up: the create error carries stage, cause and the console's last lines.
#[test]
fn a_failed_create_shows_the_guests_last_words() {
    if !can_run_containerd("containerd: failed create") {
        return;
    }
    let cd = Containerd::start();
    let id = name("broken");
    let initrd = cd.path("initrd");
    fs::write(&initrd, vec![7; 4096]).unwrap();
    let config = cd.path("configuration.toml");
    fs::write(&config, format!("[hypervisor.qemu]\ninitrd = \"{}\"\n", initrd.display())).unwrap();
    let out = cd.run(&["--runtime-config-path", config.to_str().unwrap()], &id, &["true"]);
    assert!(out.status != 0 && out.stderr.contains("kernel: ") && out.stderr.contains("the guest's last words"), "{out:?}");
    cd.ctr(["container", "rm", &id]);
    cd.assert_gone(&id);
}

#[test]
fn a_shell_in_the_guest_where_the_configuration_allows_it() {
    if !can_run_containerd("containerd: osc debug") {
        return;
    }
    let cd = Containerd::start();
    let id = name("debug");
    let config = cd.path("configuration.toml");
    for allowed in [false, true] {
        fs::write(&config, format!("[hypervisor.qemu]\n[agent.kata]\ndebug_console_enabled = {allowed}\n")).unwrap();
        cd.background_with(&["--runtime-config-path", config.to_str().unwrap()], &id, &["sleep", "3600"]);
        // The agent is seen as what it is, and so is the container's process.
        let out = common::run(["debug", &id, "--", "sh", "-c", "cat /proc/1/comm; cat /proc/[0-9]*/comm | grep -c sleep; exit 8"]);
        if allowed {
            assert_eq!((out.status, out.stdout.as_str()), (8, "init\n1\n"), "{out:?}");
        } else {
            assert!(out.status == 125 && out.stderr.contains("debug_console_enabled"), "{out:?}");
        }
        cd.remove(&id);
    }
}
