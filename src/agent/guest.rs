//! What the guest holds: its containers and what they share.
//!
//! The table's lock is held to look up and to change it, never across a call that can wait. A container that is being made
//! occupies its name; all else about a container is behind locks of its own.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::container::Container;
use super::modules::Modules;
use super::oom::Ooms;
use super::reaper::{Reaper, Watched};
use super::stdio::Stdio;
use super::storage::{Held, Storages};
use super::streams::Streams;
use super::uevent::Uevents;
use crate::rpc::{Code, Status};

/// Execs whose end was told and that are kept for late readers of their output.
const ENDED_EXECS: usize = 16;

/// Everything the service works with. One per guest.
pub struct Guest {
    pub modules: Arc<Modules>,
    pub events: Uevents,
    pub reaper: Reaper,
    pub storages: Arc<Storages>,
    pub streams: Streams,
    pub ooms: Ooms,
    /// Opens when the guest is all that containers need.
    pub settled: Gate,
    pub sandbox: Mutex<Sandbox>,
    containers: Mutex<HashMap<String, Option<Arc<Member>>>>,
    /// What containers had of the share: (container, path).
    shared: Mutex<Vec<(String, PathBuf)>>,
}

/// The pod's identity, from CreateSandbox.
#[derive(Default)]
pub struct Sandbox {
    pub id: String,
    pub hooks: String,
    /// The pod's containers see each other's processes.
    pub shared_pids: bool,
    /// The namespace for that: the first container's.
    pub pid_namespace: Option<Arc<OwnedFd>>,
    pub storages: Option<Held>,
}

/// One container with its processes.
pub struct Member {
    pub id: String,
    pub container: Container,
    pub first: Process,
    pub execs: Mutex<VecDeque<Arc<Exec>>>,
    /// Taken by whoever removes the container; a second one waits for the first.
    pub removal: Mutex<()>,
    pub storages: Mutex<Option<Held>>,
}

/// A process and its stdio.
pub struct Process {
    pub watched: Watched,
    pub stdio: Stdio,
}

pub struct Exec {
    pub id: String,
    pub process: Process,
}

impl Guest {
    pub fn new(modules: Arc<Modules>, events: Uevents, reaper: Reaper) -> std::io::Result<Guest> {
        let programs = reaper.clone();
        let run = Box::new(move |spawn, said: &mut dyn FnMut() -> String| {
            let program = programs.spawn(spawn)?;
            let text = said();
            Ok((program.wait(), text))
        });
        let storages = Storages::new(super::storage::Host { modules: modules.clone(), events: events.clone(), run });
        Ok(Guest {
            modules,
            events,
            reaper,
            storages,
            streams: Streams::default(),
            ooms: Ooms::new()?,
            settled: Gate::default(),
            sandbox: Mutex::default(),
            containers: Mutex::default(),
            shared: Mutex::default(),
        })
    }

    pub fn sandbox(&self) -> MutexGuard<'_, Sandbox> {
        lock(&self.sandbox)
    }

    /// Occupies the name `id` until the reservation is filled or dropped.
    pub fn reserve<'a>(&'a self, id: &'a str) -> Result<Reservation<'a>, Status> {
        let mut containers = lock(&self.containers);
        if containers.contains_key(id) {
            return Err(Status::new(Code::AlreadyExists, format!("container {id} exists already")));
        }
        containers.insert(id.to_owned(), None);
        Ok(Reservation { guest: self, id, filled: false })
    }

    /// Container `id`; one that is still being made is not found.
    pub fn container(&self, id: &str) -> Result<Arc<Member>, Status> {
        lock(&self.containers)
            .get(id)
            .and_then(Clone::clone)
            .ok_or_else(|| Status::new(Code::NotFound, format!("container {id} does not exist")))
    }

    pub fn containers(&self) -> Vec<Arc<Member>> {
        lock(&self.containers).values().flatten().cloned().collect()
    }

    /// Container `id` has `paths` of the share. Looks at those of containers that have gone: the kernel keeps a name which it
    /// has looked up once, and virtiofsd a descriptor for that, until somebody finds it gone. What is there still is looked at
    /// again with the next container.
    pub fn shares(&self, id: &str, paths: impl Iterator<Item = PathBuf>) {
        let mut shared = std::mem::take(&mut *lock(&self.shared));
        let living: HashSet<String> = lock(&self.containers).keys().cloned().collect();
        shared.retain(|(container, path)| living.contains(container) || path.symlink_metadata().is_ok());
        shared.extend(paths.map(|path| (id.to_owned(), path)));
        lock(&self.shared).append(&mut shared);
    }

    /// Takes `member` out of the table: its name is free.
    pub fn forget(&self, member: &Arc<Member>) {
        let mut containers = lock(&self.containers);
        if containers.get(&member.id).is_some_and(|m| m.as_ref().is_some_and(|m| Arc::ptr_eq(m, member))) {
            containers.remove(&member.id);
        }
    }
}

/// A name that nobody else can take meanwhile.
pub struct Reservation<'a> {
    guest: &'a Guest,
    id: &'a str,
    filled: bool,
}

impl Reservation<'_> {
    pub fn fill(mut self, member: Member) {
        lock(&self.guest.containers).insert(self.id.to_owned(), Some(Arc::new(member)));
        self.filled = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            lock(&self.guest.containers).remove(self.id);
        }
    }
}

/// A process of a container, whichever kind.
pub enum Found {
    First(Arc<Member>),
    Exec(Arc<Exec>),
}

impl std::ops::Deref for Found {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            Found::First(member) => &member.first,
            Found::Exec(exec) => &exec.process,
        }
    }
}

impl Member {
    /// The process called `exec_id`: the first one has none, or the container's own name (so Kata's shim).
    pub fn process(self: &Arc<Member>, exec_id: &str) -> Result<Found, Status> {
        if exec_id.is_empty() || exec_id == self.id {
            return Ok(Found::First(self.clone()));
        }
        let found = lock(&self.execs).iter().find(|e| e.id == exec_id).cloned();
        found
            .map(Found::Exec)
            .ok_or_else(|| Status::new(Code::NotFound, format!("container {}: process {exec_id} does not exist", self.id)))
    }

    /// Adds an exec, and lets go of the oldest that have ended.
    pub fn add_exec(&self, exec: Exec) {
        let mut execs = lock(&self.execs);
        let mut surplus = execs.iter().filter(|e| e.process.watched.ended().is_some()).count().saturating_sub(ENDED_EXECS);
        execs.retain(|e| {
            let drop_it = surplus > 0 && e.process.watched.ended().is_some();
            surplus -= usize::from(drop_it);
            !drop_it
        });
        execs.push_back(Arc::new(exec));
    }

    /// Every process that was started in it and may still be running.
    pub fn close_stdio(&self) {
        self.first.stdio.close();
        for exec in lock(&self.execs).iter() {
            exec.process.stdio.close();
        }
    }
}

/// Holds back whoever passes until it is opened, once and for all.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *lock(&self.open) = true;
        self.opened.notify_all();
    }

    pub fn pass(&self) {
        drop(self.opened.wait_while(lock(&self.open), |open| !*open));
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}
