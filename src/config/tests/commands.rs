//! What the commands print.

use super::*;
use crate::config::cmd;
use crate::config::{Config, Hypervisor};

#[test]
fn what_is_shown_is_a_file_that_says_the_same() {
    let files = Files::new("[hypervisor.qemu]\ndefault_memory = 512\nkernel_params = \"a b\"\nvirtio_fs_extra_args = [\"--xattr\"]\n");
    let read = files.read();
    let text = cmd::shown(&read, false);
    assert!(text.starts_with(&format!("# {}\n\n[hypervisor.qemu]\n", files.main().display())), "{text}");
    let line = text.lines().find(|l| l.starts_with("default_memory")).unwrap();
    assert!(line.ends_with(&format!("# {}:2", files.main().display())), "{line}");
    assert!(text.lines().any(|l| l.starts_with("default_vcpus = 1 ") && l.ends_with("# default")), "{text}");
    let again = of(&text);
    assert_eq!((again.errors.clone(), again.config.warnings.clone()), (vec![], vec![]));
    let bare = |c: Config| format!("{:?}", Config { origins: Default::default(), file: None, ..c });
    assert_eq!(bare(again.config), bare(read.config.clone()));
    let short = cmd::shown(&read, true);
    assert_eq!(short.lines().filter(|l| l.contains(" = ")).count(), 3, "{short}");
}

#[test]
fn the_defaults_are_a_file_too() {
    for hypervisor in [Hypervisor::Qemu, Hypervisor::Remote] {
        let shim = format!("containerd-shim-kata-{}-v2", hypervisor.name());
        let text = cmd::shown(&assemble(None, &shim), false);
        let files = Files::new(&text);
        let again = assemble(Some(&files.main()), &shim);
        assert_eq!((again.config.hypervisor, again.errors, again.config.warnings), (hypervisor, vec![], vec![]));
    }
}

#[test]
fn a_check_tells_everything_at_once() {
    let files =
        Files::new("[hypervisor.qemu]\npath = \"/nonexistent/qemu\"\nrootless = true\nfirmware = \"/x\"\nsurprise = 1\nmsize_9p = 8192\n");
    let (text, good) = cmd::checked(&files.read());
    assert!(!good);
    for (kind, part) in [
        ("error", ":2: path = \"/nonexistent/qemu\": No such file"),
        ("error", ":3: rootless = true: want false"),
        ("error", ":4: firmware"),
        ("warning", ":5: surprise: unknown key"),
        ("note", ":6: msize_9p = 8192: no effect: 9p is not done"),
    ] {
        assert!(text.lines().any(|l| l.starts_with(kind) && l.contains(part)), "{part} in\n{text}");
    }
    assert!(text.ends_with("3 errors: no pod starts with it\n"), "{text}");
    let (text, good) = cmd::checked(&of("[runtime]\nsandbox_cgroup_only = false\n"));
    assert!(good && text.ends_with("good, 1 keys in 1 files for qemu\n"), "{text}");
}

#[test]
fn an_annotation_is_explained() {
    let explain = |name: &str, value: &str| cmd::explained(Config::default(), &[(name.into(), value.into())]);
    let (text, good) = explain("default_vcpus", "8");
    assert!(good && text.contains("effect    8 instead of 1 (default)") && text.contains("verdict   allowed"), "{text}");
    assert!(text.contains("io.katacontainers.config.hypervisor.default_vcpus") && text.contains("does      vCPUs"), "{text}");
    for name in ["disable_guest_seccomp", "runtime.disable_guest_seccomp", "io.katacontainers.config.runtime.disable_guest_seccomp"] {
        let (text, good) = explain(name, "true");
        assert!(!good && text.contains("key       [runtime] disable_guest_seccomp") && text.contains("not allowed on this node"), "{text}");
        assert!(text.contains("way out"), "{text}");
    }
    let (text, good) = explain("surprise", "1");
    assert!(!good && text.contains("osc knows no such annotation"), "{text}");
    let (text, good) = explain("default_memory", "2Gi");
    assert!(!good && text.contains("want 128 to"), "{text}");
}

#[test]
fn annotations_of_one_pod_are_judged_together() {
    let config = Config { enable_annotations: vec!["disable_new_netns".into(), "internetworking_model".into()], ..Config::default() };
    let netns = ("disable_new_netns".to_owned(), "true".to_owned());
    let (text, good) = cmd::explained(config.clone(), std::slice::from_ref(&netns));
    assert!(!good && text.contains("together  refused"), "{text}");
    let (text, good) = cmd::explained(config, &[netns, ("internetworking_model".into(), "none".into())]);
    assert!(good, "{text}");
}
