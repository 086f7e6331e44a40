//! One pod: what the journal says of it, who serves its agent's socket, and the connections that end with its VM.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use super::journal::{Entry, Phase};
use super::link::{self, Forwarder};
use crate::rpc::tls::Caller;

/// The agent's socket in a pod's directory.
pub(super) const AGENT: &str = "agent.ttrpc";

/// A pod and its VM.
pub struct Pod {
    pub(super) entry: Mutex<Entry>,
    /// Held during an operation.
    pub(super) operation: Mutex<()>,
    pub(super) cancelled: AtomicBool,
    pub(super) deleting: AtomicBool,
    pub(super) listener: Mutex<Option<Arc<UnixListener>>>,
    pub(super) connections: Mutex<(u64, BTreeMap<u64, UnixStream>)>,
    pub(super) caller: Option<Caller>,
    pub(super) port: u16,
}

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|p| p.into_inner())
}

impl Pod {
    pub(super) fn new(entry: Entry, caller: Option<Caller>, port: u16) -> Arc<Pod> {
        Arc::new(Pod {
            entry: Mutex::new(entry),
            operation: Mutex::default(),
            cancelled: AtomicBool::new(false),
            deleting: AtomicBool::new(false),
            listener: Mutex::default(),
            connections: Mutex::default(),
            caller,
            port,
        })
    }

    pub fn entry(&self) -> Entry {
        lock(&self.entry).clone()
    }

    /// How its VM is reached, once it has an address.
    pub fn forwarder(&self) -> Option<Forwarder> {
        let entry = lock(&self.entry);
        let address = *entry.addresses.first()?;
        Some(Forwarder { address, port: self.port, name: entry.name.clone(), caller: self.caller.clone() })
    }

    /// Why its VM serves nobody any more, once that is so.
    pub fn ended(&self) -> Option<String> {
        let entry = lock(&self.entry);
        match entry.phase {
            Phase::Lost => Some(entry.error.clone()),
            Phase::Stopping => Some("it was stopped".into()),
            _ => None,
        }
    }

    /// Remembers a connection, to end it with the VM.
    pub fn opened(&self, stream: &UnixStream) -> u64 {
        let mut connections = lock(&self.connections);
        connections.0 += 1;
        let number = connections.0;
        if let Ok(stream) = stream.try_clone() {
            connections.1.insert(number, stream);
        }
        number
    }

    pub fn closed(&self, number: u64) {
        lock(&self.connections).1.remove(&number);
    }

    /// Nobody reaches the agent from now on.
    pub(super) fn shut(&self, dir: &Path) {
        if let Some(listener) = lock(&self.listener).take() {
            link::close(&listener, &dir.join(AGENT));
        }
        let _ = fs::remove_file(dir.join(AGENT));
        for stream in lock(&self.connections).1.values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
