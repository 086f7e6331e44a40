//! A directory that an image is unpacked into, and paths in it that the image chose.
//!
//! Everything is done through descriptors of directories below the root, and a symbolic link on the way is followed as
//! the container would follow it: an absolute one from the root. What climbs above the root by `..`, in a path or through
//! a link, is refused before anything is touched. Nobody else may write in the directory meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::Fault;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Links that are followed on the way of one path (the kernel's own limit).
const MOST_LINKS: usize = 40;

/// The longest path, bytes (PATH_MAX): also of what links make of it, so that a tree cannot be made that nobody can remove.
const LONGEST_PATH: usize = 4096;

/// Mode of directories that no entry describes.
const IMPLIED: Mode = Mode::from_raw_mode(0o755);

/// The unpacked image's root.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

/// A path of an archive, cleaned: relative, plain components only. `None` where it climbs above its root.
pub fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir if clean.pop() => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

impl Tree {
    /// `root` is an existing directory, its own links followed.
    pub fn open(root: &Path) -> io::Result<Tree> {
        Ok(Tree { root: openat(CWD, root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// The directory `path` (clean). `make`: what is missing on the way is made, and a file that is in the way goes.
    pub(super) fn dir(&self, path: &Path, make: bool) -> Result<OwnedFd, Fault> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.try_clone()?);
        }
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
        // No link on the way that is absolute or climbs: nearly always, and in one call.
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty(), beneath) {
            Ok(fd) => Ok(fd),
            Err(_) => Walk { tree: self, real: PathBuf::new(), at: self.root.try_clone()?, make, links: 0 }.go(path),
        }
    }
}

/// One component after the other.
struct Walk<'a> {
    tree: &'a Tree,
    /// Where `at` is, without links.
    real: PathBuf,
    at: OwnedFd,
    make: bool,
    links: usize,
}

impl Walk<'_> {
    fn go(mut self, path: &Path) -> Result<OwnedFd, Fault> {
        // A component, and whether it came from a link.
        let mut ahead: VecDeque<(OsString, bool)> = path.iter().map(|c| (c.to_owned(), false)).collect();
        while let Some((name, from_link)) = ahead.pop_front() {
            match name.as_bytes() {
                b"." | b"/" => {}
                b".." => self.up()?,
                _ => {
                    if let Some(target) = self.down(&name, from_link)? {
                        if target.is_absolute() {
                            (self.real, self.at) = (PathBuf::new(), self.tree.root.try_clone()?);
                        }
                        target.iter().rev().for_each(|c| ahead.push_front((c.to_owned(), true)));
                    }
                }
            }
        }
        Ok(self.at)
    }

    fn up(&mut self) -> Result<(), Fault> {
        if !self.real.pop() {
            return Err(Fault::Climbs);
        }
        // From the root down, not by `..`: that is wherever the directory is.
        self.at = self.tree.root.try_clone()?;
        for name in self.real.iter() {
            self.at = openat(&self.at, name, DIRECTORY, Mode::empty())?;
        }
        Ok(())
    }

    /// Goes to the directory `name`; answers a link's target instead.
    fn down(&mut self, name: &OsStr, from_link: bool) -> Result<Option<PathBuf>, Fault> {
        let there = match statat(&self.at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) if self.make => None,
            Err(e) => return Err(e.into()),
        };
        match there {
            Some(FileType::Directory) => {}
            Some(FileType::Symlink) => {
                self.links += 1;
                if self.links > MOST_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&self.at, name, Vec::new())?.into_bytes();
                return Ok(Some(OsString::from_vec(target).into()));
            }
            // What a link leads to was not named by the entry.
            Some(_) if !self.make || from_link => return Err(Errno::NOTDIR.into()),
            Some(_) => unlinkat(&self.at, name, AtFlags::empty())?,
            None => {}
        }
        self.real.push(name);
        if self.real.as_os_str().len() > LONGEST_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
        if there != Some(FileType::Directory) {
            mkdirat(&self.at, name, IMPLIED)?;
        }
        self.at = openat(&self.at, name, DIRECTORY, Mode::empty())?;
        if there != Some(FileType::Directory) {
            // Whatever the umask says.
            fchmod(&self.at, IMPLIED)?;
        }
        Ok(None)
    }
}

/// What is at `name`, if anything; a link is itself.
pub fn kind(dir: impl AsFd, name: &OsStr) -> io::Result<Option<FileType>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(s) => Ok(Some(FileType::from_raw_mode(s.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Takes away what is at `name`, a directory with all that is in it.
pub fn remove(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    hide(dir, name, &|_, _| false)
}

/// Takes away what is at `name`, except what `keep` says (asked with a directory's inode number and a name in it), and
/// the directories that hold such.
pub fn hide(dir: impl AsFd, name: &OsStr, keep: &dyn Fn(u64, &OsStr) -> bool) -> io::Result<()> {
    let dir = dir.as_fd();
    let kept = |name: &OsStr| -> io::Result<bool> { Ok(keep(fstat(dir)?.st_ino, name)) };
    match kind(dir, name)? {
        None => Ok(()),
        Some(FileType::Directory) if hide_below(dir, name, keep)? || kept(name)? => Ok(()),
        Some(FileType::Directory) => Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?),
        Some(_) if kept(name)? => Ok(()),
        Some(_) => Ok(unlinkat(dir, name, AtFlags::empty())?),
    }
}

/// A directory on the way down.
struct Level {
    name: OsString,
    inode: u64,
    /// Directories in it that were not looked at yet.
    ahead: Vec<OsString>,
    /// Something in it stays.
    kept: bool,
}

/// The same with what is in the directory `name` (`.`: `dir` itself). Answers whether anything stayed.
///
/// Neither recursive nor with a descriptor for each level: how deep a tree is, the image says.
pub fn hide_below(dir: impl AsFd, name: &OsStr, keep: &dyn Fn(u64, &OsStr) -> bool) -> io::Result<bool> {
    let mut at = openat(dir, name, DIRECTORY, Mode::empty())?;
    let mut level = scan(&at, name.to_owned(), keep)?;
    let mut above: Vec<Level> = Vec::new();
    loop {
        if let Some(child) = level.ahead.pop() {
            at = openat(&at, &child, DIRECTORY, Mode::empty())?;
            let next = scan(&at, child, keep)?;
            above.push(std::mem::replace(&mut level, next));
            continue;
        }
        let Some(parent) = above.pop() else { return Ok(level.kept) };
        at = openat(&at, "..", DIRECTORY, Mode::empty())?;
        let child = std::mem::replace(&mut level, parent);
        if child.kept || keep(level.inode, &child.name) {
            level.kept = true;
        } else {
            unlinkat(&at, &child.name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Takes away the files of one directory and lists its directories.
fn scan(at: &OwnedFd, name: OsString, keep: &dyn Fn(u64, &OsStr) -> bool) -> io::Result<Level> {
    let mut level = Level { name, inode: fstat(at)?.st_ino, ahead: Vec::new(), kept: false };
    for entry in Dir::read_from(at)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => kind(at, name)?,
            kind => Some(kind),
        };
        if kind == Some(FileType::Directory) {
            level.ahead.push(name.to_owned());
        } else if keep(level.inode, name) {
            level.kept = true;
        } else {
            unlinkat(at, name, AtFlags::empty())?;
        }
    }
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_climbs_is_no_path() {
        for (path, cleaned) in [("./a//b/.", "a/b"), ("/etc/passwd", "etc/passwd"), ("a/../b", "b"), (".", ""), ("/", "")] {
            assert_eq!(clean(Path::new(path)), Some(cleaned.into()), "{path}");
        }
        for path in ["..", "a/../../b", "/../etc", "../a"] {
            assert_eq!(clean(Path::new(path)), None, "{path}");
        }
    }

    fn tree() -> (tempfile::TempDir, PathBuf, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let tree = Tree::open(&root).unwrap();
        (dir, root, tree)
    }

    #[test]
    fn an_absolute_link_on_the_way_leads_from_the_root() {
        let (_dir, root, tree) = tree();
        symlink("/outside/deep", root.join("link")).unwrap();
        tree.dir(Path::new("link/made"), true).unwrap();
        assert!(root.join("outside/deep/made").is_dir() && root.join("link").is_symlink());
        symlink("../outside", root.join("outside/back")).unwrap();
        tree.dir(Path::new("outside/back/back/two"), true).unwrap();
        assert!(root.join("outside/two").is_dir());
        assert!(matches!(tree.dir(Path::new("missing"), false), Err(Fault::Host(e)) if e.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn a_link_that_climbs_above_the_root_is_refused() {
        let (dir, root, tree) = tree();
        symlink("../secret", root.join("up")).unwrap();
        symlink("/../secret", root.join("absolute")).unwrap();
        symlink("round", root.join("round")).unwrap();
        for path in ["up", "up/x", "absolute/x"] {
            assert!(matches!(tree.dir(Path::new(path), true), Err(Fault::Climbs)), "{path}");
        }
        assert!(matches!(tree.dir(Path::new("round/x"), true), Err(Fault::Host(_))));
        assert!(!dir.path().join("secret").exists());
    }

    #[test]
    fn a_file_on_the_way_goes_unless_a_link_led_to_it() {
        let (_dir, root, tree) = tree();
        std::fs::write(root.join("file"), "").unwrap();
        std::fs::write(root.join("other"), "").unwrap();
        symlink("other", root.join("link")).unwrap();
        tree.dir(Path::new("file/made"), true).unwrap();
        assert!(root.join("file/made").is_dir());
        assert!(tree.dir(Path::new("link/made"), true).is_err());
        assert!(root.join("other").is_file());
    }

    #[test]
    fn what_stays_keeps_its_directories() {
        let (_dir, root, tree) = tree();
        for path in ["a/b/old", "a/b/c/new", "a/old"] {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), "").unwrap();
        }
        let top = tree.dir(Path::new(""), false).unwrap();
        hide(&top, OsStr::new("a"), &|_, name| name == "new").unwrap();
        assert!(root.join("a/b/c/new").exists() && !root.join("a/b/old").exists() && !root.join("a/old").exists());
        remove(&top, OsStr::new("a")).unwrap();
        assert!(!root.join("a").exists());
    }

    #[test]
    fn a_tree_of_any_depth_is_removed() {
        let (_dir, root, tree) = tree();
        let mut at = tree.dir(Path::new(""), false).unwrap();
        for _ in 0..5000 {
            mkdirat(&at, "d", IMPLIED).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        remove(tree.dir(Path::new(""), false).unwrap(), OsStr::new("d")).unwrap();
        assert!(!root.join("d").exists());
    }
}
