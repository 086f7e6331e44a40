//! THE pod: VM, agent client, share, containers. One way to start, one to clean up.
//!
//! A start is a row of phases, each recorded before it is done; an error in any of them undoes all that stands and says
//! in which phase it arose. From then on two threads watch QEMU and virtiofsd: whichever dies first is the reason that
//! every waiter, the record and the log are given.

pub mod agent;
pub mod block;
mod boot;
mod calls;
pub mod cgroup;
pub mod cleanup;
pub mod container;
pub mod direct;
mod elsewhere;
mod figures;
pub mod files;
mod guest_pull;
pub mod hooks;
pub mod io;
mod live;
pub mod network;
pub mod process;
pub mod record;
mod selinux;
pub mod size;
mod spec;
mod subpath;
mod trees;
pub mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};

use agent::Agent;
pub use boot::{dry_run, host_memory_mib, most};
pub use container::{Container, Event, NewContainer};
use files::Files;
pub use process::{Exit, LOST, Process, State};
use record::{Claim, Record};

use super::progress::Progress;
use crate::config::Config;
use crate::error::{At, Failure, Result, Stage};
use crate::fs::image::GuestImage;
use crate::fs::virtiofsd::Virtiofsd;
use crate::rpc::Code;
use crate::rpc::wire::agent as wire;
use crate::vm::{Device, Size, Vm};

/// How long the guest may take to stop its containers, write back and power off.
const GRACE: Duration = Duration::from_secs(10);

/// What a sandbox is asked to be.
pub struct NewSandbox {
    pub id: String,
    /// Who asks: `osc run`, `containerd default`.
    pub manager: String,
    pub config: Config,
    /// What the VM boots with.
    pub size: Size,
    pub hostname: String,
    pub dns: Vec<String>,
    /// Size of the pod's /dev/shm, bytes.
    pub shm_size: u64,
    /// Devices besides the share and the NICs of `netns`.
    pub devices: Vec<Device>,
    /// The pod's network namespace, whose interfaces become the guest's; without one the guest has none.
    pub netns: Option<PathBuf>,
    /// A namespace of its own with a way out to the internet, and to these ranges besides (`osc run --network public`).
    pub public: Option<Vec<crate::net::Prefix>>,
    /// The specification's: the pod's name and namespace among them.
    pub annotations: BTreeMap<String, String>,
    /// Where the pod's processes are accounted on the host.
    pub cgroup: cgroup::Wish,
    /// `oom_score_adj` of QEMU and virtiofsd.
    pub oom_score_adj: Option<i64>,
    /// SELinux label of the same; empty for none.
    pub selinux_label: String,
}

/// What happens in a sandbox is told here, from threads of the sandbox.
pub type Observer = Box<dyn Fn(&Event) + Send + Sync>;

/// A running sandbox.
pub struct Sandbox {
    pub id: String,
    pub config: Config,
    /// Of a VM on this host.
    pub image: Option<GuestImage>,
    files: Files,
    disks: Arc<block::Disks>,
    vm: Arc<dyn Vm>,
    agent: Arc<Agent>,
    record: Record,
    cgroups: cgroup::Placed,
    sizing: size::Sizing,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    end: Mutex<End>,
    died: Condvar,
    observer: OnceLock<Observer>,
    /// Mount points of the volumes in the guest's memory that the pod holds.
    volumes: Mutex<BTreeSet<String>>,
    /// Ids of containers that are being made.
    creating: Mutex<BTreeSet<String>>,
    /// Held by whoever takes the sandbox down; the next finds it done.
    stopping: Mutex<bool>,
    network: Option<network::Live>,
    _localhost: Option<std::fs::File>,
}

/// How it ended, once it has.
#[derive(Default)]
struct End {
    /// The first reason there was: it was stopped, or it died.
    death: Option<Failure>,
    /// Of what it died while it was being stopped.
    loss: Option<Failure>,
}

/// An id that is taken and whose sandbox has not started yet: dropped, it is given back with all that its record names.
pub struct Claimed(Option<Record>);

/// An id between the begin and the end of its creation.
struct Reserved<'a> {
    sandbox: &'a Sandbox,
    id: String,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.sandbox.creating.lock().unwrap_or_else(|p| p.into_inner()).remove(&self.id);
    }
}

/// The id becomes a file name, a cgroup's and an argument of QEMU.
pub fn check_id(id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.is_empty() || id.len() > 128 || !id.chars().all(plain) || !id.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let way_out = "1 to 128 of a-z A-Z 0-9 _ . -, the first a letter or digit";
        return Err(Failure::new(Stage::Request, format!("{id:?} is no id")).code(Code::InvalidArgument).way_out(way_out));
    }
    Ok(())
}

impl Sandbox {
    /// Starts a sandbox: image, share, VM, agent. On an error nothing is left.
    pub fn start(new: NewSandbox, progress: &Progress) -> Result<Arc<Sandbox>> {
        Sandbox::claim(&new.id, &new.manager)?.start(new, progress)
    }

    /// Takes `id` for `manager`, for who has something to make before the start.
    pub fn claim(id: &str, manager: &str) -> Result<Claimed> {
        check_id(id)?;
        for swept in cleanup::sweep_all() {
            match swept.result {
                Ok(()) => log::info!("swept what sandbox {} left", swept.sandbox),
                Err(e) => log::warn!("sandbox {} was left by a process that died and cannot be swept: {e}", swept.sandbox),
            }
        }
        let record = Record::claim(id, manager, cleanup::undo_dir).map_err(|e| match e {
            Claim::Taken { manager } => Failure::new(Stage::Request, format!("sandbox {id} exists already ({manager})"))
                .code(Code::AlreadyExists)
                .way_out("choose another id, or stop that one"),
            Claim::Io(e) => Failure::new(Stage::Request, format!("state directory of {id}: {e}")).way_out("see whether /run is full"),
        })?;
        Ok(Claimed(Some(record)))
    }

    fn boot(mut new: NewSandbox, record: Record, cgroups: cgroup::Placed, progress: &Progress) -> Result<Arc<Sandbox>> {
        let base = Size { vcpus: new.config.default_vcpus, mib: new.config.default_memory };
        let most = most(&new.config, new.size);
        let booted = boot::boot(&mut new, &record, progress).inspect_err(|_| cgroups.leave())?;
        let caps = booted.vm.caps();
        let grows = !new.config.static_sandbox_resource_mgmt && (caps.hotplug_cpu || caps.hotplug_memory);
        let sizing = size::Sizing::new(base, new.size, most.vcpus, grows);
        let disks = block::Disks::new(booted.vm.clone(), &new.config);
        let sandbox = Arc::new(Sandbox {
            id: new.id,
            config: new.config,
            image: booted.image,
            files: booted.files,
            disks,
            vm: booted.vm,
            agent: booted.agent,
            record,
            cgroups,
            sizing,
            containers: Mutex::default(),
            end: Mutex::default(),
            died: Condvar::new(),
            observer: OnceLock::new(),
            volumes: Mutex::default(),
            creating: Mutex::default(),
            stopping: Mutex::default(),
            network: booted.network,
            _localhost: booted.localhost,
        });
        if let Some(network) = &sandbox.network {
            let served = network.watch(&sandbox).and_then(|()| network.serve_localhost(sandbox.vm.clone(), &sandbox.record));
            served.inspect_err(|_| sandbox.vm.stop(Duration::ZERO))?;
        }
        sandbox.watch(booted.daemon);
        sandbox.watch_ooms();
        Ok(sandbox)
    }

    /// Makes the guest's network follow the namespace's.
    pub fn refresh_network(&self) -> Result<()> {
        match &self.network {
            Some(network) => network.refresh(self.vm.as_ref(), &self.agent, &self.record).map_err(|e| self.explain(e)),
            None => Ok(()),
        }
    }

    /// Who is told of events. Only the first call counts.
    pub fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    /// Something made elsewhere that goes with the sandbox.
    pub fn owns(&self, thing: record::Thing) -> Result<()> {
        self.record.done(thing).at(Stage::Request, || "record")
    }

    /// An empty directory that goes with this sandbox.
    pub fn directory(&self, path: &Path) -> Result<()> {
        cleanup::own_directory(&self.record, path)
    }

    /// Where the sandbox's state lies.
    pub fn dir(&self) -> &Path {
        self.record.dir()
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Makes a container; it waits to be started.
    pub fn create(self: &Arc<Sandbox>, new: NewContainer) -> Result<Arc<Container>> {
        check_id(&new.id)?;
        let _creating = self.reserve(&new.id)?;
        if self.containers().contains_key(&new.id) {
            return Err(Failure::new(Stage::Container, format!("container {} exists already", new.id)).code(Code::AlreadyExists));
        }
        if let Some(death) = self.death() {
            return Err(death);
        }
        let container = Container::create(self, new).map_err(|e| self.explain(e))?;
        self.containers().insert(container.id.clone(), container.clone());
        Ok(container)
    }

    /// Has the guest mount volumes that outlive the containers which use them; each once.
    fn hold_volumes(&self, storages: &[wire::Storage]) -> Result<()> {
        let mut held = self.volumes.lock().unwrap_or_else(|p| p.into_inner());
        for storage in storages.iter().filter(|s| !held.contains(&s.mount_point)).collect::<Vec<_>>() {
            // The same sandbox may be "created" again: it is how a volume comes to be the pod's and not a container's.
            let request = wire::CreateSandboxRequest { sandbox_id: self.id.clone(), storages: vec![storage.clone()], ..Default::default() };
            self.agent.tell("CreateSandbox", &request).map_err(|s| agent::failed(&format!("volume {}", storage.mount_point), s))?;
            held.insert(storage.mount_point.clone());
        }
        Ok(())
    }

    /// Keeps a second create of the same id out while the first is under way.
    fn reserve(&self, id: &str) -> Result<Reserved<'_>> {
        if !self.creating.lock().unwrap_or_else(|p| p.into_inner()).insert(id.to_owned()) {
            return Err(Failure::new(Stage::Container, format!("container {id} is being created")).code(Code::AlreadyExists));
        }
        Ok(Reserved { sandbox: self, id: id.to_owned() })
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers().get(id).cloned().ok_or_else(|| Failure::new(Stage::Container, format!("no container {id}")).code(Code::NotFound))
    }

    /// Ids of its containers.
    pub fn container_ids(&self) -> Vec<String> {
        self.containers().keys().cloned().collect()
    }

    /// Takes a container that is not running out of the sandbox.
    pub fn remove(&self, id: &str) -> Result<Exit> {
        let container = self.container(id)?;
        let exit = match container.init.state() {
            State::Stopped(exit) => exit,
            State::Created => Exit { status: 0, at: SystemTime::now() },
            State::Running => {
                let way_out = "kill it first";
                return Err(Failure::new(Stage::Container, format!("container {id} is running"))
                    .code(Code::FailedPrecondition)
                    .way_out(way_out));
            }
        };
        container.release(self);
        self.containers().remove(id);
        self.tell(&Event::Deleted { container: id.into(), exec: String::new(), exit });
        Ok(exit)
    }

    /// Blocks until the sandbox has ended; true if it was stopped, false if it died.
    pub fn wait_end(&self) -> bool {
        let mut end = self.end();
        while end.death.is_none() {
            end = self.died.wait(end).unwrap_or_else(|p| p.into_inner());
        }
        drop(end);
        *self.stopping.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// The figures of all its containers together; the network's are the pod's own.
    pub fn stats(&self) -> Result<wire::StatsContainerResponse> {
        let containers: Vec<_> = self.containers().values().cloned().collect();
        let mut sum = wire::StatsContainerResponse::default();
        for container in containers {
            // One that ends meanwhile has no figures any more.
            if let Ok(figures) = container.stats() {
                super::stats::add(&mut sum, figures);
            }
        }
        Ok(sum)
    }

    /// Why the sandbox died, once it has.
    pub fn death(&self) -> Option<Failure> {
        self.end().death.clone()
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// An error in the light of what is known: a call that fails because the VM died is told as the VM's death.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        if failure.code != Code::Unavailable {
            return failure;
        }
        self.told(|end| end.death.clone()).unwrap_or(failure)
    }

    /// What `of` finds at the end: a broken connection is often seen before the watchers have told why.
    fn told(&self, of: impl Fn(&End) -> Option<Failure>) -> Option<Failure> {
        const TOLD: Duration = Duration::from_secs(2);
        let (end, _) = self.died.wait_timeout_while(self.end(), TOLD, |e| of(e).is_none()).unwrap_or_else(|p| p.into_inner());
        of(&end)
    }

    /// Ends the sandbox: its guest, its VM, everything on the host. `keep` leaves the state directory (what `osc logs` and
    /// `osc ps --all` read of a detached run that ended). Answers of what the sandbox had died before its guest had put
    /// everything away: then also a command that ended well may have lost what it wrote.
    pub fn stop(&self, keep: bool) -> Option<Failure> {
        let mut stopped = self.stopping.lock().unwrap_or_else(|p| p.into_inner());
        if std::mem::replace(&mut *stopped, true) {
            return None;
        }
        if let Some(network) = &self.network {
            network.close();
        }
        let lost = self.death().or_else(|| self.end_guest());
        self.vm.stop(GRACE);
        self.agent.close();
        let containers: Vec<_> = self.containers().values().cloned().collect();
        containers.iter().for_each(|c| c.release(self));
        self.cgroups.leave();
        if keep {
            for container in containers.iter().filter(|_| lost.is_some()) {
                let reason = lost.as_ref().map(|l| l.to_string()).unwrap_or_default();
                self.record.exited(&container.id, LOST, &reason).unwrap_or_else(|e| log::warn!("record of {}: {e}", self.id));
            }
            let errors = record::read(self.dir()).map(|story| cleanup::undo(&story)).unwrap_or_default();
            errors.iter().for_each(|e| log::warn!("{e}"));
            if let Err(e) = std::fs::write(self.dir().join("ended"), "") {
                log::warn!("{}: {e}", self.dir().display());
            }
        } else {
            clean(self.dir());
        }
        lost
    }

    /// Has the guest stop its containers, write back and power off.
    fn end_guest(&self) -> Option<Failure> {
        // An expected end is no failure, but it is the reason that a later call is given.
        self.set_death(Failure::new(Stage::Agent, "the sandbox was stopped").code(Code::Unavailable));
        let answer: Result<crate::rpc::wire::google::Empty, _> =
            self.agent.call("DestroySandbox", &wire::DestroySandboxRequest::default(), Some(GRACE));
        let broken = answer.err().filter(|status| status.code == Code::Unavailable)?;
        Some(self.told(|end| end.loss.clone()).unwrap_or_else(|| agent::failed("end the sandbox", broken)))
    }

    /// Two watchers: the VM and the share's daemon. Whichever dies first is the reason.
    fn watch(self: &Arc<Sandbox>, daemon: Option<Arc<Virtiofsd>>) {
        let (weak, vm) = (Arc::downgrade(self), self.vm.clone());
        crate::thread::start("watch-vm", move || {
            let exit = vm.wait();
            if let Some(sandbox) = weak.upgrade() {
                sandbox.lost(Failure::new(Stage::Qemu, exit.reason).console(sandbox.vm.console_tail(CONSOLE_LINES)));
            }
        });
        let Some(daemon) = daemon else { return };
        let weak = Arc::downgrade(self);
        crate::thread::start("watch-virtiofsd", move || {
            let end = daemon.wait();
            let Some(sandbox) = weak.upgrade() else { return };
            // It also ends by itself when QEMU hangs up, whose death is then the reason and seen a moment later.
            if !boot::followed(&end, sandbox.vm.as_ref()) {
                sandbox.lost(boot::daemon_died(&end));
                sandbox.vm.stop(Duration::ZERO);
            }
        });
    }

    /// Tells of every OOM kill in the guest, for as long as it lives.
    fn watch_ooms(self: &Arc<Self>) {
        let (weak, agent) = (Arc::downgrade(self), self.agent.clone());
        crate::thread::start("watch-oom", move || {
            while let Ok(event) = agent.call::<_, wire::OomEvent>("GetOOMEvent", &wire::GetOomEventRequest::default(), None) {
                let Some(sandbox) = weak.upgrade() else { return };
                if let Ok(container) = sandbox.container(&event.container_id) {
                    // CRI-O looks for it once its Wait has returned.
                    if let Err(e) = std::fs::write(container.bundle.join("oom"), "") {
                        log::warn!("container {}: {}: {e}", container.id, container.bundle.display());
                    }
                    sandbox.tell(&Event::Oom { container: container.id.clone() });
                }
            }
        });
    }

    fn lost(&self, why: Failure) {
        let why = why.code(Code::Unavailable);
        if self.set_death(why.clone()) {
            log::error!("{why}");
        }
        self.end().loss.get_or_insert(why);
        self.died.notify_all();
        self.agent.close();
    }

    /// True if this is the first reason given.
    fn set_death(&self, why: Failure) -> bool {
        let mut end = self.end();
        let first = end.death.is_none();
        end.death.get_or_insert(why);
        self.died.notify_all();
        first
    }

    /// A process has ended: the record and the face above are told before its waiters.
    fn ended(&self, process: &Process, exit: Exit) {
        if process.exec.is_empty() {
            let reason = self.death().map(|d| d.to_string()).unwrap_or_default();
            if let Err(e) = self.record.exited(&process.container, exit.status, &reason) {
                log::warn!("record of {}: {e}", self.id);
            }
        }
        self.tell(&Event::Exit { container: process.container.clone(), exec: process.exec.clone(), exit });
    }

    fn tell(&self, event: &Event) {
        if let Some(observer) = self.observer.get() {
            observer(event);
        }
    }
}

impl Claimed {
    /// Makes an empty directory that only root enters; it goes with the sandbox, whoever cleans up after it.
    pub fn directory(&self, path: &Path) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |record| cleanup::own_directory(record, path))
    }

    /// Starts the sandbox that the id was taken for.
    pub fn start(mut self, new: NewSandbox, progress: &Progress) -> Result<Arc<Sandbox>> {
        let Some(record) = self.0.take() else { return Err(Failure::new(Stage::Request, "the id was given back")) };
        let dir = record.dir().to_owned();
        let cgroups = cgroup::enter(&new.cgroup, &new.id, &record).inspect_err(|_| clean(&dir))?;
        Sandbox::boot(new, record, cgroups, progress).inspect_err(|_| clean(&dir))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(record) = self.0.take() {
            clean(record.dir());
        }
    }
}

/// Lines of the console that an error carries.
const CONSOLE_LINES: usize = 20;

fn clean(dir: &Path) {
    if let Err(e) = cleanup::undo_dir(dir) {
        log::warn!("clean up {}: {e} (`osc reap` tries again)", dir.display());
    }
}
