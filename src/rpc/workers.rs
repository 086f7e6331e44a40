//! Threads for calls: one for each in flight, kept for the next when it is done.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Calls in flight on one server. Most of them wait for a process to end and cost a small stack each; a guest of 256 MiB
/// may have 1900 threads.
pub(super) const MOST_CALLS: usize = 1536;

/// Threads kept without work: a burst of calls leaves no more behind.
const MOST_IDLE: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Workers {
    pool: Mutex<Pool>,
    work: Condvar,
}

#[derive(Default)]
struct Pool {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Workers {
    /// Runs `job` on a thread that does nothing else meanwhile; jobs begin in the order in which they come here. False
    /// where too many run already, or the kernel has no thread for one more.
    pub(super) fn run(self: &Arc<Workers>, job: impl FnOnce() + Send + 'static) -> bool {
        let mut pool = self.lock();
        // Each waiting job will take one of the idle threads, also if that has not woken up yet.
        if pool.jobs.len() >= pool.idle {
            let workers = self.clone();
            if pool.threads >= MOST_CALLS || crate::thread::try_start("call", move || workers.work()).is_err() {
                return false;
            }
            pool.threads += 1;
        }
        pool.jobs.push_back(Box::new(job));
        self.work.notify_one();
        true
    }

    /// Lets the idle threads go; busy ones go when they are done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }

    fn work(&self) {
        let mut pool = self.lock();
        loop {
            if let Some(job) = pool.jobs.pop_front() {
                drop(pool);
                job();
                pool = self.lock();
            } else if pool.closed || pool.idle >= MOST_IDLE {
                pool.threads -= 1;
                return;
            } else {
                pool.idle += 1;
                pool = self.work.wait(pool).unwrap_or_else(|p| p.into_inner());
                pool.idle -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::mpsc::channel;

    #[test]
    fn threads_are_reused_and_a_burst_leaves_few() {
        let workers = Arc::new(Workers::default());
        for _ in 0..100 {
            let (done, ended) = channel();
            assert!(workers.run(move || done.send(()).unwrap()));
            ended.recv().unwrap();
        }
        // One that is just done may not be idle yet when the next call comes.
        assert!(workers.lock().threads <= MOST_IDLE + 1, "{} threads for calls one after the other", workers.lock().threads);
        let together = Arc::new(Barrier::new(41));
        for _ in 0..40 {
            let together = together.clone();
            assert!(workers.run(move || {
                together.wait();
            }));
        }
        together.wait();
        while workers.lock().threads > MOST_IDLE {
            std::thread::yield_now();
        }
        workers.close();
        while workers.lock().threads > 0 {
            std::thread::yield_now();
        }
    }
}
