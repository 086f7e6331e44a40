//! A node's file system: `/`, or where it is mounted. Links in it lead nowhere else, also absolute ones.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;

use crate::error::{At, Result, Stage};

pub struct Node {
    root: OwnedFd,
    /// For error texts.
    name: PathBuf,
}

impl Node {
    pub fn new(root: &Path) -> Result<Node> {
        let fd = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Node { root: fd.at(Stage::Request, || format!("root {}", root.display()))?, name: root.to_owned() })
    }

    fn find(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        openat2(&self.root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Whether anything is at `path`.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        self.find(path.as_ref()).is_ok()
    }

    /// Where `path` is for us; its directory has to exist. The last part is not followed.
    pub fn real(&self, path: &Path) -> std::io::Result<PathBuf> {
        let dir = self.find(path.parent().unwrap_or(Path::new("/")))?;
        Ok(seen(&dir)?.join(path.file_name().unwrap_or_default()))
    }

    /// The same of what a link at `path` leads to.
    pub fn followed(&self, path: &Path) -> std::io::Result<PathBuf> {
        match self.find(path) {
            Ok(fd) => Ok(seen(&fd)?),
            Err(Errno::NOENT) => self.real(path),
            Err(e) => Err(e.into()),
        }
    }

    pub fn read(&self, path: &Path) -> std::io::Result<Option<Vec<u8>>> {
        match self.followed(path).and_then(std::fs::read) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes `dir` and its parents; answers those that were not there.
    pub fn make_dirs(&self, dir: &Path) -> std::io::Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        let mut at = PathBuf::from("/");
        for part in dir.components().skip(1) {
            let parent = self.find(&at)?;
            at.push(part);
            match self.find(&at) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    let parent = File::open(seen(&parent)?)?;
                    mkdirat(&parent, Path::new(&part), Mode::from_raw_mode(0o755))?;
                    made.push(at.clone());
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(made)
    }

    pub fn tell(&self, path: &Path) -> String {
        if self.name == Path::new("/") { path.display().to_string() } else { format!("{} in {}", path.display(), self.name.display()) }
    }
}

/// The path by which the kernel knows a descriptor.
fn seen(fd: &OwnedFd) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
