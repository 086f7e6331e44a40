//! A file system that grows under its users (`ResizeVolume`): the disk first, which the kernel tells of, then what lies on it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::Host;
use super::device::PLUG_LIMIT;

/// `EXT4_IOC_RESIZE_FS` of linux/ext4.h: `_IOW('f', 16, __u64)`, the file system's new number of blocks.
const EXT4_RESIZE: libc::Ioctl = 0x4008_6610;

/// A sector as sysfs counts, bytes.
const SECTOR: u64 = 512;

/// Grows the file system mounted at `at` to `size` bytes; waits until its disk has as many.
pub fn grow(host: &Host, at: &Path, size: u64) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let (number, kind) = mounted(&mounts, at).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nothing is mounted there"))?;
    if !matches!(kind, "ext4" | "ext3") {
        let text = format!("a file system {kind} cannot grow here; one of ext4 can");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let sectors = format!("/sys/dev/block/{number}/size");
    let large = || fs::read_to_string(&sectors).ok()?.trim().parse::<u64>().ok().filter(|n| n * SECTOR >= size);
    host.events.until(Some(PLUG_LIMIT), large).ok_or_else(|| {
        io::Error::new(io::ErrorKind::TimedOut, format!("its disk {number} does not have {size} bytes within {PLUG_LIMIT:?}"))
    })?;
    ext4(at, size)
}

/// Grows the ext4 (or ext3) mounted at `at` to `size` bytes.
pub fn ext4(at: &Path, size: u64) -> io::Result<()> {
    let root = File::open(at)?;
    let blocks = size / rustix::fs::fstatvfs(&root)?.f_bsize;
    // SAFETY: the kernel reads the number, which outlives the call.
    match unsafe { libc::ioctl(root.as_raw_fd(), EXT4_RESIZE, &blocks as *const u64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The disk (`MAJOR:MINOR`) and the type of what is mounted at `at`, last of all.
fn mounted<'a>(mountinfo: &'a str, at: &Path) -> Option<(&'a str, &'a str)> {
    let line = mountinfo.lines().rev().find(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p) == at))?;
    Some((line.split(' ').nth(2)?, line.split(" - ").nth(1)?.split(' ').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_under_a_mount_point() {
        let text =
            "30 1 0:20 / /proc rw - proc proc rw\n31 1 254:0 / /v rw shared:1 - ext4 /dev/vda rw\n32 1 254:16 / /v rw - xfs /dev/vdb rw\n";
        assert_eq!(mounted(text, Path::new("/v")), Some(("254:16", "xfs")));
        assert_eq!(mounted(text, Path::new("/proc")), Some(("0:20", "proc")));
        assert_eq!(mounted(text, Path::new("/w")), None);
    }
}
