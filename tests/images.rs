//! `--image`: OCI layouts and docker-save archives, run and refused.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Rootfs, assert_clean, can_run_vms, command, name, pids, run, run_with, until};
use serde_json::json;
use sha2::{Digest, Sha256};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>())
}

fn tar_of(root: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.append_dir_all(".", root).unwrap();
    tar.into_inner().unwrap()
}

fn file(tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let path = header.as_old_mut();
    path.name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(data).unwrap();
    e.finish().unwrap()
}

/// An OCI layout of two layers: busybox, then a change to it.
fn layout(dir: &Path, second: &[u8]) {
    let root = Rootfs::new();
    let layers = [tar_of(root.path()), second.to_vec()];
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len(), "mediaType": "x"})
    };
    let diff_ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
    let stored: Vec<_> = layers.iter().map(|l| put(&gzip(l))).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Entrypoint": ["sh", "-c"], "Cmd": ["cat /etc/added; ls /etc; id -u; echo $FROM"], "Env": ["PATH=/bin", "FROM=the image"], "User": "app"}});
    let manifest = json!({"config": put(config.to_string().as_bytes()), "layers": stored});
    let index = json!({"manifests": [put(manifest.to_string().as_bytes())]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

fn change() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    file(&mut tar, "etc/added", b"by the second layer\n");
    file(&mut tar, "etc/.wh.group", b"");
    tar.into_inner().unwrap()
}

#[test]
fn a_layout_and_its_archive_run_with_the_images_own_settings() {
    if !can_run_vms("images") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &change());
    let expected = "by the second layer\nadded\npasswd\n1000\nthe image\n";
    let name = name("layout");
    // A network would add its resolv.conf.
    let out = run(["run", "--name", &name, "--network", "none", "--image", &dir.path().to_string_lossy()]);
    assert_eq!((out.status, out.stdout.as_str()), (0, expected), "{}", out.stderr);
    assert_clean(&name);
    let archive = gzip(&tar_of(dir.path()));
    let out = run_with(&archive, ["run", "--image", "-", "--", "echo from stdin"]);
    assert_eq!(out.stdout, "from stdin\n", "{}", out.stderr);
}

#[test]
fn an_images_files_are_the_runs_own_and_go_with_it_however_it_ends() {
    if !can_run_vms("image files") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &change());
    let image = dir.path().to_string_lossy().into_owned();
    let name = name("files");
    let mut child = command(["run", "--name", &name, "--image", &image, "--", "echo up; exec sleep 600"]).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    let files = Path::new("/var/lib/osc").join(&name);
    assert_eq!(fs::metadata(&files).unwrap().permissions().mode() & 0o777, 0o700);
    // Another run of that name is refused before it touches them.
    let again = run(["run", "--name", &name, "--image", &image]);
    assert!(again.status == 125 && again.stderr.contains("exists already"), "{}", again.stderr);
    assert!(files.join("rootfs/etc/added").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    until("QEMU's end", || pids(&name, "qemu").is_empty().then_some(()));
    assert!(files.exists() && run(["reap"]).stdout.contains(&name));
    assert_clean(&name);
}

#[test]
fn damaged_and_hostile_images_are_refused_and_leave_nothing() {
    if !can_run_vms("hostile images") {
        return;
    }
    let refused = |what: &str, dir: &Path, parts: &[&str]| {
        let name = name("hostile");
        let out = run(["run", "--name", &name, "--image", &dir.to_string_lossy()]);
        assert_eq!(out.status, 125, "{what}: {}", out.stderr);
        for part in parts {
            assert!(out.stderr.contains(part), "{what}: {}", out.stderr);
        }
        assert_clean(&name);
    };
    let dir = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    file(&mut tar, "../../../tmp/osc-escaped", b"out");
    layout(dir.path(), &tar.into_inner().unwrap());
    refused("a layer that climbs", dir.path(), &["leads out of the root", "osc-escaped"]);
    assert!(!Path::new("/tmp/osc-escaped").exists());

    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &change()[..600]);
    refused("a layer that is cut short", dir.path(), &["its tar", "fetch it again"]);

    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &change());
    let largest = fs::read_dir(dir.path().join("blobs/sha256")).unwrap().flatten().max_by_key(|e| e.metadata().unwrap().len()).unwrap();
    let bytes = fs::read(largest.path()).unwrap();
    fs::write(largest.path(), &bytes[..bytes.len() / 2]).unwrap();
    refused("a truncated blob", dir.path(), &["layer", "its manifest says", "fetch it again"]);
}
