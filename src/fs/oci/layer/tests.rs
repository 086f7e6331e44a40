use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::Instant;

use super::super::codec::digest;
use super::super::testing::{Tar, gzip, is_root, listing, zstd};
use super::*;
use crate::error::Failure;
use crate::rpc::Code;

mod attack;
mod oracle;

/// A root to unpack into, beside files that nobody may touch.
struct Host {
    dir: tempfile::TempDir,
    before: String,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "kept").unwrap();
        fs::set_permissions(dir.path().join("outside/secret"), fs::Permissions::from_mode(0o640)).unwrap();
        let mut host = Host { dir, before: String::new() };
        host.before = host.outside();
        host
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Everything beside the root, with what tells a change.
    fn outside(&self) -> String {
        let tell = |path: &Path| {
            let m = fs::symlink_metadata(path).unwrap();
            format!("{} {:o} {} {} {} {}.{}", path.display(), m.mode(), m.uid(), m.nlink(), m.size(), m.ctime(), m.ctime_nsec())
        };
        let base = self.dir.path();
        let names: Vec<String> = fs::read_dir(base).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        format!("{names:?} {} {}", tell(&base.join("outside")), tell(&base.join("outside/secret")))
    }

    fn apply(&self, layer: Tar) -> Result<(), ImageError> {
        self.unpack(&layer.end())
    }

    fn unpack(&self, layer: &[u8]) -> Result<(), ImageError> {
        let layer_of = Layer { name: "test".into(), ..Layer::default() };
        let result = layer_of.unpack(&Tree::open(&self.root()).unwrap(), layer);
        assert_eq!(self.outside(), self.before, "something outside the root changed");
        result
    }

    fn layers(&self, layers: impl IntoIterator<Item = Tar>) {
        for layer in layers {
            self.apply(layer).unwrap();
        }
    }

    fn list(&self) -> Vec<String> {
        listing(&self.root())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn meta(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.at(path)).unwrap()
    }
}

#[test]
fn a_whiteout_hides_what_lower_layers_brought() {
    let host = Host::new();
    host.layers([
        Tar::new().dir("a/").file("a/gone", "1").file("a/kept", "2").dir("d/").file("d/x", "3").symlink("l", "a"),
        Tar::new().file("a/.wh.gone", "").file(".wh.d", "").file(".wh.l", "").file(".wh.never-there", "").file("no/.wh.dir", ""),
    ]);
    assert_eq!(host.list(), ["a/", "a/kept"]);
}

#[test]
fn a_whiteout_leaves_its_own_layers_entries_before_and_behind_it() {
    for whiteout_first in [true, false] {
        let host = Host::new();
        host.layers([Tar::new().dir("d/").file("d/old", "1").file("f", "old")]);
        let own = |t: Tar| t.dir("d/").file("d/new", "2").file("f", "new");
        let hide = |t: Tar| t.file(".wh.d", "").file(".wh.f", "");
        host.layers([if whiteout_first { own(hide(Tar::new())) } else { hide(own(Tar::new())) }]);
        assert_eq!((host.list(), host.read("f")), (vec!["d/".into(), "d/new".into(), "f".into()], "new".into()), "{whiteout_first}");
    }
}

#[test]
fn an_opaque_directory_holds_only_what_its_own_layer_brought() {
    for opaque_first in [true, false] {
        let host = Host::new();
        host.layers([Tar::new()
            .dir("d/")
            .dir("d/sub/")
            .file("d/sub/old", "1")
            .file("d/old", "2")
            .dir("d/all-old/")
            .file("d/all-old/x", "")]);
        // The directory d/sub is only implied by this layer.
        let own = |t: Tar| t.dir("d/").file("d/sub/new", "3").file("d/new", "4");
        let opaque = |t: Tar| t.file("d/.wh..wh..opq", "");
        host.layers([if opaque_first { own(opaque(Tar::new())) } else { opaque(own(Tar::new())) }]);
        assert_eq!(host.list(), ["d/", "d/new", "d/sub/", "d/sub/new"], "{opaque_first}");
    }
}

#[test]
fn a_whiteout_reaches_through_a_link_to_a_directory() {
    let host = Host::new();
    host.layers([
        Tar::new().dir("usr/").dir("usr/lib/").file("usr/lib/old", "1").file("usr/lib/too", "1").symlink("lib", "usr/lib"),
        Tar::new().file("lib/new", "2").file("usr/lib/.wh.old", "").file("lib/.wh.too", "").file("usr/lib/.wh.new", ""),
    ]);
    assert_eq!(host.list(), ["lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/new"]);
}

#[test]
fn whiteouts_of_nothing_and_aufs_files() {
    let host = Host::new();
    host.layers([Tar::new().dir(".wh..wh.plnk/").file(".wh..wh.plnk/12.34", "x").file(".wh..wh.aufs", "").file("a", "")]);
    assert_eq!(host.list(), ["a"]);
    for name in [".wh.", ".wh..", ".wh..."] {
        let e = host.apply(Tar::new().file(name, "")).unwrap_err().to_string();
        assert!(e.contains("a whiteout of nothing") && e.contains("layer test"), "{e}");
    }
    assert_eq!(host.list(), ["a"]);
}

#[test]
fn kinds_replace_each_other() {
    let host = Host::new();
    host.layers([
        Tar::new().file("file", "1").dir("dir/").file("dir/x", "2").symlink("link", "dir").file("target", "3").symlink("to-file", "target"),
        Tar::new().dir("file/").file("file/in", "4").file("dir", "5").dir("link/").file("link/in", "6").file("to-file", "7"),
    ]);
    assert_eq!(host.list(), ["dir", "file/", "file/in", "link/", "link/in", "target", "to-file"]);
    assert_eq!((host.read("target"), host.read("to-file"), host.read("dir")), ("3".into(), "7".into(), "5".into()));
    host.layers([Tar::new().file("dir/implied", "8").symlink("file", "elsewhere").hard_link("link", "target")]);
    assert_eq!(host.list(), ["dir/", "dir/implied", "file -> elsewhere", "link", "target", "to-file"]);
}

#[test]
fn a_directory_that_comes_again_keeps_its_contents_and_takes_the_new_mode() {
    let host = Host::new();
    let with_mode = |mode| Tar::new().member(b'5', "d/", "", b"", move |h| h.set_mode(mode));
    host.layers([with_mode(0o755).file("d/x", "1"), with_mode(0o1777)]);
    assert_eq!((host.list().len(), host.meta("d").mode() & 0o7777), (2, 0o1777));
}

#[test]
fn hard_links_of_one_layer_and_across_layers() {
    let host = Host::new();
    host.layers([
        Tar::new().file("a", "1").dir("d/").hard_link("d/b", "a").symlink("s", "a").hard_link("s2", "s").hard_link("a", "./a"),
        Tar::new().hard_link("c", "/d/b").hard_link("d2/e", "d/b"),
    ]);
    assert_eq!((host.meta("a").nlink(), host.meta("a").ino()), (4, host.meta("d2/e").ino()));
    assert_eq!(fs::read_link(host.at("s2")).unwrap(), Path::new("a"));
    // A file that replaces a link leaves the other names alone.
    host.layers([Tar::new().file("a", "new")]);
    assert_eq!((host.read("a"), host.read("c")), ("new".into(), "1".into()));
    for (target, part) in [("missing", "not there"), ("no/dir", "not there"), ("d", "a directory"), (".", "the root")] {
        let e = host.apply(Tar::new().hard_link("x", target)).unwrap_err().to_string();
        assert!(e.contains("layer test") && e.contains("entry \"x\"") && e.contains(part), "{e}");
    }
}

#[test]
fn owners_modes_devices_and_times() {
    if !is_root("owners_modes_devices_and_times") {
        return;
    }
    let host = Host::new();
    let device = |h: &mut tar::Header| {
        h.set_device_major(1).unwrap();
        h.set_device_minor(3).unwrap();
        h.set_mode(0o666);
    };
    host.layers([Tar::new()
        .member(b'5', "./", "", b"", |h| h.set_mode(0o711))
        .member(b'5', "d/", "", b"", |h| h.set_mtime(1_234_567_890))
        .member(b'0', "d/setuid", "", b"x", |h| {
            h.set_mode(0o6755);
            h.set_uid(12);
            h.set_gid(34);
        })
        .member(b'3', "null", "", b"", device)
        .member(b'4', "block", "", b"", device)
        .member(b'6', "pipe", "", b"", |h| h.set_mode(0o622))
        .member(b'2', "link", "null", b"", |h| h.set_uid(56))
        .pax(&[("mtime", b"1500000000.25")])
        .file("precise", "")]);
    let m = host.meta("d/setuid");
    assert_eq!((m.mode() & 0o7777, m.uid(), m.gid(), m.mtime()), (0o6755, 12, 34, 1_000_000_000));
    assert_eq!((host.meta("d").mtime(), host.meta("").mtime(), host.meta("").mode() & 0o777), (1_234_567_890, 1_000_000_000, 0o711));
    let m = host.meta("null");
    assert!(m.file_type().is_char_device() && m.rdev() == makedev(1, 3) && m.mode() & 0o777 == 0o666);
    assert!(host.meta("block").file_type().is_block_device() && host.meta("pipe").file_type().is_fifo());
    assert_eq!((host.meta("pipe").mode() & 0o777, host.meta("link").uid(), host.meta("link").mtime()), (0o622, 56, 1_000_000_000));
    assert_eq!((host.meta("precise").mtime(), host.meta("precise").mtime_nsec()), (1_500_000_000, 250_000_000));
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let host = Host::new();
    // A umask is the whole process's: other tests would see it. Directories that no entry describes are made with it.
    host.layers([Tar::new().file("implied/dir/f", "")]);
    assert_eq!((host.meta("implied").mode() & 0o7777, host.meta("implied/dir").mode() & 0o7777), (0o755, 0o755));
}

fn xattr(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = [0u8; 256];
    rustix::fs::lgetxattr(path, name, &mut value).map(|n| value[..n].to_vec())
}

#[test]
fn attributes_are_set_and_the_hosts_own_are_not() {
    if !is_root("attributes_are_set_and_the_hosts_own_are_not") {
        return;
    }
    let host = Host::new();
    // A capability of two bits whose sum is a line feed: dac_override and fowner, version 2, effective.
    let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    host.layers([Tar::new()
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .file("capable", "x")
        .pax(&[("SCHILY.xattr.user.note", b"a\nb"), ("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .dir("noted/")
        .pax(&[("SCHILY.xattr.user.note", b"x")])
        .symlink("link", "/outside")]);
    match xattr(&host.at("capable"), "security.capability") {
        Err(Errno::NOTSUP) => println!("SKIP attributes: the file system of {} has none", host.root().display()),
        found => assert_eq!(found.unwrap(), capability),
    }
    assert_ne!(xattr(&host.at("noted"), "trusted.overlay.opaque").ok(), Some(b"y".to_vec()));
    match xattr(&host.at("noted"), "user.note") {
        Err(Errno::NOTSUP) | Err(Errno::NODATA) => println!("SKIP attributes of users: the file system has none"),
        found => assert_eq!(found.unwrap(), b"a\nb"),
    }
}

#[test]
fn a_sparse_file_keeps_its_holes() {
    let host = Host::new();
    host.layers([Tar::new().member(b'S', "sparse", "", b"tail", |h| {
        let gnu = h.as_gnu_mut().unwrap();
        gnu.set_real_size((1 << 40) + 4);
        gnu.sparse[0].set_offset(1 << 39);
        gnu.sparse[0].set_length(4);
        gnu.sparse[1].set_offset((1 << 40) + 4);
        gnu.sparse[1].set_length(0);
    })]);
    let m = host.meta("sparse");
    assert!(m.size() == (1 << 40) + 4 && m.blocks() < 1024, "{} bytes in {} blocks", m.size(), m.blocks());
    let mut part = [0; 6];
    File::open(host.at("sparse")).unwrap().read_exact_at(&mut part, (1 << 39) - 1).unwrap();
    assert_eq!(&part, b"\0tail\0");
}

#[test]
fn long_names() {
    let host = Host::new();
    let path = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    host.layers([Tar::new().pax(&[("path", path.as_bytes())]).file("x", "1").member(b'L', "", "", path.as_bytes(), |_| ()).file("y", "2")]);
    assert_eq!(host.read(&path), "2");
    for path in ["f".repeat(256), "d/".repeat(2100)] {
        let e = host.apply(Tar::new().pax(&[("path", path.as_bytes())]).file("x", "")).unwrap_err();
        assert!(matches!(e, ImageError::Entry { .. }), "{e}");
    }
}

#[test]
fn owners_and_kinds_that_no_kernel_has_are_refused() {
    let host = Host::new();
    for (record, value) in [("uid", "4294967295"), ("gid", "4294967296")] {
        let e = host.apply(Tar::new().pax(&[(record, value.as_bytes())]).file("x", "")).unwrap_err().to_string();
        assert!(e.contains(value) && e.contains("no id"), "{e}");
    }
    let e = host.apply(Tar::new().member(b'V', "volume", "", b"", |_| ())).unwrap_err().to_string();
    assert!(e.contains("entry \"volume\"") && e.contains("type"), "{e}");
    assert!(host.apply(Tar::new().file("./", "x")).unwrap_err().to_string().contains("no name"));
    assert!(host.apply(Tar::new().symlink("empty", "")).unwrap_err().to_string().contains("a link to nothing"));
}

#[test]
fn lengths_and_digests_are_checked() {
    let host = Host::new();
    let tar = Tar::new().file("a", &"x".repeat(3000)).end();
    let tree = Tree::open(&host.root()).unwrap();
    for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let good = Layer { name: "l".into(), digest: Some(digest(&blob)), size: Some(blob.len() as u64), diff_id: Some(digest(&tar)) };
        good.unpack(&tree, &blob[..]).unwrap();
        let bad = [
            (Layer { digest: Some(digest(b"other")), ..good.clone() }, "its digest is"),
            (Layer { size: Some(7), ..good.clone() }, "its manifest says 7"),
            (Layer { diff_id: Some(digest(b"other")), ..good.clone() }, "its contents are"),
        ];
        for (layer, part) in bad {
            let e = layer.unpack(&tree, &blob[..]).unwrap_err().to_string();
            assert!(e.starts_with("layer l: ") && e.contains(part), "{e}");
        }
        for length in [6, blob.len() / 2] {
            let e = good.unpack(&tree, &blob[..length]).unwrap_err();
            assert!(matches!(e, ImageError::Layer { .. }), "{length} of {}: {e}", blob.len());
            assert_eq!(Failure::from(e).code, Code::DataLoss);
        }
    }
    // What follows the end of the tar is hashed as well.
    let padded = [tar.clone(), vec![0; 10_240]].concat();
    let layer = Layer { diff_id: Some(digest(&padded)), digest: Some(digest(&padded)), ..Layer::default() };
    layer.unpack(&tree, &padded[..]).unwrap();
}

/// A small file system of its own.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_told() {
    if !is_root("a_full_disk_is_told") {
        return;
    }
    let host = Host::new();
    let small = Small(host.root());
    if let Err(e) = rustix::mount::mount("osc-test", &small.0, "tmpfs", rustix::mount::MountFlags::empty(), c"size=64k,nr_inodes=20") {
        println!("SKIP a_full_disk_is_told: mount tmpfs: {e}");
        return;
    }
    let many = (0..40).fold(Tar::new(), |tar, n| tar.dir(&format!("d{n}/")));
    for (layer, entry) in [(Tar::new().file("large", &"x".repeat(100_000)), "large"), (many, "d1")] {
        let e = host.apply(layer).unwrap_err();
        assert!(e.to_string().contains(entry) && e.to_string().contains("layer test"), "{e}");
        let failure = Failure::from(e);
        assert_eq!(failure.code, Code::ResourceExhausted, "{failure}");
        assert!(failure.way_out.contains("free space"));
    }
}

#[test]
fn ten_thousand_files_beside_tar() {
    let mut tar = Tar::new();
    for d in 0..100 {
        tar = tar.dir(&format!("d{d}/"));
        for f in 0..100 {
            tar = tar.file(&format!("d{d}/f{f}"), "some text of a small file\n");
        }
    }
    let bytes = tar.end();
    let host = Host::new();
    let start = Instant::now();
    host.unpack(&bytes).unwrap();
    let ours = start.elapsed();
    assert_eq!(host.list().len(), 10_100);
    let archive = host.dir.path().join("root/archive.tar");
    fs::write(&archive, &bytes).unwrap();
    fs::create_dir(host.at("tar")).unwrap();
    let start = Instant::now();
    let tar = crate::process::Spawn::new("/bin/tar").args(["-x", "-f"]).arg(&archive).arg("-C").arg(host.at("tar"));
    match tar.start().and_then(|child| child.wait()) {
        Ok(_) => println!("10,000 files: {ours:.0?}, tar x {:.0?}", start.elapsed()),
        Err(e) => println!("SKIP comparison: {e}"),
    }
    // A second layer that hides half of them and brings as many of its own is not slower by orders.
    let mut second = Tar::new();
    for d in 0..50 {
        second = (0..100).fold(second, |t, f| t.file(&format!("d{d}/n{f}"), "")).file(&format!("d{d}/.wh..wh..opq"), "");
    }
    let start = Instant::now();
    host.apply(second).unwrap();
    println!("5,000 files over 5,000 hidden by 50 opaque directories: {:.0?}", start.elapsed());
    assert!(host.at("d7/n7").exists() && !host.at("d7/f7").exists() && host.at("d77/f7").exists());
}
