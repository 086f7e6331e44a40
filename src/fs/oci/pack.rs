//! A directory as a tar: what a layer's unpacking makes a directory of again, on another machine.
//!
//! Everything a file has goes with it: numeric owner, mode, times to the nanosecond, hard links, device nodes, extended
//! attributes. One file system: what is mounted below is not the directory's.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Before an attribute's name in a pax record, as all tars write it.
const XATTR: &str = "SCHILY.xattr.";

/// The most that one attribute may hold (XATTR_SIZE_MAX).
const LARGEST_XATTR: usize = 64 << 10;

/// Writes `dir`, itself first.
pub fn pack(dir: &Path, out: impl Write) -> io::Result<()> {
    pack_some(dir, &|_| true, out)
}

/// The same of those entries of `dir` itself whose names are wanted, with all below them.
pub fn pack_some(dir: &Path, wanted: &dyn Fn(&OsStr) -> bool, out: impl Write) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    let mut packer = Packer { out: Builder::new(out), seen: HashMap::new(), device: meta.dev() };
    packer.entry(dir, Path::new("."), &meta)?;
    packer.below(dir, Path::new("."), wanted)?;
    packer.out.into_inner()?.flush()
}

struct Packer<W: Write> {
    out: Builder<W>,
    /// Files with several links that have been written, by (device, inode).
    seen: HashMap<(u64, u64), PathBuf>,
    device: u64,
}

impl<W: Write> Packer<W> {
    fn tree(&mut self, from: &Path, name: &Path) -> io::Result<()> {
        let meta = fs::symlink_metadata(from)?;
        self.entry(from, name, &meta)?;
        if !meta.is_dir() || meta.dev() != self.device {
            return Ok(());
        }
        self.below(from, name, &|_| true)
    }

    fn below(&mut self, from: &Path, name: &Path, wanted: &dyn Fn(&OsStr) -> bool) -> io::Result<()> {
        let mut names = fs::read_dir(from)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        names.iter().filter(|n| wanted(n)).try_for_each(|n| self.tree(&from.join(n), &name.join(n)))
    }

    fn entry(&mut self, from: &Path, name: &Path, meta: &Metadata) -> io::Result<()> {
        let kind = meta.file_type();
        // Nobody is at its other end any more.
        if kind.is_socket() {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(meta.mtime().max(0) as u64);
        header.set_size(0);
        if !meta.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.seen.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(EntryType::Link);
                return self.out.append_link(&mut header, name, first);
            }
            self.seen.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        self.extensions(from, meta)?;
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return self.out.append_link(&mut header, name, fs::read_link(from)?);
        }
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(meta.len());
            let file = Exactly { file: File::open(from)?, left: meta.len() };
            return self.out.append_data(&mut header, name, file);
        }
        header.set_entry_type(if kind.is_dir() {
            EntryType::Directory
        } else if kind.is_char_device() {
            EntryType::Char
        } else if kind.is_block_device() {
            EntryType::Block
        } else {
            EntryType::Fifo
        });
        if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(rustix::fs::major(meta.rdev()))?;
            header.set_device_minor(rustix::fs::minor(meta.rdev()))?;
        }
        self.out.append_data(&mut header, name, io::empty())
    }

    /// What a plain header has no room for.
    fn extensions(&mut self, from: &Path, meta: &Metadata) -> io::Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if meta.mtime_nsec() != 0 {
            records.push(("mtime".into(), format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()).into_bytes()));
        }
        for name in attributes(from)? {
            let mut value = vec![0; LARGEST_XATTR];
            match rustix::fs::lgetxattr(from, name.as_str(), &mut value[..]) {
                Ok(n) => {
                    value.truncate(n);
                    records.push((format!("{XATTR}{name}"), value));
                }
                Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        self.out.append_pax_extensions(records.iter().map(|(k, v)| (k.as_str(), v.as_slice())))
    }
}

/// Names of extended attributes that mean something elsewhere: neither the overlay's nor this host's security labels.
fn attributes(path: &Path) -> io::Result<Vec<String>> {
    let mut names = vec![0; LARGEST_XATTR];
    let n = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(n) => n,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let names = names[..n].split(|&b| b == 0).map(|n| String::from_utf8_lossy(n).into_owned());
    Ok(names.filter(|n| n.starts_with("user.") || n == "security.capability" || n.starts_with("system.posix_acl")).collect())
}

/// A file that may change meanwhile gives as many bytes as its header says.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = match self.file.read(&mut buf[..most])? {
            // Cut short under our hands: zeros stand for what is gone.
            0 => {
                buf[..most].fill(0);
                most
            }
            n => n,
        };
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::oci::{Layer, Tree};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_is_the_same_after_its_journey() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let f = from.path();
        fs::create_dir_all(f.join("a/b")).unwrap();
        fs::set_permissions(f.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(f.join("a/file"), vec![7; 100_000]).unwrap();
        fs::set_permissions(f.join("a/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(f.join("a/file"), f.join("a/b/same")).unwrap();
        let long = "x".repeat(150);
        fs::write(f.join(&long), "long").unwrap();
        symlink(format!("/{long}"), f.join("link")).unwrap();
        let attribute = rustix::fs::lsetxattr(f.join("a/file"), "user.test", b"\0v", rustix::fs::XattrFlags::empty()).is_ok();
        let mut bytes = Vec::new();
        pack(f, &mut bytes).unwrap();
        Layer { name: "test".into(), ..Default::default() }.unpack(&Tree::open(to.path()).unwrap(), &bytes[..]).unwrap();
        let t = to.path();
        let (a, b) = (fs::metadata(f.join("a/file")).unwrap(), fs::metadata(t.join("a/file")).unwrap());
        assert_eq!((a.mode(), a.len(), a.mtime(), a.mtime_nsec()), (b.mode(), b.len(), b.mtime(), b.mtime_nsec()));
        assert_eq!(b.ino(), fs::metadata(t.join("a/b/same")).unwrap().ino());
        assert_eq!(fs::metadata(t.join("a")).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_to_string(t.join(&long)).unwrap(), "long");
        assert_eq!(fs::read_link(t.join("link")).unwrap().as_os_str().as_bytes(), format!("/{long}").as_bytes());
        if attribute {
            let mut value = [0; 8];
            assert_eq!(rustix::fs::lgetxattr(t.join("a/file"), "user.test", &mut value[..]).unwrap(), 2);
        }
    }
}
