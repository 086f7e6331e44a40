//! Events on their way to containerd: one thread sends them, in the order in which they happened.
//!
//! A manager that restarts is dialled again; what it missed meanwhile is sent again, as far as the queue holds. With no
//! address (CRI-O) an event is a log line.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use crate::rpc::wire::containerd::Envelope;
use crate::rpc::wire::events::ForwardRequest;
use crate::rpc::wire::google::{Any, Empty};
use crate::rpc::{Client, Stream};
use crate::shim::task::timestamp;

/// What containerd itself gives an event.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Events that wait while the manager is away.
const QUEUE: usize = 1024;

/// How often a manager that is away is dialled.
const RETRY: Duration = Duration::from_millis(500);

/// How often an event is tried before it is dropped with a log line.
const TRIES: u32 = 120;

/// The publisher of one shim.
pub struct Events {
    queue: Option<SyncSender<Item>>,
    namespace: String,
}

enum Item {
    Event(Envelope),
    /// Answered once everything before it is sent or given up.
    Flush(SyncSender<()>),
}

impl Events {
    /// `address` is `$TTRPC_ADDRESS`, with or without `unix://`; empty means that nobody listens.
    pub fn new(address: &str, namespace: &str) -> Events {
        let path = address.strip_prefix("unix://").unwrap_or(address).to_owned();
        let queue = (!path.is_empty()).then(|| {
            let (queue, inbox) = sync_channel(QUEUE);
            crate::thread::start("events", move || send_all(&path, inbox));
            queue
        });
        Events { queue, namespace: namespace.to_owned() }
    }

    /// Waits until what was published is sent, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let Some(queue) = &self.queue else { return };
        let (done, wait) = sync_channel(1);
        if queue.try_send(Item::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(limit);
        }
    }

    /// `topic` as containerd names it (`/tasks/exit`), `kind` the message's name (`containerd.events.TaskExit`).
    pub fn publish(&self, topic: &str, kind: &str, value: Vec<u8>) {
        log::debug!("event {topic}");
        let Some(queue) = &self.queue else { return };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any { type_url: kind.to_owned(), value }),
        };
        if let Err(TrySendError::Full(_)) = queue.try_send(Item::Event(envelope)) {
            log::warn!("event {topic} is dropped: {QUEUE} wait for a manager that does not take them");
        }
    }
}

fn send_all(path: &str, inbox: Receiver<Item>) {
    let mut client: Option<Client> = None;
    for item in inbox {
        let envelope = match item {
            Item::Event(envelope) => envelope,
            Item::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: Some(envelope) };
        let sent = (0..TRIES).any(|attempt| {
            if attempt > 0 {
                std::thread::sleep(RETRY);
            }
            if client.as_ref().is_none_or(|c| c.closed()) {
                client = UnixStream::connect(path).ok().map(|s| Client::new(Stream::from(s)));
            }
            let Some(c) = &client else { return false };
            let answer: Result<Empty, _> = c.call("containerd.services.events.ttrpc.v1.Events", "Forward", &request, Some(TIMEOUT));
            match answer {
                Ok(_) => true,
                Err(e) => {
                    log::debug!("event {topic}: {e}");
                    client = None;
                    false
                }
            }
        });
        if !sent {
            log::warn!("event {topic} could not be sent to {path}");
        }
    }
}
