use std::collections::{BTreeMap, HashMap};

use crate::config::{Config, Origin};

fn with(allowed: &[&str]) -> Config {
    Config { enable_annotations: allowed.iter().map(|a| a.to_string()).collect(), ..Config::default() }
}

fn annotate(config: &mut Config, name: &str, value: &str) -> Result<(), String> {
    let all = BTreeMap::from([(format!("io.katacontainers.config.{name}"), value.to_owned())]);
    config.annotate(&all).map_err(|e| e.to_string())
}

#[test]
fn what_is_allowed_takes_effect() {
    let mut c = Config::default();
    let all = HashMap::from([
        ("io.katacontainers.config.hypervisor.default_vcpus".to_owned(), "8".to_owned()),
        ("io.katacontainers.config.hypervisor.default_memory".to_owned(), "16384".to_owned()),
        ("io.katacontainers.config.hypervisor.default_max_vcpus".to_owned(), "16".to_owned()),
        ("io.katacontainers.container.resource.swappiness".to_owned(), "50".to_owned()),
        ("io.kubernetes.cri.sandbox-name".to_owned(), "x".to_owned()),
    ]);
    c.annotate(&all).unwrap();
    assert_eq!((c.default_vcpus, c.default_memory, c.default_maxvcpus), (8, 16384, 16));
    let name = "io.katacontainers.config.hypervisor.default_vcpus".to_owned();
    assert_eq!(c.origins["hypervisor.default_vcpus"], Origin::Annotation(name));
}

#[test]
fn all_three_prefixes_are_gated_alike() {
    for name in ["hypervisor.kernel_params", "runtime.disable_guest_seccomp", "agent.kernel_modules", "runtime.sandbox_cgroup_only"] {
        let e = annotate(&mut Config::default(), name, "true").unwrap_err();
        assert!(e.contains(&format!("annotation io.katacontainers.config.{name} = \"true\": not allowed on this node")), "{e}");
        assert!(e.contains("enable_annotations"), "{e}");
    }
    let mut c = with(&["disable_guest_seccomp", "agent.kernel_modules", "kernel_params"]);
    annotate(&mut c, "runtime.disable_guest_seccomp", "true").unwrap();
    annotate(&mut c, "agent.kernel_modules", "e1000e EEE=1; i915 enable_ppgtt=0").unwrap();
    annotate(&mut c, "hypervisor.kernel_params", "a=1 b").unwrap();
    assert!(c.disable_guest_seccomp);
    assert_eq!(c.kernel_modules, ["e1000e EEE=1", "i915 enable_ppgtt=0"]);
    assert_eq!(c.kernel_params, ["a=1", "b"]);
}

#[test]
fn a_name_allows_itself_only() {
    for (allowed, name) in
        [("kernel", "kernel_params"), ("path", "virtio_fs_daemon"), (".*", "kernel_params"), ("kernel_.*", "kernel_params")]
    {
        let e = annotate(&mut with(&[allowed]), &format!("hypervisor.{name}"), "/x").unwrap_err();
        assert!(e.contains("not allowed"), "{e}");
    }
    // A section's name in front allows it there only.
    let e = annotate(&mut with(&["agent.default_vcpus"]), "hypervisor.default_vcpus", "1").unwrap_err();
    assert!(e.contains("not allowed"), "{e}");
    annotate(&mut with(&["hypervisor.default_vcpus"]), "hypervisor.default_vcpus", "1").unwrap();
}

#[test]
fn values_that_make_no_sense() {
    for (name, value, want) in [
        ("default_vcpus", "many", "want a number of vCPUs up to 240"),
        ("default_vcpus", "241", "want a number of vCPUs up to 240"),
        ("default_memory", "64", "want 128 to"),
        ("default_memory", "2Gi", "want 128 to"),
        ("default_memory", "", "want 128 to"),
        ("rootless", "true", "rootless QEMU is not done"),
        ("cc_init_data", "H4sI", "confidential guests are not done"),
        ("enable_hugepages", "1", "want true or false"),
        ("image", "/x", "osc boots an initrd"),
        ("surprise", "1", "osc knows no such annotation"),
    ] {
        let mut c = with(&[name]);
        let e = annotate(&mut c, &format!("hypervisor.{name}"), value).unwrap_err();
        assert!(e.contains(want) && e.contains(&format!("hypervisor.{name} = {value:?}")), "{want} in {e}");
        assert!(c.origins.is_empty());
    }
    let e = annotate(&mut with(&["x"]), "image.x", "1").unwrap_err();
    assert!(e.contains("no such annotation"), "{e}");
}

#[test]
fn a_path_is_resolved_before_it_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("allowed")).unwrap();
    for file in ["allowed/qemu-new", "evil"] {
        std::fs::write(root.join(file), "").unwrap();
    }
    std::os::unix::fs::symlink("../evil", root.join("allowed/qemu-link")).unwrap();
    std::os::unix::fs::symlink("allowed/qemu-new", root.join("short")).unwrap();
    let mut c = with(&["path"]);
    c.valid_hypervisor_paths = vec![format!("{}/allowed/qemu-*", root.display())];
    let mut try_path =
        |path: &str| annotate(&mut c, "hypervisor.path", &root.join(path).to_string_lossy()).map(|()| c.path.clone().unwrap());
    assert_eq!(try_path("allowed/qemu-new").unwrap(), root.join("allowed/qemu-new"));
    assert_eq!(try_path("short").unwrap(), root.join("allowed/qemu-new"));
    assert!(try_path("allowed/qemu-link").unwrap_err().contains("evil, which is not among"));
    let e = try_path("allowed/../evil").unwrap_err();
    assert!(e.contains("not among") && e.contains("valid_hypervisor_paths"), "{e}");
    assert!(try_path("allowed/qemu-gone").unwrap_err().contains("No such file"));
    assert!(annotate(&mut c, "hypervisor.path", "allowed/qemu-new").unwrap_err().contains("not a path from the root"));
    // Allowed by name, but nothing is valid.
    let e = annotate(&mut with(&["kernel"]), "hypervisor.kernel", "/proc/version").unwrap_err();
    assert!(e.contains("not among []") && e.contains("valid_guest_paths"), "{e}");
}

#[test]
fn lists_in_annotations() {
    let mut c = with(&["virtio_fs_extra_args", "sandbox_bind_mounts"]);
    annotate(&mut c, "hypervisor.virtio_fs_extra_args", r#"["--a", "--b=c d"]"#).unwrap();
    assert_eq!(c.virtio_fs_extra_args, ["--a", "--b=c d"]);
    annotate(&mut c, "hypervisor.virtio_fs_extra_args", "--a --b").unwrap();
    assert_eq!(c.virtio_fs_extra_args, ["--a", "--b"]);
    assert!(annotate(&mut c, "hypervisor.virtio_fs_extra_args", "[1]").unwrap_err().contains("want a list"));
    let e = annotate(&mut c, "runtime.sandbox_bind_mounts", "/a /b").unwrap_err();
    assert!(e.contains("any path of the node") && c.sandbox_bind_mounts.is_empty(), "{e}");
}

#[test]
fn the_runtime_class_selects_the_hypervisor() {
    let mut c = with(&["hypervisor_name"]);
    annotate(&mut c, "runtime.hypervisor_name", "qemu").unwrap();
    let e = annotate(&mut c, "runtime.hypervisor_name", "remote").unwrap_err();
    assert!(e.contains("runtime class"), "{e}");
}

#[test]
fn what_goes_together() {
    let mut c = with(&["disable_new_netns", "internetworking_model"]);
    let e = annotate(&mut c.clone(), "runtime.disable_new_netns", "true").unwrap_err();
    assert!(e.contains("internetworking_model"), "{e}");
    let all = BTreeMap::from([
        ("io.katacontainers.config.runtime.disable_new_netns".to_owned(), "true".to_owned()),
        ("io.katacontainers.config.runtime.internetworking_model".to_owned(), "none".to_owned()),
    ]);
    c.annotate(&all).unwrap();
    assert!(c.disable_new_netns);
}
