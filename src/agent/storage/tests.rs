use super::*;
use crate::agent::testing::{in_own_process, own_mounts};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn storages() -> Arc<Storages> {
    let modules = Modules::new("/nonexistent");
    modules.load_rest();
    Storages::new(Host {
        modules: Arc::new(modules),
        events: Uevents::start().unwrap(),
        run: Box::new(|_, _| Err(std::io::ErrorKind::Unsupported.into())),
    })
}

fn storage(driver: &str, at: &Path, options: &[&str]) -> Storage {
    Storage {
        driver: driver.into(),
        source: driver.into(),
        fstype: "tmpfs".into(),
        options: options.iter().map(|o| o.to_string()).collect(),
        mount_point: at.to_str().unwrap().into(),
        ..Default::default()
    }
}

fn mounted(at: &Path) -> bool {
    let at = at.to_str().unwrap();
    std::fs::read_to_string("/proc/thread-self/mounts").unwrap().lines().any(|l| l.split(' ').nth(1) == Some(at))
}

/// Runs `body` as root in a process and mount namespace of its own, or says why not.
fn with_mounts(test: &str, body: impl FnOnce(&Path)) {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: mounting needs root");
    }
    in_own_process(&format!("agent::storage::tests::{test}"), || {
        own_mounts();
        let dir = tempfile::tempdir().unwrap();
        body(dir.path());
    });
}

#[test]
fn a_container_lets_go_in_reverse_and_the_last_one_unmounts() {
    with_mounts("a_container_lets_go_in_reverse_and_the_last_one_unmounts", |dir| {
        let (src, outer, inner) = (dir.join("src"), dir.join("outer"), dir.join("outer/inner"));
        std::fs::create_dir_all(src.join("inner")).unwrap();
        let mut bind = storage("bind", &outer, &[]);
        bind.source = src.to_str().unwrap().into();
        let mut below = storage("bind", &inner, &["ro"]);
        below.source = src.to_str().unwrap().into();
        let all = storages();
        let first = Held(all.add_all(&[bind.clone(), below]).unwrap());
        let second = Held(all.add_all(&[bind]).unwrap());
        assert!(mounted(&outer) && mounted(&inner));
        assert!(std::fs::write(inner.join("x"), "").is_err());
        drop(first);
        assert!(mounted(&outer) && !mounted(&inner));
        drop(second);
        assert!(!mounted(&outer));
        assert!(all.lock().is_empty());
    });
}

#[test]
fn memory_volumes_have_size_group_and_stay_with_the_pod() {
    with_mounts("memory_volumes_have_size_group_and_stay_with_the_pod", |dir| {
        let at = dir.join("memory");
        let all = storages();
        let mut volume = storage("ephemeral", &at, &["size=1048576", "mode=0755", "fsgid=2000"]);
        drop(all.add_all(&[volume.clone()]).unwrap());
        let meta = std::fs::metadata(&at).unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o7777), (2000, 0o2775));
        assert_eq!(rustix::fs::statfs(&at).unwrap().f_blocks * 4096, 1 << 20);
        std::fs::write(at.join("kept"), "1").unwrap();
        drop(all.add_all(&[volume.clone()]).unwrap());
        assert!(at.join("kept").exists(), "a container that comes back finds its files");
        volume.options = vec!["size=2097152".into()];
        all.remount(&volume).unwrap();
        assert_eq!(rustix::fs::statfs(&at).unwrap().f_blocks * 4096, 2 << 20);
        all.clear();
        assert!(!mounted(&at));
    });
}

#[test]
fn an_overlay_gets_the_directories_it_lacks() {
    with_mounts("an_overlay_gets_the_directories_it_lacks", |dir| {
        let (lower, upper, work, at) = (dir.join("lower"), dir.join("a/upper"), dir.join("a/work"), dir.join("merged"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::write(lower.join("file"), "below").unwrap();
        // An overlay's upper directory cannot lie on an overlay, which a test machine's /tmp may be.
        Options::parse(&["mode=0755"]).mount("t", dir.join("lower").parent().unwrap(), "tmpfs").unwrap();
        std::fs::create_dir(&lower).unwrap();
        std::fs::write(lower.join("file"), "below").unwrap();
        let option = |k: &str, p: &Path| format!("{k}={}", p.display());
        let list = [option("lowerdir", &lower), option("upperdir", &upper), option("workdir", &work)];
        let mut overlay = storage("overlayfs", &at, &list.iter().map(String::as_str).collect::<Vec<_>>());
        overlay.fstype = "overlay".into();
        let held = match storages().add_all(&[overlay]) {
            Err(e) if e.message.contains("module overlay") => return println!("skipped: this kernel has no overlay"),
            other => Held(other.unwrap()),
        };
        std::fs::write(at.join("file"), "above").unwrap();
        assert_eq!(std::fs::read_to_string(lower.join("file")).unwrap(), "below");
        assert_eq!(std::fs::read_to_string(upper.join("file")).unwrap(), "above");
        drop(held);
        assert!(!mounted(&at));
    });
}

#[test]
fn what_a_container_wrote_goes_with_it() {
    with_mounts("what_a_container_wrote_goes_with_it", |dir| {
        // /run/kata-containers is the guest's; here it is this test's.
        let made = std::fs::create_dir(KATA_RUN).is_ok();
        Options::parse(&["mode=0755"]).mount("t", Path::new(KATA_RUN), "tmpfs").unwrap();
        let (own, at) = (Path::new(KATA_RUN).join("c"), Path::new(KATA_RUN).join("c/rootfs"));
        let list = [
            format!("lowerdir={}", dir.display()),
            format!("upperdir={}/scratch/upper", own.display()),
            format!("workdir={}/scratch/work", own.display()),
        ];
        let mut overlay = storage("overlayfs", &at, &list.iter().map(String::as_str).collect::<Vec<_>>());
        overlay.fstype = "overlay".into();
        let all = storages();
        let held = match all.add_all(&[overlay]) {
            Err(e) if e.message.contains("module overlay") => return println!("skipped: this kernel has no overlay"),
            other => Held(other.unwrap()),
        };
        std::fs::write(at.join("file"), "x").unwrap();
        assert!(own.join("scratch/upper/file").exists() && mounted(&own.join("scratch")));
        drop(held);
        assert!(!own.exists(), "neither files nor directories are left");
        crate::fs::mount::detach(Path::new(KATA_RUN)).unwrap();
        if made {
            std::fs::remove_dir(KATA_RUN).unwrap();
        }
    });
}

#[test]
fn a_failure_lets_go_of_what_came_before_it() {
    with_mounts("a_failure_lets_go_of_what_came_before_it", |dir| {
        let (good, bad) = (dir.join("good"), dir.join("bad"));
        let mut bind = storage("bind", &good, &[]);
        bind.source = "/proc".into();
        let mut broken = storage("bind", &bad, &[]);
        broken.source = "/no/such/source".into();
        let all = storages();
        let e = all.add_all(&[bind, broken]).err().unwrap();
        assert!(e.message.starts_with(&format!("storage bind at {}", bad.display())), "{e}");
        assert!(!mounted(&good) && all.lock().is_empty());
    });
}

#[test]
fn requests_that_make_no_sense_are_refused_by_name() {
    let all = storages();
    let refused = |s: Storage| all.add_all(&[s]).err().unwrap();
    let e = refused(storage("floppy", Path::new("/mnt"), &[]));
    assert_eq!(e.code, Code::InvalidArgument);
    assert!(e.message.contains("\"floppy\" is none of virtio-fs, ephemeral"), "{e}");
    for at in ["relative", "/a/../b", "", "/"] {
        assert_eq!(refused(storage("local", Path::new(at), &[])).code, Code::InvalidArgument, "{at}");
    }
}

#[test]
fn local_directories_take_their_mode() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("volume");
    drop(storages().add_all(&[storage("local", &at, &["mode=0777"])]).unwrap());
    assert_eq!(std::fs::metadata(&at).unwrap().permissions().mode() & 0o7777, 0o777, "and it stays");
}
