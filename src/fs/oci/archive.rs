//! The files of an image by name, from a directory or from an archive.
//!
//! An archive is indexed once: layers may come before the manifest that orders them, and `docker save` repeats files as
//! links. One that cannot be read at any place (a pipe, a compressed one) is spooled to a file of ours without a name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use super::ImageError;
use super::codec::{Compression, compression, decompress, digest};
use super::member::{Kind, Members};
use super::tree::clean;

/// Manifests and configurations are small; a hostile one need not be. Bytes.
const LARGEST_JSON: u64 = 16 << 20;

/// Read from an archive at once, bytes.
const BUFFER: usize = 64 << 10;

/// Where archives are spooled: on a disk, not in memory, since images are large.
const SPOOL: &str = "/var/tmp";

/// Files of an image by name.
#[derive(Debug)]
pub struct Store {
    /// What the image is called in messages.
    name: String,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Dir(PathBuf),
    /// The archive, and where in it each file's bytes are: (offset, length).
    Archive(File, HashMap<PathBuf, (u64, u64)>),
}

impl Store {
    /// A layout's directory, or an archive.
    pub fn open(path: &Path) -> Result<Store, ImageError> {
        let name = path.to_string_lossy().into_owned();
        let unreadable = |source| ImageError::Io { what: format!("image {name}"), source };
        let file = File::open(path).map_err(unreadable)?;
        let kind = file.metadata().map_err(unreadable)?;
        if kind.is_dir() {
            return Ok(Store { name, files: Files::Dir(path.into()) });
        }
        if kind.is_file() {
            let mut head = [0; 4];
            let n = file.read_at(&mut head, 0).map_err(unreadable)?;
            if compression(&head[..n]) == Compression::None {
                return Store::index(name, file);
            }
        }
        Store::read(&name, file)
    }

    /// An archive that can be read only once.
    pub fn read(name: &str, from: impl Read) -> Result<Store, ImageError> {
        let spool = |source| ImageError::Io { what: format!("image {name}: spool it to {SPOOL}"), source };
        let damaged = |e| ImageError::Damaged { image: name.into(), what: format!("its archive: {e}") };
        let file = unnamed().map_err(spool)?;
        let mut plain = decompress(from).map_err(damaged)?;
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        loop {
            let n = match plain.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(damaged(e)),
            };
            file.write_all_at(&buffer[..n], at).map_err(spool)?;
            at += n as u64;
        }
        Store::index(name.into(), file)
    }

    /// Finds every file in an archive that is not compressed.
    fn index(name: String, file: File) -> Result<Store, ImageError> {
        let damaged = |what: String| ImageError::Damaged { image: name.clone(), what };
        let broken = |e: io::Error| damaged(format!("its archive: {e}"));
        let end = file.metadata().map_err(broken)?.len();
        let mut index = HashMap::new();
        let mut links = Vec::new();
        let reader = io::BufReader::with_capacity(BUFFER, file.try_clone().map_err(broken)?);
        let mut members =
            Members::seeking(reader, |reader, length| reader.seek_relative(i64::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?));
        (&file).seek(SeekFrom::Start(0)).map_err(broken)?;
        while let Some(member) = members.next().map_err(broken)? {
            let shown = || String::from_utf8_lossy(&member.path).into_owned();
            let path = clean(Path::new(OsStr::from_bytes(&member.path)))
                .ok_or_else(|| ImageError::Escape { layer: name.clone(), entry: shown() })?;
            let target = PathBuf::from(OsStr::from_bytes(&member.link));
            match member.kind {
                Kind::File if member.is_plain() => {
                    if member.position.saturating_add(member.size) > end {
                        return Err(damaged(format!("its archive is cut short in {}", shown())));
                    }
                    index.insert(path, (member.position, member.size));
                }
                Kind::HardLink => links.push((path, target)),
                Kind::Symlink => {
                    let base = path.parent().unwrap_or(Path::new("")).to_owned();
                    links.push((path, base.join(target)));
                }
                _ => {}
            }
        }
        for (path, target) in links {
            // `docker save` writes a layer that stands twice as a link to its first place: `../<id>/layer.tar`.
            if let Some(&found) = index.get(&flatten(&target)) {
                index.insert(path, found);
            }
        }
        Ok(Store { name, files: Files::Archive(file, index) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn has(&self, file: &str) -> bool {
        match &self.files {
            Files::Dir(dir) => dir.join(file).is_file(),
            Files::Archive(_, index) => index.contains_key(Path::new(file)),
        }
    }

    /// The bytes of `file`, and how many there are.
    pub fn file(&self, file: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let path = clean(Path::new(file)).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it leads out of the image"))?;
        match &self.files {
            Files::Dir(dir) => {
                // A pipe would keep us waiting for ever.
                let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(dir.join(path))?;
                let kind = file.metadata()?;
                if !kind.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"));
                }
                Ok((Box::new(file), kind.len()))
            }
            Files::Archive(archive, index) => {
                let &(at, left) = index.get(&path).ok_or(io::ErrorKind::NotFound)?;
                Ok((Box::new(Piece { archive: archive.try_clone()?, at, left }), left))
            }
        }
    }

    /// A JSON file; `expected` is its digest, where there is one.
    pub fn json<T: DeserializeOwned>(&self, file: &str, expected: Option<&str>) -> Result<T, ImageError> {
        super::layout::parse(&self.name, file, &self.bytes(file, expected)?)
    }

    /// A small file, whole.
    pub fn bytes(&self, file: &str, expected: Option<&str>) -> Result<Vec<u8>, ImageError> {
        let damaged = |what: String| ImageError::Damaged { image: self.name.clone(), what: format!("{file}: {what}") };
        let (mut from, length) = self.file(file).map_err(|e| damaged(e.to_string()))?;
        if length > LARGEST_JSON {
            return Err(damaged(format!("it has {length} bytes, more than {LARGEST_JSON}")));
        }
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(|e| damaged(e.to_string()))?;
        if let Some(expected) = expected {
            match digest(&bytes) {
                found if found == expected => {}
                found => return Err(damaged(format!("its digest is {found} instead of {expected}"))),
            }
        }
        Ok(bytes)
    }
}

/// Part of an archive, read at its own place whatever others read.
struct Piece {
    archive: File,
    at: u64,
    left: u64,
}

impl Read for Piece {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.archive.read_at(&mut buf[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Takes `..` by its word. A link of an archive to a file of the same archive; what is not in its index is not found.
fn flatten(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(n) => out.push(n),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// A file that is gone when we are.
fn unnamed() -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let private = Mode::from_raw_mode(0o600);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, SPOOL, flags | OFlags::TMPFILE, private) {
        // Not every file system has such files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = Path::new(SPOOL).join(format!(".osc-image-{}", std::process::id()));
            let file = openat(CWD, &path, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, private)?;
            std::fs::remove_file(path)?;
            Ok(file.into())
        }
        file => Ok(file?.into()),
    }
}
