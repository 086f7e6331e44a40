//! A directory that an image is unpacked into, and paths in it that the image chose.
//!
//! A path is walked one component at a time with descriptors, and a link on the way is followed as the container would
//! follow it: inside the directory. What climbs by `..` is refused before anything is touched.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat, unlinkat};

/// The unpacked image's root.
pub struct Tree {
    root: OwnedFd,
}

/// Where an entry goes: its directory, open, and its name there.
pub struct Place {
    pub dir: OwnedFd,
    pub name: OsString,
}

/// A path of an archive, cleaned: relative, plain components only. `None` where it climbs.
pub fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

impl Tree {
    pub fn open(root: &Path) -> io::Result<Tree> {
        Ok(Tree { root: openat(CWD, root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())? })
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
    }

    /// The directory `path`, links on the way followed inside the root; what is missing is made.
    pub fn dir(&self, path: &Path) -> io::Result<OwnedFd> {
        if let Ok(found) = self.resolve(path, OFlags::DIRECTORY | OFlags::RDONLY) {
            return Ok(found);
        }
        let mut so_far = PathBuf::new();
        let mut at = self.resolve(Path::new(""), OFlags::DIRECTORY | OFlags::RDONLY)?;
        for part in path.components() {
            so_far.push(part);
            at = match self.resolve(&so_far, OFlags::DIRECTORY | OFlags::RDONLY) {
                Ok(fd) => fd,
                Err(_) => {
                    // A file where a directory has to be: this layer's word is newer.
                    match statat(&at, part.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(_) => unlinkat(&at, part.as_os_str(), AtFlags::empty())?,
                        Err(rustix::io::Errno::NOENT) => {}
                        Err(e) => return Err(e.into()),
                    }
                    rustix::fs::mkdirat(&at, part.as_os_str(), Mode::from_raw_mode(0o755))?;
                    self.resolve(&so_far, OFlags::DIRECTORY | OFlags::RDONLY)?
                }
            };
        }
        Ok(at)
    }

    /// Where the entry `path` (clean, not the root) goes.
    pub fn place(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        Ok(Place { dir: self.dir(path.parent().unwrap_or(Path::new("")))?, name })
    }

    /// Where the existing entry `path` is, nothing made on the way.
    pub fn find(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let dir = self.resolve(path.parent().unwrap_or(Path::new("")), OFlags::DIRECTORY | OFlags::RDONLY)?;
        Ok(Place { dir, name })
    }
}

impl Place {
    /// What is there, if anything; a link is itself.
    pub fn kind(&self) -> io::Result<Option<FileType>> {
        match statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(s) => Ok(Some(FileType::from_raw_mode(s.st_mode))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes away what is there, a directory with all that is in it.
    pub fn remove(&self) -> io::Result<()> {
        match self.kind()? {
            None => Ok(()),
            Some(FileType::Directory) => {
                remove_below(&self.dir, &self.name, &|_| true)?;
                Ok(unlinkat(&self.dir, &self.name, AtFlags::REMOVEDIR)?)
            }
            Some(_) => Ok(unlinkat(&self.dir, &self.name, AtFlags::empty())?),
        }
    }
}

/// Takes away what is in the directory `name`, as far as `wanted` says so of its direct entries.
pub fn remove_below(dir: &OwnedFd, name: &std::ffi::OsStr, wanted: &dyn Fn(&std::ffi::OsStr) -> bool) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(dir, name, flags, Mode::empty())?;
    let entries: Vec<_> = rustix::fs::Dir::read_from(&inner)?.collect::<Result<_, _>>()?;
    for entry in entries {
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name == "." || name == ".." || !wanted(&name) {
            continue;
        }
        Place { dir: inner.try_clone()?, name }.remove()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_climbs_is_no_path() {
        assert_eq!(clean(Path::new("./a//b/.")), Some("a/b".into()));
        assert_eq!(clean(Path::new("/etc/passwd")), Some("etc/passwd".into()));
        assert_eq!(clean(Path::new("a/../b")), None);
        assert_eq!(clean(Path::new("..")), None);
    }

    #[test]
    fn a_link_on_the_way_stays_inside_and_a_file_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink("/outside", root.join("link")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        let tree = Tree::open(&root).unwrap();
        std::fs::create_dir(root.join("outside")).unwrap();
        tree.dir(Path::new("link/made")).unwrap();
        assert!(root.join("outside/made").is_dir());
        tree.dir(Path::new("file/made")).unwrap();
        assert!(root.join("file/made").is_dir());
        tree.place(Path::new("outside")).unwrap().remove().unwrap();
        assert!(!root.join("outside").exists() && root.join("link").is_symlink());
    }
}
