//! Who may write to the channel next.
//!
//! One at a time, and the one that leaves hands over to the next: an ordinary mutex would let a bulk writer take it again
//! and again before the one it wakes gets to run. Short frames (credits, ends, a call) go before long ones, so they wait
//! for the frame that is being written and for no other; long ones take turns in order of arrival. A writer of short
//! frames is not at the gate while it is writing, so it cannot keep the long ones out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};

#[derive(Default)]
pub(super) struct Gate {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    busy: bool,
    short: VecDeque<Arc<Waiter>>,
    long: VecDeque<Arc<Waiter>>,
}

struct Waiter {
    thread: Thread,
    turn: AtomicBool,
}

/// The right to write; dropping it hands it on.
pub(super) struct Turn<'a>(&'a Gate);

impl Gate {
    /// Blocks until it is this thread's turn.
    pub(super) fn enter(&self, short: bool) -> Turn<'_> {
        let mut queue = self.lock();
        if !queue.busy {
            queue.busy = true;
            return Turn(self);
        }
        let waiter = Arc::new(Waiter { thread: thread::current(), turn: AtomicBool::new(false) });
        if short { &mut queue.short } else { &mut queue.long }.push_back(waiter.clone());
        drop(queue);
        while !waiter.turn.load(Ordering::Acquire) {
            thread::park();
        }
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        match queue.short.pop_front().or_else(|| queue.long.pop_front()) {
            Some(next) => {
                drop(queue);
                next.turn.store(true, Ordering::Release);
                next.thread.unpark();
            }
            None => queue.busy = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(gate: &Gate) -> usize {
        let queue = gate.lock();
        queue.short.len() + queue.long.len()
    }

    /// Everybody comes while the gate is taken; then the short ones pass first, each kind in order of arrival.
    #[test]
    fn short_frames_pass_long_ones_that_wait() {
        let (gate, passed) = (Gate::default(), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            let turn = gate.enter(false);
            for (i, short) in [false, false, true, false, true].into_iter().enumerate() {
                let (gate, passed) = (&gate, &passed);
                scope.spawn(move || {
                    let _turn = gate.enter(short);
                    passed.lock().unwrap().push(i);
                });
                while waiting(gate) != i + 1 {
                    thread::yield_now();
                }
            }
            drop(turn);
        });
        assert_eq!(*passed.lock().unwrap(), [2, 4, 0, 1, 3]);
        assert!(!gate.lock().busy);
    }
}
