//! The program of a container whose surroundings are compared: prints what it sees, one `key: value` a line.
//! `probe` alone prints everything; `probe exit N`, `probe kill N` end as told; `probe calls NAME...` tries system calls.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let rest: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    match rest[..] {
        ["exit", n] => std::process::exit(n.parse().unwrap()),
        ["kill", n] => {
            let signal: i32 = n.parse().unwrap();
            // A first process is not killed by a signal of its own: a child is, and its end becomes ours.
            std::process::exit(in_child(|| {
                // SAFETY: ends this child.
                unsafe { libc::raise(signal) };
            }));
        }
        ["calls", ref names @ ..] => names.iter().for_each(|n| calls(n)),
        ["args", ref args @ ..] => say("args", args.join("|")),
        _ => everything(),
    }
}

fn say(key: &str, value: impl std::fmt::Display) {
    println!("{key}: {value}");
}

fn everything() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for key in ["Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"] {
        let line = status.lines().find_map(|l| l.strip_prefix(&format!("{key}:"))).unwrap_or("-");
        say(key, line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    say("cwd", std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default());
    for (key, value) in std::env::vars() {
        say(&format!("env {key}"), value);
    }
    let read = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_else(|e| format!("{:?}", e.kind()));
    say("hostname", read("/proc/sys/kernel/hostname"));
    say("domainname", read("/proc/sys/kernel/domainname"));
    say("oom_score_adj", read("/proc/self/oom_score_adj"));
    say("personality", read("/proc/self/personality"));
    say("pid", std::process::id());
    let limits = read("/proc/self/limits");
    for line in limits.lines().skip(1).filter(|l| !l.contains("pending signals") && !l.contains("Max processes")) {
        let (name, values) = line.split_at(26.min(line.len()));
        say(&format!("limit {}", name.trim()), values.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    }
    mounts();
    devices("/dev");
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/acpi", "/masked-file", "/masked-dir"] {
        let shown = match fs::metadata(path) {
            Ok(m) if m.is_dir() => format!("directory of {} entries", fs::read_dir(path).map(|d| d.count()).unwrap_or(0)),
            Ok(m) if m.file_type().is_char_device() => format!("device {:x}", m.rdev()),
            Ok(m) => format!("file of {} bytes", m.len().min(1)),
            Err(e) => format!("{:?}", e.kind()),
        };
        say(&format!("masked {path}"), shown);
    }
    for path in ["/", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys", "/etc", "/ro", "/rw", "/tmp"] {
        let c = CString::new(path).unwrap();
        // SAFETY: a string that lives through the call.
        let r = unsafe { libc::access(c.as_ptr(), libc::W_OK) };
        say(&format!("writable {path}"), if r == 0 { "yes".into() } else { std::io::Error::last_os_error().kind().to_string() });
    }
    for key in ["kernel/shmmax", "kernel/msgmax", "fs/mqueue/msg_max", "net/ipv4/ip_forward"] {
        say(&format!("sysctl {key}"), read(&format!("/proc/sys/{key}")));
    }
    // Without a cgroup namespace version 2 shows the whole hierarchy, and /proc/self/cgroup where in it this process is.
    let own = read("/proc/self/cgroup").lines().find_map(|l| l.strip_prefix("0::").map(|p| format!("/sys/fs/cgroup{p}")));
    let own = own.filter(|dir| fs::exists(format!("{dir}/cgroup.procs")).unwrap_or(false)).unwrap_or("/sys/fs/cgroup".into());
    let v2 = |file: &str| fs::read_to_string(format!("{own}/{file}")).ok().map(|t| t.trim().to_owned());
    let v1 =
        |controller: &str, file: &str| fs::read_to_string(format!("/sys/fs/cgroup/{controller}/{file}")).ok().map(|t| t.trim().to_owned());
    say("cgroup memory", v2("memory.max").or(v1("memory", "memory.limit_in_bytes")).map(no_limit).unwrap_or_default());
    say("cgroup pids", v2("pids.max").or(v1("pids", "pids.max")).unwrap_or_default());
    let cpu = v2("cpu.max").or_else(|| Some(format!("{} {}", no_limit(v1("cpu", "cpu.cfs_quota_us")?), v1("cpu", "cpu.cfs_period_us")?)));
    say("cgroup cpu", cpu.unwrap_or_default());
    // SAFETY: numbers only.
    let mut fds: Vec<i32> = (0..256).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).collect();
    fds.sort();
    say("fds", format!("{fds:?}"));
    // SAFETY: numbers only.
    say("tty", (0..3).map(|fd| unsafe { libc::isatty(fd) }.to_string()).collect::<String>());
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).ok() != fs::read_link(format!("/proc/1/ns/{kind}")).ok();
    say("not in the first process's namespaces", ["ipc", "uts", "mnt"].into_iter().filter(|k| own(k)).collect::<Vec<_>>().join(" "));
    for (file, text) in [("/etc/made-by-hook", "hook"), ("/volume/file", "volume")] {
        say(text, fs::read_to_string(file).unwrap_or_default().trim());
    }
}

/// What both versions call unlimited.
fn no_limit(n: String) -> String {
    match n.as_str() {
        "9223372036854771712" | "-1" => "max".into(),
        _ => n,
    }
}

fn mounts() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut lines: Vec<String> = table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            // The kind of a bind's file system, and its super block's options, are the host's affair.
            let kind = if ["proc", "tmpfs", "devpts", "mqueue", "sysfs"].contains(&right[0]) { right[0] } else { "bind" };
            let mut options: Vec<&str> = left[5].split(',').collect();
            options.sort();
            let propagation: Vec<&str> = left[6..].iter().map(|p| p.split(':').next().unwrap_or_default()).collect();
            Some(format!("{} {kind} {} {}", left[4], options.join(","), propagation.join(" ")))
        })
        .filter(|l| !l.starts_with("/sys/fs/cgroup/"))
        .collect();
    lines.sort();
    lines.iter().for_each(|l| say("mount", l.trim_end()));
}

fn devices(dir: &str) {
    let mut names: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    names.sort();
    for path in names {
        let Ok(m) = fs::symlink_metadata(&path) else { continue };
        let kind = m.file_type();
        let shown = if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap_or_default().display())
        } else if kind.is_char_device() || kind.is_block_device() {
            let open = fs::File::open(&path).map(|_| "opens".to_owned()).unwrap_or_else(|e| e.kind().to_string());
            let open = if path.ends_with("console") || path.ends_with("tty") || path.ends_with("ptmx") { String::new() } else { open };
            format!(
                "{}{}:{} {:o} {}:{} {open}",
                if kind.is_block_device() { 'b' } else { 'c' },
                m.rdev() >> 8,
                m.rdev() & 255,
                m.mode() & 0o7777,
                m.uid(),
                m.gid()
            )
        } else if kind.is_fifo() {
            format!("fifo {:o}", m.mode() & 0o7777)
        } else {
            "directory".into()
        };
        say(&format!("dev {}", path.display()), shown.trim_end());
    }
}

/// How a child ends that does `f`: its status, or 128 and its signal.
fn in_child(f: impl FnOnce()) -> i32 {
    // SAFETY: one thread; the child ends right after.
    unsafe {
        match libc::fork() {
            0 => {
                f();
                libc::_exit(0)
            }
            pid => {
                let mut status = 0;
                libc::waitpid(pid, &mut status, 0);
                if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
            }
        }
    }
}

/// Tries a system call in a child: its errno, or the signal that it brings.
fn calls(name: &str) {
    let result = in_child(|| {
        // SAFETY: each is called with arguments that do no harm.
        let r = unsafe {
            match name {
                "getpid32" => int80(20),
                "getcwd" => libc::syscall(libc::SYS_getcwd, 0, 0),
                "mkdir" => libc::syscall(libc::SYS_mkdir, c"/no/such/dir/x".as_ptr(), 0),
                "personality0" => libc::syscall(libc::SYS_personality, 0xffff_ffffu32),
                "personality8" => libc::syscall(libc::SYS_personality, 8),
                "socket" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
                "socketunix" => libc::syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0),
                "getppid" => libc::syscall(libc::SYS_getppid),
                "unshare" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUTS),
                "mount" => libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0),
                "new" => libc::syscall(462, 0, 0, 0),
                other => panic!("no call {other}"),
            }
        };
        let code = if r >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) };
        // SAFETY: ends this child.
        unsafe { libc::_exit(code.min(127)) }
    });
    say(&format!("call {name}"), result);
}

/// A 32-bit system call without arguments.
fn int80(number: i64) -> i64 {
    let result: i64;
    // SAFETY: a system call that takes nothing and touches no memory.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") number => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result as i32 as i64
}
