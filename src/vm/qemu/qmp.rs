//! QMP, QEMU's control protocol: JSON lines, answers and events interleaved (QEMU docs, "QMP specification").
//!
//! A thread reads; any thread executes. Events are kept for those who wait for one, since the one that matters (a device
//! is gone, why the guest ended) may come before anybody looks.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to answer. Its main loop answers in milliseconds; a loaded host under TCG takes seconds.
pub const ANSWER: Duration = Duration::from_secs(30);

/// Events that are kept: more than one unplug or one end of a VM brings.
const EVENTS: usize = 64;

/// Why a command failed. Every text names the command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU refused, in its own words.
    #[error("QEMU refuses {command}: {text}")]
    Refused { command: String, text: String },
    /// QEMU is gone: its exit tells why.
    #[error("{command}: QEMU is gone")]
    Closed { command: String },
    /// QEMU hangs, or the host is overloaded.
    #[error("{command}: QEMU does not answer within {} s", limit.as_secs())]
    Timeout { command: String, limit: Duration },
    #[error("{command}: {error}")]
    Io { command: String, error: io::Error },
}

/// Something QEMU told by itself.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

/// A connection to QEMU.
#[derive(Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
    writer: Mutex<UnixStream>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    greeted: bool,
    next_id: u64,
    /// Answers that somebody waits for: `None` until they come.
    answers: HashMap<u64, Option<Result<Value, String>>>,
    events: VecDeque<Event>,
    /// Events that came so far, kept or not.
    count: u64,
    closed: bool,
}

impl Qmp {
    /// Takes over `socket` and waits for QEMU's greeting: at most `limit`, and no longer than QEMU lives.
    pub fn start(socket: UnixStream, limit: Duration) -> Result<Qmp, Error> {
        let io = |error| Error::Io { command: "connect".into(), error };
        let reader = socket.try_clone().map_err(io)?;
        let shared = Arc::new(Shared::default());
        let reading = shared.clone();
        crate::thread::start("qmp", move || reading.read(reader));
        let qmp = Qmp { shared, writer: Mutex::new(socket) };
        qmp.wait(limit, |s| s.greeted.then_some(())).map_err(|e| e.of("greeting", limit))?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; answers what it returned.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.execute_within(command, arguments, None, ANSWER)
    }

    /// Gives QEMU a descriptor under `name`, for the one command that will use it.
    pub fn give(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.execute_within("getfd", json!({"fdname": name}), Some(fd), ANSWER).map(drop)
    }

    /// The same with a limit, and with a descriptor to go along.
    pub fn execute_within(&self, command: &str, arguments: Value, fd: Option<BorrowedFd<'_>>, limit: Duration) -> Result<Value, Error> {
        let id = {
            let mut state = self.shared.lock();
            let id = state.next_id;
            state.next_id += 1;
            state.answers.insert(id, None);
            id
        };
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        let answer = self.send(line.as_bytes(), fd).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Closed { command: command.into() },
            _ => Error::Io { command: command.into(), error },
        });
        let answer =
            answer.and_then(|()| self.wait(limit, |s| s.answers.get_mut(&id).and_then(Option::take)).map_err(|e| e.of(command, limit)));
        self.shared.lock().answers.remove(&id);
        answer?.map_err(|text| Error::Refused { command: command.into(), text })
    }

    fn send(&self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let mut writer = self.writer.lock().unwrap_or_else(|p| p.into_inner());
        let Some(fd) = fd else { return writer.write_all(line) };
        let fds = [fd.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let sent = sendmsg::<()>(writer.as_raw_fd(), &[IoSlice::new(line)], &control, MsgFlags::MSG_NOSIGNAL, None)?;
        writer.write_all(&line[sent..])
    }

    /// How many events have come so far: those that come later are the ones [`Qmp::wait_event`] looks at.
    pub fn mark(&self) -> u64 {
        self.shared.lock().count
    }

    /// Waits for an event after `mark` that `wanted` accepts. `None`: it did not come, or QEMU is gone.
    pub fn wait_event(&self, mark: u64, limit: Duration, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        self.wait(limit, |s| {
            let first = s.count - s.events.len() as u64;
            s.events.iter().skip(mark.saturating_sub(first) as usize).find(|e| wanted(e)).cloned()
        })
        .ok()
    }

    /// The last event called `name` that came so far.
    pub fn last_event(&self, name: &str) -> Option<Event> {
        self.shared.lock().events.iter().rev().find(|e| e.name == name).cloned()
    }

    /// Waits until QEMU has closed the connection, so that every event there will ever be is here.
    pub fn wait_closed(&self, limit: Duration) {
        let _ = self.wait(limit, |s| s.closed.then_some(()));
    }

    fn wait<T>(&self, limit: Duration, mut ready: impl FnMut(&mut State) -> Option<T>) -> Result<T, Missed> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            if state.closed {
                return Err(Missed::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missed::Timeout);
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(|p| p.into_inner()).0;
        }
    }
}

impl Drop for Qmp {
    /// The reading thread has the socket too: wake it.
    fn drop(&mut self) {
        let _ = self.writer.get_mut().unwrap_or_else(|p| p.into_inner()).shutdown(std::net::Shutdown::Both);
    }
}

enum Missed {
    Closed,
    Timeout,
}

impl Missed {
    fn of(self, command: &str, limit: Duration) -> Error {
        let command = command.to_owned();
        match self {
            Missed::Closed => Error::Closed { command },
            Missed::Timeout => Error::Timeout { command, limit },
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn read(&self, socket: UnixStream) {
        // An error is an end too: QEMU that quits may reset the connection.
        for line in BufReader::new(socket).lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(message) => self.take(message),
                Err(e) => log::warn!("QMP: {e} in {line:?}"),
            }
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn take(&self, mut message: Value) {
        let state = &mut *self.lock();
        if message.get("QMP").is_some() {
            state.greeted = true;
        } else if let Some(name) = message["event"].as_str() {
            log::debug!("QMP {name} {}", message["data"]);
            state.events.push_back(Event { name: name.to_owned(), data: message["data"].clone() });
            state.count += 1;
            if state.events.len() > EVENTS {
                state.events.pop_front();
            }
        } else if let Some(slot) = message["id"].as_u64().and_then(|id| state.answers.get_mut(&id)) {
            let refused = message["error"]["desc"].as_str().map(str::to_owned);
            *slot = Some(refused.map_or_else(|| Ok(message["return"].take()), Err));
        } else if let Some(text) = message["error"]["desc"].as_str() {
            log::warn!("QMP: {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
    const LIMIT: Duration = Duration::from_secs(5);

    /// A QEMU that answers each line by `answer`, and ends when that says nothing.
    fn qemu(answer: impl Fn(&Value) -> Option<String> + Send + 'static) -> Result<Qmp, Error> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        crate::thread::start("qemu", move || {
            writeln!(theirs, "{GREETING}").unwrap();
            for line in BufReader::new(theirs.try_clone().unwrap()).lines().map_while(Result::ok) {
                let command: Value = serde_json::from_str(&line).unwrap();
                let text = match command["execute"].as_str() {
                    Some("qmp_capabilities") => Some(done(&command)),
                    _ => answer(&command),
                };
                match text {
                    Some(text) => writeln!(theirs, "{text}").unwrap(),
                    None => return,
                }
            }
        });
        Qmp::start(ours, LIMIT)
    }

    fn done(command: &Value) -> String {
        json!({"return": {"did": command["execute"]}, "id": command["id"]}).to_string()
    }

    fn refused(command: &Value, text: &str) -> String {
        json!({"error": {"class": "GenericError", "desc": text}, "id": command["id"]}).to_string()
    }

    #[test]
    fn answers_come_back_and_refusals_name_the_command() {
        let qmp = qemu(|c| Some(if c["execute"] == "cont" { done(c) } else { refused(c, "Bus 'x' not found") })).unwrap();
        assert_eq!(qmp.execute("cont", json!({})).unwrap(), json!({"did": "cont"}));
        let e = qmp.execute("device_add", json!({"driver": "d"})).unwrap_err();
        assert_eq!(e.to_string(), "QEMU refuses device_add: Bus 'x' not found");
    }

    #[test]
    fn the_end_is_told_to_who_waits() {
        let qmp = qemu(|_| None).unwrap();
        let e = qmp.execute("stop", json!({})).unwrap_err();
        assert_eq!(e.to_string(), "stop: QEMU is gone");
        qmp.wait_closed(LIMIT);
        assert!(matches!(qmp.execute("cont", json!({})), Err(Error::Closed { .. })));
    }

    #[test]
    fn silence_is_a_timeout_and_a_late_answer_nobodys() {
        let qmp = qemu(|c| Some(if c["execute"] == "slow" { "{}".into() } else { done(c) })).unwrap();
        let e = qmp.execute_within("slow", json!({}), None, Duration::from_millis(20)).unwrap_err();
        assert!(e.to_string().starts_with("slow: QEMU does not answer"), "{e}");
        assert_eq!(qmp.execute("next", json!({})).unwrap()["did"], "next");
    }

    #[test]
    fn an_event_between_question_and_answer() {
        let qmp = qemu(|c| {
            let event = json!({"event": "DEVICE_DELETED", "data": {"device": "nic0"}});
            Some(format!("{event}\n{}", done(c)))
        })
        .unwrap();
        let mark = qmp.mark();
        qmp.execute("device_del", json!({"id": "nic0"})).unwrap();
        assert!(qmp.wait_event(mark, LIMIT, |e| e.data["device"] == "nic0").is_some());
        assert!(qmp.last_event("DEVICE_DELETED").is_some());
        // Older than the mark: not what is waited for.
        assert!(qmp.wait_event(qmp.mark(), Duration::from_millis(10), |_| true).is_none());
    }

    #[test]
    fn old_events_are_forgotten() {
        let event = json!({"event": "RTC_CHANGE", "data": {}}).to_string();
        let qmp = qemu(move |c| Some(format!("{}\n{}", vec![event.clone(); 3 * EVENTS].join("\n"), done(c)))).unwrap();
        let mark = qmp.mark();
        qmp.execute("x", json!({})).unwrap();
        assert_eq!(qmp.mark(), mark + 3 * EVENTS as u64);
        assert!(qmp.wait_event(mark, LIMIT, |e| e.name == "RTC_CHANGE").is_some());
        assert_eq!(qmp.shared.lock().events.len(), EVENTS);
    }

    #[test]
    fn many_callers_get_their_own_answers() {
        let qmp = Arc::new(qemu(|c| Some(done(c))).unwrap());
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let qmp = qmp.clone();
                crate::thread::start("caller", move || {
                    for i in 0..50 {
                        let command = format!("c-{n}-{i}");
                        assert_eq!(qmp.execute(&command, json!({})).unwrap()["did"], command.as_str());
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert!(qmp.shared.lock().answers.is_empty());
    }

    #[test]
    fn a_descriptor_goes_along() {
        use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
        use std::io::{IoSliceMut, Read};
        use std::os::fd::{AsFd, FromRawFd, OwnedFd};
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qemu = crate::thread::start("qemu", move || {
            writeln!(theirs, "{GREETING}").unwrap();
            // The negotiation, byte by byte: nothing of the message with the descriptor must be read along.
            let mut byte = [0; 1];
            while byte != *b"\n" {
                theirs.read_exact(&mut byte).unwrap();
            }
            writeln!(theirs, "{}", json!({"return": {}, "id": 0})).unwrap();
            let (mut buf, mut space) = ([0; 256], nix::cmsg_space!([i32; 1]));
            let mut iov = [IoSliceMut::new(&mut buf)];
            let message = recvmsg::<()>(theirs.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty()).unwrap();
            let fd = message.cmsgs().unwrap().find_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            writeln!(theirs, "{}", json!({"return": {}, "id": 1})).unwrap();
            // SAFETY: the kernel just made it for us, and nobody else knows of it.
            let mut file: std::fs::File = unsafe { OwnedFd::from_raw_fd(fd.unwrap()) }.into();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        });
        let qmp = Qmp::start(ours, LIMIT).unwrap();
        let (r, mut w) = crate::process::pipe().unwrap();
        qmp.give("tap0", r.as_fd()).unwrap();
        drop(r);
        w.write_all(b"through").unwrap();
        drop(w);
        assert_eq!(qemu.join().unwrap(), "through");
    }

    #[test]
    fn a_qemu_that_dies_before_its_greeting() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(Qmp::start(ours, LIMIT), Err(Error::Closed { .. })));
    }
}
