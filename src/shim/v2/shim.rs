//! The daemon: one sandbox, made at the first Create, served until the manager says Shutdown.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;

use super::events::Events;
use super::flags::Flags;
use super::netns::{self, Door};
use super::pod::{self, Kind, Network};
use super::sandbox_api::SandboxApi;
use super::start::LISTENER;
use crate::config::Config;
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::Code;
use crate::rpc::wire::google::Any;
use crate::rpc::wire::oci::Spec;
use crate::rpc::wire::options::Options;
use crate::rpc::wire::{containerd, events as wire, task};
use crate::shim::SOCKET;
use crate::shim::ctl::DEBUG;
use crate::shim::monitor;
use crate::shim::progress::Progress;
use crate::shim::sandbox::io::Names;
use crate::shim::sandbox::record::Thing;
use crate::shim::sandbox::volume::Rootfs;
use crate::shim::sandbox::{Event, NewContainer, NewSandbox, Sandbox, cgroup, most, size};
use crate::shim::stdio::{self, Whose};
use crate::shim::task::{self as face, Pod, Task, timestamp};
use crate::vm::Size;

/// How long the last events may take before the process ends.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Role of the process that `start` leaves behind. Returns only with an error.
pub fn serve(name: &str, flags: &Flags) -> Result<()> {
    crate::memory::tune();
    log_to_manager(flags);
    // SAFETY: `start` gave us this number for the listener, and nothing else here knows it.
    let listener = unsafe { UnixListener::from_raw_fd(LISTENER) };
    let socket = match listener.local_addr() {
        Ok(address) => address.as_pathname().map(Path::to_owned),
        Err(e) => {
            return Err(Failure::new(Stage::Request, format!("descriptor {LISTENER} is no listening socket: {e}"))
                .way_out("a shim is started by its manager: containerd-shim-kata-v2 -id ID start"));
        }
    };
    let (door, porter) = netns::door();
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let shim = Arc::new(Shim {
        name: name.to_owned(),
        flags: flags.clone(),
        events: Arc::new(Events::new(&address, &flags.namespace)),
        door,
        socket,
        sandbox: Mutex::default(),
    });
    face::open(vec![face::door(listener, vec![Task::of(Arc::new(shim.clone())), Arc::new(Arc::new(SandboxApi::of(shim)))])]);
    porter.serve()
}

/// The bundle's `log`: a fifo that the manager reads, or a file. What cannot be written is dropped, never waited for.
fn log_to_manager(flags: &Flags) {
    let level = if flags.debug { log::LevelFilter::Debug } else { log::LevelFilter::Info };
    // Read and write: opening does not wait for a reader, and one that goes does not break the next line.
    let sink = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("log");
    if let Ok(sink) = sink.or_else(|_| File::options().write(true).open("/dev/null")) {
        crate::log::init(sink, Some(&flags.id), level);
    }
    std::panic::set_hook(Box::new(|info| log::error!("panic: {info}")));
}

/// The one pod of this process.
pub(super) struct Shim {
    name: String,
    pub flags: Flags,
    events: Arc<Events>,
    door: Door,
    /// Our socket; removed when we end.
    socket: Option<PathBuf>,
    /// Held while the sandbox is being made, so that there is one.
    sandbox: Mutex<Option<Arc<Sandbox>>>,
}

/// What a manager says of a sandbox besides its specification.
pub(super) struct Asked<'a> {
    pub id: &'a str,
    pub network: Network,
    pub options: Option<&'a Any>,
}

impl Shim {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.sandbox.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Starts the sandbox; a second one only in the place of one that has ended.
    pub fn boot(self: &Arc<Self>, spec: &Spec, asked: Asked) -> Result<Arc<Sandbox>> {
        pod::refuse_host_namespaces(spec)?;
        let mut slot = self.slot();
        if let Some(old) = slot.as_ref().filter(|s| s.death().is_none()) {
            let cause = format!("sandbox {} runs in this shim already", old.id);
            return Err(Failure::new(Stage::Request, cause).code(Code::AlreadyExists));
        }
        *slot = None;
        let path = options(asked.options)?.config_path;
        let config = self.config(Some(path).filter(|p| !p.is_empty()).map(PathBuf::from).as_deref(), spec)?;
        let base = Size { vcpus: config.default_vcpus, mib: config.default_memory };
        let demand = if config.static_sandbox_resource_mgmt { pod::told_demand(&spec.annotations) } else { pod::demand(spec) };
        let most = most(&config, base);
        size::check(demand, base, most)?;
        let size = size::at_boot(base, most, demand);
        let netns = self.door.enter(asked.network)?;
        let new = NewSandbox {
            id: asked.id.to_owned(),
            manager: format!("{} {}", if self.flags.address.is_empty() { "CRI-O" } else { "containerd" }, self.flags.namespace),
            size,
            hostname: spec.hostname.clone(),
            dns: Vec::new(),
            shm_size: pod::shm_size(spec),
            devices: Vec::new(),
            netns: Some(netns),
            public: None,
            annotations: spec.annotations.clone(),
            cgroup: cgroup::Wish {
                path: spec.linux.as_ref().map(|l| l.cgroups_path.clone()).unwrap_or_default(),
                only: config.sandbox_cgroup_only,
            },
            selinux_label: spec.process.as_ref().map(|p| p.selinux_label.clone()).filter(|_| !config.disable_selinux).unwrap_or_default(),
            oom_score_adj: spec.process.as_ref().map(|p| p.oom_score_adj).filter(|&n| n != 0),
            config,
        };
        let sandbox = Sandbox::start(new, &Progress::new(false))?;
        let ready = self.adopt(&sandbox, &spec.annotations);
        if let Err(e) = ready {
            sandbox.stop(false);
            return Err(e);
        }
        *slot = Some(sandbox.clone());
        Ok(sandbox)
    }

    /// The configuration for this pod: the file's, then what its annotations may change.
    fn config(&self, path: Option<&Path>, spec: &Spec) -> Result<Config> {
        let mut config = Config::load(&self.name, path)?;
        config.annotate(&spec.annotations)?;
        if config.runtime_debug {
            log::set_max_level(log::LevelFilter::Debug);
        }
        Ok(config)
    }

    /// What goes with the sandbox: its events, its socket for `osc exec`, ours in its record.
    fn adopt(self: &Arc<Self>, sandbox: &Arc<Sandbox>, annotations: &BTreeMap<String, String>) -> Result<()> {
        if let Some(path) = &self.socket {
            sandbox.owns(Thing::File { path: path.clone() })?;
        }
        let (shim, weak) = (Arc::downgrade(self), Arc::downgrade(sandbox));
        sandbox.observe(Box::new(move |event| {
            let Some(shim) = shim.upgrade() else { return };
            shim.tell(event);
            let Some(sandbox) = weak.upgrade() else { return };
            // The pod's own container is the pod: with its end the VM goes. On another thread, since this one still has
            // waiters to tell.
            if matches!(event, Event::Exit { container, exec, .. } if *container == sandbox.id && exec.is_empty()) {
                crate::thread::start("stop", move || {
                    let _ = sandbox.container(&sandbox.id).map(|c| c.init.wait());
                    sandbox.stop(false);
                });
            }
        }));
        let listener = face::listen(&sandbox.dir().join(SOCKET))?;
        face::open(vec![face::door(listener, vec![Task::of(Arc::new(self.clone()))]), monitor::door(sandbox, annotations)?]);
        Ok(())
    }

    /// An event of the sandbox as containerd is told it.
    fn tell(&self, event: &Event) {
        let pid = std::process::id();
        let send = |topic, kind: &str, m: Vec<u8>| self.events.publish(topic, &format!("containerd.events.{kind}"), m);
        match event {
            Event::Started { container, exec } if exec.is_empty() => {
                send("/tasks/start", "TaskStart", wire::TaskStart { container_id: container.clone(), pid }.encode_to_vec())
            }
            Event::Started { container, exec } => {
                let m = wire::TaskExecStarted { container_id: container.clone(), exec_id: exec.clone(), pid };
                send("/tasks/exec-started", "TaskExecStarted", m.encode_to_vec())
            }
            Event::ExecAdded { container, exec } => {
                let m = wire::TaskExecAdded { container_id: container.clone(), exec_id: exec.clone() };
                send("/tasks/exec-added", "TaskExecAdded", m.encode_to_vec())
            }
            Event::Exit { container, exec, exit } => {
                let id = if exec.is_empty() { container } else { exec }.clone();
                let (exit_status, exited_at) = (exit.status as u32, Some(timestamp(exit.at)));
                let m = wire::TaskExit { container_id: container.clone(), id, pid, exit_status, exited_at };
                send("/tasks/exit", "TaskExit", m.encode_to_vec())
            }
            Event::Deleted { container, exec, exit } => {
                let (exit_status, exited_at) = (exit.status as u32, Some(timestamp(exit.at)));
                let m = wire::TaskDelete { container_id: container.clone(), pid, exit_status, exited_at, id: exec.clone() };
                send("/tasks/delete", "TaskDelete", m.encode_to_vec())
            }
            Event::Oom { container } => send("/tasks/oom", "TaskOOM", wire::TaskOom { container_id: container.clone() }.encode_to_vec()),
            Event::Paused { container } => {
                send("/tasks/paused", "TaskPaused", wire::TaskPaused { container_id: container.clone() }.encode_to_vec())
            }
            Event::Resumed { container } => {
                send("/tasks/resumed", "TaskResumed", wire::TaskResumed { container_id: container.clone() }.encode_to_vec())
            }
        }
    }

    fn make(&self, sandbox: &Arc<Sandbox>, spec: Spec, r: &task::CreateTaskRequest) -> Result<()> {
        let bundle = PathBuf::from(&r.bundle);
        let target = bundle.join(spec.root.as_ref().map(|root| root.path.as_str()).unwrap_or("rootfs"));
        let debug = spec.annotations.contains_key(DEBUG);
        if debug && !sandbox.config.debug_console_enabled {
            let way_out = "set debug_console_enabled = true in [agent.kata] and start the pod again";
            return Err(Failure::new(Stage::Request, "shells in guests are off").code(Code::FailedPrecondition).way_out(way_out));
        }
        let rootfs = if debug {
            Rootfs::Overlay(target)
        } else if r.rootfs.is_empty() {
            Rootfs::Dir(target)
        } else {
            Rootfs::Mounts { mounts: mounts(&r.rootfs), target }
        };
        let names = Names { stdin: r.stdin.clone(), stdout: r.stdout.clone(), stderr: r.stderr.clone() };
        let whose = Whose { namespace: &self.flags.namespace, id: &r.id };
        let stdio = stdio::open(r.terminal, names, &whose).at(Stage::Container, || format!("stdio of {}", r.id))?;
        sandbox.create(NewContainer { id: r.id.clone(), spec, rootfs, stdio, bundle })?;
        let io = wire::TaskIo { stdin: r.stdin.clone(), stdout: r.stdout.clone(), stderr: r.stderr.clone(), terminal: r.terminal };
        let created = wire::TaskCreate {
            container_id: r.id.clone(),
            bundle: r.bundle.clone(),
            rootfs: r.rootfs.clone(),
            io: Some(io),
            checkpoint: String::new(),
            pid: std::process::id(),
        };
        self.events.publish("/tasks/create", "containerd.events.TaskCreate", created.encode_to_vec());
        Ok(())
    }

    /// The sandbox, once it was made; it may have ended since.
    fn living(&self) -> Option<Arc<Sandbox>> {
        self.slot().clone()
    }
}

/// The daemon as the Task API sees it.
impl Pod for Arc<Shim> {
    fn sandbox(&self) -> Result<Arc<Sandbox>> {
        self.living().ok_or_else(|| Failure::new(Stage::Request, "this shim has no container yet").code(Code::NotFound))
    }

    fn namespace(&self) -> &str {
        &self.flags.namespace
    }

    fn create(&self, r: task::CreateTaskRequest) -> Result<()> {
        let spec = pod::read_spec(Path::new(&r.bundle))?;
        match pod::kind(&spec)? {
            Kind::Container { sandbox: id } => {
                let sandbox = self.sandbox()?;
                if sandbox.id != id {
                    let cause = format!("container {} belongs to sandbox {id}; this shim has {}", r.id, sandbox.id);
                    return Err(Failure::new(Stage::Request, cause).code(Code::InvalidArgument));
                }
                self.make(&sandbox, spec, &r)
            }
            Kind::Single | Kind::Sandbox => {
                let sandbox = self.boot(&spec, Asked { id: &r.id, network: pod::network(&spec), options: r.options.as_ref() })?;
                self.make(&sandbox, spec, &r).inspect_err(|_| {
                    sandbox.stop(false);
                    *self.slot() = None;
                })
            }
        }
    }

    fn shutdown(&self) -> bool {
        // Asked after each container's Delete: the others stay.
        self.living().is_none_or(|s| s.container_ids().is_empty())
    }

    fn end(&self) {
        if let Some(sandbox) = self.living() {
            sandbox.stop(false);
        }
        self.events.flush(LAST_EVENTS);
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
        log::debug!("the shim ends");
        std::process::exit(0);
    }
}

/// The runtime options, which every manager names a little differently.
fn options(any: Option<&Any>) -> Result<Options> {
    let Some(any) = any.filter(|a| !a.value.is_empty()) else { return Ok(Options::default()) };
    let kind = any.type_url.rsplit('/').next().unwrap_or_default();
    if !kind.ends_with("runtimeoptions.v1.Options") {
        let cause = format!("runtime options of type {kind:?}");
        return Err(Failure::new(Stage::Request, cause)
            .code(Code::InvalidArgument)
            .way_out("this runtime takes runtimeoptions.v1.Options with ConfigPath only"));
    }
    Options::decode(any.value.as_slice())
        .map_err(|e| Failure::new(Stage::Request, format!("runtime options cannot be decoded: {e}")).code(Code::InvalidArgument))
}

fn mounts(given: &[containerd::Mount]) -> Vec<crate::rpc::wire::oci::Mount> {
    let one = |m: &containerd::Mount| crate::rpc::wire::oci::Mount {
        r#type: m.r#type.clone(),
        source: m.source.clone(),
        destination: String::new(),
        options: m.options.clone(),
        ..Default::default()
    };
    given.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_another_runtime_are_refused_by_name() {
        let given = |url: &str, value: Vec<u8>| options(Some(&Any { type_url: url.into(), value }));
        let ours = Options { config_path: "/c".into(), ..Default::default() }.encode_to_vec();
        for url in ["runtimeoptions.v1.Options", "types.containerd.io/runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"] {
            assert_eq!(given(url, ours.clone()).unwrap().config_path, "/c", "{url}");
        }
        assert_eq!(options(None).unwrap().config_path, "");
        let e = given("containerd.runc.v1.Options", vec![8, 1]).unwrap_err();
        assert!(e.code == Code::InvalidArgument && e.cause.contains("containerd.runc.v1.Options"), "{e}");
        assert_eq!(given("runtimeoptions.v1.Options", vec![0xff]).unwrap_err().code, Code::InvalidArgument);
    }
}
