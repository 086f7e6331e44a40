//! A real registry (Debian's docker-registry) as a process, images pushed into it, and a server before it that can misbehave.
#![allow(dead_code)] // Each test binary uses its part of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::{Rootfs, until};

/// True where the registry is installed; says aloud why not.
pub fn can_run_registry(test: &str) -> bool {
    let there = Path::new("/usr/bin/docker-registry").exists() && rustix::process::geteuid().is_root();
    if !there {
        println!("SKIP {test}: needs root and docker-registry");
    }
    there
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The registry, with a directory of its own.
pub struct Registry {
    pub dir: tempfile::TempDir,
    /// Where it listens.
    pub address: String,
    netns: Option<String>,
    child: Child,
}

impl Registry {
    pub fn start() -> Registry {
        Registry::with(&format!("127.0.0.1:{}", free_port()), json!({}), json!({}), None)
    }

    /// `http` and `auth`: more of its configuration. In the network namespace `netns`, where one is named.
    pub fn with(address: &str, http: Value, auth: Value, netns: Option<&str>) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({"version": "0.1", "log": {"level": "info"}, "storage": {"filesystem": {"rootdirectory": dir.path().join("data")}},
            "http": {"addr": address}});
        config["http"].as_object_mut().unwrap().extend(http.as_object().unwrap().clone());
        if auth != json!({}) {
            config["auth"] = auth;
        }
        // YAML holds JSON.
        std::fs::write(dir.path().join("config.yml"), config.to_string()).unwrap();
        let netns = netns.map(str::to_owned);
        let child = spawn(dir.path(), netns.as_deref());
        let registry = Registry { dir, address: address.into(), netns, child };
        registry.wait_ready();
        registry
    }

    fn wait_ready(&self) {
        match &self.netns {
            None => drop(until("the registry", || TcpStream::connect(&self.address).ok())),
            Some(_) => until("the registry", || self.log().contains("listening on").then_some(())),
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.netns.as_deref());
        self.wait_ready();
    }

    /// `127.0.0.1:5000/name`
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub fn push(&self, name: &str, layers: &[Pushed]) -> String {
        push(&format!("http://{}", self.address), None, name, layers)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, netns: Option<&str>) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = match netns {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, "docker-registry"]);
            command
        }
        None => Command::new("docker-registry"),
    };
    command.arg("serve").arg(dir.join("config.yml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// A layer: its tar, and how it is stored.
pub struct Pushed {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
    pub kind: &'static str,
}

impl Pushed {
    pub fn plain(tar: Vec<u8>) -> Pushed {
        Pushed { blob: tar.clone(), tar, kind: "application/vnd.oci.image.layer.v1.tar" }
    }

    pub fn gzip(tar: Vec<u8>) -> Pushed {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(&tar).unwrap();
        Pushed { blob: e.finish().unwrap(), tar, kind: "application/vnd.oci.image.layer.v1.tar+gzip" }
    }

    pub fn zstd(tar: Vec<u8>) -> Pushed {
        let blob = ruzstd::encoding::compress_to_vec(&tar[..], ruzstd::encoding::CompressionLevel::Fastest);
        Pushed { blob, tar, kind: "application/vnd.oci.image.layer.v1.tar+zstd" }
    }
}

/// A tar of members, with what tars seldom hold.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    pub fn add(mut self, kind: tar::EntryType, path: &str, data: &[u8], change: impl FnOnce(&mut tar::Header)) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        change(&mut header);
        self.0.append_data(&mut header, path, data).unwrap();
        self
    }

    pub fn dir(self, path: &str) -> Tar {
        self.add(tar::EntryType::Directory, path, b"", |_| ())
    }

    pub fn file(self, path: &str, data: &[u8]) -> Tar {
        self.add(tar::EntryType::Regular, path, data, |_| ())
    }

    pub fn link(mut self, kind: tar::EntryType, path: &str, target: &str) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(if kind == tar::EntryType::Link { 0o644 } else { 0o777 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// busybox, and files of every kind.
pub fn first() -> Vec<u8> {
    let root = Rootfs::new();
    let mut tar = Tar::new();
    tar.0.follow_symlinks(false);
    tar.0.append_dir_all(".", root.path()).unwrap();
    // CAP_NET_RAW, effective: version 2 of vfs_cap_data.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tar.file("etc/hello", b"from the first layer\n")
        .dir("data")
        .dir("data/gone")
        .file("data/gone/a", b"a")
        .dir("data/opaque")
        .file("data/opaque/old", b"old")
        .file("data/kept", &vec![7; 100_000])
        .link(tar::EntryType::Link, "data/same", "data/kept")
        .link(tar::EntryType::Symlink, "data/link", "../etc/hello")
        .add(tar::EntryType::Regular, "data/setuid", b"s", |h| {
            h.set_mode(0o4755);
            h.set_uid(1000);
            h.set_gid(50);
        })
        .pax(&[("SCHILY.xattr.user.colour", b"blue\0grey"), ("mtime", b"1600000001.123456789")])
        .file("data/attributes", b"x")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .add(tar::EntryType::Regular, "data/capable", b"c", |h| h.set_mode(0o755))
        .add(tar::EntryType::Char, "data/null", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .add(tar::EntryType::Fifo, "data/fifo", b"", |_| ())
        .add(tar::EntryType::Directory, "data/sticky", b"", |h| h.set_mode(0o1777))
        .file(&format!("data/{}/{}", "long".repeat(30), "name".repeat(40)), b"long")
        .end()
}

pub fn second() -> Vec<u8> {
    Tar::new()
        .file("data/.wh.gone", b"")
        .dir("data/opaque")
        .file("data/opaque/.wh..wh..opq", b"")
        .file("data/opaque/new", b"new")
        .file("data/sticky/inside", b"1")
        .end()
}

pub fn third() -> Vec<u8> {
    Tar::new()
        .file("etc/hello", b"from the third layer\n")
        .dir("data/gone")
        .file("data/gone/b", b"b")
        .file("data/.wh.same", b"")
        .file("data/link", b"no link any more")
        .end()
}

pub fn image() -> [Pushed; 3] {
    [Pushed::gzip(first()), Pushed::plain(second()), Pushed::zstd(third())]
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend(seed.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Pushes an image as any client does; answers its manifest's digest. It is behind an index, beside another platform's.
pub fn push(base: &str, authorization: Option<&str>, name: &str, layers: &[Pushed]) -> String {
    let blob = |bytes: &[u8]| put_blob(base, authorization, name, bytes);
    let diff_ids: Vec<String> = layers.iter().map(|l| digest(&l.tar)).collect();
    let process = json!({"Cmd": ["sh", "-c", "cat /etc/hello; id -u"], "Env": ["PATH=/bin", "FROM=image"]});
    let config = json!({"architecture": "amd64", "os": "linux", "config": process, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let stored = layers.iter().map(|l| json!({"mediaType": l.kind, "digest": blob(&l.blob), "size": l.blob.len()})).collect::<Vec<_>>();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": stored,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(&config), "size": config.len()}});
    let manifest = manifest.to_string().into_bytes();
    let put = |kind: &str, reference: &str, bytes: &[u8]| {
        let url = format!("{base}/v2/{name}/manifests/{reference}");
        let request = authorized(ureq::put(&url).content_type(kind), authorization);
        request.send(bytes).unwrap_or_else(|e| panic!("{url}: {e}"));
    };
    put(MANIFEST, &digest(&manifest), &manifest);
    let this = json!({"mediaType": MANIFEST, "digest": digest(&manifest), "size": manifest.len(), "platform": {"os": "linux", "architecture": "amd64"}});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [this]}).to_string().into_bytes();
    put(INDEX, "latest", &index);
    digest(&index)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn authorized<B>(request: ureq::RequestBuilder<B>, authorization: Option<&str>) -> ureq::RequestBuilder<B> {
    match authorization {
        Some(value) => request.header("Authorization", value),
        None => request,
    }
}

fn put_blob(base: &str, authorization: Option<&str>, name: &str, bytes: &[u8]) -> String {
    let start = authorized(ureq::post(&format!("{base}/v2/{name}/blobs/uploads/")), authorization).send_empty().unwrap();
    let place = start.headers()["Location"].to_str().unwrap().to_owned();
    let (mark, digest) = (if place.contains('?') { '&' } else { '?' }, digest(bytes));
    let put = authorized(ureq::put(&format!("{place}{mark}digest={digest}")), authorization);
    put.content_type("application/octet-stream").send(bytes).unwrap();
    digest
}

/// A server between a client and the registry.
pub struct Front {
    pub address: String,
    state: Arc<State>,
}

struct State {
    registry: String,
    decide: Box<dyn Fn(&str) -> Action + Send + Sync>,
    /// First lines of requests.
    requests: Mutex<Vec<String>>,
    /// Bytes that clients were sent.
    sent: AtomicU64,
}

/// What becomes of a request.
pub enum Action {
    Forward,
    /// An answer of our own: status line and headers, each with its line end.
    Answer(String),
    /// The registry's answer; from that byte on it waits until the registry dies.
    Stall(u64),
    /// The registry's answer, with its last byte changed.
    Change,
    /// A tunnel to the registry, whatever host was named.
    Tunnel,
}

impl Front {
    /// `decide` is given the head of each request.
    pub fn start(registry: &Registry, decide: impl Fn(&str) -> Action + Send + Sync + 'static) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (registry, decide) = (registry.address.clone(), Box::new(decide));
        let state = Arc::new(State { registry, decide, requests: Mutex::default(), sent: AtomicU64::new(0) });
        let shared = state.clone();
        // Ends with the test.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || drop(serve(client, &state)));
            }
        });
        Front { address, state }
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

/// One request, one answer, and the connection ends.
fn serve(mut client: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
        // Somebody tries whether TLS is spoken here.
        if head[0] == 0x16 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    state.requests.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
    let action = (state.decide)(&head);
    if let Action::Answer(text) = &action {
        client.write_all(format!("HTTP/1.1 {text}Connection: close\r\n\r\n").as_bytes())?;
        return client.shutdown(Shutdown::Write);
    }
    let mut registry = TcpStream::connect(&state.registry)?;
    if matches!(action, Action::Tunnel) {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (mut from, mut to) = (client.try_clone()?, registry.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    } else {
        let body = head.find("\r\n").unwrap() + 2;
        let rest: String =
            head[body..].lines().filter(|l| !l.to_ascii_lowercase().starts_with("connection:")).map(|l| format!("{l}\r\n")).collect();
        registry.write_all(format!("{}Connection: close\r\n{rest}", &head[..body]).as_bytes())?;
    }
    let mut sent = 0;
    let mut buffer = vec![0; 64 << 10];
    let mut held: Option<u8> = None;
    loop {
        let most = match action {
            Action::Stall(limit) if sent < limit => buffer.len().min((limit - sent) as usize),
            Action::Stall(_) => {
                // Only its end lets us go on.
                let mut byte = [0];
                registry.set_read_timeout(Some(Duration::from_millis(50)))?;
                while registry.peek(&mut byte).is_ok() && !reset(&registry, state) {}
                return Ok(());
            }
            _ => buffer.len(),
        };
        let n = registry.read(&mut buffer[..most]).unwrap_or(0);
        if n == 0 {
            break;
        }
        sent += n as u64;
        state.sent.fetch_add(n as u64, Ordering::Relaxed);
        if matches!(action, Action::Change) {
            // The last byte that came is kept back, to be changed.
            let last = buffer[n - 1];
            client.write_all(&held.into_iter().chain(buffer[..n - 1].iter().copied()).collect::<Vec<_>>())?;
            held = Some(last);
        } else {
            client.write_all(&buffer[..n])?;
        }
    }
    if let Some(last) = held {
        client.write_all(&[last ^ 1])?;
    }
    Ok(())
}

/// Whether nobody listens any more.
fn reset(_: &TcpStream, state: &State) -> bool {
    std::thread::sleep(Duration::from_millis(10));
    TcpStream::connect(&state.registry).is_err()
}

/// Later than any time in a layer of these tests.
const THEN: i64 = 1_700_000_000;

/// Everything that a file system says of a tree, a line for each entry.
pub fn described(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut links = std::collections::HashMap::new();
    walk(root, Path::new(""), &mut links, &mut lines);
    lines
}

fn walk(root: &Path, below: &Path, links: &mut std::collections::HashMap<u64, PathBuf>, lines: &mut Vec<String>) {
    use std::os::unix::fs::MetadataExt;
    let mut names: Vec<_> = std::fs::read_dir(root.join(below)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = below.join(name);
        let at = root.join(&path);
        let m = std::fs::symlink_metadata(&at).unwrap();
        let what = if m.is_symlink() {
            format!("-> {}", std::fs::read_link(&at).unwrap().display())
        } else if m.is_file() {
            let first = links.entry(m.ino()).or_insert_with(|| path.clone()).clone();
            format!("{} {} same as {}", m.len(), digest(&std::fs::read(&at).unwrap()), first.display())
        } else {
            format!("device {:x}", m.rdev())
        };
        // A directory that a layer changes without naming it has the time of the unpacking.
        let mtime = if m.mtime() > THEN { "now".to_owned() } else { format!("{}.{:09}", m.mtime(), m.mtime_nsec()) };
        let xattrs = xattrs(&at);
        lines.push(format!("{} {:o} {}:{} {mtime} {xattrs:?} {what}", path.display(), m.mode(), m.uid(), m.gid()));
        if m.is_dir() {
            walk(root, &path, links, lines);
        }
    }
}

/// Those of the file itself; `trusted.` are the overlay's.
fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut all: Vec<(String, Vec<u8>)> = names[..n]
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty() && !n.starts_with(b"trusted."))
        .map(|name| {
            let name = String::from_utf8_lossy(name).into_owned();
            let mut value = vec![0; 4096];
            let n = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            (name, value[..n].to_vec())
        })
        .collect();
    all.sort();
    all
}
