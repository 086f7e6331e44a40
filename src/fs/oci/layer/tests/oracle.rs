//! What GNU tar packs comes out as it was, in every format it writes.

use std::os::unix::fs::symlink;

use super::*;
use crate::process::{Ended, Spawn};

/// A tree with something of everything that `format` can hold.
fn fill(root: &Path, format: &str) {
    let long = if format == "v7" { "short".into() } else { format!("{}/{}", "d".repeat(90), "f".repeat(90)) };
    fs::create_dir_all(root.join(&long).parent().unwrap()).unwrap();
    fs::write(root.join(&long), "a long name").unwrap();
    fs::write(root.join("setuid"), "x").unwrap();
    std::os::unix::fs::chown(root.join("setuid"), Some(12), Some(34)).unwrap();
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(root.join("setuid"), root.join("hard")).unwrap();
    symlink("../up", root.join("link")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    for n in 0..40 {
        sparse.write_all_at(b"piece", n << 20).unwrap();
    }
    sparse.set_len(50 << 20).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    if format != "v7" {
        mknodat(rustix::fs::CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        mknodat(rustix::fs::CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 3)).unwrap();
    }
    if format == "posix" {
        let _ = rustix::fs::lsetxattr(root.join("dir"), "user.note", b"a\nb", XattrFlags::empty());
    }
    for (n, path) in ["setuid", "link", "dir", "."].iter().enumerate() {
        let time = Timespec { tv_sec: 1_400_000_000 + n as i64, tv_nsec: if format == "posix" { 123_456_789 } else { 0 } };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(rustix::fs::CWD, root.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Everything that can be told of each path.
fn told(root: &Path, whole_seconds: bool) -> Vec<String> {
    let mut paths = listing(root);
    paths.push(".".into());
    paths
        .iter()
        .map(|line| {
            let path = root.join(line.split(" -> ").next().unwrap());
            let m = fs::symlink_metadata(&path).unwrap();
            let hash = if m.is_file() { digest(&fs::read(&path).unwrap()) } else { String::new() };
            let size = if m.is_dir() { 0 } else { m.size() };
            let nanoseconds = if whole_seconds { 0 } else { m.mtime_nsec() };
            let note = xattr(&path, "user.note").ok();
            format!(
                "{line} {:o} {}:{} {} {size} {}.{nanoseconds} {} {hash} {note:?}",
                m.mode(),
                m.uid(),
                m.gid(),
                m.nlink(),
                m.mtime(),
                m.rdev()
            )
        })
        .collect()
}

#[test]
fn gnu_tar_in_every_format() {
    if !is_root("gnu_tar_in_every_format") {
        return;
    }
    let formats = [
        ("v7", vec![]),
        ("ustar", vec![]),
        ("oldgnu", vec!["--sparse"]),
        ("gnu", vec!["--sparse"]),
        ("posix", vec!["--xattrs"]),
        ("posix", vec!["--sparse", "--sparse-version=0.0"]),
        ("posix", vec!["--sparse", "--sparse-version=0.1"]),
        ("posix", vec!["--sparse", "--sparse-version=1.0", "--xattrs"]),
    ];
    for (format, options) in formats {
        let source = tempfile::tempdir().unwrap();
        fill(source.path(), format);
        let host = Host::new();
        let archive = tempfile::NamedTempFile::new().unwrap();
        let tar = Spawn::new("/bin/tar").args(["-c", "--format", format]).args(&options).arg("-f").arg(archive.path());
        match tar.arg("-C").arg(source.path()).arg(".").start().map(|child| child.wait().unwrap()) {
            Ok(Ended::Exited(0)) => {}
            other => return println!("SKIP gnu_tar_in_every_format: /bin/tar: {other:?}"),
        }
        host.unpack(&fs::read(archive.path()).unwrap()).unwrap();
        if !options.contains(&"--xattrs") {
            let _ = rustix::fs::lremovexattr(source.path().join("dir"), "user.note");
        }
        let whole_seconds = format != "posix";
        assert_eq!(told(&host.root(), whole_seconds), told(source.path(), whole_seconds), "{format} {options:?}");
        if options.contains(&"--sparse") {
            assert!(host.meta("sparse").blocks() < 2048, "{format} {options:?}: {} blocks", host.meta("sparse").blocks());
        }
    }
}
