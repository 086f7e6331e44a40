//! Guest images: reproducible, built once however many ask, and nothing left of a build that failed.

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use common::{can_run_vms, command, finish, run};

fn initrd(dir: &Path) -> Vec<u8> {
    let path = fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "initrd")).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn two_builds_are_identical_whatever_surrounds_them() {
    if !can_run_vms("reproducible") {
        return;
    }
    let kernel = osc::fs::image::find(None).unwrap();
    // The same modules with other times and modes.
    let modules = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").args(["-r", "--"]).arg(&kernel.modules).arg(modules.path().join("m")).status().unwrap();
    assert!(copied.success());
    let build = |tmp: &Path, umask: u32, modules: &Path| {
        let out = tempfile::tempdir().unwrap();
        let mut c = command(["image", "build", "--output"]);
        c.arg(out.path()).arg("--modules-dir").arg(modules).env("TMPDIR", tmp);
        // SAFETY: umask is a system call that touches nothing else.
        unsafe {
            c.pre_exec(move || {
                libc::umask(umask);
                Ok(())
            });
        }
        let result = finish(c.spawn().unwrap());
        assert_eq!(result.status, 0, "{}", result.stderr);
        initrd(out.path())
    };
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = build(a.path(), 0o022, &kernel.modules);
    let second = build(b.path(), 0o077, &modules.path().join("m"));
    assert!(first == second, "the images differ");
}

#[test]
fn twenty_that_ask_at_once_build_it_once() {
    if !can_run_vms("parallel builds") {
        return;
    }
    // An empty cache of their own, in a mount namespace that ends with them.
    let script = r#"cache=/var/cache/kata-containers/osbuilder-images
        mkdir -p $cache && mount -t tmpfs tmpfs $cache
        for i in $(seq 20); do "$OSC" image build --if-needed & done
        wait; ls $cache/*/current/"#;
    let mut c = std::process::Command::new("unshare");
    c.args(["--mount", "--propagation", "private", "sh", "-c", script]).env("OSC", common::osc());
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let out = finish(c.spawn().unwrap());
    assert_eq!(out.status, 0, "{}", out.stderr);
    let (built, fresh) = (out.stdout.matches("built in").count(), out.stdout.matches("fresh").count());
    assert_eq!((built, fresh), (1, 19), "{}", out.stdout);
    assert!(out.stdout.contains("vmlinux"), "{}", out.stdout);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    if !can_run_vms("full disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    osc::fs::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), "size=20m").unwrap();
    let out = run(["image", "build", "--output", &dir.path().to_string_lossy()]);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).filter(|n| n != ".lock").collect();
    osc::fs::mount::detach(dir.path()).unwrap();
    assert_eq!(out.status, 125);
    assert!(out.stderr.contains("No space left") && out.stderr.contains("free"), "{}", out.stderr);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_in_an_image_is_shown_and_it_keeps_to_its_budget() {
    if !can_run_vms("image budget") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(["image", "build", "--output", &dir.path().to_string_lossy()]).status, 0);
    let bytes = initrd(dir.path()).len() as u64;
    assert_eq!(run(["image", "build", "--if-needed"]).status, 0);
    let json: serde_json::Value = serde_json::from_str(&run(["image", "show", "--json"]).stdout).unwrap();
    let core: Vec<&str> = json["core"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    let position = |name: &str| core.iter().position(|m| *m == name).unwrap();
    assert!(position("virtio") < position("virtio_pci") && position("fuse") < position("virtiofs"));
    assert!(run(["image", "list"]).stdout.contains(json["release"].as_str().unwrap()));
    let budget = |key: &str| {
        let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/budgets.toml")).unwrap();
        text.lines().find_map(|l| l.strip_prefix(key)?.trim().strip_prefix('=')?.trim().parse::<u64>().ok()).unwrap()
    };
    if std::env::var_os("OSC_BIN").is_some() {
        println!("initrd: {bytes} bytes");
        assert!(bytes <= budget("initrd_bytes"), "{bytes}");
    }
    let out = run(["image", "show", "no-such-release"]);
    assert!(out.status != 0 && out.stderr.contains("no-such-release"), "{}", out.stderr);
}
