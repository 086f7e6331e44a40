//! A layer: a tar of what it changes, applied to a directory (OCI image-spec `layer.md`).
//!
//! Streamed: memory does not depend on the layer's size. Whiteouts hide what lower layers brought, never what the same
//! layer did. Directories get their times when everything in them is there.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fsetxattr, linkat, makedev, mkdirat, mknodat,
    openat, symlinkat, utimensat,
};
use tar::{Archive, Entry, EntryType};

use super::ImageError;
use super::tree::{Place, Tree, clean, remove_below};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const XATTR: &str = "SCHILY.xattr.";

/// What a layer is carried in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// By its first bytes: media types lie.
pub fn compression(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The bytes inside, whatever they are compressed with.
pub fn decompress<'a>(mut from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::new();
    from.by_ref().take(4).read_to_end(&mut head)?;
    let kind = compression(&head);
    let whole = io::Cursor::new(head).chain(from);
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(1 << 17, whole))),
        Compression::Zstd => {
            let reader = io::BufReader::with_capacity(1 << 17, whole);
            Box::new(
                ruzstd::decoding::StreamingDecoder::new(reader).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?,
            )
        }
    })
}

/// Applies the layer `name` (uncompressed) to `tree`.
pub fn apply(tree: &Tree, name: &str, layer: impl Read) -> Result<(), ImageError> {
    let damaged = |e: io::Error| ImageError::Damaged { image: name.into(), what: format!("its tar: {e}") };
    let mut work = Work { tree, layer: name, own: HashSet::new(), times: Vec::new() };
    let mut archive = Archive::new(layer);
    for entry in archive.entries().map_err(damaged)? {
        work.entry(entry.map_err(damaged)?)?;
    }
    work.finish()
}

struct Work<'a> {
    tree: &'a Tree,
    layer: &'a str,
    /// Paths that this layer brought: no whiteout of its own hides them.
    own: HashSet<PathBuf>,
    /// Directories and their times, set at the end.
    times: Vec<(PathBuf, Timestamps)>,
}

impl Work<'_> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), ImageError> {
        let raw = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let shown = raw.to_string_lossy().into_owned();
        if matches!(entry.header().entry_type(), EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = clean(&raw).ok_or_else(|| self.escape(&shown))?;
        let done = if path.as_os_str().is_empty() {
            self.root(&entry)
        } else if let Some(rest) = path.file_name().map(|n| n.as_bytes()).filter(|n| n.starts_with(WHITEOUT)) {
            self.whiteout(&path, rest == OPAQUE)
        } else {
            self.make(&path, &mut entry, &shown)?
        };
        done.map_err(|source| ImageError::Entry { layer: self.layer.into(), entry: shown, source })
    }

    fn escape(&self, entry: &str) -> ImageError {
        ImageError::Escape { layer: self.layer.into(), entry: entry.into() }
    }

    /// The root's own mode and owner.
    fn root<R: Read>(&mut self, entry: &Entry<'_, R>) -> io::Result<()> {
        let dir = self.tree.dir(Path::new(""))?;
        let (uid, gid) = owner(entry)?;
        chownat(&dir, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        Ok(rustix::fs::fchmod(&dir, Mode::from_raw_mode(entry.header().mode()? & 0o7777))?)
    }

    fn whiteout(&mut self, path: &Path, opaque: bool) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let own = &self.own;
        if opaque {
            let dir = self.tree.dir(parent)?;
            return remove_below(&dir, OsStr::new("."), &|name| !own.iter().any(|o| o.starts_with(parent.join(name))));
        }
        let name = OsStr::from_bytes(&path.file_name().unwrap_or_default().as_bytes()[WHITEOUT.len()..]).to_owned();
        if name.is_empty() || name == "." || name == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a whiteout of nothing"));
        }
        if own.contains(&parent.join(&name)) {
            return Ok(());
        }
        match self.tree.find(&parent.join(&name)) {
            Ok(place) => place.remove(),
            // Nothing to hide.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The outer error is the image's fault, the inner one this machine's.
    fn make<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>, shown: &str) -> Result<io::Result<()>, ImageError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::Link {
            let target = entry.link_name_bytes().map(|t| PathBuf::from(OsStr::from_bytes(&t))).unwrap_or_default();
            let target = clean(&target).filter(|t| !t.as_os_str().is_empty()).ok_or_else(|| self.escape(shown))?;
            self.own.insert(path.to_owned());
            return Ok(self.hard_link(path, &target));
        }
        self.own.insert(path.to_owned());
        Ok(self.make_new(path, entry, kind))
    }

    fn hard_link(&self, path: &Path, target: &Path) -> io::Result<()> {
        let from = self.tree.find(target)?;
        let place = self.tree.place(path)?;
        place.remove()?;
        Ok(linkat(&from.dir, &from.name, &place.dir, &place.name, AtFlags::empty())?)
    }

    fn make_new<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>, kind: EntryType) -> io::Result<()> {
        let place = self.tree.place(path)?;
        let keep = kind == EntryType::Directory && place.kind()? == Some(FileType::Directory);
        if !keep {
            place.remove()?;
        }
        let mode = Mode::from_raw_mode(entry.header().mode()? & 0o7777);
        let private = Mode::from_raw_mode(0o600);
        match kind {
            EntryType::Directory if keep => {}
            EntryType::Directory => mkdirat(&place.dir, &place.name, Mode::from_raw_mode(0o700))?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(&place, entry)?,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().map(|t| OsString::from(OsStr::from_bytes(&t))).unwrap_or_default();
                symlinkat(target, &place.dir, &place.name)?;
            }
            EntryType::Char => mknodat(&place.dir, &place.name, FileType::CharacterDevice, private, device(entry)?)?,
            EntryType::Block => mknodat(&place.dir, &place.name, FileType::BlockDevice, private, device(entry)?)?,
            EntryType::Fifo => mknodat(&place.dir, &place.name, FileType::Fifo, private, 0)?,
            other => return Err(io::Error::new(io::ErrorKind::Unsupported, format!("a tar entry of type {other:?}"))),
        }
        let (uid, gid) = owner(entry)?;
        chownat(&place.dir, &place.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != EntryType::Symlink {
            // After the owner: a change of owner takes setuid bits away.
            rustix::fs::chmodat(&place.dir, &place.name, mode, AtFlags::empty())?;
        }
        xattrs(&place, entry, kind)?;
        let time = Timespec { tv_sec: entry.header().mtime()? as i64, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        if kind == EntryType::Directory {
            self.times.push((path.to_owned(), times));
            return Ok(());
        }
        Ok(utimensat(&place.dir, &place.name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file<R: Read>(&self, place: &Place, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(&place.dir, &place.name, flags, Mode::from_raw_mode(0o600))?;
        let size = entry.size();
        let mut file = File::from(fd);
        let copied = io::copy(entry, &mut file)?;
        if copied != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{copied} of {size} bytes")));
        }
        Ok(())
    }

    fn finish(self) -> Result<(), ImageError> {
        for (path, times) in self.times.iter().rev() {
            let set = || -> io::Result<()> {
                let place = self.tree.find(path)?;
                Ok(utimensat(&place.dir, &place.name, times, AtFlags::SYMLINK_NOFOLLOW)?)
            };
            match set() {
                // A later entry of the same layer put something else there.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(ImageError::Entry { layer: self.layer.into(), entry: path.to_string_lossy().into_owned(), source });
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

fn owner<R: Read>(entry: &Entry<'_, R>) -> io::Result<(Uid, Gid)> {
    let id = |n: u64| u32::try_from(n).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("owner {n}")));
    Ok((Uid::from_raw(id(entry.header().uid()?)?), Gid::from_raw(id(entry.header().gid()?)?)))
}

fn device<R: Read>(entry: &Entry<'_, R>) -> io::Result<u64> {
    let header = entry.header();
    Ok(makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
}

/// Extended attributes travel in PAX records; a file system that has none for users keeps the rest of the image usable.
fn xattrs<R: Read>(place: &Place, entry: &mut Entry<'_, R>, kind: EntryType) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    let mut open: Option<OwnedFd> = None;
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix(XATTR)) else { continue };
        if matches!(kind, EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo) {
            continue;
        }
        if open.is_none() {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            open = Some(openat(&place.dir, &place.name, flags, Mode::empty())?);
        }
        let Some(fd) = &open else { continue };
        match fsetxattr(fd.as_fd(), name, extension.value_bytes(), XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
