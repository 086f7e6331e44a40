//! Calls about containers.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::{AgentService, Answer, DONE, devices, invalid};
use crate::agent::container::{Container, Env};
use crate::agent::guest::{Guest, Member, Process, lock};
use crate::agent::stdio::{Ports, Prepared};
use crate::agent::storage::Held;
use crate::fs::share::GUEST_ROOT;
use crate::rpc::wire::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest, StartContainerRequest,
    StatsContainerRequest, StatsContainerResponse, StringUser, UpdateContainerRequest,
};
use crate::rpc::wire::google::Empty;
use crate::rpc::wire::oci::Spec;
use crate::rpc::{Code, Status};

impl AgentService {
    /// Everything up to the moment before its program would run. A failure leaves nothing.
    pub(super) fn create_container(&self, r: CreateContainerRequest) -> Answer<Empty> {
        let guest = &*self.guest;
        let mut spec = r.oci.ok_or_else(|| invalid("CreateContainer without an OCI specification"))?;
        no_user_by_name(r.string_user.as_ref())?;
        if !r.shared_mounts.is_empty() {
            return Err(Status::new(Code::Unimplemented, "mounts of another container cannot be shown here; share a volume instead"));
        }
        valid_id(&r.container_id)?;
        guest.settled.pass();
        let place = guest.reserve(&r.container_id)?;
        guest.shares(&r.container_id, shared(&spec));
        let storages = Held(guest.storages.add_all(&r.storages)?);
        devices::resolve(&guest.storages, &r.devices, &mut spec)?;
        let terminal = spec.process.as_ref().is_some_and(|p| p.terminal);
        let ports = Ports { stdin: r.stdin_port, stdout: r.stdout_port, stderr: r.stderr_port };
        let (prepared, given) = Prepared::new(&guest.streams, ports, terminal).map_err(super::failed("stdio"))?;
        let env = environment(guest, r.sandbox_pidns);
        let (container, made) = Container::create(&r.container_id, &spec, given, &env)?;
        let stdio = match prepared.start(&short(&r.container_id), made.terminal) {
            Ok(stdio) => stdio,
            Err(e) => {
                let _ = container.delete();
                return Err(super::failed("stdio")(e));
            }
        };
        adopt_pid_namespace(guest, made.process.pid());
        if let Err(e) = guest.ooms.watch(&r.container_id, container.cgroup()) {
            log::warn!("container {}: OOM kills will not be told: {e}", r.container_id);
        }
        place.fill(Member {
            id: r.container_id.clone(),
            container,
            first: Process { watched: made.process, stdio },
            execs: Mutex::default(),
            removal: Mutex::default(),
            storages: Mutex::new(Some(storages)),
        });
        DONE
    }

    pub(super) fn start_container(&self, r: StartContainerRequest) -> Answer<Empty> {
        self.guest.container(&r.container_id)?.container.start()?;
        DONE
    }

    /// Ends what runs and undoes what was made. `timeout` seconds, 0 for as long as it takes; after a failure it can be asked
    /// for again.
    pub(super) fn remove_container(&self, r: RemoveContainerRequest) -> Answer<Empty> {
        let guest = self.guest.clone();
        let member = guest.container(&r.container_id)?;
        let removal = move || remove(&guest, &member);
        if r.timeout == 0 {
            return removal().and(DONE);
        }
        let (done, wait) = sync_channel(1);
        crate::thread::start("osc-remove", move || {
            let _ = done.send(removal());
        });
        match wait.recv_timeout(Duration::from_secs(r.timeout.into())) {
            Ok(result) => result.and(DONE),
            Err(RecvTimeoutError::Timeout) => Err(Status::new(
                Code::DeadlineExceeded,
                format!("container {}: not removed within {} s; the removal goes on", r.container_id, r.timeout),
            )),
            Err(RecvTimeoutError::Disconnected) => Err(Status::new(Code::Internal, "the removal ended without a result")),
        }
    }

    pub(super) fn update_container(&self, r: UpdateContainerRequest) -> Answer<Empty> {
        let resources = r.resources.ok_or_else(|| invalid("UpdateContainer without resources"))?;
        self.guest.container(&r.container_id)?.container.update(&resources)?;
        DONE
    }

    pub(super) fn stats_container(&self, r: StatsContainerRequest) -> Answer<StatsContainerResponse> {
        let cgroup_stats = Some(self.guest.container(&r.container_id)?.container.stats()?);
        Ok(StatsContainerResponse { cgroup_stats, network_stats: super::metrics::network() })
    }

    pub(super) fn pause_container(&self, r: PauseContainerRequest) -> Answer<Empty> {
        self.guest.container(&r.container_id)?.container.pause()?;
        DONE
    }

    pub(super) fn resume_container(&self, r: ResumeContainerRequest) -> Answer<Empty> {
        self.guest.container(&r.container_id)?.container.resume()?;
        DONE
    }
}

/// Ends `member` and takes it out of the table.
pub(super) fn remove(guest: &Guest, member: &std::sync::Arc<Member>) -> Result<(), Status> {
    let _removal = lock(&member.removal);
    member.container.delete()?;
    guest.ooms.forget(&member.id);
    member.close_stdio();
    drop(lock(&member.storages).take());
    guest.forget(member);
    Ok(())
}

/// What a container has of the host's files.
fn shared(spec: &Spec) -> impl Iterator<Item = PathBuf> {
    let paths = spec.mounts.iter().map(|m| &m.source).chain(spec.root.iter().map(|r| &r.path));
    paths.map(PathBuf::from).filter(|p| p.starts_with(GUEST_ROOT))
}

/// What containers of this guest share. The pod's network, IPC and UTS namespaces are the guest's own: the guest is the pod.
fn environment(guest: &Guest, shared_pids: bool) -> Env {
    let sandbox = guest.sandbox();
    Env {
        reaper: guest.reaper.clone(),
        pid_namespace: if shared_pids || sandbox.shared_pids { sandbox.pid_namespace.clone() } else { None },
    }
}

/// The first container of a pod is the one that brings the PID namespace which others may join.
fn adopt_pid_namespace(guest: &Guest, pid: i32) {
    let mut sandbox = guest.sandbox();
    if sandbox.pid_namespace.is_none() {
        sandbox.pid_namespace = std::fs::File::open(format!("/proc/{pid}/ns/pid")).ok().map(|f| std::sync::Arc::new(f.into()));
    }
}

/// A container's id becomes the name of a directory and of a cgroup.
fn valid_id(id: &str) -> Answer<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.chars().all(plain) {
        return Err(invalid(format!("container id {id:?} is not made of letters, digits, '_', '.' and '-'")));
    }
    Ok(())
}

/// Kata's shims send numbers; a name would have to be looked up in the container's root.
pub(super) fn no_user_by_name(user: Option<&StringUser>) -> Answer<()> {
    match user {
        Some(u) if !u.uid.is_empty() || !u.gid.is_empty() || !u.additional_gids.is_empty() => {
            Err(Status::new(Code::Unimplemented, format!("user {:?} by name: send its numbers in the specification", u.uid)))
        }
        _ => Ok(()),
    }
}

/// Enough of an id to tell threads apart in `ps`.
pub(super) fn short(id: &str) -> String {
    id.chars().take(8).collect()
}
