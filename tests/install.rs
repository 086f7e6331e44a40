//! `osc install` and `osc uninstall` as commands; and under a pod that runs.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::containerd::{Containerd, can_run_containerd};
use common::{Output, finish, name, osc, run};

/// Another version of this binary: what follows an ELF file's end means nothing.
fn another(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("osc");
    fs::copy(osc(), &path).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"another version").unwrap();
    path
}

fn by(program: &Path, args: &[&str]) -> Output {
    finish(Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

#[test]
fn into_a_root_and_out_of_it() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().to_str().unwrap();
    let to = ["--root", at, "--prefix", "/opt/osc", "--manager", "containerd", "--manager", "crio"];
    let out = run(["install", "--dry-run"].iter().chain(&to));
    assert!(out.status == 0 && out.stdout.contains("would put    /opt/osc/bin/osc\n"), "{out:?}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    let out = run(["install"].iter().chain(&to));
    assert_eq!(out.status, 0, "{out:?}");
    for line in
        ["put          /opt/osc/bin/containerd-shim-kata-v2\n", "next: systemctl restart containerd\n", "next: systemctl restart crio\n"]
    {
        assert!(out.stdout.contains(line), "{line} in {}", out.stdout);
    }
    // What was put there works, under its names.
    let shim = root.path().join("opt/osc/bin/containerd-shim-kata-v2");
    let version = by(&shim, &["--version"]);
    assert!(version.status == 0 && version.stdout.contains("0."), "{version:?}");
    let installed = root.path().join("opt/osc/bin/osc");
    let again = by(&installed, &["install", "--root", at, "--prefix", "/opt/osc", "--manager", "containerd", "--manager", "crio"]);
    assert!(again.status == 0 && !again.stdout.contains("put  ") && !again.stdout.contains("next:"), "{again:?}");
    let defaults = root.path().join("usr/share/kata-containers/defaults/configuration.toml");
    let checked = run(["config".as_ref(), "check".as_ref(), defaults.as_os_str()]);
    assert_eq!(checked.status, 0, "{checked:?}");
    let out = by(&installed, &["uninstall", "--root", at]);
    assert!(out.status == 0 && out.stdout.contains("removed      /opt/osc/bin/osc\n"), "{out:?}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn under_a_pod_that_runs() {
    if !can_run_containerd("install: under a pod") {
        return;
    }
    let cd = Containerd::start();
    let id = name("upgraded");
    cd.background(&id);
    let newer = tempfile::tempdir().unwrap();
    let root = cd.path("");
    let program = another(newer.path());
    let to = ["install", "--root", root.to_str().unwrap(), "--prefix", "/"];
    // The same is taken over, then another version comes.
    assert_eq!(run(to).status, 0);
    let out = by(&program, &to);
    assert!(out.status == 0 && out.stdout.contains("put          /bin/osc\n"), "{out:?}");
    assert_eq!(fs::read(cd.path("bin/osc")).unwrap(), fs::read(&program).unwrap());
    assert_eq!(cd.exec(&id, "e1", &["echo", "still"]).stdout, "still\n");
    // A pod of the new one beside it.
    let second = name("newer");
    let out = cd.run(&["--rm"], &second, &["echo", "new"]);
    assert_eq!((out.status, out.stdout.as_str()), (0, "new\n"), "{out:?}");
    assert_eq!(run(["uninstall", "--root", root.to_str().unwrap()]).status, 0);
    assert!(!cd.path("bin/osc").exists());
    assert_eq!(cd.exec(&id, "e2", &["echo", "even so"]).stdout, "even so\n");
    // What cleans up after it is the manager's call of the binary.
    fs::copy(osc(), cd.path("bin/osc")).unwrap();
    std::os::unix::fs::symlink("osc", cd.path("bin/containerd-shim-kata-v2")).unwrap();
    cd.remove(&id);
}
