//! The forms an image comes in, and finding its configuration and layers there: OCI image-spec `image-layout.md`,
//! `image-index.md`, `manifest.md`, and what `docker save` writes (manifest.json; since Docker 25 an OCI layout as well).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::archive::Store;
use super::{ImageConfig, ImageError, Layer, Tree};

/// The architecture of this machine, in Go's words.
const ARCHITECTURE: &str = "amd64";

/// An index may hold indexes; deeper nobody goes.
const MOST_INDEXES: usize = 4;

/// Where builders write what an image of an index is called.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image that was found to be whole as far as its manifest goes.
#[derive(Debug)]
pub struct Image {
    pub config: ImageConfig,
    store: Store,
    /// The layers, in the order in which they are applied, each with its file.
    layers: Vec<(String, Layer)>,
}

/// How documents name each other and layers (OCI image-spec `descriptor.md`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: Option<u64>,
    platform: Option<Platform>,
    /// Signatures and the like are kept as manifests of a type of their own.
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    architecture: String,
    os: String,
    variant: String,
}

/// An index or a manifest: which, its fields tell.
#[derive(Deserialize)]
pub(super) struct Document {
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
    repo_tags: Option<Vec<String>>,
}

impl Image {
    /// Opens the image at `path`; `-` reads an archive from stdin.
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        if path == Path::new("-") {
            return Image::read("-", io::stdin().lock());
        }
        Image::from_store(Store::open(path)?)
    }

    /// Reads an archive to its end; `name` is what messages call it.
    pub fn read(name: &str, from: impl io::Read) -> Result<Image, ImageError> {
        Image::from_store(Store::read(name, from)?)
    }

    /// The image that is called `name` in the layout `dir`, which holds others too.
    pub fn named(dir: &Path, name: &str) -> Result<Image, ImageError> {
        Image::from_layout(Store::open(dir)?, Some(name))
    }

    fn from_store(store: Store) -> Result<Image, ImageError> {
        if store.has("index.json") {
            return Image::from_layout(store, None);
        }
        if !store.has("manifest.json") {
            return Err(format_error(store.name(), "it has neither index.json nor manifest.json"));
        }
        let saved: Vec<Saved> = store.json("manifest.json", None)?;
        let names = saved.iter().map(|s| s.repo_tags.iter().flatten().next().cloned().unwrap_or_else(|| s.config.clone()));
        let names: Vec<String> = names.collect();
        let [saved] = <[Saved; 1]>::try_from(saved).map_err(|_| several(store.name(), &names))?;
        let config: ImageConfig = store.json(&saved.config, digest_in(&saved.config).as_deref())?;
        let layers = saved.layers.iter().map(|file| Layer { name: file.clone(), ..Layer::default() }).collect();
        let layers = saved.layers.iter().cloned().zip(checked(store.name(), &config, layers)?).collect();
        Ok(Image { config, store, layers })
    }

    fn from_layout(store: Store, name: Option<&str>) -> Result<Image, ImageError> {
        let mut document: Document = store.json("index.json", None)?;
        if let Some(name) = name {
            document.manifests.iter_mut().for_each(|all| all.retain(|d| called(d) == name));
        }
        let (config, layers) = follow(store.name(), document, &mut |_, d| {
            let file = blob(store.name(), &d.digest)?;
            store.bytes(&file, Some(&d.digest))
        })?;
        let layers = layers.into_iter().map(|l| Ok((blob(store.name(), &l.name)?, l))).collect::<Result<_, ImageError>>()?;
        Ok(Image { config, store, layers })
    }

    /// Applies every layer to the empty directory `dest`, checking lengths and digests. On an error the caller removes
    /// `dest`; beside it nothing is made.
    pub fn unpack(&self, dest: &Path, progress: &dyn Fn(&str)) -> Result<(), ImageError> {
        let tree = root(dest)?;
        for (i, (file, layer)) in self.layers.iter().enumerate() {
            progress(&format!("unpacking layer {} of {}", i + 1, self.layers.len()));
            let damaged = |e: io::Error| ImageError::Layer { layer: layer.name.clone(), what: format!("{file}: {e}") };
            let (blob, length) = self.store.file(file).map_err(damaged)?;
            if let Some(expected) = layer.size.filter(|&s| s != length) {
                let what = format!("it has {length} bytes, and its manifest says {expected}");
                return Err(ImageError::Layer { layer: layer.name.clone(), what });
            }
            layer.unpack(&tree, blob)?;
        }
        Ok(())
    }
}

/// What a descriptor leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// An index or a manifest.
    Manifest,
    Config,
}

/// Brings what a descriptor names.
pub(super) type Get<'a, E> = &'a mut dyn FnMut(Part, &Descriptor) -> Result<Vec<u8>, E>;

/// Goes from an index or a manifest to the configuration and the layers for this machine. `get` brings what a descriptor names,
/// its digest checked; `image` is what messages call it.
pub(super) fn follow<E: From<ImageError>>(image: &str, mut document: Document, get: Get<'_, E>) -> Result<(ImageConfig, Vec<Layer>), E> {
    for _ in 0..MOST_INDEXES {
        let Some(manifests) = document.manifests.take() else { break };
        let chosen = choose(image, manifests)?;
        document = parse(image, &chosen.digest, &get(Part::Manifest, &chosen)?)?;
    }
    let (Some(config), Some(layers)) = (document.config, document.layers) else {
        return Err(format_error(image, "its manifest has no config and layers, as those of Docker's first schema").into());
    };
    let config: ImageConfig = parse(image, &config.digest, &get(Part::Config, &config)?)?;
    let layer = |d: Descriptor| {
        if d.media_type.ends_with("+encrypted") {
            return Err(format_error(image, format!("its layer {} is encrypted", d.digest)));
        }
        blob(image, &d.digest)?;
        Ok(Layer { name: d.digest.clone(), digest: Some(d.digest), size: d.size, diff_id: None })
    };
    let layers = layers.into_iter().map(layer).collect::<Result<_, ImageError>>()?;
    let layers = checked(image, &config, layers)?;
    Ok((config, layers))
}

/// A document of `image`, which is called `name` there.
pub(super) fn parse<T: DeserializeOwned>(image: &str, name: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|e| ImageError::Damaged { image: image.into(), what: format!("{name}: {e}") })
}

/// The layers, each with what the configuration says of its contents.
fn checked(image: &str, c: &ImageConfig, mut layers: Vec<Layer>) -> Result<Vec<Layer>, ImageError> {
    if !c.architecture.is_empty() && (c.architecture != ARCHITECTURE || c.os != "linux") {
        return Err(format_error(image, format!("it is for {}/{}, this machine is linux/{ARCHITECTURE}", c.os, c.architecture)));
    }
    let (named, there) = (c.rootfs.diff_ids.len(), layers.len());
    if named == 0 && there != 0 {
        return Err(format_error(image, "its configuration names no layers: it is no container image"));
    }
    if named != there {
        let what = format!("its configuration names {named} layers and its manifest {there}");
        return Err(ImageError::Damaged { image: image.into(), what });
    }
    for (layer, diff_id) in layers.iter_mut().zip(&c.rootfs.diff_ids) {
        layer.diff_id = Some(diff_id.clone());
    }
    Ok(layers)
}

/// Makes `dest` ready for an image's layers: its users must get in, whatever the umask says; a layer may say otherwise.
pub(super) fn root(dest: &Path) -> Result<Tree, ImageError> {
    let here = |source| ImageError::Io { what: dest.display().to_string(), source };
    let tree = Tree::open(dest).map_err(here)?;
    std::fs::set_permissions(dest, Permissions::from_mode(0o755)).map_err(here)?;
    Ok(tree)
}

fn format_error(image: &str, what: impl Into<String>) -> ImageError {
    ImageError::Format { image: image.into(), what: what.into() }
}

fn several(image: &str, names: &[String]) -> ImageError {
    match names {
        [] => format_error(image, "it holds no image"),
        names => format_error(image, format!("it holds several images ({}): save one", names.join(", "))),
    }
}

/// The manifest for this machine; one without a platform is for every machine.
fn choose(image: &str, manifests: Vec<Descriptor>) -> Result<Descriptor, ImageError> {
    let there: Vec<String> = manifests.iter().map(described).collect();
    let images: Vec<Descriptor> = manifests.into_iter().filter(|d| d.artifact_type.is_none()).collect();
    let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == ARCHITECTURE);
    let anywhere = |d: &&Descriptor| d.platform.is_none();
    // A plain amd64 before amd64/v3, which this machine may not be.
    let plain = |d: &&Descriptor| fits(d) && d.platform.as_ref().is_some_and(|p| p.variant.is_empty());
    let groups: [&dyn Fn(&&Descriptor) -> bool; 3] = [&plain, &fits, &anywhere];
    let candidates = groups.iter().map(|wanted| images.iter().filter(wanted).collect::<Vec<_>>()).find(|c| !c.is_empty());
    let Some(candidates) = candidates else {
        return Err(match there[..] {
            [] => several(image, &[]),
            _ => format_error(image, format!("it has nothing for linux/{ARCHITECTURE}, only: {}", there.join(", "))),
        });
    };
    let digests: BTreeSet<&str> = candidates.iter().map(|d| d.digest.as_str()).collect();
    match digests.len() {
        1 => Ok(candidates[0].clone()),
        _ => Err(several(image, &candidates.iter().map(|d| called(d)).collect::<Vec<_>>())),
    }
}

/// What a manifest of an index is for, else what it is.
fn described(d: &Descriptor) -> String {
    match (&d.platform, &d.artifact_type) {
        (Some(p), _) if p.variant.is_empty() => format!("{}/{}", p.os, p.architecture),
        (Some(p), _) => format!("{}/{}/{}", p.os, p.architecture, p.variant),
        (None, Some(kind)) => kind.clone(),
        (None, None) => d.media_type.clone(),
    }
}

fn called(d: &Descriptor) -> String {
    NAMES.iter().find_map(|n| d.annotations.get(*n)).unwrap_or(&d.digest).clone()
}

/// The file of a blob: `blobs/sha256/<hex>`.
fn blob(image: &str, digest: &str) -> Result<String, ImageError> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if is_hash(hex) => Ok(format!("blobs/sha256/{hex}")),
        _ => Err(format_error(image, format!("digest {digest:?} is not a sha256"))),
    }
}

pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `docker save` calls a configuration by its digest: `<hex>.json`, `blobs/sha256/<hex>`.
fn digest_in(file: &str) -> Option<String> {
    let name = file.rsplit('/').next().unwrap_or_default();
    let hex = name.strip_suffix(".json").unwrap_or(name);
    is_hash(hex).then(|| format!("sha256:{hex}"))
}

#[cfg(test)]
mod tests;
