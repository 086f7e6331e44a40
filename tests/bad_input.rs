//! Bad input: a clear error that names the thing, the status for it, and nothing left.

mod common;

use std::fs;

use common::{Rootfs, assert_clean, can_run_vms, command, finish, name, run, run_with};

/// Runs osc with arguments that must be refused: the status, and every part of the text.
fn refused(what: &str, args: &[&str], status: i32, parts: &[&str]) {
    let name = name("bad");
    let out = run(["run", "--name", &name].iter().chain(args));
    assert_eq!(out.status, status, "{what}: {}", out.stderr);
    for part in parts {
        assert!(out.stderr.contains(part), "{what}: {part:?} is not in: {}", out.stderr);
    }
    assert!(!out.stderr.contains("panicked"), "{what}: {}", out.stderr);
    assert_clean(&name);
}

#[test]
fn command_lines_that_make_no_sense() {
    refused("no command", &[], 125, &["no command", "--"]);
    // Nobody listens there.
    refused("an image of a registry", &["127.0.0.1:1/debian", "--", "true"], 125, &["127.0.0.1:1/debian", "check the network"]);
    refused("memory", &["--memory", "12X", "--", "true"], 2, &["12X"]);
    refused("too little memory", &["--memory", "1k", "--", "true"], 2, &["at least"]);
    refused("cpus", &["--cpus", "-1", "--", "true"], 2, &["-1"]);
    refused("volume", &["--volume", "/no/such/dir:/x", "--", "true"], 2, &["/no/such/dir"]);
    refused("publish alone", &["--publish", "8080:80", "--", "true"], 125, &["--network user"]);
    refused("a name", &["--rootfs", "/no/such/root", "--", "true"], 125, &["/no/such/root"]);
    let out = run(["run", "--name", "../escape", "--", "true"]);
    assert_eq!(out.status, 125);
    assert!(out.stderr.contains("../escape"), "{}", out.stderr);
}

#[test]
fn more_memory_than_there_is() {
    if can_run_vms("memory") {
        refused("memory", &["--memory", "9T", "--", "true"], 125, &["--memory", "this host has"]);
    }
}

#[test]
fn programs_and_kernels_that_are_not_there() {
    if !can_run_vms("missing programs") {
        return;
    }
    refused("QEMU", &["--qemu", "/no/such/qemu", "--", "true"], 125, &["/no/such/qemu", "QEMU"]);
    refused("virtiofsd", &["--virtiofsd", "/no/such/fsd", "--", "true"], 125, &["/no/such/fsd", "install"]);
    refused("a wrong virtiofsd", &["--virtiofsd", "/bin/true", "--", "true"], 125, &["/bin/true", "is no virtiofsd"]);
    refused("a wrong QEMU", &["--qemu", "/bin/false", "--", "true"], 125, &["QEMU exited with status 1"]);
    refused("no initrd", &["--initrd", "/no/such/initrd", "--", "true"], 125, &["/no/such/initrd"]);
    refused("kernel", &["--kernel-release", "9.9.9-none", "--", "true"], 125, &["9.9.9-none", "--kernel-release"]);
}

#[test]
fn bundles() {
    if !can_run_vms("bundles") {
        return;
    }
    let root = Rootfs::new();
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().to_string_lossy().into_owned();
    let config = dir.path().join("config.json");
    refused("no config.json", &["--bundle", &bundle], 125, &["config.json", "No such file"]);
    fs::write(&config, "{\"ociVersion\": ").unwrap();
    refused("malformed", &["--bundle", &bundle], 125, &["config.json", "line 1"]);
    fs::write(&config, "{\"root\":{\"path\":\"rootfs\"}}").unwrap();
    refused("no root directory", &["--bundle", &bundle], 125, &["root.path"]);
    std::os::unix::fs::symlink(root.path(), dir.path().join("rootfs")).unwrap();
    refused("no process", &["--bundle", &bundle], 125, &["no process"]);
    let spec = |args: &str, cwd: &str| {
        format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},"process":{{"args":{args},"cwd":"{cwd}","user":{{}},"env":["PATH=/bin"]}},
            "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"pid"}}]}}}}"#
        )
    };
    fs::write(&config, spec("[]", "/")).unwrap();
    refused("no arguments", &["--bundle", &bundle], 125, &["process.args"]);
    fs::write(&config, spec("[\"true\"]", "etc")).unwrap();
    refused("a relative directory", &["--bundle", &bundle], 125, &["process.cwd", "etc"]);
    fs::write(&config, spec("[\"true\"]", "/etc/passwd")).unwrap();
    refused("a file as directory", &["--bundle", &bundle], 125, &["/etc/passwd"]);
    fs::write(&config, spec("[\"true\"]", "/")).unwrap();
    let out = run(["run", "--bundle", &bundle]);
    assert_eq!(out.status, 0, "{}", out.stderr);
}

#[test]
fn a_read_only_bundle_runs_or_says_why() {
    if !can_run_vms("read-only bundle") {
        return;
    }
    let root = Rootfs::new();
    let bundle = tempfile::tempdir().unwrap();
    let text = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["touch","/x"],"cwd":"/","user":{},"env":["PATH=/bin"]},
        "mounts":[{"destination":"/made","type":"tmpfs","source":"tmpfs"}],"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#;
    fs::write(bundle.path().join("config.json"), text).unwrap();
    fs::create_dir(bundle.path().join("rootfs")).unwrap();
    let target = bundle.path().join("rootfs");
    osc::fs::mount::bind(root.path(), &target, false, true).unwrap();
    let name = name("ro");
    let out = run(["run", "--name", &name, "--bundle", &bundle.path().to_string_lossy()]);
    osc::fs::mount::detach(&target).unwrap();
    assert_ne!(out.status, 0);
    assert!(out.stderr.contains("Read-only file system") && out.stderr.contains("/made"), "{}", out.stderr);
    assert_clean(&name);
}

#[test]
fn users_and_images() {
    if !can_run_vms("users") {
        return;
    }
    let root = Rootfs::new();
    refused("user", &["--rootfs", &root.arg(), "--user", "nobody-here", "--", "true"], 125, &["nobody-here", "/etc/passwd"]);
    refused("group", &["--rootfs", &root.arg(), "--user", "app:nogroup", "--", "true"], 125, &["nogroup", "/etc/group"]);
    refused("image", &["--image", "/no/such/image", "--", "true"], 125, &["/no/such/image"]);
    refused("no image", &["--image", "/etc/passwd", "--", "true"], 125, &["/etc/passwd"]);
    let name = name("cut");
    let out = run_with(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1], ["run", "--name", &name, "--image", "-", "--", "true"]);
    assert_eq!(out.status, 125, "{}", out.stderr);
    assert!(out.stderr.contains("image -"), "{}", out.stderr);
    assert_clean(&name);
}

#[test]
fn not_root() {
    let bin = tempfile::Builder::new().prefix("osc-bin").tempdir_in("/tmp").unwrap();
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        println!("SKIP not_root: needs root, to become somebody else");
        return;
    }
    fs::set_permissions(bin.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(common::osc(), bin.path().join("osc")).unwrap();
    let mut c = std::process::Command::new(bin.path().join("osc"));
    c.args(["run", "--", "true"]).uid(65534).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let out = finish(c.spawn().unwrap());
    assert_eq!(out.status, 125);
    assert!(out.stderr.contains("root"), "{}", out.stderr);
    let _ = command(["--version"]);
}

#[test]
fn a_damaged_initrd_is_told_with_the_consoles_last_lines() {
    if !can_run_vms("damaged initrd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, b"no archive at all").unwrap();
    let name = name("initrd");
    let out = run(["run", "--name", &name, "--initrd", &initrd.to_string_lossy(), "--", "true"]);
    assert_eq!(out.status, 125, "{}", out.stderr);
    assert!(out.stderr.contains("initrd is damaged") && out.stderr.contains("last words"), "{}", out.stderr);
    assert!(out.stderr.contains("osc image build") && out.stderr.contains("Unable to mount root"), "{}", out.stderr);
    assert_clean(&name);
}
