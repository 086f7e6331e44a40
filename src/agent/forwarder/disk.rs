//! A pod VM that boots from its own disk (`fs::image::disk`): the user-data comes on a second one (cloud-init's NoCloud), and containers
//! live in the storage beside the boot partition, which is grown to the disk's end.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::MountFlags;

use super::seed::{DIR, Seed};
use crate::agent::boot::{KATA_RUN, command_line};
use crate::agent::guest::Guest;
use crate::agent::storage::grow;
use crate::error::{At, Failure, Result, Stage};
use crate::fs::image::disk::{POD_VM, STORAGE, gpt, iso};
use crate::fs::mount;

/// The name of a volume with user-data.
const CIDATA: &str = "cidata";

/// How long the disks may take to appear.
const APPEARS: Duration = Duration::from_secs(60);

/// Bytes that tell what a disk holds: the farthest is an ISO volume's name.
const HEAD: usize = iso::LABEL + 32;

/// The file system of an ISO image, by the kernel's name.
const ISO: &str = "iso9660";

/// What a FAT volume's names are written in.
const CHARACTERS: [&str; 3] = ["nls_cp437", "nls_ascii", "nls_utf8"];

/// Where a FAT volume has its name: FAT16 and FAT32, and the mark that both have.
const FAT_LABELS: [usize; 2] = [43, 71];
const FAT_LABEL: usize = 11;

/// A block of the storage.
const BLOCK: u64 = 4096;

/// `BLKPG` and its verb (linux/blkpg.h).
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;

/// Whether this guest is such a VM.
pub fn is_ours() -> bool {
    command_line().split_ascii_whitespace().any(|w| w == POD_VM)
}

/// Finds the disks, makes the storage ready and reads the user-data.
pub fn start(guest: &Guest) -> Result<Seed> {
    let mut told = HashSet::new();
    let found = guest.events.until(Some(APPEARS), || {
        for e in guest.modules.load_matching() {
            if told.insert(e.to_string()) {
                log::warn!("{e}");
            }
        }
        user_data()
    });
    let (node, kind) = found.ok_or_else(|| {
        let cause = format!("no user-data: no disk named {CIDATA} within {APPEARS:?}; disks here: {}", names().join(" "));
        Failure::new(Stage::Agent, cause).way_out("the provider that made this VM attaches it")
    })?;
    if let Err(e) = storage(guest) {
        // Containers in memory are better than none.
        log::error!("storage: {e}; containers live in memory");
    }
    read(guest, &node, kind)
}

/// Block devices, partitions among them.
fn names() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|n| !n.starts_with("loop") && !n.starts_with("ram"));
    names.sort();
    names
}

fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn head(node: &Path, length: usize) -> Vec<u8> {
    let mut head = Vec::new();
    let _ = File::open(node).and_then(|f| f.take(length as u64).read_to_end(&mut head));
    head
}

/// The disk with user-data and its file system.
fn user_data() -> Option<(PathBuf, &'static str)> {
    names().iter().map(|n| node(n)).find_map(|n| volume(&head(&n, HEAD)).map(|kind| (n, kind)))
}

fn volume(head: &[u8]) -> Option<&'static str> {
    let is = |label: &str| label.trim_end().eq_ignore_ascii_case(CIDATA);
    if iso::label(head).is_some_and(|l| is(&l)) {
        return Some(ISO);
    }
    let fat = |at: usize| head.get(at..at + FAT_LABEL).is_some_and(|l| is(&String::from_utf8_lossy(l)));
    (head.get(510..512) == Some(&[0x55, 0xaa]) && FAT_LABELS.into_iter().any(fat)).then_some("vfat")
}

fn read(guest: &Guest, node: &Path, kind: &str) -> Result<Seed> {
    let what = || format!("{}: mount user-data ({kind})", node.display());
    // A module is not called as its file system.
    let found = guest.modules.file_system(kind).or_else(|e| if kind == ISO { guest.modules.need("isofs") } else { Err(e) });
    found.at(Stage::Agent, what)?;
    if kind == "vfat" {
        for module in CHARACTERS {
            // Built in, it need not be known by a name: what is missing, the mount says.
            guest.modules.need(module).unwrap_or_else(|e| log::debug!("{e}"));
        }
    }
    let dir = Path::new(DIR);
    fs::create_dir_all(dir).at(Stage::Agent, what)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount::mount(&node.to_string_lossy(), dir, kind, flags, "").at(Stage::Agent, what)?;
    let seed = Seed::read();
    mount::detach(dir).at(Stage::Agent, || format!("{DIR}: unmount"))?;
    seed.unwrap_or_else(|| Err(Failure::new(Stage::Agent, format!("{}: no user-data in it", node.display()))))
}

/// Grows the storage to its disk's end and puts it where containers live.
fn storage(guest: &Guest) -> Result<()> {
    let Some((disk, number)) = names().into_iter().find_map(|n| Some((n.clone(), partition(&head(&node(&n), gpt::HEAD))?))) else {
        return Err(Failure::new(Stage::Agent, format!("no partition named {STORAGE} among {}", names().join(" "))));
    };
    let dir = Path::new("/sys/class/block").join(&disk);
    let name =
        fs::read_dir(&dir).at(Stage::Agent, || disk.clone())?.flatten().find(|e| number_in(&e.path(), "partition") == Some(number.into()));
    let part = name.ok_or_else(|| Failure::new(Stage::Agent, format!("{disk}: the kernel does not see its partition {number}")))?;
    let sector = |path: &Path, name: &str| number_in(path, name).map(|n| n * gpt::SECTOR).unwrap_or(0);
    let (start, own, whole) = (sector(&part.path(), "start"), sector(&part.path(), "size"), sector(&dir, "size"));
    let length = whole.saturating_sub(start) / BLOCK * BLOCK;
    let what = || format!("{disk}, partition {number}");
    if length > own {
        resize_partition(&node(&disk), number, start, length).at(Stage::Agent, || format!("{}: grow", what()))?;
    }
    let at = Path::new(KATA_RUN);
    guest.modules.file_system("ext4").at(Stage::Agent, what)?;
    mount::mount(&node(&part.file_name().to_string_lossy()).to_string_lossy(), at, "ext4", MountFlags::NODEV, "")
        .at(Stage::Agent, || format!("{}: mount", what()))?;
    if length > own {
        grow::ext4(at, length).at(Stage::Agent, || format!("{}: grow to {} MiB", what(), length >> 20))?;
    }
    log::info!("storage: {} MiB of {disk} {} ms after the kernel", length.max(own) >> 20, crate::agent::uptime_ms());
    Ok(())
}

/// The number of the storage's partition.
fn partition(head: &[u8]) -> Option<u32> {
    gpt::read(head).into_iter().find(|(_, p)| p.name == STORAGE).map(|(n, _)| n)
}

fn number_in(dir: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
}

/// The kernel's view of the partition alone: what is on the disk says how it was made, and holds for the next boot as well.
fn resize_partition(disk: &Path, number: u32, start: u64, length: u64) -> std::io::Result<()> {
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: libc::c_int,
        names: [u8; 128],
    }
    #[repr(C)]
    struct Request {
        verb: libc::c_int,
        flags: libc::c_int,
        length: libc::c_int,
        data: *mut Partition,
    }
    let mut partition = Partition { start: start as i64, length: length as i64, number: number as i32, names: [0; 128] };
    let request = Request { verb: BLKPG_RESIZE_PARTITION, flags: 0, length: size_of::<Partition>() as i32, data: &mut partition };
    let disk = File::open(disk)?;
    // SAFETY: a complete blkpg_ioctl_arg whose data outlives the call.
    match unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &request) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_known_by_its_volumes_name() {
        assert_eq!(volume(&iso::volume("cidata", &[])), Some("iso9660"));
        assert_eq!(volume(&iso::volume("other", &[])), None);
        let fat = |at: usize, label: &[u8]| {
            let mut head = vec![0; 512];
            head[at..at + label.len()].copy_from_slice(label);
            head[510..].copy_from_slice(&[0x55, 0xaa]);
            head
        };
        assert_eq!(volume(&fat(43, b"CIDATA     ")), Some("vfat"));
        assert_eq!(volume(&fat(71, b"cidata     ")), Some("vfat"));
        assert_eq!(volume(&fat(71, b"CIDATA2    ")), None);
        assert_eq!(volume(&[]), None);
    }
}
