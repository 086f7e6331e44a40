//! `osc ps`, `exec`, `logs`, `stop`, `reap`: commands on sandboxes, whoever started them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sandbox::{cleanup, record};
use super::{SOCKET, run};
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::wire::google::{Any, Empty};
use crate::rpc::wire::oci::Process as ProcessSpec;
use crate::rpc::wire::task as wire;
use crate::rpc::{Client, Code, Status, Stream};

const SERVICE: &str = "containerd.task.v2.Task";

/// A sandbox as `osc ps` shows it.
#[derive(Debug, serde::Serialize)]
pub struct Row {
    pub sandbox: String,
    pub manager: String,
    /// running, exited, orphan
    pub state: &'static str,
    pub pid: i32,
    /// Seconds since it was made.
    pub age: u64,
    pub exit_status: Option<i32>,
}

/// Every sandbox on this host.
pub fn list() -> Vec<Row> {
    let Ok(entries) = std::fs::read_dir(record::STATE_ROOT) else { return Vec::new() };
    let mut rows: Vec<Row> = entries.flatten().filter(|e| e.path().is_dir()).filter_map(|e| row(&e.path())).collect();
    rows.sort_by(|a, b| a.sandbox.cmp(&b.sandbox));
    rows
}

fn row(dir: &Path) -> Option<Row> {
    let sandbox = dir.file_name()?.to_string_lossy().into_owned();
    let story = record::read(dir).unwrap_or_default();
    let (pid, created) = story.owner().unwrap_or_default();
    let free = record::lock(dir).ok()?.is_some();
    let state = match (free, dir.join("ended").exists()) {
        (false, _) => "running",
        (true, true) => "exited",
        (true, false) => "orphan",
    };
    let exit_status = story.exit_of(&sandbox).map(|(status, ..)| status);
    Some(Row { sandbox, manager: story.manager().unwrap_or_default(), state, pid, age: record::now().saturating_sub(created), exit_status })
}

/// `osc ps`
#[derive(clap::Args, Debug)]
pub struct Ps {
    /// Show those that ended, too
    #[arg(long, short = 'a')]
    all: bool,
    /// Show only what a crash left
    #[arg(long)]
    orphans: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Ps {
    pub fn run(self) -> Result<()> {
        let wanted = |r: &Row| if self.orphans { r.state == "orphan" } else { self.all || r.state == "running" };
        let rows: Vec<Row> = list().into_iter().filter(wanted).collect();
        let mut out = std::io::stdout().lock();
        if self.json {
            for row in &rows {
                let _ = writeln!(out, "{}", serde_json::to_string(row).unwrap_or_default());
            }
            return Ok(());
        }
        let _ = writeln!(out, "{:<24} {:<8} {:>6} {:>8} {:>8}  STARTED BY", "SANDBOX", "STATE", "STATUS", "PID", "AGE");
        for r in rows {
            let status = r.exit_status.map(|s| s.to_string()).unwrap_or_else(|| "-".into());
            let _ = writeln!(out, "{:<24} {:<8} {:>6} {:>8} {:>8}  {}", r.sandbox, r.state, status, r.pid, age(r.age), r.manager);
        }
        Ok(())
    }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `osc logs`
#[derive(clap::Args, Debug)]
pub struct Logs {
    /// Sandbox whose output to print
    sandbox: String,
    /// The guest's console instead of the command's output
    #[arg(long)]
    console: bool,
}

impl Logs {
    pub fn run(self) -> Result<()> {
        let dir = existing(&self.sandbox)?;
        if self.console {
            let text = std::fs::read(dir.join("console.log")).at(Stage::Request, || "console")?;
            let _ = std::io::stdout().write_all(&text);
            return Ok(());
        }
        let path = dir.join(run::LOG);
        if !path.exists() {
            let way_out = "its output goes to whoever started it; --console shows the guest's";
            return Err(Failure::new(Stage::Request, format!("sandbox {} keeps no log", self.sandbox))
                .code(Code::NotFound)
                .way_out(way_out));
        }
        run::print_log(&path, &mut std::io::stdout(), &mut std::io::stderr()).at(Stage::Request, || "log")
    }
}

/// `osc stop`
#[derive(clap::Args, Debug)]
pub struct Stop {
    /// Sandboxes to stop; one that ended is removed
    #[arg(required = true)]
    sandboxes: Vec<String>,
    /// Seconds between the polite signal and the kill
    #[arg(long, short = 't', default_value_t = 10)]
    time: u64,
}

impl Stop {
    pub fn run(self) -> Result<()> {
        self.sandboxes.iter().try_for_each(|s| stop(s, Duration::from_secs(self.time)))
    }
}

fn stop(sandbox: &str, grace: Duration) -> Result<()> {
    let dir = existing(sandbox)?;
    let undone = |limit| cleanup::undo_when_free(&dir, limit).at(Stage::Request, || format!("remove {sandbox}"));
    if undone(Duration::ZERO)? {
        return Ok(());
    }
    let client = dial(&dir)?;
    let kill = |signal: u32| {
        let request = wire::KillRequest { id: sandbox.into(), signal, ..Default::default() };
        call::<_, Empty>(&client, "Kill", &request, Some(CALL)).map(drop)
    };
    let gone = || wait(&client, sandbox, "", Some(grace));
    match kill(libc::SIGTERM as u32) {
        Ok(()) if gone().is_ok() => {}
        _ => {
            let _ = kill(libc::SIGKILL as u32);
            let _ = gone();
        }
    }
    // The owner takes everything down by itself; a detached one leaves what `osc logs` reads, which goes now.
    if undone(grace + CALL)? {
        return Ok(());
    }
    Err(Failure::new(Stage::Request, format!("sandbox {sandbox} does not end")).way_out("kill its process, then run osc reap"))
}

/// `osc reap`
#[derive(clap::Args, Debug)]
pub struct Reap {}

impl Reap {
    pub fn run(self) -> Result<()> {
        let mut failed = 0;
        for swept in cleanup::sweep_all() {
            match swept.result {
                Ok(()) => println!("{}", swept.sandbox),
                Err(e) => {
                    failed += 1;
                    eprintln!("osc: {}: {e}", swept.sandbox);
                }
            }
        }
        if failed == 0 { Ok(()) } else { Err(Failure::new(Stage::Request, format!("{failed} sandboxes could not be cleaned up"))) }
    }
}

/// Run another command in a sandbox's container.
#[derive(clap::Args, Debug)]
pub struct Exec {
    /// Sandbox
    sandbox: String,
    /// Container, where the sandbox has several
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Give the command a terminal (the default where stdin and stdout are one)
    #[arg(long, short = 't', overrides_with = "no_tty")]
    tty: bool,
    /// Give it none
    #[arg(long)]
    no_tty: bool,
    /// Environment variable besides the container's own: K=V
    #[arg(long, short = 'e', value_name = "K=V")]
    env: Vec<String>,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A call that only changes or tells something.
const CALL: Duration = Duration::from_secs(60);

impl Exec {
    /// Runs it; answers its exit status.
    pub fn run(self) -> Result<i32> {
        let signals = run::terminal::block_signals().at(Stage::Request, || "signals")?;
        let dir = existing(&self.sandbox)?;
        let client = dial(&dir)?;
        let id = self.container.clone().unwrap_or_else(|| self.sandbox.clone());
        let exec = format!("exec-{}-{}", std::process::id(), record::now());
        let tty = run::terminal::wanted(self.tty, self.no_tty);
        let fifos = Fifos::make(&dir.join(&exec), tty)?;
        let process = ProcessSpec { args: self.command, env: self.env, ..Default::default() };
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(&process).at(Stage::Request, || "process")?,
        };
        let request = wire::ExecProcessRequest {
            id: id.clone(),
            exec_id: exec.clone(),
            terminal: tty,
            stdin: fifos.path("stdin"),
            stdout: fifos.path("stdout"),
            stderr: if tty { String::new() } else { fifos.path("stderr") },
            spec: Some(spec),
        };
        call::<_, Empty>(&client, "Exec", &request, Some(CALL))?;
        interact(&client, &id, &exec, &fifos, signals)
    }
}

/// Starts the process that was added, and is its terminal until it ends; answers its exit status.
fn interact(client: &Client, id: &str, exec: &str, fifos: &Fifos, signals: File) -> Result<i32> {
    let delete = || {
        let request = wire::DeleteRequest { id: id.into(), exec_id: exec.into() };
        let _: Result<wire::DeleteResponse> = call(client, "Delete", &request, Some(CALL));
    };
    let tty = fifos.tty;
    let _raw = tty.then(run::terminal::Raw::enter).transpose().at(Stage::Container, || "terminal")?;
    let copies = fifos.copy(client, id, exec)?;
    let request = wire::StartRequest { id: id.into(), exec_id: exec.into() };
    let started: Result<wire::StartResponse> = call(client, "Start", &request, Some(CALL));
    if let Err(e) = started {
        delete();
        return Err(e);
    }
    forward(signals, client.clone(), id.into(), exec.into(), tty);
    let status = wait(client, id, exec, None)?;
    copies.into_iter().for_each(|c| drop(c.join()));
    delete();
    Ok(status)
}

/// A shell in a sandbox's guest, beside its containers: all of the guest's processes, devices and network, and this host's
/// programs (read-only, with a throw-away layer). Off unless the configuration has `debug_console_enabled = true`.
#[derive(clap::Args, Debug)]
pub struct Debug {
    /// Sandbox
    sandbox: String,
    /// Give the command a terminal (the default where stdin and stdout are one)
    #[arg(long, short = 't', overrides_with = "no_tty")]
    tty: bool,
    /// Give it none
    #[arg(long)]
    no_tty: bool,
    /// Instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The annotation by which a shim knows such a container.
pub const DEBUG: &str = "io.osc.debug";

impl Debug {
    /// Runs it; answers its exit status.
    pub fn run(self) -> Result<i32> {
        let signals = run::terminal::block_signals().at(Stage::Request, || "signals")?;
        let dir = existing(&self.sandbox)?;
        let client = dial(&dir)?;
        let id = format!("osc-debug-{}-{}", std::process::id(), record::now());
        let tty = run::terminal::wanted(self.tty, self.no_tty);
        // The bundle, and the fifos in it.
        let bundle = dir.join(&id);
        let fifos = Fifos::make(&bundle, tty)?;
        let command = if self.command.is_empty() { vec!["/bin/sh".to_owned()] } else { self.command };
        let text = debug_spec(&self.sandbox, command, tty).to_string();
        std::fs::write(bundle.join("config.json"), text).at(Stage::Request, || format!("write to {}", bundle.display()))?;
        let request = wire::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            terminal: tty,
            stdin: fifos.path("stdin"),
            stdout: fifos.path("stdout"),
            stderr: if tty { String::new() } else { fifos.path("stderr") },
            ..Default::default()
        };
        let _: wire::CreateTaskResponse = call(&client, "Create", &request, Some(CALL))?;
        interact(&client, &id, "", &fifos, signals)
    }
}

/// A container that shares everything with the guest but the root file system.
fn debug_spec(sandbox: &str, command: Vec<String>, tty: bool) -> serde_json::Value {
    let mut all: Vec<String> = caps::all().iter().map(|c| c.to_string()).collect();
    all.sort();
    let bind = |path: &str| serde_json::json!({"destination": path, "type": "bind", "source": path, "options": ["rbind"]});
    serde_json::json!({
        "ociVersion": "1.0.2",
        "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox, DEBUG: "true"},
        "process": {
            "terminal": tty,
            "args": command,
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": all, "effective": all, "permitted": all},
        },
        "root": {"path": "/"},
        "mounts": [bind("/proc"), bind("/sys"), bind("/dev")],
        "linux": {"namespaces": [{"type": "mount"}]},
    })
}

/// The fifos of one exec; removed with it.
struct Fifos {
    dir: PathBuf,
    tty: bool,
}

impl Fifos {
    fn make(dir: &Path, tty: bool) -> Result<Fifos> {
        let fifos = Fifos { dir: dir.to_owned(), tty };
        std::fs::create_dir(dir).at(Stage::Request, || format!("make {}", dir.display()))?;
        for name in ["stdin", "stdout", "stderr"] {
            nix::unistd::mkfifo(&dir.join(name), nix::sys::stat::Mode::from_bits_truncate(0o600)).at(Stage::Request, || "fifo")?;
        }
        Ok(fifos)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// Copies between the fifos, which the sandbox has opened by now, and our own descriptors. The outputs' threads end
    /// when the sandbox closes its ends.
    fn copy(&self, client: &Client, id: &str, exec: &str) -> Result<Vec<std::thread::JoinHandle<()>>> {
        let open = |name: &str| File::open(self.dir.join(name)).at(Stage::Request, || format!("fifo {name}"));
        let stdin = self.dir.join("stdin");
        let (client, request) = (client.clone(), wire::CloseIoRequest { id: id.into(), exec_id: exec.into(), stdin: true });
        crate::thread::start("stdin", move || {
            // Opens once the sandbox reads it, which is when the process runs.
            if let Ok(mut fifo) = File::options().write(true).open(stdin) {
                let _ = std::io::copy(&mut std::io::stdin(), &mut fifo);
            }
            let _: Result<Empty> = call(&client, "CloseIO", &request, Some(CALL));
        });
        let mut outputs = Vec::new();
        let mut out = open("stdout")?;
        outputs.push(crate::thread::start("stdout", move || drop(copy(&mut out, &mut std::io::stdout()))));
        if !self.tty {
            let mut err = open("stderr")?;
            outputs.push(crate::thread::start("stderr", move || drop(copy(&mut err, &mut std::io::stderr()))));
        }
        Ok(outputs)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n])?;
        to.flush()?;
    }
}

fn forward(signals: File, client: Client, id: String, exec: String, tty: bool) {
    let resize = {
        let (client, id, exec) = (client.clone(), id.clone(), exec.clone());
        move |(rows, columns)| {
            let request = wire::ResizePtyRequest { id: id.clone(), exec_id: exec.clone(), width: columns, height: rows };
            let _: Result<Empty> = call(&client, "ResizePty", &request, Some(CALL));
        }
    };
    if let (true, Some(size)) = (tty, run::terminal::size()) {
        resize(size);
    }
    run::terminal::each_signal(signals, move |signal| {
        if signal == libc::SIGWINCH {
            run::terminal::size().filter(|_| tty).into_iter().for_each(&resize);
        } else {
            let request = wire::KillRequest { id: id.clone(), exec_id: exec.clone(), signal: signal as u32, all: false };
            let _: Result<Empty> = call(&client, "Kill", &request, Some(CALL));
        }
    });
}

fn wait(client: &Client, id: &str, exec: &str, timeout: Option<Duration>) -> Result<i32> {
    let request = wire::WaitRequest { id: id.into(), exec_id: exec.into() };
    let reply: wire::WaitResponse = call(client, "Wait", &request, timeout)?;
    Ok(reply.exit_status as i32)
}

fn call<Req: prost::Message, Resp: prost::Message + Default>(
    client: &Client,
    method: &str,
    request: &Req,
    timeout: Option<Duration>,
) -> Result<Resp> {
    client.call(SERVICE, method, request, timeout).map_err(|Status { code, message }| Failure::told(code, message))
}

/// A call of our own to whoever has `sandbox`.
pub fn ask<Req: prost::Message, Resp: prost::Message + Default>(
    sandbox: &str,
    method: &str,
    request: &Req,
    limit: Duration,
) -> Result<Resp> {
    call(&dial(&existing(sandbox)?)?, method, request, Some(limit))
}

fn existing(sandbox: &str) -> Result<PathBuf> {
    super::sandbox::check_id(sandbox)?;
    let dir = record::dir_of(sandbox);
    if dir.is_dir() {
        return Ok(dir);
    }
    Err(Failure::new(Stage::Request, format!("no sandbox {sandbox}")).code(Code::NotFound).way_out("osc ps --all lists them"))
}

fn dial(dir: &Path) -> Result<Client> {
    let path = dir.join(SOCKET);
    let stream = UnixStream::connect(&path).map_err(|e| {
        Failure::new(Stage::Request, format!("{}: {e}", path.display()))
            .code(Code::Unavailable)
            .way_out("it is starting or has ended: see osc ps --all")
    })?;
    Ok(Client::new(Stream::from(stream)))
}
