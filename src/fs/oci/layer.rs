//! A layer: a tar of what it changes, applied to a directory (OCI image-spec `layer.md`).
//!
//! Streamed: of a layer only eight bytes an entry stay in memory, to know what it brought itself, since whiteouts hide what
//! lower layers brought and nothing of their own. Directories get their times when everything in them is there.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, fstat,
    futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::codec::{Hashing, pieces};
use super::member::{Kind, Member, Members};
use super::tree::{self, Tree, clean};
use super::{Fault, ImageError};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own files: of no meaning to anybody else.
const AUFS: &[u8] = b".wh..wh.";

/// Attributes that the host's kernel acts on (overlayfs reads its own there): no image sets them.
const HOSTS_OWN: &[u8] = b"trusted.";

/// Written at once, bytes.
const BUFFER: usize = 128 << 10;

/// What a manifest and a configuration say of a layer.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// For messages: its digest or its file.
    pub name: String,
    /// `sha256:<hex>` of the blob as it is stored.
    pub digest: Option<String>,
    /// Bytes of the blob.
    pub size: Option<u64>,
    /// `sha256:<hex>` of the tar inside.
    pub diff_id: Option<String>,
}

impl Layer {
    /// Applies the blob `from` to `tree`, and checks length and digests of what was read. After an error the tree is of no
    /// use: its owner removes it. Nothing outside of it changes, whatever the layer says.
    pub fn unpack(&self, tree: &Tree, from: impl Read + Send) -> Result<(), ImageError> {
        // Two threads: one fetches and decompresses, the other writes.
        let ((digest, size), diff_id) = std::thread::scope(|scope| {
            let (pieces, plain) = pieces();
            let reading =
                crate::thread::scoped(scope, "osc-layer", || pieces.send_all(from, self.digest.is_some())).map_err(|e| self.damaged(e))?;
            let mut plain = Hashing::new(plain, self.diff_id.is_some());
            apply(tree, &self.name, &mut plain)?;
            // What follows a tar's end is part of the layer all the same.
            let (diff_id, _) = plain.finish().map_err(|e| self.damaged(e))?;
            let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let read = read.ok_or_else(|| self.damaged("it was not read to its end"))?;
            Ok::<_, ImageError>((read, diff_id))
        })?;
        if let Some(expected) = self.size.filter(|&s| s != size) {
            return Err(self.damaged(format!("it has {size} bytes, and its manifest says {expected}")));
        }
        if let Some(found) = digest.filter(|d| self.digest.as_ref() != Some(d)) {
            let expected = self.digest.as_deref().unwrap_or_default();
            return Err(self.damaged(format!("its digest is {found}, and its manifest says {expected}")));
        }
        if let Some(found) = diff_id.filter(|d| self.diff_id.as_ref() != Some(d)) {
            let expected = self.diff_id.as_deref().unwrap_or_default();
            return Err(self.damaged(format!("its contents are {found}, and the image's configuration says {expected}")));
        }
        Ok(())
    }

    fn damaged(&self, what: impl std::fmt::Display) -> ImageError {
        ImageError::Layer { layer: self.name.clone(), what: what.to_string() }
    }
}

/// Applies the tar `from`, called `name` in messages, to `tree`.
fn apply(tree: &Tree, name: &str, from: impl Read) -> Result<(), ImageError> {
    let mut members = Members::new(from);
    let mut work = Work { tree, own: HashSet::new(), hasher: RandomState::new(), times: Vec::new(), last: None, buffer: vec![0; BUFFER] };
    while let Some(member) = members.next().map_err(|e| ImageError::Layer { layer: name.into(), what: format!("its tar: {e}") })? {
        work.member(&member, &mut members).map_err(|fault| fault.of(name, &member.path))?;
    }
    work.finish().map_err(|(path, fault)| fault.of(name, path.as_os_str().as_bytes()))
}

/// A directory, open.
struct Parent {
    path: PathBuf,
    fd: OwnedFd,
    inode: u64,
}

/// Where an entry goes.
struct Place {
    dir: Rc<Parent>,
    name: OsString,
}

struct Work<'a> {
    tree: &'a Tree,
    /// Hashes of (inode number of the directory, name) of what this layer brought: no whiteout of its own hides it.
    own: HashSet<u64>,
    hasher: RandomState,
    /// Directories and their times, set at the end.
    times: Vec<(PathBuf, Timestamps)>,
    /// Where the last entry went: most go to the same directory as the one before.
    last: Option<Rc<Parent>>,
    buffer: Vec<u8>,
}

impl Work<'_> {
    fn member(&mut self, member: &Member, data: &mut impl Read) -> Result<(), Fault> {
        let path = clean(Path::new(OsStr::from_bytes(&member.path))).ok_or(Fault::Climbs)?;
        let Some(name) = path.file_name() else { return self.root(member) };
        let aufs = |c: Component| c.as_os_str().as_bytes().starts_with(AUFS);
        if name.as_bytes() == OPAQUE {
            return self.opaque(path.parent().unwrap_or(Path::new("")));
        }
        if path.components().any(aufs) {
            return Ok(());
        }
        match name.as_bytes().strip_prefix(WHITEOUT) {
            Some(hidden) => self.whiteout(&path, OsStr::from_bytes(hidden)),
            None => self.make(&path, member, data),
        }
    }

    /// The root's own mode, owner and times.
    fn root(&mut self, member: &Member) -> Result<(), Fault> {
        if member.kind != Kind::Directory {
            return Err(Fault::Image("it has no name".into()));
        }
        let dir = self.tree.dir(Path::new(""), false)?;
        let (uid, gid) = owner(member)?;
        fchown(&dir, Some(uid), Some(gid))?;
        fchmod(&dir, Mode::from_raw_mode(member.mode))?;
        for (name, value) in attributes(member) {
            tolerate(fsetxattr(&dir, name, value, XattrFlags::empty()))?;
        }
        self.times.push((PathBuf::new(), times(member)));
        Ok(())
    }

    /// Everything in the directory that lower layers brought.
    fn opaque(&mut self, path: &Path) -> Result<(), Fault> {
        let dir = match self.tree.dir(path, false) {
            Err(fault) if fault.is_absence() => return Ok(()),
            dir => dir?,
        };
        self.last = None;
        tree::hide_below(&dir, OsStr::new("."), &|inode, name| self.is_own(inode, name))?;
        Ok(())
    }

    fn whiteout(&mut self, path: &Path, name: &OsStr) -> Result<(), Fault> {
        if matches!(name.as_bytes(), b"" | b"." | b"..") {
            return Err(Fault::Image("a whiteout of nothing".into()));
        }
        let dir = match self.tree.dir(path.parent().unwrap_or(Path::new("")), false) {
            Err(fault) if fault.is_absence() => return Ok(()),
            dir => dir?,
        };
        self.last = None;
        Ok(tree::hide(&dir, name, &|inode, name| self.is_own(inode, name))?)
    }

    fn key(&self, inode: u64, name: &OsStr) -> u64 {
        self.hasher.hash_one((inode, name))
    }

    fn is_own(&self, inode: u64, name: &OsStr) -> bool {
        self.own.contains(&self.key(inode, name))
    }

    /// Where `path` (clean, not the root) goes, its directory made where it is missing.
    fn place(&mut self, path: &Path) -> Result<Place, Fault> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = match self.last.take().filter(|last| last.path == parent) {
            Some(dir) => dir,
            None => {
                let fd = self.tree.dir(parent, true)?;
                let inode = fstat(&fd)?.st_ino;
                Rc::new(Parent { path: parent.to_owned(), fd, inode })
            }
        };
        self.last = Some(dir.clone());
        Ok(Place { dir, name })
    }

    fn make(&mut self, path: &Path, member: &Member, data: &mut impl Read) -> Result<(), Fault> {
        let place = self.place(path)?;
        match member.kind {
            Kind::File => self.file(&place, member, data)?,
            Kind::HardLink => self.hard_link(&place, path, member)?,
            Kind::Directory => {
                self.directory(&place)?;
                self.describe(&place, member)?;
                self.times.push((path.to_owned(), times(member)));
            }
            _ => {
                self.special(&place, member)?;
                self.describe(&place, member)?;
                utimensat(&place.dir.fd, &place.name, &times(member), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        let key = self.key(place.dir.inode, &place.name);
        self.own.insert(key);
        Ok(())
    }

    /// Makes something at `place`; what is there goes first.
    fn put<T>(&mut self, place: &Place, make: impl Fn() -> rustix::io::Result<T>) -> Result<T, Fault> {
        match make() {
            Err(Errno::EXIST) => {
                // A directory or a link that goes may be on the way to the one we remember.
                self.last = None;
                tree::remove(&place.dir.fd, &place.name)?;
                Ok(make()?)
            }
            made => Ok(made?),
        }
    }

    fn file(&mut self, place: &Place, member: &Member, data: &mut impl Read) -> Result<(), Fault> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = self.put(place, || openat(&place.dir.fd, &place.name, flags, Mode::from_raw_mode(0o600)))?;
        let file = File::from(fd);
        self.fill(&file, member, data)?;
        let (uid, gid) = owner(member)?;
        fchown(&file, Some(uid), Some(gid))?;
        // After the owner: a change of owner takes setuid bits and capabilities away.
        fchmod(&file, Mode::from_raw_mode(member.mode))?;
        for (name, value) in attributes(member) {
            tolerate(fsetxattr(&file, name, value, XattrFlags::empty()))?;
        }
        Ok(futimens(&file, &times(member))?)
    }

    /// Writes a file's data where it belongs and leaves its holes.
    fn fill(&mut self, file: &File, member: &Member, data: &mut impl Read) -> Result<(), Fault> {
        let mut end = 0;
        for extent in &member.extents {
            let mut at = extent.offset;
            let until = at + extent.length;
            while at < until {
                let most = usize::try_from(until - at).unwrap_or(BUFFER).min(BUFFER);
                let n = data.read(&mut self.buffer[..most]).map_err(Fault::Stream)?;
                file.write_all_at(&self.buffer[..n], at)?;
                at += n as u64;
            }
            // A piece of no length marks the end of a map, and writes nothing.
            if extent.length > 0 {
                end = until;
            }
        }
        if end < member.size {
            file.set_len(member.size)?;
        }
        Ok(())
    }

    fn directory(&mut self, place: &Place) -> Result<(), Fault> {
        if tree::kind(&place.dir.fd, &place.name)? == Some(FileType::Directory) {
            return Ok(());
        }
        self.put(place, || mkdirat(&place.dir.fd, &place.name, Mode::from_raw_mode(0o700)))
    }

    fn special(&mut self, place: &Place, member: &Member) -> Result<(), Fault> {
        let (dir, name) = (&place.dir.fd, &place.name);
        let private = Mode::from_raw_mode(0o600);
        let number = makedev(member.device.0, member.device.1);
        match member.kind {
            Kind::Symlink if member.link.is_empty() => Err(Fault::Image("a link to nothing".into())),
            Kind::Symlink => self.put(place, || symlinkat(OsStr::from_bytes(&member.link), dir, name)),
            Kind::Char => self.put(place, || mknodat(dir, name, FileType::CharacterDevice, private, number)),
            Kind::Block => self.put(place, || mknodat(dir, name, FileType::BlockDevice, private, number)),
            Kind::Fifo => self.put(place, || mknodat(dir, name, FileType::Fifo, private, 0)),
            other => Err(Fault::Image(format!("a tar entry of type {other:?}"))),
        }
    }

    fn hard_link(&mut self, place: &Place, path: &Path, member: &Member) -> Result<(), Fault> {
        let shown = String::from_utf8_lossy(&member.link).into_owned();
        let target = clean(Path::new(OsStr::from_bytes(&member.link))).ok_or(Fault::Climbs)?;
        let missing = || Fault::Image(format!("a hard link to {shown:?}, which is not there"));
        let Some(name) = target.file_name() else { return Err(Fault::Image("a hard link to the root".into())) };
        let from =
            self.tree.dir(target.parent().unwrap_or(Path::new("")), false).map_err(|f| if f.is_absence() { missing() } else { f })?;
        match tree::kind(&from, name)? {
            None => return Err(missing()),
            Some(FileType::Directory) => return Err(Fault::Image(format!("a hard link to {shown:?}, which is a directory"))),
            Some(_) if target == path => return Ok(()),
            Some(_) => {}
        }
        self.put(place, || linkat(&from, name, &place.dir.fd, &place.name, AtFlags::empty()))
    }

    /// Owner, mode and attributes of anything but a file.
    fn describe(&self, place: &Place, member: &Member) -> Result<(), Fault> {
        let (uid, gid) = owner(member)?;
        let dir = &place.dir.fd;
        chownat(dir, &place.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if member.kind != Kind::Symlink {
            chmodat(dir, &place.name, Mode::from_raw_mode(member.mode), AtFlags::empty())?;
        }
        if attributes(member).next().is_some() {
            // There is no lsetxattrat.
            let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(&place.name);
            // Only files and directories can have those of users.
            let fits = |name: &OsStr| member.kind == Kind::Directory || !name.as_bytes().starts_with(b"user.");
            for (name, value) in attributes(member).filter(|(name, _)| fits(name)) {
                tolerate(lsetxattr(&path, name, value, XattrFlags::empty()))?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), (PathBuf, Fault)> {
        for (path, times) in self.times.iter().rev() {
            let set = || -> Result<(), Fault> {
                let parent = self.tree.dir(path.parent().unwrap_or(Path::new("")), false)?;
                let name = path.file_name().unwrap_or(OsStr::new("."));
                if tree::kind(&parent, name)? == Some(FileType::Directory) {
                    utimensat(&parent, name, times, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                Ok(())
            };
            match set() {
                // A later entry of the same layer put something else there.
                Err(fault) if fault.is_absence() => {}
                Err(fault) => return Err((path.clone(), fault)),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

fn owner(member: &Member) -> Result<(Uid, Gid), Fault> {
    // The last number means "leave it" to the kernel.
    let id =
        |n: u64| u32::try_from(n).ok().filter(|&n| n != u32::MAX).ok_or_else(|| Fault::Image(format!("it belongs to {n}, which is no id")));
    Ok((Uid::from_raw(id(member.uid)?), Gid::from_raw(id(member.gid)?)))
}

fn times(member: &Member) -> Timestamps {
    let time = Timespec { tv_sec: member.mtime.seconds, tv_nsec: member.mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn attributes(member: &Member) -> impl Iterator<Item = (&OsStr, &[u8])> {
    let wanted = |name: &[u8]| !name.is_empty() && !name.starts_with(HOSTS_OWN);
    member.xattrs.iter().filter(move |(name, _)| wanted(name)).map(|(name, value)| (OsStr::from_bytes(name), value.as_slice()))
}

/// A file system without attributes, or without this kind on this kind of file, keeps the rest of the image usable.
fn tolerate(set: rustix::io::Result<()>) -> Result<(), Fault> {
    match set {
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(e) => Err(Fault::Host(io::Error::new(io::Error::from(e).kind(), format!("extended attribute: {e}")))),
    }
}

#[cfg(test)]
mod tests;
