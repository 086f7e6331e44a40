//! A pod is what its configuration and its annotations say: seen from inside, through a real containerd. And the commands.

mod common;

use std::fs;

use common::containerd::{Containerd, can_run_containerd};
use common::{command, finish, name, run};

const PREFIX: &str = "io.katacontainers.config";

#[test]
fn a_file_and_annotations_decide_what_a_pod_gets() {
    if !can_run_containerd("config: a pod") {
        return;
    }
    let cd = Containerd::start();
    let file = cd.path("configuration.toml");
    fs::create_dir(cd.path("config.d")).unwrap();
    fs::write(
        &file,
        "[hypervisor.qemu]\ndefault_memory = 320\nenable_annotations = [\"default_vcpus\"]\nkernel_params = \"one=1\"\nsurprise = 1\n",
    )
    .unwrap();
    fs::write(cd.path("config.d/10-more.toml"), "[hypervisor.qemu]\nkernel_params = \"two=2\"\n").unwrap();
    let path = file.to_str().unwrap();
    let with = |annotations: &[String], id: &str| {
        let mut options = vec!["--rm", "--runtime-config-path", path];
        annotations.iter().for_each(|a| options.extend(["--annotation", a]));
        cd.run(&options, id, &["sh", "-c", "nproc; grep MemTotal /proc/meminfo; cat /proc/cmdline"])
    };

    let id = name("configured");
    let out = with(&[format!("{PREFIX}.hypervisor.default_vcpus=3"), "io.example/other=1".into()], &id);
    assert_eq!(out.status, 0, "{out:?}\n{}", cd.log());
    let mut lines = out.stdout.lines();
    assert_eq!(lines.next(), Some("3"), "{out:?}");
    let kib: u64 = lines.next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((200 << 10..320 << 10).contains(&kib), "{kib} KiB");
    let words = lines.next().unwrap();
    assert!(words.ends_with("two=2") && !words.contains("one=1"), "{words}");
    cd.assert_gone(&id);

    for (annotation, want) in [
        (format!("{PREFIX}.runtime.disable_guest_seccomp=true"), "not allowed on this node"),
        (format!("{PREFIX}.hypervisor.default_vcpus=many"), "want a number of vCPUs up to 240"),
        (format!("{PREFIX}.hypervisor.default_vcp=1"), "osc knows no such annotation"),
    ] {
        let id = name("refused");
        let out = with(std::slice::from_ref(&annotation), &id);
        let (key, value) = annotation.split_once('=').unwrap();
        let told = format!("annotation {key} = {value:?}: ");
        assert!(out.status != 0 && out.stderr.contains(&told) && out.stderr.contains(want), "{out:?}");
        cd.assert_gone(&id);
    }

    fs::write(cd.path("config.d/20-wrong.toml"), "[hypervisor.qemu]\n\nrootless = true\n").unwrap();
    let id = name("wrong");
    let out = with(&[], &id);
    let told = "20-wrong.toml:3: rootless = true: want false: rootless QEMU is not done";
    assert!(out.status != 0 && out.stderr.contains(told), "{out:?}");
    cd.assert_gone(&id);
}

#[test]
fn the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\ndefault_memory = 512\nenable_annotations = [\"default_vcpus\"]\nsurprise = 1\n").unwrap();
    let file = file.to_str().unwrap();
    let shown = run(["config", "show", "--file", file, "--changed"]);
    assert_eq!(shown.status, 0, "{shown:?}");
    assert!(shown.stdout.contains("default_memory = 512") && shown.stdout.contains(&format!("# {file}:2\n")), "{shown:?}");
    assert!(shown.stderr.contains(&format!("osc: warning: {file}:4: surprise: unknown key")), "{shown:?}");
    let checked = run(["config", "check", file]);
    assert!(checked.status == 0 && checked.stdout.ends_with("good, 2 keys in 1 files for qemu\n"), "{checked:?}");
    let explained = run(["config", "explain-annotation", "--file", file, "default_vcpus=4"]);
    assert!(explained.status == 0 && explained.stdout.contains("4 instead of 1"), "{explained:?}");
    let explained = run(["config", "explain-annotation", "--file", file, "default_memory=4096"]);
    assert!(explained.status == 1 && explained.stdout.contains("not allowed on this node"), "{explained:?}");
    fs::write(file, "[hypervisor.qemu]\ndefault_memory = []\n").unwrap();
    let checked = run(["config", "check", file]);
    assert!(checked.status == 1 && checked.stdout.contains(":2: default_memory = []: want 128 to"), "{checked:?}");
    // The environment's file is the one in effect.
    let shown = finish(command(["config", "show"]).env("KATA_CONF_FILE", "/nonexistent/file.toml").spawn().unwrap());
    assert!(shown.status != 0 && shown.stderr.contains("KATA_CONF_FILE names it"), "{shown:?}");
    assert!(run(["config", "keys"]).stdout.starts_with("| key | does | test |"));
}
