//! A pod VM's disk: boots by BIOS and by UEFI, on any cloud's machine, and has room for containers that grows with the disk.
//!
//! ```text
//! GPT   boot code of syslinux in the MBR
//!   1   EFI system partition (FAT32): kernel and initrd, systemd-boot for UEFI, syslinux for a BIOS
//!   2   `osc-storage` (ext4, nearly empty): the agent grows it to the disk's end and keeps its containers there
//! ```
//!
//! Made without privileges, mounts or a network: files of the distribution's packages are put together by its own tools for FAT and
//! ext4. Nothing in it depends on where, when or by whom it was made.

pub mod gpt;
pub mod iso;
mod vhd;

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use self::gpt::{Guid, Partition, SECTOR};
use super::build::Binary;
use super::{ImageError, Want, initrd, kernel, modules};
use crate::tool::{self, ToolError};

/// The file systems' names: of the storage also its partition's, by which the agent finds it.
pub const STORAGE: &str = "osc-storage";
const BOOT: &str = "OSCBOOT";

/// A word of the kernel's command line: this guest is a pod VM, and its user-data is on a disk.
pub const POD_VM: &str = "osc.podvm";

/// Nothing of it depends on the machine; what is known of the host's own QEMU (`vm::qemu::cmdline`) does not hold elsewhere.
const COMMAND_LINE: &str = "console=tty0 console=ttyS0 quiet panic=-1 cryptomgr.notests rcupdate.rcu_expedited=1";

const MIB: u64 = 1 << 20;

/// Where the first partition begins: the alignment everybody uses. Its file system has to know (`mkfs.fat -h`).
const START: u64 = MIB;

/// FAT32 wants 65525 clusters, here of a sector each.
const LEAST_BOOT: u64 = 40 * MIB;

/// Of the boot partition, for the tables of its file system and the boot loaders.
const BOOT_EXTRA: u64 = 3 * MIB;

/// The storage as it is made.
const STORAGE_BYTES: u64 = 16 * MIB;

/// The backup of the partition table.
const END: u64 = MIB;

/// The storage's options. No journal: nothing in it outlives the VM. An inode for each 16 KiB, also when it has grown. Room to grow
/// to 512 GiB in place; the kernel goes on another way beyond.
const STORAGE_FEATURES: &str = "^has_journal";
const STORAGE_INODES: &str = "8192";
const STORAGE_MOST_BLOCKS: &str = "134217728";
const STORAGE_ID: &str = "6f736373-746f-7261-6765-000000000001";
const BOOT_ID: &str = "4f534321";

/// No step takes longer.
const LIMIT: Duration = Duration::from_secs(300);

/// Times of files: the first that FAT knows, 1980-01-01.
const EPOCH: u64 = 315_532_800;

/// Boot loaders and where Debian has them.
const SYSTEMD_BOOT: (&str, &str) = ("/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "systemd-boot-efi");
const GPTMBR: (&str, &str) = ("/usr/lib/syslinux/mbr/gptmbr.bin", "syslinux-common");

/// A form that a disk image comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Qcow2,
    Raw,
    /// Fixed, as Azure takes it.
    Vhd,
}

impl Format {
    /// (its name, which is also its suffix).
    const TABLE: [(&str, Format); 3] = [("qcow2", Format::Qcow2), ("raw", Format::Raw), ("vhd", Format::Vhd)];

    pub fn name(self) -> &'static str {
        Format::TABLE.iter().find(|row| row.1 == self).map_or("", |row| row.0)
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let found = Format::TABLE.iter().find(|row| row.0 == text);
        found.map(|row| row.1).ok_or_else(|| "qcow2, raw or vhd".into())
    }
}

/// A disk that was made.
#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    /// What it takes here, and what a VM sees, bytes.
    pub bytes: u64,
    pub size: u64,
}

/// Makes the disk at `want.output`, or as `podvm-<release>.<format>` in the working directory.
pub fn build(want: &Want, format: Format, progress: &dyn Fn(&str)) -> Result<Disk, ImageError> {
    let mut kernel = kernel::find(want.kernel_release.as_deref())?;
    if let Some(dir) = &want.modules_dir {
        kernel.modules = dir.clone();
    }
    let path = want.output.clone().unwrap_or_else(|| format!("podvm-{}.{}", kernel.release, format.name()).into());
    progress("disk image: kernel and initrd");
    let set = modules::collect(&kernel, &modules::POD_VM)?;
    let binary = Binary::read(crate::process::this_program())?;
    let release = format!("kernel={}\nosc={}\n", kernel.release, crate::VERSION);
    let initrd = initrd::initrd(&binary.data, &set, &release).map_err(ImageError::io("make the initrd"))?;
    let vmlinuz = fs::read(&kernel.vmlinuz).map_err(ImageError::io(format!("read {}", kernel.vmlinuz.display())))?;

    let name = path.file_name().map_or_else(|| "disk".into(), |n| n.to_string_lossy().into_owned());
    let scratch = Scratch::beside(&path, &name)?;
    progress("disk image: file systems");
    let boot = boot(&scratch, &vmlinuz, &initrd)?;
    let storage = storage(&scratch)?;
    progress("disk image: disk");
    let (raw, size) = assemble(&scratch, &boot, &storage, Sha256::digest(&initrd).into())?;
    let made = match format {
        Format::Raw | Format::Vhd => raw,
        Format::Qcow2 => qcow2(&scratch, &raw)?,
    };
    let done = || {
        if format == Format::Vhd {
            let id: [u8; 16] = Sha256::digest(&initrd)[16..].try_into().unwrap_or_default();
            File::options().append(true).open(&made)?.write_all(&vhd::footer(size, id))?;
        }
        File::open(&made)?.sync_data()?;
        fs::rename(&made, &path)?;
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&path).map(|m| m.blocks() * SECTOR)
    };
    let bytes = done().map_err(ImageError::io(format!("write {}", path.display())))?;
    Ok(Disk { path, bytes, size })
}

/// A directory for what is half done, beside what is made of it; gone with this.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(path: &Path, name: &str) -> Result<Scratch, ImageError> {
        let dir = path.with_file_name(format!(".{name}-{}", std::process::id()));
        fs::create_dir(&dir).map_err(ImageError::io(format!("make {}", dir.display())))?;
        Ok(Scratch(dir))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file of `size` without contents.
    fn empty(&self, name: &str, size: u64) -> Result<PathBuf, ImageError> {
        let path = self.file(name);
        let made = File::create(&path).and_then(|f| f.set_len(size));
        made.map_err(ImageError::io(format!("write {}", path.display())))?;
        Ok(path)
    }

    fn run(&self, program: &str, package: &'static str, args: &[&str]) -> Result<(), ImageError> {
        let mut spawn = tool::find(program, package)?.args(args);
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin:/usr/sbin:/sbin".into());
        let told = [
            format!("PATH={path}"),
            // mtools and mkfs.fat take the time from it, mke2fs from its own; mtools shall not read anybody's settings.
            format!("SOURCE_DATE_EPOCH={EPOCH}"),
            format!("E2FSPROGS_FAKE_TIME={EPOCH}"),
            "TZ=UTC0".into(),
            "MTOOLSRC=/dev/null".into(),
            format!("TMPDIR={}", self.0.display()),
        ];
        spawn.env = Some(told.iter().filter_map(|v| std::ffi::CString::new(v.as_str()).ok()).collect());
        Ok(tool::output(spawn, LIMIT).map(drop)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn installed((path, package): (&'static str, &'static str)) -> Result<&'static Path, ToolError> {
    tool::file(path, package)
}

/// The boot partition.
fn boot(scratch: &Scratch, vmlinuz: &[u8], initrd: &[u8]) -> Result<PathBuf, ImageError> {
    let append = format!("{COMMAND_LINE} {POD_VM}");
    let efi = installed(SYSTEMD_BOOT)?;
    let efi = fs::read(efi).map_err(ImageError::io(format!("read {}", efi.display())))?;
    let entry = format!("title osc\nlinux /vmlinuz\ninitrd /initrd\noptions {append}\n");
    let syslinux = format!("DEFAULT osc\nPROMPT 0\nTIMEOUT 0\nLABEL osc\nLINUX /vmlinuz\nINITRD /initrd\nAPPEND {append}\n");
    let files: [(&str, &[u8]); 6] = [
        ("vmlinuz", vmlinuz),
        ("initrd", initrd),
        ("EFI/BOOT/BOOTX64.EFI", &efi),
        ("loader/loader.conf", b"timeout 0\ndefault osc\n"),
        ("loader/entries/osc.conf", entry.as_bytes()),
        ("syslinux.cfg", syslinux.as_bytes()),
    ];
    let size = (files.iter().map(|f| f.1.len() as u64).sum::<u64>() + BOOT_EXTRA).next_multiple_of(MIB).max(LEAST_BOOT);
    let image = scratch.empty("boot", size)?;
    let at = image.to_string_lossy();
    let hidden = (START / SECTOR).to_string();
    let how = ["-F", "32", "--invariant", "-i", BOOT_ID, "-n", BOOT, "-h", &hidden, "-S", "512", "-s", "1", "-g", "255/63", &at];
    scratch.run("mkfs.fat", "dosfstools", &how)?;
    scratch.run("mmd", "mtools", &["-i", &at, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries"])?;
    for (name, data) in files {
        let from = scratch.file("file");
        let dated = || {
            let mut file = File::create(&from)?;
            file.write_all(data)?;
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(EPOCH))
        };
        dated().map_err(ImageError::io(format!("write {}", from.display())))?;
        scratch.run("mcopy", "mtools", &["-m", "-i", &at, &from.to_string_lossy(), &format!("::/{name}")])?;
    }
    scratch.run("syslinux", "syslinux", &["-i", &at])?;
    Ok(image)
}

/// The storage's partition.
fn storage(scratch: &Scratch) -> Result<PathBuf, ImageError> {
    let image = scratch.empty("storage", STORAGE_BYTES)?;
    let extended = format!("hash_seed={STORAGE_ID},lazy_itable_init=1,root_owner=0:0,resize={STORAGE_MOST_BLOCKS}");
    let how =
        ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", STORAGE_FEATURES, "-m", "0", "-N", STORAGE_INODES, "-L", STORAGE, "-U", STORAGE_ID];
    scratch.run("mke2fs", "e2fsprogs", &[&how[..], &["-E", &extended, &image.to_string_lossy()]].concat())?;
    Ok(image)
}

/// The whole disk, raw; `hash` names it.
fn assemble(scratch: &Scratch, boot: &Path, storage: &Path, hash: [u8; 32]) -> Result<(PathBuf, u64), ImageError> {
    let mbr = installed(GPTMBR)?;
    let path = scratch.file("disk");
    let all = || {
        let boot_bytes = fs::metadata(boot)?.len();
        let size = (START + boot_bytes + STORAGE_BYTES + END).next_multiple_of(vhd::ALIGNMENT);
        let id = |n: u8| {
            let mut id: [u8; 16] = hash[..16].try_into().unwrap_or_default();
            // A random one, by its form (RFC 9562, version 8).
            (id[7], id[8], id[15]) = (id[7] & 0x0f | 0x80, id[8] & 0x3f | 0x80, n);
            Guid(id)
        };
        let from = [START, START + boot_bytes, START + boot_bytes + STORAGE_BYTES].map(|b| b / SECTOR);
        let one = |n: u8, kind, at: usize, attributes, name: &str| Partition {
            kind,
            id: id(n),
            first: from[at],
            last: from[at + 1] - 1,
            attributes,
            name: name.into(),
        };
        let partitions = [one(1, gpt::EFI_SYSTEM, 0, gpt::LEGACY_BOOT, "osc-boot"), one(2, gpt::LINUX, 1, 0, STORAGE)];
        let table = gpt::table(size / SECTOR, id(0), &partitions, &fs::read(mbr)?)?;
        let mut disk = File::create(&path)?;
        disk.set_len(size)?;
        disk.write_all(&table.head)?;
        copy(boot, &mut disk, START)?;
        copy(storage, &mut disk, START + boot_bytes)?;
        disk.seek(SeekFrom::Start(size - table.tail.len() as u64))?;
        disk.write_all(&table.tail)?;
        Ok(size)
    };
    let size = all().map_err(ImageError::io(format!("write {}", path.display())))?;
    Ok((path, size))
}

/// Writes a file into `disk` at `at`; what is empty stays a hole.
fn copy(from: &Path, disk: &mut File, at: u64) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    for (n, piece) in fs::read(from)?.chunks(PIECE).enumerate() {
        if piece.iter().any(|&b| b != 0) {
            disk.seek(SeekFrom::Start(at + (n * PIECE) as u64))?;
            disk.write_all(piece)?;
        }
    }
    Ok(())
}

/// The same as a compressed qcow2, its clusters in their order.
fn qcow2(scratch: &Scratch, raw: &Path) -> Result<PathBuf, ImageError> {
    let to = scratch.file("disk.qcow2");
    let how = ["convert", "-m", "1", "-c", "-f", "raw", "-O", "qcow2"];
    scratch.run("qemu-img", "qemu-utils", &[&how[..], &[&raw.to_string_lossy(), &to.to_string_lossy()]].concat())?;
    Ok(to)
}
