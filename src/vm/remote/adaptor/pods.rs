//! The pods of this worker: each from CreateVM until its provider says that its VM is gone.
//!
//! What is about to be done is in the journal before it is done. One operation on a pod at a time; a stop does not wait for a
//! start but tells it to end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::journal::{Entry, Journal, Phase};
use super::link;
use super::metrics::Counts;
use super::pki::Authority;
use super::pod::{AGENT, Pod, lock};
use super::provider::{Provider, Wish, best_fit};
use super::settings::Settings;
use super::{fault, seed};
use crate::error::{At, Failure, Result, Stage};
use crate::net::{Namespace, vxlan};
use crate::rpc::Code;
use crate::rpc::tls::Caller;
use crate::rpc::wire::hypervisor::CreateVmRequest;

/// Between two tries to delete.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a stop waits for the VM's end where its caller says nothing.
const STOP: Duration = Duration::from_secs(30);

/// Between two tries to reach a booting VM.
const AGAIN: Duration = Duration::from_millis(50);

/// All pods.
pub struct Pods {
    pub(super) settings: Settings,
    pub(super) journal: Journal,
    pub(super) provider: Arc<dyn Provider>,
    /// `None`: no TLS.
    authority: Option<Authority>,
    pub(super) caller: Option<Caller>,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// A pod has changed.
    changed: Condvar,
    counts: Counts,
}

impl Pods {
    pub fn new(settings: Settings, journal: Journal, provider: Arc<dyn Provider>) -> Result<Arc<Pods>> {
        let authority = if settings.disable_tls { None } else { Some(Authority::of(&settings.pods_dir)?) };
        let caller = authority.as_ref().map(Authority::caller).transpose()?;
        Ok(Arc::new(Pods {
            settings,
            journal,
            provider,
            authority,
            caller,
            pods: Mutex::default(),
            changed: Condvar::new(),
            counts: Counts::default(),
        }))
    }

    pub(super) fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Pod>>> {
        lock(&self.pods)
    }

    pub fn find(&self, sandbox: &str) -> Result<Arc<Pod>> {
        self.pods()
            .get(sandbox)
            .cloned()
            .ok_or_else(|| Failure::new(Stage::Request, format!("no pod VM for sandbox {sandbox}")).code(Code::NotFound))
    }

    pub(super) fn dir(&self, sandbox: &str) -> PathBuf {
        self.journal.dir_of(sandbox)
    }

    pub(super) fn change(&self, pod: &Pod, act: impl FnOnce(&mut Entry)) -> Result<()> {
        let entry = {
            let mut entry = lock(&pod.entry);
            act(&mut entry);
            entry.clone()
        };
        self.changed.notify_all();
        self.journal.write(&entry).at(Stage::Agent, || format!("journal of {}", entry.sandbox))
    }

    /// The same for a start, which a stop may have overtaken.
    fn advance(&self, pod: &Pod, act: impl FnOnce(&mut Entry)) -> Result<()> {
        if lock(&pod.entry).phase == Phase::Stopping {
            return Err(stopped(&pod.entry().name));
        }
        self.change(pod, |e| {
            if e.phase != Phase::Stopping {
                act(e);
            }
        })
    }

    /// CreateVM: a name and a place; answers the agent's socket.
    pub fn create(&self, r: CreateVmRequest) -> Result<PathBuf> {
        check_id(&r.id)?;
        let socket = self.dir(&r.id).join(AGENT);
        let mut pods = self.pods();
        if let Some(pod) = pods.get(&r.id) {
            return match pod.entry().phase {
                Phase::Created | Phase::Requested | Phase::Running => Ok(socket),
                Phase::Lost | Phase::Stopping => {
                    Err(Failure::new(Stage::Request, format!("sandbox {} had a VM that is being deleted", r.id))
                        .code(Code::FailedPrecondition))
                }
            };
        }
        let limit = self.settings.pods_limit;
        if limit >= 0 && pods.len() as i64 >= limit {
            let cause = format!("PEERPODS_LIMIT_PER_NODE={limit}: this worker has {} pod VMs", pods.len());
            return Err(Failure::new(Stage::Request, cause).code(Code::ResourceExhausted));
        }
        let entry = self.describe(&r)?;
        fault("create");
        self.journal.write(&entry).at(Stage::Agent, || format!("journal of {}", r.id))?;
        fault("created");
        pods.insert(r.id, Pod::new(entry, self.caller.clone(), self.settings.forwarder_port));
        Ok(socket)
    }

    /// What the pod asks for.
    fn describe(&self, r: &CreateVmRequest) -> Result<Entry> {
        let of = |keys: &[&str]| keys.iter().find_map(|k| r.annotations.get(*k)).cloned().unwrap_or_default();
        let asked = |name: &str| r.annotations.get(&format!("io.katacontainers.config.hypervisor.{name}")).cloned().unwrap_or_default();
        let number = |name: &str| -> Result<f64> {
            let text = asked(name);
            let refuse = || Failure::new(Stage::Request, format!("annotation {name}={text}: no number")).code(Code::InvalidArgument);
            if text.is_empty() { Ok(0.0) } else { text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0).ok_or_else(refuse) }
        };
        let mut entry = Entry::new(&r.id);
        let pod = of(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"]);
        // CRI-O's own name for a sandbox: k8s_POD_NAMESPACE_UID_0.
        entry.pod = pod.strip_prefix("k8s_").and_then(|p| p.split('_').next()).unwrap_or(&pod).to_owned();
        entry.namespace = of(&["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"]);
        entry.netns = r.network_namespace_path.clone().into();
        entry.name = seed::vm_name(&entry.pod, &r.id);
        entry.image = asked("image");
        entry.vcpus = number("default_vcpus")?.ceil() as u32;
        entry.mib = number("default_memory")?.ceil() as u64;
        entry.instance_type = self.instance_type(&asked("machine_type"), entry.vcpus, entry.mib, number("default_gpus")? as u32)?;
        Ok(entry)
    }

    fn instance_type(&self, asked: &str, vcpus: u32, mib: u64, gpus: u32) -> Result<String> {
        let types = self.provider.instance_types();
        let refuse = |cause: String| {
            let names: Vec<&str> = types.iter().map(|t| t.name.as_str()).collect();
            Err(Failure::new(Stage::Request, cause).code(Code::InvalidArgument).way_out(format!("allowed: {}", names.join(", "))))
        };
        match asked {
            name if types.is_empty() && !name.is_empty() => {
                let cause = format!("instance type {name:?}: provider {} has none", self.settings.provider);
                let way_out = "ask for a size: annotations default_vcpus and default_memory";
                Err(Failure::new(Stage::Request, cause).code(Code::InvalidArgument).way_out(way_out))
            }
            _ if types.is_empty() => Ok(String::new()),
            "" if gpus == 0 && (vcpus == 0 || mib == 0) => Ok(String::new()),
            "" => match best_fit(&types, vcpus, mib, gpus) {
                Some(t) => Ok(t.name.clone()),
                None => refuse(format!("no instance type has {vcpus} vCPUs, {mib} MiB and {gpus} GPUs")),
            },
            name if types.iter().any(|t| t.name == name) => Ok(name.to_owned()),
            name => refuse(format!("instance type {name:?} is not allowed")),
        }
    }

    /// StartVM: makes the VM and waits for its agent. A second call for a pod that runs is the first one's.
    pub fn start(self: &Arc<Self>, sandbox: &str) -> Result<()> {
        let pod = self.find(sandbox)?;
        let _operation = lock(&pod.operation);
        match pod.entry().phase {
            Phase::Running => return Ok(()),
            Phase::Created | Phase::Requested => {}
            Phase::Lost | Phase::Stopping => {
                return Err(
                    Failure::new(Stage::Request, format!("the VM of sandbox {sandbox} is being deleted")).code(Code::FailedPrecondition)
                );
            }
        }
        let began = Instant::now();
        let made = self.make(&pod);
        match made {
            Ok(()) => {
                log::info!("{}: ready after {} ms", pod.entry().name, began.elapsed().as_millis());
                Ok(())
            }
            Err(e) => {
                let e = e.console(self.provider.last_words(sandbox));
                log::warn!("{}: {e}", pod.entry().name);
                self.condemn(&pod, &e.to_string());
                Err(e)
            }
        }
    }

    fn make(&self, pod: &Arc<Pod>) -> Result<()> {
        let entry = pod.entry();
        fault("request");
        let birth = Namespace::own()?;
        if !entry.netns.as_os_str().is_empty() {
            let netns = crate::net::endpoint::open(&entry.netns)?;
            let tunnels = vxlan::reserve(&birth, &netns, self.settings.vxlan_port, self.settings.vxlan_min_id)?;
            lock(&pod.entry).tunnels = tunnels;
        }
        self.advance(pod, |e| e.phase = Phase::Requested)?;
        fault("requested");
        let wish = self.wish(pod)?;
        let asked = Instant::now();
        let instance = self.provider.create(&wish).inspect_err(|_| self.counts.failed("create"))?;
        self.counts.took("create", asked.elapsed());
        let address = seed::first(&instance.addresses, &entry.name)?;
        fault("made");
        self.advance(pod, |e| (e.instance, e.addresses) = (instance.id, instance.addresses))?;
        fault("addressed");
        for tunnel in &pod.entry().tunnels {
            vxlan::connect(&birth, tunnel, address)?;
        }
        let made = Instant::now();
        self.reach(pod)?;
        self.counts.took("boot", made.elapsed());
        self.listen(pod)?;
        fault("reached");
        self.advance(pod, |e| e.phase = Phase::Running)?;
        fault("running");
        Ok(())
    }

    fn wish(&self, pod: &Arc<Pod>) -> Result<Wish> {
        let entry = pod.entry();
        let networks = seed::networks(&entry)?;
        let interface = self.settings.host_interface.clone();
        let signed = match &self.authority {
            Some(a) => Some((a.server(&entry.name)?, a.pem())),
            None => None,
        };
        let described = entry.clone();
        let user_data = move |near: Option<crate::net::Prefix>| {
            let worker = match near {
                Some(address) if interface.is_empty() => address,
                _ => seed::worker_address(&interface)?,
            };
            seed::user_data(&described, &networks, worker, signed.as_ref())
        };
        Ok(Wish {
            token: entry.sandbox,
            name: entry.name,
            vcpus: entry.vcpus,
            mib: entry.mib,
            instance_type: entry.instance_type,
            image: entry.image,
            user_data: Box::new(user_data),
        })
    }

    /// Waits until the VM's forwarder answers.
    fn reach(&self, pod: &Pod) -> Result<()> {
        let entry = pod.entry();
        let forwarder = pod.forwarder().ok_or_else(|| Failure::new(Stage::Network, "the VM has no address"))?;
        let until = Instant::now() + self.settings.proxy_timeout;
        let mut looked = Instant::now();
        let mut number = 0;
        loop {
            number += 1;
            let error = match forwarder.connect_booting(number) {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            if pod.cancelled.load(Ordering::SeqCst) {
                return Err(stopped(&entry.name));
            }
            if looked.elapsed() > self.provider.pace() {
                looked = Instant::now();
                if self.provider.list_owned().is_ok_and(|all| all.iter().all(|o| o.token != entry.sandbox || !o.alive)) {
                    return Err(Failure::new(Stage::Agent, format!("{}: the VM ended before its agent answered", entry.name)));
                }
            }
            if Instant::now() > until {
                let limit = self.settings.proxy_timeout.as_secs();
                let cause = format!("{}: no agent on {} port {} within {limit} s: {error}", entry.name, forwarder.address, forwarder.port);
                return Err(Failure::new(Stage::Agent, cause)
                    .way_out("see whether a firewall or security group lets that port through; PROXY_TIMEOUT is how long is waited"));
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Opens the pod's agent socket.
    pub(super) fn listen(&self, pod: &Arc<Pod>) -> Result<()> {
        let path = self.dir(&pod.entry().sandbox).join(AGENT);
        // Taken over in one step: nobody sees the VM without its socket.
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let bound = UnixListener::bind(&new).and_then(|l| fs::rename(&new, &path).map(|()| Arc::new(l)));
        let listener = bound.at(Stage::Agent, || format!("listen on {}", path.display()))?;
        *lock(&pod.listener) = Some(listener.clone());
        let pod = pod.clone();
        crate::thread::start("pod-listen", move || link::serve(&listener, &pod));
        Ok(())
    }

    /// StopVM: the VM goes, now or as soon as its provider lets it. Returns when it is gone, or after `limit`.
    pub fn stop(self: &Arc<Self>, sandbox: &str, limit: Option<Duration>) -> Result<()> {
        check_id(sandbox)?;
        let Ok(pod) = self.find(sandbox) else {
            // Nobody remembers it, so nothing else will delete it.
            return self.provider.delete(sandbox);
        };
        pod.cancelled.store(true, Ordering::SeqCst);
        fault("stop");
        self.condemn(&pod, "");
        let until = Instant::now() + limit.unwrap_or(STOP);
        let mut pods = self.pods();
        while pods.contains_key(sandbox) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::warn!("{}: its deletion goes on", pod.entry().name);
                break;
            }
            pods = self.changed.wait_timeout(pods, left).unwrap_or_else(|p| p.into_inner()).0;
        }
        Ok(())
    }

    /// Writes down that the VM has to go, and has it deleted until it has.
    pub(super) fn condemn(self: &Arc<Self>, pod: &Arc<Pod>, error: &str) {
        let written = self.change(pod, |e| {
            e.phase = Phase::Stopping;
            if !error.is_empty() {
                e.error = error.to_owned();
            }
        });
        if let Err(e) = written {
            log::error!("{e}");
        }
        fault("stopping");
        pod.shut(&self.dir(&pod.entry().sandbox));
        if !pod.deleting.swap(true, Ordering::SeqCst) {
            let (pods, pod) = (self.clone(), pod.clone());
            crate::thread::start("pod-delete", move || pods.delete(&pod));
        }
    }

    fn delete(&self, pod: &Arc<Pod>) {
        let sandbox = pod.entry().sandbox;
        let mut pause = FIRST_PAUSE;
        let _operation = lock(&pod.operation);
        // A start that was under way may have added to it.
        let entry = pod.entry();
        pod.shut(&self.dir(&sandbox));
        let began = Instant::now();
        while let Err(e) = self.provider.delete(&sandbox) {
            self.counts.failed("delete");
            log::error!("{}: delete: {e}; tried again in {} s", entry.name, pause.as_secs_f32());
            let _ = self.change(pod, |entry| (entry.phase, entry.error) = (Phase::Stopping, format!("delete: {e}")));
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.counts.took("delete", began.elapsed());
        fault("deleted");
        for tunnel in &entry.tunnels {
            if let Err(e) = Namespace::own().and_then(|birth| vxlan::remove(&birth, tunnel)) {
                log::warn!("{}: {e}", entry.name);
            }
        }
        if let Err(e) = self.journal.remove(&sandbox) {
            log::error!("{}: {e}", self.dir(&sandbox).display());
        }
        self.pods().remove(&sandbox);
        self.changed.notify_all();
        log::info!("{}: gone", entry.name);
    }

    pub fn count(&self) -> usize {
        self.pods().len()
    }

    /// Waits for at most `limit` until there are no pods; whether there are none.
    pub fn until_none(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut pods = self.pods();
        while !pods.is_empty() {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            pods = self.changed.wait_timeout(pods, left).unwrap_or_else(|p| p.into_inner()).0;
        }
        true
    }

    /// The last that is done here. What is there for pods goes where there are none.
    pub fn leave(&self) {
        let pods = self.pods();
        if pods.is_empty() {
            Authority::forget(&self.settings.pods_dir);
        }
        // Nobody adds one after that.
        std::mem::forget(pods);
    }

    /// Figures for Prometheus.
    pub fn metrics(&self) -> String {
        let mut states: BTreeMap<String, u64> = BTreeMap::new();
        let all: Vec<Arc<Pod>> = self.pods().values().cloned().collect();
        all.iter().for_each(|p| *states.entry(format!("{:?}", p.entry().phase)).or_default() += 1);
        self.counts.render(&states)
    }

    /// The id of the VM of a pod by its name; waits for one for at most `limit`.
    pub fn instance(&self, pod: &str, namespace: &str, limit: Duration) -> Option<String> {
        let until = Instant::now() + limit;
        let mut pods = self.pods();
        loop {
            let is = |e: &Entry| e.pod == pod && e.namespace == namespace && !e.instance.is_empty();
            if let Some(entry) = pods.values().map(|p| p.entry()).find(is) {
                return Some(entry.instance);
            }
            let left = until.checked_duration_since(Instant::now())?;
            pods = self.changed.wait_timeout(pods, left).unwrap_or_else(|p| p.into_inner()).0;
        }
    }
}

fn stopped(name: &str) -> Failure {
    Failure::new(Stage::Agent, format!("{name}: stopped while it was started")).code(Code::Cancelled)
}

/// A sandbox's id becomes the name of a directory.
fn check_id(id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(plain) {
        return Err(Failure::new(Stage::Request, format!("{id:?} is no sandbox id")).code(Code::InvalidArgument));
    }
    Ok(())
}
