//! A process of a sandbox, as a manager sees it: created, running, stopped.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::io::{Copies, Names};

/// How long the output of an exec may take after its end: a grandchild may keep the pipe. The pipe of a container's first
/// process has no such limit, since everything in the container dies with it.
const EXEC_DRAIN: Duration = Duration::from_secs(2);

/// What became of a process whose VM died under it.
pub const LOST: i32 = 137;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Stopped(Exit),
}

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell tells it.
    pub status: i32,
    pub at: SystemTime,
}

/// A process: a container's first (`exec` is empty) or one that was added.
pub struct Process {
    pub container: String,
    pub exec: String,
    pub terminal: bool,
    /// What its manager calls its stdio.
    pub names: Names,
    state: Mutex<State>,
    changed: Condvar,
    /// Held while it is being started: its end is told after its start.
    pub(super) starting: Mutex<()>,
    pub(super) copies: Mutex<Option<Copies>>,
}

impl Process {
    pub(super) fn new(container: &str, exec: &str, terminal: bool, names: Names, copies: Copies) -> Arc<Process> {
        Arc::new(Process {
            container: container.into(),
            exec: exec.into(),
            terminal,
            names,
            state: Mutex::new(State::Created),
            changed: Condvar::new(),
            starting: Mutex::default(),
            copies: Mutex::new(Some(copies)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub fn state(&self) -> State {
        *self.lock()
    }

    /// Blocks until it has ended.
    pub fn wait(&self) -> Exit {
        let mut state = self.lock();
        loop {
            if let State::Stopped(exit) = *state {
                return exit;
            }
            state = self.changed.wait(state).unwrap_or_else(|p| p.into_inner());
        }
    }

    pub(super) fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    /// No more stdin; what was sent before still arrives.
    pub fn close_stdin(&self) {
        if let Some(copies) = self.copies.lock().unwrap_or_else(|p| p.into_inner()).as_ref() {
            copies.close_stdin();
        }
    }

    /// Waits for the last output, then lets go of every descriptor. `last_word` is why it ended, where no command says so.
    pub(super) fn drain(&self, last_word: Option<&str>) {
        let copies = self.copies.lock().unwrap_or_else(|p| p.into_inner()).take();
        let idle = if self.exec.is_empty() { None } else { Some(EXEC_DRAIN) };
        if let Some(mut copies) = copies {
            let whole = copies.finish(idle);
            if let Some(word) = last_word {
                copies.say(&format!("osc: {word}\n"));
            }
            if !whole {
                log::info!("container {}: exec {} ended while another process holds its output open", self.container, self.exec);
            }
        }
    }
}
