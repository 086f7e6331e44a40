//! Paths of a container, which its image chose: resolved inside its root, never out of it by a link.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2};

/// A container's root directory, open.
pub struct Root {
    fd: OwnedFd,
}

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Dir,
    File,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Root> {
        Ok(Root { fd: openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// `path` inside the root, as a descriptor that can only be named. The last component is followed as well.
    pub fn resolve(&self, path: &str) -> io::Result<OwnedFd> {
        Ok(openat2(
            &self.fd,
            inside(path),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?)
    }

    /// Where what `fd` names is, relative to the root.
    pub fn place(&self, fd: &OwnedFd) -> io::Result<PathBuf> {
        let (root, place) = (std::fs::read_link(magic(&self.fd))?, std::fs::read_link(magic(fd))?);
        let outside = || io::Error::other(format!("{} is not in the root", place.display()));
        place.strip_prefix(&root).map(Path::to_owned).map_err(|_| outside())
    }

    /// True if `path` itself is there and is no directory, were it only a link to one.
    pub fn is_other_than_dir(&self, path: &str) -> io::Result<bool> {
        let relative = inside(path);
        let Some(name) = relative.file_name() else { return Ok(false) };
        let parent = match self.resolve(&relative.parent().unwrap_or(Path::new("")).to_string_lossy()) {
            Ok(parent) => parent,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) != FileType::Directory),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens a file inside the root for reading.
    pub fn read(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(openat2(&self.fd, inside(path), flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?.into())
    }

    /// The mount point `path`, made with its parents if it is missing.
    pub fn point(&self, path: &str, kind: Point) -> io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let (parent, name) = self.parent(path)?;
        match kind {
            Point::Dir => match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            },
            Point::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                match openat(&parent, &name, flags, Mode::from_raw_mode(0o755)) {
                    Ok(_) | Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        self.resolve(path)
    }

    /// The directory that holds `path`, made if it is missing, and the last component.
    pub fn parent(&self, path: &str) -> io::Result<(OwnedFd, PathBuf)> {
        let relative = inside(path);
        let name =
            relative.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} names the root itself")))?;
        let parent = relative.parent().unwrap_or(Path::new(""));
        Ok((self.make_dirs(parent)?, name.into()))
    }

    /// Descends along `path`, making what is missing. Each step is resolved inside the root, so that a link on the way leads
    /// to where it leads in the container.
    pub fn make_dirs(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut so_far = PathBuf::new();
        let mut at = self.fd.try_clone()?;
        for part in path.components() {
            so_far.push(part);
            at = match self.resolve(&so_far.to_string_lossy()) {
                Ok(fd) => fd,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&at, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(e) => return Err(e.into()),
                    }
                    self.resolve(&so_far.to_string_lossy())?
                }
                Err(e) => return Err(e),
            };
        }
        Ok(at)
    }
}

/// The name by which the kernel takes a descriptor where it wants a path. Never followed further: it is the very thing.
pub fn magic(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// True if the descriptor names a directory.
pub fn is_dir(fd: &impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Relative, without `.` and with `..` taken by its word: `/a/../b` -> `b`.
pub fn inside(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    if clean.as_os_str().is_empty() { PathBuf::from(".") } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_out_of_the_root_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root_dir = dir.path().join("root");
        std::fs::create_dir_all(root_dir.join("etc")).unwrap();
        symlink("/etc", root_dir.join("abs")).unwrap();
        symlink("../../..", root_dir.join("up")).unwrap();
        let root = Root::open(&root_dir).unwrap();
        root.point("/abs/hosts", Point::File).unwrap();
        root.point("up/made/deep", Point::Dir).unwrap();
        assert!(root_dir.join("etc/hosts").is_file());
        assert!(root_dir.join("made/deep").is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn paths_are_taken_by_their_word() {
        for (given, clean) in [("/a/../b", "b"), ("/../..", "."), ("/", "."), ("a//./c", "a/c")] {
            assert_eq!(inside(given), Path::new(clean), "{given}");
        }
    }
}
