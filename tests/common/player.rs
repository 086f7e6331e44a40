//! Plays a container manager: starts the shim as one does and speaks its API, message by message.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use osc::rpc::wire::google::{Any, Empty};
use osc::rpc::wire::task as wire;
use osc::rpc::{Client, Status, Stream};
use serde_json::{Value, json};

use super::{LIMIT, Output, finish, osc};

pub const V2: &str = "containerd.task.v2.Task";

/// A folder of bundles with a shim in it.
pub struct Player {
    pub dir: tempfile::TempDir,
}

/// One container's bundle.
pub struct Bundle {
    pub id: String,
    pub path: PathBuf,
}

impl Player {
    pub fn new() -> Player {
        let dir = tempfile::Builder::new().prefix("osc-player-").tempdir().unwrap();
        symlink(osc(), dir.path().join("containerd-shim-kata-v2")).unwrap();
        Player { dir }
    }

    pub fn shim(&self) -> PathBuf {
        self.dir.path().join("containerd-shim-kata-v2")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bundle(&self, id: &str, spec: &Value) -> Bundle {
        let path = self.dir.path().join(format!("bundle-{id}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("config.json"), spec.to_string()).unwrap();
        mkfifo(&path.join("log"));
        Bundle { id: id.into(), path }
    }

    /// Runs the shim with `args`, its stdout and stderr read to their end: a daemon that keeps one hangs this, as it would
    /// a manager.
    pub fn call(&self, cwd: &Path, args: &[&str], env: &[(&str, &str)], stdin: &[u8]) -> Output {
        let mut command = Command::new(self.shim());
        command.args(args).current_dir(cwd).envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child: Child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let _ = pipe.write_all(stdin);
        drop(pipe);
        finish(child)
    }

    /// `start` as CRI-O runs it, for every container.
    pub fn start_as_crio(&self, bundle: &Bundle) -> Output {
        let args = ["-namespace", "default", "-address", "", "-publish-binary", "/usr/bin/crio", "-id", &bundle.id, "start"];
        self.call(&bundle.path, &args, &[("MAX_SHIM_VERSION", "2"), ("TTRPC_ADDRESS", ""), ("GRPC_ADDRESS", "")], b"")
    }
}

pub fn mkfifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
}

/// Reads a fifo from now on, as a manager does; everything that came until it was closed.
pub fn reader(path: PathBuf) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        fs::File::open(path).unwrap().read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Keeps a fifo's reading end without reading it.
pub fn hold(path: &Path) -> fs::File {
    fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

pub fn dial(address: &str) -> Client {
    let path = address.trim().strip_prefix("unix://").unwrap_or_else(|| panic!("no address: {address:?}"));
    Client::new(Stream::from(UnixStream::connect(path).unwrap()))
}

/// A call of the Task API with a deadline.
pub fn task<Req: prost::Message, Resp: prost::Message + Default>(client: &Client, method: &str, request: Req) -> Result<Resp, Status> {
    client.call(V2, method, &request, Some(LIMIT))
}

pub fn state(client: &Client, id: &str) -> wire::StateResponse {
    task(client, "State", wire::StateRequest { id: id.into(), exec_id: String::new() }).unwrap()
}

pub fn kill(client: &Client, id: &str, signal: i32) -> Result<Empty, Status> {
    task(client, "Kill", wire::KillRequest { id: id.into(), signal: signal as u32, ..Default::default() })
}

pub fn delete(client: &Client, id: &str) -> Result<wire::DeleteResponse, Status> {
    task(client, "Delete", wire::DeleteRequest { id: id.into(), exec_id: String::new() })
}

/// Waits on a thread of its own, as managers do from the start on.
pub fn wait(address: &str, id: &str) -> std::thread::JoinHandle<Result<wire::WaitResponse, Status>> {
    let (client, id) = (dial(address), id.to_owned());
    std::thread::spawn(move || client.call(V2, "Wait", &wire::WaitRequest { id, exec_id: String::new() }, Some(LIMIT)))
}

pub fn json_any(kind: &str, value: &Value) -> Option<Any> {
    Some(Any { type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{kind}"), value: value.to_string().into_bytes() })
}

/// A specification as managers write it: `root` absolute, outside the bundle.
pub fn spec(root: &Path, args: &[&str], netns: Option<&Path>, annotations: Value) -> Value {
    let network = match netns {
        Some(path) => json!({"type": "network", "path": path}),
        None => json!({"type": "network"}),
    };
    json!({
        "ociVersion": "1.0.2",
        "process": {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": root},
        "hostname": "pod",
        "annotations": annotations,
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, network]},
    })
}

/// Waits until a pid is gone.
pub fn until_gone(pid: u32) {
    super::until("the shim's end", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
}

pub const QUICK: Duration = Duration::from_secs(10);
