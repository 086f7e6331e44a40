//! The forms an image comes in, and finding its configuration and layers there.
//!
//! An archive is spooled to a file of ours without a name and indexed once: layers may come before the manifest that
//! orders them, and `docker save` repeats files as links.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::tree::{Tree, clean};
use super::{ImageConfig, ImageError, layer};

/// The architecture of this machine, in Go's words.
const ARCHITECTURE: &str = "amd64";

/// Manifests and configurations are small; a hostile one need not be.
const LARGEST_JSON: u64 = 16 << 20;

/// An image that was found to be whole as far as its manifest goes.
pub struct Image {
    pub config: ImageConfig,
    name: String,
    store: Store,
    /// (name, digest as stored; empty where the form has none) in the order in which they are applied.
    layers: Vec<(String, String)>,
}

/// Files of an image by name.
enum Store {
    Dir(PathBuf),
    /// The archive, and where in it each file's bytes are: (offset, length).
    Archive(File, HashMap<PathBuf, (u64, u64)>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index or a manifest: which, its fields tell.
#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

impl Image {
    /// Opens the image at `path`; `-` reads an archive from stdin.
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        let name = path.to_string_lossy().into_owned();
        let io_error = |source| ImageError::Io { what: format!("image {name}"), source };
        let store = if path == Path::new("-") {
            archive(&name, io::stdin().lock())?
        } else if std::fs::metadata(path).map_err(io_error)?.is_dir() {
            Store::Dir(path.into())
        } else {
            archive(&name, File::open(path).map_err(io_error)?)?
        };
        Image::from_store(name, store)
    }

    fn from_store(name: String, mut store: Store) -> Result<Image, ImageError> {
        let format = |what: &str| ImageError::Format { image: name.clone(), what: what.into() };
        if store.has("index.json") {
            return Image::oci(name, store);
        }
        if !store.has("manifest.json") {
            return Err(format("it has neither index.json nor manifest.json"));
        }
        let saved: Vec<Saved> = store.json(&name, "manifest.json")?;
        let saved = match saved.len() {
            1 => saved.into_iter().next(),
            _ => None,
        };
        let saved = saved.ok_or_else(|| format("it holds several images; save one"))?;
        let config: ImageConfig = store.json(&name, &saved.config)?;
        let layers = saved.layers.into_iter().map(|l| (l, String::new())).collect();
        Image { config, name, store, layers }.checked()
    }

    fn oci(name: String, mut store: Store) -> Result<Image, ImageError> {
        let mut document: Document = store.json(&name, "index.json")?;
        // An index may hold indexes; more than a few levels nobody makes.
        for _ in 0..4 {
            let Some(manifests) = document.manifests.take() else { break };
            let digest = choose(&name, manifests)?;
            document = store.blob_json(&name, &digest)?;
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(ImageError::Format { image: name, what: "its manifest has no config and layers".into() });
        };
        let config: ImageConfig = store.blob_json(&name, &config.digest)?;
        let layers = layers.into_iter().map(|l| Ok((blob(&name, &l.digest)?, l.digest))).collect::<Result<_, ImageError>>()?;
        Image { config, name, store, layers }.checked()
    }

    fn checked(self) -> Result<Image, ImageError> {
        let c = &self.config;
        if !c.architecture.is_empty() && (c.architecture != ARCHITECTURE || c.os != "linux") {
            return Err(ImageError::Format {
                image: self.name,
                what: format!("it is for {}/{}, this machine is linux/{ARCHITECTURE}", c.os, c.architecture),
            });
        }
        let diff_ids = c.rootfs.diff_ids.len();
        if diff_ids != 0 && diff_ids != self.layers.len() {
            let what = format!("its configuration names {diff_ids} layers and its manifest {}", self.layers.len());
            return Err(ImageError::Damaged { image: self.name, what });
        }
        Ok(self)
    }

    /// Applies every layer to the empty directory `dest`, checking digests. On an error the caller removes `dest`.
    pub fn unpack(&mut self, dest: &Path, progress: &dyn Fn(&str)) -> Result<(), ImageError> {
        let tree = Tree::open(dest).map_err(|source| ImageError::Io { what: dest.display().to_string(), source })?;
        let count = self.layers.len();
        for (i, (file, digest)) in self.layers.iter().enumerate() {
            progress(&format!("unpacking layer {} of {count}", i + 1));
            let damaged = |what: String| ImageError::Damaged { image: self.name.clone(), what: format!("layer {file}: {what}") };
            let raw = self.store.open(file).map_err(|e| damaged(e.to_string()))?;
            let mut raw = Hashing::new(raw);
            let diff_id = {
                let plain = layer::decompress(&mut raw).map_err(|e| damaged(e.to_string()))?;
                let mut plain = Hashing::new(plain);
                layer::apply(&tree, file, &mut plain)?;
                // A tar may be followed by padding, which counts.
                io::copy(&mut plain, &mut io::sink()).map_err(|e| damaged(e.to_string()))?;
                plain.digest()
            };
            io::copy(&mut raw, &mut io::sink()).map_err(|e| damaged(e.to_string()))?;
            if !digest.is_empty() && raw.digest() != *digest {
                return Err(damaged(format!("its digest is not {digest}")));
            }
            if let Some(expected) = self.config.rootfs.diff_ids.get(i) {
                if *expected != diff_id {
                    return Err(damaged(format!("its contents are not {expected}")));
                }
            }
        }
        Ok(())
    }
}

/// The manifest for this machine; one without a platform is for every machine.
fn choose(name: &str, manifests: Vec<Descriptor>) -> Result<String, ImageError> {
    let fits = |d: &Descriptor| d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == ARCHITECTURE);
    let there: Vec<String> = manifests
        .iter()
        .map(|d| d.platform.as_ref().map(|p| format!("{}/{}", p.os, p.architecture)).unwrap_or_else(|| d.media_type.clone()))
        .collect();
    manifests.into_iter().find(fits).map(|d| d.digest).ok_or_else(|| ImageError::Format {
        image: name.into(),
        what: format!("it has nothing for linux/{ARCHITECTURE}, only: {}", there.join(", ")),
    })
}

/// The file of a blob: `blobs/sha256/<hex>`.
fn blob(name: &str, digest: &str) -> Result<String, ImageError> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(format!("blobs/sha256/{hex}")),
        _ => Err(ImageError::Format { image: name.into(), what: format!("digest {digest:?} is not a sha256") }),
    }
}

impl Store {
    fn has(&self, file: &str) -> bool {
        match self {
            Store::Dir(dir) => dir.join(file).is_file(),
            Store::Archive(_, index) => index.contains_key(Path::new(file)),
        }
    }

    fn open(&self, file: &str) -> io::Result<Box<dyn Read>> {
        let path = clean(Path::new(file)).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{file:?} climbs")))?;
        match self {
            Store::Dir(dir) => Ok(Box::new(File::open(dir.join(path))?)),
            Store::Archive(archive, index) => {
                let &(offset, length) =
                    index.get(&path).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{file} is missing")))?;
                Ok(Box::new(Piece { archive: archive.try_clone()?, at: offset, left: length }))
            }
        }
    }

    fn read(&mut self, name: &str, file: &str) -> Result<Vec<u8>, ImageError> {
        let damaged = |e: io::Error| ImageError::Damaged { image: name.into(), what: format!("{file}: {e}") };
        let mut bytes = Vec::new();
        self.open(file).map_err(damaged)?.take(LARGEST_JSON).read_to_end(&mut bytes).map_err(damaged)?;
        Ok(bytes)
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self, name: &str, file: &str) -> Result<T, ImageError> {
        let bytes = self.read(name, file)?;
        serde_json::from_slice(&bytes).map_err(|e| ImageError::Damaged { image: name.into(), what: format!("{file}: {e}") })
    }

    fn blob_json<T: serde::de::DeserializeOwned>(&mut self, name: &str, digest: &str) -> Result<T, ImageError> {
        let file = blob(name, digest)?;
        let bytes = self.read(name, &file)?;
        if format!("sha256:{}", hex(&Sha256::digest(&bytes))) != digest {
            return Err(ImageError::Damaged { image: name.into(), what: format!("{file}: its digest is another") });
        }
        serde_json::from_slice(&bytes).map_err(|e| ImageError::Damaged { image: name.into(), what: format!("{file}: {e}") })
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
        use std::os::unix::fs::FileExt;
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

/// Spools an archive, decompressed, and finds every file in it.
fn archive(name: &str, from: impl Read) -> Result<Store, ImageError> {
    let damaged = |e: io::Error| match e.kind() {
        io::ErrorKind::StorageFull => ImageError::Io { what: format!("image {name}: spool"), source: e },
        _ => ImageError::Damaged { image: name.into(), what: format!("its archive: {e}") },
    };
    let mut file = unnamed().map_err(|source| ImageError::Io { what: format!("image {name}: spool"), source })?;
    let mut plain = layer::decompress(from).map_err(damaged)?;
    io::copy(&mut plain, &mut file).map_err(damaged)?;
    file.flush().and_then(|()| file.seek(SeekFrom::Start(0))).map_err(damaged)?;
    let mut index = HashMap::new();
    let mut links = Vec::new();
    let mut tar = tar::Archive::new(BufReader::with_capacity(1 << 16, &file));
    for entry in tar.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let path = clean(Path::new(std::ffi::OsStr::from_bytes(&entry.path_bytes())))
            .ok_or_else(|| ImageError::Escape { layer: name.into(), entry: String::from_utf8_lossy(&entry.path_bytes()).into_owned() })?;
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => drop(index.insert(path, (entry.raw_file_position(), entry.size()))),
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let target = entry.link_name_bytes().map(|t| PathBuf::from(std::ffi::OsStr::from_bytes(&t))).unwrap_or_default();
                links.push((path, target, entry.header().entry_type() == tar::EntryType::Link));
            }
            _ => {}
        }
    }
    drop(tar);
    for (path, target, hard) in links {
        // `docker save` writes a layer that stands twice as a link to its first place: `../<id>/layer.tar`.
        let base = if hard { PathBuf::new() } else { path.parent().map(Path::to_owned).unwrap_or_default() };
        if let Some(&found) = index.get(&flatten(&base.join(target))) {
            index.insert(path, found);
        }
    }
    let end = file.metadata().map_err(damaged)?.len();
    if let Some((path, _)) = index.iter().find(|(_, place)| place.0.saturating_add(place.1) > end) {
        return Err(ImageError::Damaged { image: name.into(), what: format!("its archive is cut short in {}", path.display()) });
    }
    Ok(Store::Archive(file, index))
}

/// Takes `..` by its word. A link of an archive to a file of the same archive; what is not in its index is not found.
fn flatten(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(n) => out.push(n),
            std::path::Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// A file that is gone when we are. On a disk, not in memory: images are large.
fn unnamed() -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(CWD, "/var/tmp", flags, Mode::from_raw_mode(0o600))?.into())
}

/// Reads and hashes what was read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Hashing<R> {
        Hashing { inner, hash: Sha256::new() }
    }

    fn digest(self) -> String {
        format!("sha256:{}", hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
