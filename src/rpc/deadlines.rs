//! Answers calls whose time is up, in place of handlers that are still busy.
//!
//! One table for each connection, with a thread of its own while there are deadlines in it: an answer may have to wait for
//! a peer that does not read, which must not delay the deadlines of another connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long the thread stays when there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(5);

/// What is done at a deadline.
type Expire = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Deadlines {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    /// By deadline, then by number, which makes entries with the same deadline different.
    entries: BTreeMap<Key, Expire>,
    last: u64,
    running: bool,
}

/// Names an entry, to take it back.
pub(super) type Key = (Instant, u64);

impl Deadlines {
    /// Calls `expire` at `deadline`, unless it is taken back before.
    pub(super) fn add(self: &Arc<Deadlines>, deadline: Instant, expire: impl FnOnce() + Send + 'static) -> Key {
        let mut table = self.lock();
        table.last += 1;
        let key = (deadline, table.last);
        table.entries.insert(key, Box::new(expire));
        if !table.running {
            let deadlines = self.clone();
            // Without a thread the caller's own clock has to do.
            table.running = crate::thread::try_start("deadlines", move || deadlines.watch()).is_ok();
        }
        if table.entries.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.changed.notify_one();
        }
        key
    }

    pub(super) fn remove(&self, key: &Key) {
        let entry = self.lock().entries.remove(key);
        // Dropped outside the lock.
        drop(entry);
    }

    fn watch(&self) {
        let mut table = self.lock();
        loop {
            let now = Instant::now();
            let next = table.entries.first_key_value().map(|((deadline, _), _)| *deadline);
            let wait = match next {
                Some(deadline) if deadline <= now => {
                    let expired = table.entries.pop_first();
                    drop(table);
                    if let Some((_, expire)) = expired {
                        expire();
                    }
                    table = self.lock();
                    continue;
                }
                Some(deadline) => deadline - now,
                None => IDLE,
            };
            let timeout;
            (table, timeout) = self.changed.wait_timeout(table, wait).unwrap_or_else(|p| p.into_inner());
            if timeout.timed_out() && table.entries.is_empty() {
                table.running = false;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn they_come_in_the_order_of_time_and_not_when_taken_back() {
        let (deadlines, (expired, order)) = (Arc::new(Deadlines::default()), channel());
        let now = Instant::now();
        let mut keys = Vec::new();
        for ms in [40, 10, 30, 20] {
            let expired = expired.clone();
            keys.push(deadlines.add(now + Duration::from_millis(ms), move || expired.send(ms).unwrap()));
        }
        deadlines.remove(&keys[2]);
        assert_eq!((0..3).map(|_| order.recv().unwrap()).collect::<Vec<_>>(), [10, 20, 40]);
        assert!(now.elapsed() >= Duration::from_millis(40));
        assert!(deadlines.lock().entries.is_empty());
    }
}
