//! Pulled images on disk: an OCI layout that holds many, every blob once, by its digest.
//!
//! | path | what |
//! | --- | --- |
//! | `blobs/sha256/<hex>` | whole and checked before it has this name |
//! | `partial/<hex>` | what came of a layer so far, locked by who fetches it; the next pull goes on from there |
//! | `index.json` | the images by name (`org.opencontainers.image.ref.name`); changed under the lock of the directory |

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::client::lock;
use super::{Client, PullError, Resolved};
use crate::fs::oci::{Image, ImageError, Layer, codec};

/// Where images are kept unless somebody says otherwise.
const CACHE: &str = "/var/cache/osc/images";

/// What an index calls its images.
const NAME: &str = "org.opencontainers.image.ref.name";

/// Layers fetched at a time.
const PARALLEL: usize = 3;

/// Read from the registry at once, bytes.
const BUFFER: usize = 128 << 10;

/// A directory of pulled images.
pub struct Content {
    dir: PathBuf,
}

impl Content {
    /// The store at `dir`, or this host's own; made where it is missing, for root alone: images may be private.
    pub fn open(dir: Option<&Path>) -> Result<Content, PullError> {
        let dir = dir.unwrap_or(Path::new(CACHE)).to_owned();
        let make = || {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            fs::create_dir_all(dir.join("blobs/sha256"))?;
            fs::create_dir_all(dir.join("partial"))?;
            let marker = dir.join("oci-layout");
            if marker.exists() { Ok(()) } else { fs::write(marker, "{\"imageLayoutVersion\":\"1.0.0\"}") }
        };
        make().map_err(|source| PullError::Io { what: format!("image store {}", dir.display()), source })?;
        Ok(Content { dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image called `name`, if it is here.
    pub fn image(&self, name: &str) -> Result<Option<Image>, PullError> {
        let there = self.index()?["manifests"].as_array().is_some_and(|all| all.iter().any(|d| d["annotations"][NAME] == name));
        if !there {
            return Ok(None);
        }
        Ok(Some(Image::named(&self.dir, name)?))
    }

    /// Fetches what is missing of `image` and gives it its name.
    pub fn pull(&self, client: &Client, image: &Resolved, progress: &(dyn Fn(&str) + Sync)) -> Result<(), PullError> {
        let missing: Vec<&Layer> = image.layers.iter().filter(|l| !self.blob(&l.name).exists()).collect();
        let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if lock(&failed).is_some() {
                    return;
                }
                match self.fetch(client, layer) {
                    Ok(()) => progress(&format!("layer {} of {}", done.fetch_add(1, Ordering::Relaxed) + 1, missing.len())),
                    Err(e) => drop(lock(&failed).get_or_insert(e)),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..PARALLEL.min(missing.len()) {
                // With fewer it takes longer.
                let _ = crate::thread::scoped(scope, "osc-layer", work);
            }
            work();
        });
        if let Some(e) = failed.into_inner().unwrap_or_else(|p| p.into_inner()) {
            return Err(e);
        }
        for (digest, bytes) in &image.documents {
            self.write(&self.blob(digest), bytes)?;
        }
        let size = image.documents.first().map_or(0, |(_, bytes)| bytes.len());
        let name = client.image.to_string();
        self.name(json!({"mediaType": image.media_type, "digest": image.digest, "size": size, "annotations": {NAME: name}}))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// One layer, from where an earlier pull left off.
    fn fetch(&self, client: &Client, layer: &Layer) -> Result<(), PullError> {
        let path = self.dir.join("partial").join(layer.name.trim_start_matches("sha256:"));
        let failed = |source| PullError::Io { what: path.display().to_string(), source };
        let file = loop {
            let file = File::options().read(true).append(true).create(true).open(&path).map_err(failed)?;
            flock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
            if self.blob(&layer.name).exists() {
                let _ = fs::remove_file(&path);
                return Ok(());
            }
            // Whoever had it may have moved or removed it meanwhile.
            if same(&file, &path) {
                break file;
            }
        };
        let fetched = self.fill(client, layer, &file, &path);
        match &fetched {
            Ok(()) => fs::rename(&path, self.blob(&layer.name)).map_err(failed)?,
            // To be continued.
            Err(PullError::Unreachable { .. } | PullError::TooMany { .. }) => {}
            Err(_) => drop(fs::remove_file(&path)),
        }
        fetched
    }

    fn fill(&self, client: &Client, layer: &Layer, file: &File, path: &Path) -> Result<(), PullError> {
        let failed = |source| PullError::Io { what: path.display().to_string(), source };
        let damaged = |what: String| ImageError::Layer { layer: layer.name.clone(), what };
        let size = layer.size.unwrap_or_default();
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut there = 0;
        let mut reader = file;
        reader.rewind().map_err(failed)?;
        while let n @ 1.. = reader.read(&mut buffer).map_err(failed)? {
            hash.update(&buffer[..n]);
            there += n as u64;
        }
        if there > size {
            return Err(damaged(format!("{there} bytes came of {size}")).into());
        }
        let space = rustix::fs::fstatvfs(file).map_err(|e| failed(e.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if size - there > free {
            let (image, digest) = (client.image.to_string(), layer.name.clone());
            return Err(PullError::Full { image, digest, size, place: self.dir.clone(), free });
        }
        let mut blob = client.blob(layer, there);
        let mut writer = file;
        loop {
            match blob.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hash.update(&buffer[..n]);
                    writer.write_all(&buffer[..n]).map_err(failed)?;
                }
                Err(e) => return Err(blob.fault().unwrap_or_else(|| failed(e))),
            }
        }
        let found = codec::named(&hash.finalize());
        if found != layer.name {
            return Err(damaged(format!("its digest is {found}, and its manifest says {}", layer.name)).into());
        }
        file.sync_data().map_err(failed)
    }

    fn index(&self) -> Result<Value, PullError> {
        let path = self.dir.join("index.json");
        let failed = |source| PullError::Io { what: path.display().to_string(), source };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(json!({"schemaVersion": 2, "manifests": []})),
            Err(e) => Err(failed(e)),
        }
    }

    /// Puts a descriptor in the place of the one with its name.
    fn name(&self, descriptor: Value) -> Result<(), PullError> {
        let failed = |source| PullError::Io { what: self.dir.display().to_string(), source };
        let dir = File::open(&self.dir).map_err(failed)?;
        flock(&dir, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        let mut index = self.index()?;
        let name = descriptor["annotations"][NAME].clone();
        if let Some(all) = index["manifests"].as_array_mut() {
            all.retain(|d| d["annotations"][NAME] != name);
            all.push(descriptor);
        }
        self.write(&self.dir.join("index.json"), index.to_string().as_bytes())
    }

    /// Whole or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), PullError> {
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, path));
        written.map_err(|source| {
            let _ = fs::remove_file(&new);
            PullError::Io { what: path.display().to_string(), source }
        })
    }
}

/// Whether `path` is still the open file.
fn same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
