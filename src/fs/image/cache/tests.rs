//! The cache on a made-up host: a small kernel, small modules, a small program.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::modules::tests::{DEP, module, signed};
use super::super::unpack::Packing;
use super::super::{bzimage, gc::GRACE};
use super::*;
use crate::process::{Ended, Spawn};

/// As many as the pods of a node that starts.
const MANY: usize = 20;

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Host {
        let host = Host(tempfile::tempdir().unwrap());
        host.install("1.0", Packing::Gzip);
        host.put("etc/os-release", b"NAME=x\nID=\"debian\"\n");
        host.put("osc", b"the program");
        fs::create_dir(host.path("proc")).unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, data: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    fn install(&self, release: &str, packing: Packing) {
        self.put(&format!("boot/vmlinuz-{release}"), &bzimage::tests::bzimage(packing, release));
        self.put(&format!("lib/modules/{release}/modules.builtin"), b"overlay.ko\n");
        for line in DEP.lines() {
            let file = line.split(':').next().unwrap();
            self.put(&format!("lib/modules/{release}/{file}"), &signed(&module(release, file), b"signature"));
        }
        self.put(&format!("lib/modules/{release}/modules.dep"), DEP.as_bytes());
    }

    fn cache(&self) -> Cache {
        cache_at(self.0.path(), &self.path("cache"))
    }

    fn ensure(&self) -> GuestImage {
        self.cache().ensure(&Want::default(), &|_| ()).unwrap()
    }

    /// Makes an image look as if no start had been told of it for long.
    fn age(&self, image: &GuestImage) {
        File::open(image.initrd.parent().unwrap()).unwrap().set_modified(SystemTime::now() - GRACE * 2).unwrap();
    }
}

fn cache_at(host: &Path, dir: &Path) -> Cache {
    Cache { dir: dir.into(), host: host.into(), program: host.join("osc"), proc: host.join("proc") }
}

/// Every file, directory and link below `dir`.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// Half of the tests that need other processes: they start this program again, with OSC_TEST_IMAGE saying what to do.
#[test]
fn helper() {
    let Ok(task) = std::env::var("OSC_TEST_IMAGE") else { return };
    let [host, output, umask] = task.split('|').collect::<Vec<_>>()[..] else { panic!("{task}") };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(u32::from_str_radix(umask, 8).unwrap()));
    let want = Want { output: (!output.is_empty()).then(|| output.into()), ..Default::default() };
    let host = Path::new(host);
    let image = cache_at(host, &host.join("cache")).ensure(&want, &|_| ()).unwrap();
    // Exit without the test harness's own word: the status is the answer.
    std::process::exit(if image.built { BUILT } else { FOUND });
}

const BUILT: i32 = 40;
const FOUND: i32 = 41;

fn start_helper(host: &Host, output: &str, umask: &str, tmpdir: &str) -> crate::process::Child {
    let mut spawn = Spawn::new(std::env::current_exe().unwrap()).args(["fs::image::cache::tests::helper", "--exact", "--nocapture"]);
    let task = format!("OSC_TEST_IMAGE={}|{output}|{umask}", host.0.path().display());
    spawn.env = Some([task, format!("TMPDIR={tmpdir}")].map(|v| CString::new(v).unwrap()).to_vec());
    spawn.start().unwrap()
}

#[test]
fn an_image_is_built_once_and_found_again() {
    let host = Host::new();
    let image = host.ensure();
    assert!(image.built && image.release == "1.0");
    assert_eq!(fs::read(&image.kernel).unwrap(), bzimage::tests::elf());
    let again = host.ensure();
    assert!(!again.built);
    assert_eq!((&again.kernel, &again.initrd), (&image.kernel, &image.initrd));
    // The plain names lead to it.
    for (name, file) in [("debian-kata-1.0.initrd", &image.initrd), ("vmlinux", &image.kernel)] {
        assert_eq!(fs::canonicalize(host.path("cache/1.0").join(name)).unwrap(), fs::canonicalize(file).unwrap());
    }
    let list = host.cache().list();
    assert_eq!((list.len(), list[0].current, list[0].vms), (1, true, 0));
    assert_eq!(list[0].manifest.initrd_bytes, fs::metadata(&image.initrd).unwrap().len());
    assert!(!below(&host.path("cache")).iter().any(|p| p.to_string_lossy().contains(HIDDEN)));
}

#[test]
fn what_it_was_made_of_makes_it_stale() {
    let host = Host::new();
    let mut seen = HashSet::from([host.ensure().initrd]);
    let mut changed = |what: &str| {
        let image = host.ensure();
        assert!(image.built, "{what}");
        assert!(seen.insert(image.initrd), "{what}");
        assert!(!host.ensure().built, "{what}");
    };
    host.put("osc", b"another program");
    changed("binary");
    host.put("boot/vmlinuz-1.0", &bzimage::tests::bzimage(Packing::Xz, "1.0"));
    changed("kernel");
    host.put("lib/modules/1.0/modules.dep", DEP.as_bytes());
    changed("modules");
}

#[test]
fn a_binary_that_only_looks_new_is_known_by_its_contents() {
    let host = Host::new();
    let image = host.ensure();
    host.put("osc", b"the program");
    let identity = build::identity(&host.path("osc")).unwrap();
    let list = host.cache().list();
    assert!(!list[0].manifest.binaries.contains(&identity));
    let again = host.ensure();
    assert!(!again.built && again.initrd == image.initrd);
    // And the next start need not read it.
    assert!(host.cache().list()[0].manifest.binaries.contains(&identity));
}

#[test]
fn one_that_was_cut_short_is_built_again() {
    let host = Host::new();
    let image = host.ensure();
    for file in [&image.initrd, &image.kernel] {
        let whole = fs::read(file).unwrap();
        fs::write(file, &whole[..whole.len() / 2]).unwrap();
        assert!(host.ensure().built);
        assert_eq!(fs::read(file).unwrap(), whole);
    }
    fs::write(image.initrd.parent().unwrap().join(MANIFEST), "{").unwrap();
    assert!(host.ensure().built);
}

#[test]
fn many_threads_build_once() {
    let host = Arc::new(Host::new());
    let all: Vec<_> = (0..MANY).map(|_| host.clone()).map(|h| crate::thread::start("ensure", move || h.ensure().built)).collect();
    assert_eq!(all.into_iter().map(|t| t.join().unwrap()).filter(|&built| built).count(), 1);
}

#[test]
fn many_processes_build_once() {
    let host = Host::new();
    let all: Vec<_> = (0..MANY).map(|_| start_helper(&host, "", "022", "/tmp")).collect();
    let ends: Vec<_> = all.iter().map(|c| c.wait().unwrap()).collect();
    let count = |status| ends.iter().filter(|&&e| e == Ended::Exited(status)).count();
    assert_eq!((count(BUILT), count(FOUND)), (1, MANY - 1), "{ends:?}");
}

#[test]
fn the_same_bytes_whatever_the_surroundings() {
    let host = Host::new();
    let build = |n: usize, umask: &str| {
        let (out, tmp) = (host.path(&format!("out{n}")), host.path(&format!("tmp{n}")));
        fs::create_dir(&tmp).unwrap();
        let child = start_helper(&host, out.to_str().unwrap(), umask, tmp.to_str().unwrap());
        assert_eq!(child.wait().unwrap(), Ended::Exited(BUILT));
        assert_eq!(fs::read_dir(tmp).unwrap().count(), 0);
        for file in ["vmlinux", "debian-kata-1.0.initrd"] {
            assert_eq!(fs::metadata(out.join(file)).unwrap().mode() & 0o777, 0o644, "{file} under umask {umask}");
        }
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "initrd, vmlinux, manifest");
        [fs::read(out.join("vmlinux")).unwrap(), fs::read(out.join("debian-kata-1.0.initrd")).unwrap()]
    };
    let first = build(1, "000");
    for path in below(&host.path("lib")).into_iter().chain([host.path("osc")]).filter(|p| p.is_file()) {
        File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    assert!(first == build(2, "077"), "another umask, TMPDIR and other times gave another image");
    let cached = host.ensure();
    assert!(first == [fs::read(cached.kernel).unwrap(), fs::read(cached.initrd).unwrap()]);
}

#[test]
fn a_reader_never_sees_half_an_image() {
    let host = Arc::new(Host::new());
    let expected = host.ensure();
    let expected = [fs::read(expected.kernel).unwrap(), fs::read(expected.initrd).unwrap()];
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| (host.clone(), done.clone(), expected.clone()))
        .map(|(host, done, expected)| {
            crate::thread::start("reader", move || {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    let image = host.ensure();
                    assert!([fs::read(image.kernel).unwrap(), fs::read(image.initrd).unwrap()] == expected);
                    reads += 1;
                }
            })
        })
        .collect();
    for _ in 0..30 {
        let want = Want { force: true, ..Default::default() };
        assert!(host.cache().ensure(&want, &|_| ()).unwrap().built);
    }
    done.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|r| r.join().unwrap());
    assert_eq!(host.cache().list().len(), 1);
}

#[test]
fn a_failure_leaves_nothing() {
    let host = Host::new();
    let before = below(host.0.path());
    let mut kernel = bzimage::tests::bzimage(Packing::Zstd, "1.0");
    kernel.truncate(kernel.len() - 50);
    host.put("boot/vmlinuz-1.0", &kernel);
    let error = host.cache().ensure(&Want::default(), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("boot/vmlinuz-1.0: it is cut short"), "{error}");
    host.put("boot/vmlinuz-1.0", &bzimage::tests::bzimage(Packing::Zstd, "2.0"));
    let want = Want { output: Some(host.path("a/b")), ..Default::default() };
    let error = host.cache().ensure(&want, &|_| ()).unwrap_err();
    assert!(error.to_string().ends_with("boot/vmlinuz-1.0 is the kernel of 2.0"), "{error}");
    assert_eq!(below(host.0.path()), before);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let host = Host::new();
    fs::create_dir(host.path("cache")).unwrap();
    let seen = crate::thread::start("full-disk", move || {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        // Of this thread alone, so that the mount goes with it.
        // SAFETY: changes the mount namespace of a thread that shares nothing that depends on it.
        let alone = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
        alone.and_then(|()| mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE))?;
        mount("full", host.path("cache"), "tmpfs", MountFlags::empty(), Some(c"size=4k"))?;
        let error = host.cache().ensure(&Want::default(), &|_| ()).unwrap_err();
        Ok::<_, rustix::io::Errno>((error, below(&host.path("cache"))))
    });
    let (error, left) = match seen.join().unwrap() {
        Ok(seen) => seen,
        Err(e) => return eprintln!("skipped: a small tmpfs cannot be mounted here: {e}"),
    };
    assert!(matches!(&error, ImageError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error}");
    assert!(crate::error::Failure::from(error).way_out.starts_with("free some space"));
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn another_binary_has_an_image_of_its_own_and_shares_the_kernel() {
    let host = Host::new();
    let old = host.ensure();
    host.put("osc", b"an upgrade");
    let new = host.ensure();
    assert_ne!(fs::read(&old.initrd).unwrap(), fs::read(&new.initrd).unwrap());
    assert_eq!(fs::metadata(&old.kernel).unwrap().ino(), fs::metadata(&new.kernel).unwrap().ino());
    let list = host.cache().list();
    assert_eq!(list.iter().map(|s| s.current).collect::<Vec<_>>(), [false, true]);
    // The way back builds nothing.
    host.put("osc", b"the program");
    assert_eq!((host.ensure().initrd, host.ensure().built), (old.initrd, false));
}

#[test]
fn what_nobody_needs_is_removed() {
    let host = Host::new();
    let mut upgrade = 0;
    let mut build = || {
        upgrade += 1;
        host.put("osc", format!("version {upgrade}").as_bytes());
        let image = host.ensure();
        assert!(image.built);
        image
    };
    let old = build();
    assert!(build().built && old.initrd.exists(), "a start may have been told of it a moment ago");
    host.age(&old);
    host.put("proc/7/cmdline", format!("qemu-system-x86_64\0-initrd\0{}\0", old.initrd.display()).as_bytes());
    build();
    assert!(old.initrd.exists(), "a VM was started with it");
    assert_eq!(host.cache().list().iter().filter(|s| s.vms == 1).count(), 1);
    fs::remove_dir_all(host.path("proc/7")).unwrap();
    let last = build();
    assert!(!old.initrd.exists() && last.initrd.exists());
}

#[test]
fn a_kernel_that_left_the_host_takes_its_images_along() {
    let host = Host::new();
    let old = host.ensure();
    host.install("2.0", Packing::Lz4);
    fs::remove_file(host.path("boot/vmlinuz-1.0")).unwrap();
    let new = host.ensure();
    assert!(new.release == "2.0" && old.initrd.exists(), "a start may have been told of it a moment ago");
    host.age(&old);
    let want = Want { force: true, ..Default::default() };
    host.cache().ensure(&want, &|_| ()).unwrap();
    assert!(!host.path("cache/1.0").exists());
    assert!(new.initrd.exists());
}

#[test]
fn what_a_dead_builder_left_is_cleared() {
    let host = Host::new();
    host.put(&format!("cache/1.0/{HIDDEN}image/vmlinux"), b"half");
    host.put(&format!("cache/1.0/{HIDDEN}link"), b"");
    assert!(host.ensure().built);
    assert!(!below(&host.path("cache")).iter().any(|p| p.to_string_lossy().contains(HIDDEN)));
}

#[test]
fn modules_from_elsewhere_are_another_image() {
    let host = Host::new();
    let usual = host.ensure();
    let other = host.path("other");
    host.install("1.0", Packing::Gzip);
    fs::rename(host.path("lib/modules/1.0"), &other).unwrap();
    host.install("1.0", Packing::Gzip);
    let want = Want { modules_dir: Some(other), ..Default::default() };
    let special = host.cache().ensure(&want, &|_| ()).unwrap();
    assert!(special.built && special.initrd != usual.initrd);
    let want = Want { modules_dir: Some(host.path("none")), ..Default::default() };
    assert!(host.cache().ensure(&want, &|_| ()).unwrap_err().to_string().contains("none/modules.dep"));
}
