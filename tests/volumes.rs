//! Volumes: what one side writes the other reads, and nothing of them stays. One VM for many of them, as a pod has it.

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::containerd::{Containerd, can_run_containerd};
use common::{finish, until};
use pod::Pod;
use rustix::fs::inotify;

/// `--mount` of ctr for a bind.
fn mount(source: &Path, destination: &str, options: &str) -> String {
    format!("type=bind,src={},dst={destination},options={options}", source.display())
}

/// A volume that the kubelet keeps: versions in directories of their own, one of them current.
struct Kept {
    dir: PathBuf,
    version: u32,
}

impl Kept {
    fn new(base: &Path, plugin: &str) -> Kept {
        let mut kept = Kept { dir: base.join(plugin).join("settings"), version: 0 };
        fs::create_dir_all(&kept.dir).unwrap();
        kept.write(&[("key", "0")]);
        kept
    }

    /// The steps of the kubelet's atomic writer.
    fn write(&mut self, keys: &[(&str, &str)]) {
        let old = fs::read_link(self.dir.join("..data")).ok();
        self.version += 1;
        let new = format!("..2026_11_24_{}", self.version);
        fs::create_dir(self.dir.join(&new)).unwrap();
        for (key, value) in keys {
            fs::write(self.dir.join(&new).join(key), value).unwrap();
        }
        symlink(&new, self.dir.join("..data_tmp")).unwrap();
        fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        let shown = |name: &str| !name.starts_with("..");
        for (key, _) in keys.iter().filter(|(k, _)| !self.dir.join(k).is_symlink()) {
            symlink(Path::new("..data").join(key), self.dir.join(key)).unwrap();
        }
        for entry in fs::read_dir(&self.dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if shown(&name) && !keys.iter().any(|(k, _)| *k == name) {
                fs::remove_file(self.dir.join(name)).unwrap();
            }
        }
        old.inspect(|old| fs::remove_dir_all(self.dir.join(old)).unwrap());
    }
}

/// Runs in the container: tells every name that appears, and what `key` holds then.
#[test]
fn who_watches() {
    let Ok(dir) = std::env::var("OSC_TEST_WATCH") else { return };
    let fd = inotify::init(inotify::CreateFlags::empty()).unwrap();
    inotify::add_watch(&fd, &dir, inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&fd, &mut buffer);
    loop {
        let event = reader.next().unwrap();
        let kind = if event.events().contains(inotify::ReadFlags::MOVED_TO) { "MOVED_TO" } else { "CREATE" };
        let name = event.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let value = fs::read_to_string(Path::new(&dir).join("key")).unwrap_or_default();
        println!("{kind} {name} {value}");
    }
}

#[test]
fn five_hundred_updates_wake_who_watches() {
    if !can_run_containerd("volumes: updates") {
        return;
    }
    let cd = Containerd::start();
    let dir = tempfile::tempdir().unwrap();
    let mut kept: Vec<Kept> = ["configmap", "secret", "projected", "downward-api"]
        .iter()
        .map(|plugin| Kept::new(dir.path(), &format!("kubernetes.io~{plugin}")))
        .collect();
    let pod = Pod::start(&cd, "updates", &[]);
    let id = format!("{}-w", pod.id);
    // The watcher is this very program, itself a volume.
    let program = mount(&std::env::current_exe().unwrap(), "/watch", "rbind:ro");
    let mounts: Vec<String> = kept.iter().enumerate().map(|(n, k)| mount(&k.dir, &format!("/v{n}"), "rbind:ro")).chain([program]).collect();
    let options: Vec<&str> = mounts.iter().flat_map(|m| ["--mount", m]).chain(["--env", "OSC_TEST_WATCH=/v0"]).collect();
    // Every event, and what is there when it comes.
    let script = "for n in 0 1 2 3; do test $(cat /v$n/key) = 0 || echo bad $n; done
        test -h /v0/..data && df /v0 | awk 'END { print $1, $6 }'
        echo x 2>/dev/null >/v0/key && echo writable; echo ready
        exec /watch --exact who_watches --nocapture";
    let mut command = pod.add_command(&id, &options, &["sh", "-c", script]);
    let mut child = command.spawn().unwrap();
    let (lines, mut out) = (std::sync::mpsc::channel(), BufReader::new(child.stdout.take().unwrap()));
    let (send, receive) = lines;
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        while out.read_line(&mut line).is_ok_and(|n| n > 0) {
            send.send((Instant::now(), line.trim().to_owned())).unwrap();
            line.clear();
        }
    });
    let next = |limit: u64| receive.recv_timeout(Duration::from_secs(limit)).expect("a line of the watcher");
    assert_eq!(next(60).1, "none /v0");
    assert_eq!(next(60).1, "ready");
    // It watches: an update is seen at all.
    until("the first event", || {
        let version = kept[0].version.to_string();
        kept[0].write(&[("key", version.as_str())]);
        receive.recv_timeout(Duration::from_millis(500)).ok().filter(|(_, line)| line.starts_with("MOVED_TO"))
    });
    for n in 1..=500 {
        kept[0].write(&[("key", &format!("n{n}")), (if n % 2 == 0 { "even" } else { "odd" }, "x")]);
    }
    let written = Instant::now();
    let mut told = Vec::new();
    let seen = loop {
        let (at, line) = next(60);
        assert!(!line.contains("panicked"), "{line}");
        told.push(line);
        if told.last().is_some_and(|l| l.ends_with(" n500")) {
            break at;
        }
    };
    let after = seen.saturating_duration_since(written);
    println!("500 updates: {} events, the last state {} ms after it was written", told.len(), after.as_millis());
    assert!(after < Duration::from_secs(1), "{after:?}");
    assert!(told.iter().any(|l| l.starts_with("MOVED_TO ..data ")), "{told:?}");
    // What went is gone, what came is there; in the other volumes as well.
    until("the rest of the last state", || (pod.exec(&id, "ls /v0") == "even\nkey").then_some(()));
    assert_eq!(pod.exec(&id, "ls -a /v0 | grep -c 2026"), "1");
    for (n, kept) in kept.iter_mut().enumerate().skip(1) {
        kept.write(&[("key", "new"), ("more", "x")]);
        until("the other volumes", || (pod.exec(&id, &format!("cat /v{n}/key; ls /v{n}")) == "newkey\nmore").then_some(()));
    }
    let share = Path::new("/run/kata-containers/shared/sandboxes").join(&pod.id).join("shared");
    let names: Vec<String> = fs::read_dir(share).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.iter().filter(|n| n.starts_with(&id) && n.len() == id.len() + 20).count(), 4, "{names:?}");
    cd.ctr(["task", "kill", "-s", "KILL", &id]);
    finish(child);
    reader.join().unwrap();
    // A volume whose container has gone may change and go.
    kept[1].write(&[("key", "later")]);
    drop(dir);
    pod.end();
}

/// Everything a file can be, written by one side to be found by the other.
mod everything {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown};
    use std::os::unix::net::UnixListener;

    const LARGE: usize = 24 << 20;
    const HOLE: u64 = 64 << 20;

    fn names() -> [String; 4] {
        ["with space".into(), "with\nnewline".into(), "é".repeat(127) + "x", "-rf".into()]
    }

    fn chunk(n: usize) -> Vec<u8> {
        (0..1 << 20).map(|i| (i * 7 + n * 13) as u8).collect()
    }

    pub fn write(dir: &Path) {
        for name in names() {
            fs::write(dir.join(&name), &name).unwrap();
        }
        fs::write(dir.join("owned"), "owned").unwrap();
        chown(dir.join("owned"), Some(1234), Some(2345)).unwrap();
        fs::set_permissions(dir.join("owned"), fs::Permissions::from_mode(0o4751)).unwrap();
        rustix::fs::setxattr(dir.join("owned"), "user.colour", b"blue", rustix::fs::XattrFlags::empty()).unwrap();
        fs::create_dir(dir.join("group")).unwrap();
        chown(dir.join("group"), None, Some(3456)).unwrap();
        fs::set_permissions(dir.join("group"), fs::Permissions::from_mode(0o2775)).unwrap();
        fs::write(dir.join("group/of-group"), "").unwrap();
        fs::hard_link(dir.join("owned"), dir.join("hard")).unwrap();
        symlink("owned", dir.join("soft")).unwrap();
        lchown(dir.join("soft"), Some(77), Some(78)).unwrap();
        UnixListener::bind(dir.join("socket")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut hole = fs::File::create(dir.join("hole")).unwrap();
        hole.seek(SeekFrom::Start(HOLE)).unwrap();
        hole.write_all(b"end").unwrap();
        let mut large = fs::File::create(dir.join("large")).unwrap();
        (0..LARGE >> 20).for_each(|n| large.write_all(&chunk(n)).unwrap());
        large.sync_all().unwrap();
        fs::write(dir.join("grown"), "a").unwrap();
        fs::OpenOptions::new().append(true).open(dir.join("grown")).unwrap().write_all(b"b").unwrap();
        fs::write(dir.join("renamed.new"), "new").unwrap();
        fs::rename(dir.join("renamed.new"), dir.join("renamed")).unwrap();
    }

    pub fn check(dir: &Path) {
        for name in names() {
            assert_eq!(fs::read_to_string(dir.join(&name)).unwrap(), name);
        }
        let of = |name: &str| fs::symlink_metadata(dir.join(name)).unwrap();
        let owned = of("owned");
        assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777, owned.nlink()), (1234, 2345, 0o4751, 2));
        assert_eq!(of("hard").ino(), owned.ino());
        let mut value = [0; 16];
        let n = rustix::fs::getxattr(dir.join("hard"), "user.colour", &mut value[..]).unwrap();
        assert_eq!(&value[..n], b"blue");
        assert_eq!((of("group").gid(), of("group").mode() & 0o7777, of("group/of-group").gid()), (3456, 0o2775, 3456));
        assert_eq!((of("soft").uid(), of("soft").gid()), (77, 78));
        assert_eq!(fs::read_link(dir.join("soft")).unwrap(), Path::new("owned"));
        assert!(of("socket").file_type().is_socket() && of("fifo").file_type().is_fifo());
        let mut hole = fs::File::open(dir.join("hole")).unwrap();
        assert_eq!(hole.metadata().unwrap().len(), HOLE + 3);
        assert!(hole.metadata().unwrap().blocks() * 512 < HOLE / 2, "{} blocks", hole.metadata().unwrap().blocks());
        hole.seek(SeekFrom::Start(HOLE - 1)).unwrap();
        let mut end = Vec::new();
        hole.read_to_end(&mut end).unwrap();
        assert_eq!(end, b"\0end");
        let mut large = fs::File::open(dir.join("large")).unwrap();
        let mut buffer = vec![0; 1 << 20];
        for n in 0..LARGE >> 20 {
            large.read_exact(&mut buffer).unwrap();
            assert!(buffer == chunk(n), "chunk {n}");
        }
        assert_eq!(fs::read_to_string(dir.join("grown")).unwrap(), "ab");
        assert_eq!(fs::read_to_string(dir.join("renamed")).unwrap(), "new");
    }

    /// Two pages of 2 MiB can be had, a third is beyond the volume.
    pub fn huge(dir: &Path) {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        const PAGE: usize = 2 << 20;
        let file = fs::File::options().read(true).write(true).create_new(true).open(dir.join("pages")).unwrap();
        // SAFETY: a mapping of our own, written within its length.
        unsafe {
            let map = mmap(std::ptr::null_mut(), 2 * PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0).unwrap();
            std::slice::from_raw_parts_mut(map.cast::<u8>(), 2 * PAGE).fill(7);
        }
        let more = fs::File::options().read(true).write(true).create_new(true).open(dir.join("more")).unwrap();
        // SAFETY: as above; nothing is mapped.
        let none = unsafe { mmap(std::ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &more, 0) };
        assert_eq!(none.unwrap_err(), rustix::io::Errno::NOMEM);
    }

    /// As fsx does it: one file is written, cut, grown, mapped and read at random places, and compared with what it should hold.
    pub fn exercise(dir: &Path) {
        use std::os::unix::fs::FileExt;
        const MOST: u64 = 256 << 10;
        const STEPS: u32 = 3000;
        let path = dir.join("fsx");
        let mut file = fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let (mut model, mut seed): (Vec<u8>, u64) = (Vec::new(), 42);
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below.max(1)
        };
        for step in 0..STEPS {
            let (at, n) = (random(MOST) as usize, random(16 << 10) as usize);
            match random(8) {
                0..=2 => {
                    let bytes = vec![step as u8; n];
                    file.write_all_at(&bytes, at as u64).unwrap();
                    if n > 0 {
                        model.resize(model.len().max(at + n), 0);
                        model[at..at + n].copy_from_slice(&bytes);
                    }
                }
                3 => {
                    file.set_len(at as u64).unwrap();
                    model.resize(at, 0);
                }
                4 => file = fs::File::options().read(true).write(true).open(&path).unwrap(),
                5 if !model.is_empty() => {
                    // SAFETY: a mapping of our own, of a file that nobody else cuts.
                    let seen = unsafe {
                        use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
                        let map = mmap(std::ptr::null_mut(), model.len(), ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap();
                        let seen = std::slice::from_raw_parts(map.cast::<u8>(), model.len()).to_vec();
                        munmap(map, model.len()).unwrap();
                        seen
                    };
                    assert!(seen == model, "step {step}: mapped");
                }
                _ => {
                    let mut bytes = vec![0; n];
                    let got = file.read_at(&mut bytes, at as u64).unwrap();
                    let wanted = model.get(at..).map(|m| &m[..n.min(m.len())]).unwrap_or_default();
                    assert!(bytes[..got] == *wanted, "step {step}: {n} bytes at {at}");
                }
            }
        }
        file.sync_all().unwrap();
        fs::write(dir.join("fsx.model"), model).unwrap();
    }
}

/// Runs in the container: `write` or `check` a directory.
#[test]
fn in_the_pod() {
    match std::env::var("OSC_TEST_DO").unwrap_or_default().split_once(' ') {
        Some(("write", dir)) => everything::write(Path::new(dir)),
        Some(("check", dir)) => everything::check(Path::new(dir)),
        Some(("huge", dir)) => everything::huge(Path::new(dir)),
        Some(("exercise", dir)) => everything::exercise(Path::new(dir)),
        _ => {}
    }
}

/// A command that the test may do without where the machine cannot.
fn sh(script: &str) -> bool {
    std::process::Command::new("sh").args(["-c", script]).status().unwrap().success()
}

/// Unmounts what it is told of when it goes, the latest first.
#[derive(Default)]
struct Mounted(Vec<PathBuf>);

impl Mounted {
    fn mount(&mut self, arguments: &str, at: &Path) {
        fs::create_dir_all(at).unwrap();
        assert!(sh(&format!("mount {arguments} {}", at.display())), "mount {arguments}");
        self.0.push(at.to_owned());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Descriptors of the sandbox's virtiofsd.
fn descriptors(sandbox: &str) -> usize {
    let count = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |d| d.count());
    common::pids(sandbox, "virtiofsd").into_iter().map(count).sum()
}

#[test]
fn what_one_side_writes_the_other_reads() {
    if !can_run_containerd("volumes: kinds") {
        return;
    }
    let cd = Containerd::start();
    let temporary = tempfile::tempdir().unwrap();
    let mut mounted = Mounted::default();
    let dir = temporary.path();
    let at = |name: &str| dir.join(name);
    for name in ["rw", "ro/below", "rro/below", "late", "odd/a b,c", "kubernetes.io~empty-dir/disk", "kubernetes.io~empty-dir/memory"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    everything::write(&at("rw"));
    fs::write(at("outside"), "the host's").unwrap();
    symlink(at("outside"), at("rw/out")).unwrap();
    symlink("../outside", at("rw/up")).unwrap();
    for below in ["ro/below", "rro/below"] {
        mounted.mount("-t tmpfs below", &at(below));
        fs::write(at(below).join("file"), "below").unwrap();
    }
    mounted.mount("-t tmpfs -o size=1m,mode=1777 memory", &at("kubernetes.io~empty-dir/memory"));
    // What is mounted later shows only below a mount that tells others of it.
    mounted.mount("-t tmpfs late", &at("late"));
    assert!(sh(&format!("mount --make-shared {}", at("late").display())));
    let looped = sh(&format!("truncate -s 16M {0}/disk.img && mkfs.ext4 -q {0}/disk.img 2>/dev/null", dir.display()));
    if looped {
        mounted.mount(&format!("-o loop {}/disk.img", dir.display()), &at("loop"));
    }
    fs::write(at("file"), "one file").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("device"), rustix::fs::FileType::CharacterDevice, 0o666.into(), rustix::fs::makedev(1, 5))
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

    let pod = Pod::start(&cd, "kinds", &[]);
    let id = format!("{}-c", pod.id);
    let before = descriptors(&pod.id);
    let mut mounts = vec![
        mount(&std::env::current_exe().unwrap(), "/watch", "rbind:ro"),
        mount(&at("rw"), "/rw", "rbind:rw"),
        mount(&at("ro"), "/ro", "rbind:ro"),
        mount(&at("rro"), "/rro", "rbind:rro"),
        mount(&at("late"), "/late", "rbind:rslave"),
        mount(&at("file"), "/etc/one file", "rbind:rw"),
        mount(&at("socket"), "/socket", "rbind:rw"),
        mount(&at("device"), "/device", "rbind:rw"),
        mount(&at("rw/../rw/group"), "/a/../group", "rbind:rw"),
        mount(&at("kubernetes.io~empty-dir/disk"), "/disk", "rbind:rw"),
        mount(&at("kubernetes.io~empty-dir/memory"), "/memory", "rbind:rw"),
        format!("type=bind,\"src={}\",\"dst=/odd, \n name\",options=rbind:rw", at("odd/a b,c").display()),
    ];
    if looped {
        mounts.push(mount(&at("loop"), "/loop", "rbind:rw"));
    }
    let options: Vec<&str> = mounts.iter().flat_map(|m| ["--mount", m]).chain(["--detach"]).collect();
    let added = pod.add(&id, &options, &["sleep", "3600"]);
    assert_eq!(added.status, 0, "{added:?}");
    let all = |verb: &str, dir: &str| {
        let said = pod.exec(&id, &format!("OSC_TEST_DO='{verb} {dir}' /watch --exact in_the_pod --nocapture 2>&1 || true"));
        assert!(said.contains("test result: ok. 1 passed"), "{verb} {dir}: {said}");
    };
    all("check", "/rw");
    pod.exec(&id, "mkdir /rw/theirs");
    all("write", "/rw/theirs");
    everything::check(&at("rw/theirs"));
    all("exercise", "/rw");
    assert!(fs::read(at("rw/fsx")).unwrap() == fs::read(at("rw/fsx.model")).unwrap(), "fsx: the host reads something else");
    // A link leads where it leads in the container, whichever side made it.
    assert_eq!(pod.exec(&id, &format!("cat {} /rw/out /rw/up 2>/dev/null | wc -c", at("outside").display())), "0");
    pod.exec(&id, "ln -s /etc/passwd /rw/passwd");
    assert_eq!(pod.exec(&id, "grep -c . /rw/passwd"), "2");
    // ro holds for what is mounted below, too.
    let writes = "for d in /ro /ro/below /rro /rro/below; do (echo >$d/x) 2>/dev/null && echo $d; done; cat /ro/below/file /rro/below/file";
    assert_eq!(pod.exec(&id, writes), "belowbelow");
    assert_eq!(
        pod.exec(&id, "cat '/etc/one file'; echo changed >'/etc/one file'; stat -c %F /socket /device; head -c 4 /device | wc -c"),
        "one filesocket\ncharacter special file\n4"
    );
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "changed\n");
    assert_eq!(pod.exec(&id, "ls /group"), "of-group");
    pod.exec(&id, "echo x >'/odd, \n name/file'; echo on-disk >/disk/file");
    assert!(at("odd/a b,c/file").exists());
    assert_eq!(fs::read_to_string(at("kubernetes.io~empty-dir/disk/file")).unwrap(), "on-disk\n");
    let full =
        "df -k /memory | awk 'END { print $2 }'; head -c 2000000 /bin/busybox >/memory/big 2>&1 || echo full; stat -c %s /memory/big";
    let said = pod.exec(&id, full);
    assert!(said.starts_with("1024\n") && said.contains("full"), "{said}");
    if looped {
        assert_eq!(pod.exec(&id, "touch /loop/file; test -d /loop/lost+found && echo yes"), "yes");
        assert!(at("loop/file").exists());
    }
    // Mounted later on the host, below a volume's source.
    let sub = at("late/sub");
    mounted.mount("-t tmpfs sub", &sub);
    fs::write(sub.join("file"), "late").unwrap();
    until("a later mount shows", || {
        let out = cd.exec(&id, &common::name("exec"), &["cat", "/late/sub/file"]);
        (out.stdout == "late").then_some(())
    });
    // A source that goes is gone for the pod, and holds up nobody.
    fs::remove_dir_all(at("odd")).unwrap();
    pod.exec(&id, "ls '/odd, \n name' >/dev/null 2>&1; true");
    pod.delete(&id);
    // Containers come and go: neither descriptors nor mounts stay with the daemon, but for those of the last second.
    const ROUNDS: usize = 6;
    let left: Vec<&str> = mounts.iter().filter(|m| !m.contains("odd")).flat_map(|m| ["--mount", m]).collect();
    let mut counts = Vec::new();
    for round in 0..ROUNDS {
        let id = format!("{}-r{round}", pod.id);
        let added = pod.add(&id, &left, &["sh", "-c", "for f in /rw/* /rw/theirs/*; do stat $f; done >/dev/null 2>&1; exit 0"]);
        assert_eq!(added.status, 0, "{added:?}");
        pod.cd.ctr(["container", "rm", &id]);
        counts.push(descriptors(&pod.id));
    }
    println!("virtiofsd's descriptors: {before} before, then {counts:?}");
    assert!(counts[ROUNDS - 1] < before + 3 * mounts.len(), "{counts:?}");
    let share = format!("/run/kata-containers/shared/sandboxes/{}/shared", pod.id);
    let left: Vec<_> =
        fs::read_dir(share).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n.to_string_lossy().contains("-c-")).collect();
    assert!(left.is_empty(), "{left:?}");
    pod.end();
}

#[test]
fn three_hundred_volumes_in_one_pod() {
    if !can_run_containerd("volumes: 300") {
        return;
    }
    let cd = Containerd::start();
    let dir = tempfile::tempdir().unwrap();
    let pod = Pod::start(&cd, "many", &[]);
    let id = format!("{}-c", pod.id);
    let mut mounts = Vec::new();
    for n in 0..300 {
        let source = match n % 3 {
            0 => dir.path().join(format!("d{n}")),
            1 => Kept::new(&dir.path().join(n.to_string()), "kubernetes.io~secret").dir,
            _ => dir.path().join(format!("f{n}")),
        };
        if n % 3 == 2 {
            fs::write(&source, format!("{n}\n")).unwrap();
        } else if n % 3 == 0 {
            fs::create_dir(&source).unwrap();
            fs::write(source.join("file"), format!("{n}\n")).unwrap();
        }
        mounts.push(mount(&source, &format!("/v/{n}"), "rbind:ro"));
    }
    let options: Vec<&str> = mounts.iter().flat_map(|m| ["--mount", m]).collect();
    let started = Instant::now();
    let script = "cat /v/*/file | wc -l; cat /v/*/key | wc -c; n=0; for f in /v/*; do test -f $f && n=$((n + 1)); done; echo $n";
    let out = pod.add(&id, &options, &["sh", "-c", script]);
    println!("300 volumes: {} ms", started.elapsed().as_millis());
    assert_eq!((out.status, out.stdout.as_str()), (0, "100\n100\n100\n"), "{out:?}");
    assert_eq!(cd.ctr(["container", "rm", &id]).status, 0);
    pod.end();
}

#[test]
fn a_hundred_thousand_small_files() {
    if !can_run_containerd("volumes: small files") {
        return;
    }
    // A hundredth of it always.
    let half: usize = if common::all() { 50_000 } else { 500 };
    let cd = Containerd::start();
    let dir = tempfile::tempdir().unwrap();
    for n in 0..half {
        let sub = dir.path().join((n % 100).to_string());
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(format!("h{n}")), n.to_string()).unwrap();
    }
    let pod = Pod::start(&cd, "small", &[]);
    let id = format!("{}-c", pod.id);
    let volume = mount(dir.path(), "/v", "rbind:rw");
    let make = format!("n=0; while [ $n -lt {half} ]; do echo $n >/v/$((n % 100))/g$n; n=$((n + 1)); done");
    let script = format!("({make}; cat /v/*/h* | wc -c; ls /v/* | grep -c '^[gh]') >/v/told; echo >/v/done");
    let out = pod.add(&id, &["--mount", &volume, "--detach"], &["sh", "-c", &script]);
    assert_eq!(out.status, 0, "{out:?}");
    let deadline = Instant::now() + Duration::from_secs(600);
    while !dir.path().join("done").exists() {
        assert!(Instant::now() < deadline, "the files take more than 10 minutes");
        std::thread::sleep(Duration::from_millis(200));
    }
    let digits: usize = (0..half).map(|n| n.to_string().len()).sum();
    let told = fs::read_to_string(dir.path().join("told")).unwrap();
    assert_eq!(told.split_whitespace().collect::<Vec<_>>(), [digits.to_string(), (2 * half).to_string()]);
    let last = dir.path().join(format!("99/g{}", half - 1));
    assert_eq!(fs::read_to_string(last).unwrap(), format!("{}\n", half - 1));
    pod.end();
}

#[test]
fn huge_pages_are_the_guests() {
    if !common::can_run_vms("volumes: huge pages") {
        return;
    }
    let (root, dir, name) = (common::Rootfs::new(), tempfile::tempdir().unwrap(), common::name("huge"));
    let volume = dir.path().join("kubernetes.io~empty-dir/pages");
    fs::create_dir_all(&volume).unwrap();
    if !sh(&format!("mount -t hugetlbfs -o pagesize=2M none {}", volume.display())) {
        return println!("SKIP volumes: huge pages: the host's kernel has no hugetlbfs");
    }
    let mounted = Mounted(vec![volume.clone()]);
    let bundle = common::bundle(&root, &["/watch", "--exact", "in_the_pod", "--nocapture"], |c| {
        let program = serde_json::json!({"destination": "/watch", "type": "bind", "source": std::env::current_exe().unwrap(), "options": ["bind", "ro"]});
        let pages = serde_json::json!({"destination": "/pages", "type": "bind", "source": volume, "options": ["rbind", "rw"]});
        c["mounts"].as_array_mut().unwrap().extend([program, pages]);
        c["process"]["env"] = serde_json::json!(["PATH=/bin", "OSC_TEST_DO=huge /pages"]);
        c["linux"]["resources"] = serde_json::json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]});
    });
    let out = common::run(["run", "--network", "none", "--name", &name, "--bundle", &bundle.path().to_string_lossy()]);
    assert!(out.status == 0 && out.stdout.contains("1 passed"), "{out:?}");
    drop(mounted);
    common::assert_clean(&name);
}

#[test]
fn fio_verifies_what_it_wrote() {
    // Installed by scripts/test --all.
    if !common::only_with_all("volumes: fio") || !common::can_run_vms("volumes: fio") {
        return;
    }
    let (dir, name) = (tempfile::tempdir().unwrap(), common::name("fio"));
    let volume = format!("{}:/mnt", dir.path().display());
    let fio =
        "fio --name=v --directory=/mnt --size=64m --rw=randrw --bs=4k-64k --verify=crc32c --verify_fatal=1 --do_verify=1 --ioengine=psync";
    let out = common::run(["run", "--network", "none", "--name", &name, "--memory", "1g", "--volume", &volume, "--", "sh", "-c", fio]);
    assert!(out.status == 0 && out.stdout.contains("err= 0"), "{out:?}");
    common::assert_clean(&name);
}
