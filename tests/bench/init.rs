//! PID 1 of the guests that osc is measured against: powers off at once, or moves blocks over a port of virtio-serial with
//! nothing in between. `bench=` on the kernel's command line chooses: `off`, `out` (guest to host), `in` (host to guest), `fs` (files of a
//! share). With `BENCH_FILES` in its environment it is a container's program, which does to the files there what `fs` does.

mod files;

use std::fs::{self, File};
use std::io::{Read, Write};

/// What both directions move, and in which pieces.
const TOTAL: usize = 100 << 20;
const BLOCK: usize = 64 << 10;

fn main() {
    if let Some(dir) = std::env::var_os("BENCH_FILES") {
        return files::run(dir.as_ref(), &mut std::io::stdout()).unwrap();
    }
    let _ = fs::create_dir("/proc");
    mount(c"proc", c"/proc");
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mode = line.split_ascii_whitespace().find_map(|w| w.strip_prefix("bench=")).unwrap_or("off").to_owned();
    if mode != "off" {
        if let Err(e) = transfer(&mode) {
            eprintln!("bench: {e}");
        }
    }
    // SAFETY: ends the machine.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}

fn mount(kind: &std::ffi::CStr, at: &std::ffi::CStr) {
    // SAFETY: constants; a failure shows in what follows.
    unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

fn transfer(mode: &str) -> std::io::Result<()> {
    mount(c"sysfs", c"/sys");
    mount(c"devtmpfs", c"/dev");
    for name in fs::read_to_string("/lib/modules/core")?.lines() {
        let module = File::open(format!("/lib/modules/{name}.ko"))?;
        // SAFETY: a descriptor and an empty string.
        unsafe { libc::syscall(libc::SYS_finit_module, std::os::fd::AsRawFd::as_raw_fd(&module), c"".as_ptr(), 0) };
    }
    let ports = || fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
    let port = loop {
        let found = ports().find(|p| fs::read_to_string(p.path().join("name")).is_ok_and(|n| n.trim() == "osc.mux"));
        match found {
            Some(port) => break port.file_name(),
            None => std::thread::yield_now(),
        }
    };
    let mut port = File::options().read(true).write(true).open(std::path::Path::new("/dev").join(port))?;
    if mode == "fs" {
        fs::create_dir("/share")?;
        // SAFETY: constants.
        let r = unsafe { libc::mount(c"kataShared".as_ptr(), c"/share".as_ptr(), c"virtiofs".as_ptr(), 0, std::ptr::null()) };
        return if r == 0 { files::run("/share".as_ref(), &mut port) } else { Err(std::io::Error::last_os_error()) };
    }
    let mut block = vec![0u8; BLOCK];
    // The host starts its clock at the first byte.
    port.write_all(b"!")?;
    let mut moved = 0;
    while moved < TOTAL {
        moved += if mode == "out" {
            port.write_all(&block)?;
            BLOCK
        } else {
            port.read(&mut block)?
        };
    }
    port.write_all(b"!")
}
