//! Archives for tests, hostile ones included: names and fields are written as they are given.

use std::io::Write;
use std::path::Path;

use super::codec::digest;

/// A tar in the making. Each call adds a member.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    /// Any member; `change` has the last word on its header, before the checksum.
    pub fn member(mut self, kind: u8, path: &str, link: &str, data: &[u8], change: impl FnOnce(&mut tar::Header)) -> Tar {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.linkflag = [kind];
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn file(self, path: &str, data: &str) -> Tar {
        self.member(b'0', path, "", data.as_bytes(), |_| ())
    }

    pub fn dir(self, path: &str) -> Tar {
        self.member(b'5', path, "", b"", |_| ())
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.member(b'2', path, target, b"", |_| ())
    }

    pub fn hard_link(self, path: &str, target: &str) -> Tar {
        self.member(b'1', path, target, b"", |_| ())
    }

    /// PAX records of the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.member(b'x', "pax", "", &data, |_| ())
    }

    pub fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// True for root, as these tests need to be to make devices and set owners; says aloud why not.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP {test}: needs root");
    }
    root
}

/// Every path below a directory, `/` behind directories and ` -> target` behind links, sorted.
pub fn listing(root: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                out.push(format!("{path}/"));
                walk(&entry.path(), &format!("{path}/"), out);
            } else if kind.is_symlink() {
                out.push(format!("{path} -> {}", std::fs::read_link(entry.path()).unwrap().display()));
            } else {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, "", &mut out);
    out.sort();
    out
}

/// An OCI layout in a directory, blob by blob.
pub struct Layout<'a>(pub &'a Path);

impl Layout<'_> {
    /// Stores a blob; answers its descriptor.
    pub fn blob(&self, bytes: &[u8]) -> serde_json::Value {
        let digest = digest(bytes);
        let dir = self.0.join("blobs/sha256");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        serde_json::json!({"digest": digest, "size": bytes.len(), "mediaType": "application/vnd.oci.image.layer.v1.tar"})
    }

    /// Stores an image of layers (diff, blob); answers its manifest's descriptor.
    pub fn image(&self, architecture: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> serde_json::Value {
        let diff_ids: Vec<String> = layers.iter().map(|(diff, _)| digest(diff)).collect();
        let config = serde_json::json!({"architecture": architecture, "os": "linux", "config": {"Cmd": [architecture]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let layers: Vec<_> = layers.iter().map(|(_, blob)| self.blob(blob)).collect();
        let manifest = serde_json::json!({"config": self.blob(config.to_string().as_bytes()), "layers": layers});
        self.blob(manifest.to_string().as_bytes())
    }

    pub fn index(&self, manifests: &[serde_json::Value]) {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }

    /// The whole directory as a tar.
    pub fn archive(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all(".", self.0).unwrap();
        tar.into_inner().unwrap()
    }
}
