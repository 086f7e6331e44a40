//! Streams that the host opened to port 1027 and that no process has claimed yet.
//!
//! A CreateContainer or ExecProcess names its streams by number (WIRE.md, "Guest agent protocol"), but the call and the
//! streams travel by different queues: either may be first. So the call waits a moment for its streams here, and streams
//! wait for their call.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::rpc::Stream;

/// How long a call waits for a stream that the host says it has opened.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Unclaimed streams kept; beyond that the oldest is closed. Three for each of 100 processes being started at once.
const UNCLAIMED: usize = 300;

/// The table. One per guest.
#[derive(Default)]
pub struct Streams {
    waiting: Mutex<VecDeque<(u32, Stream)>>,
    arrived: Condvar,
}

impl Streams {
    /// Keeps `stream`, which the host knows as `number`.
    pub fn put(&self, number: u32, stream: Stream) {
        let mut waiting = self.waiting.lock().unwrap_or_else(|p| p.into_inner());
        // A number used again means that the stream it had before is dead.
        waiting.retain(|(n, _)| *n != number);
        if waiting.len() == UNCLAIMED {
            waiting.pop_front();
        }
        waiting.push_back((number, stream));
        self.arrived.notify_all();
    }

    /// Hands out stream `number`, once. `TimedOut` if the host has not opened it.
    pub fn take(&self, number: u32) -> io::Result<Stream> {
        self.take_within(number, ARRIVAL)
    }

    fn take_within(&self, number: u32, limit: Duration) -> io::Result<Stream> {
        let end = Instant::now() + limit;
        let mut waiting = self.waiting.lock().unwrap_or_else(|p| p.into_inner());
        loop {
            if let Some(at) = waiting.iter().position(|(n, _)| *n == number) {
                return waiting.remove(at).map(|(_, s)| s).ok_or_else(|| io::ErrorKind::NotFound.into());
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("stream {number} to port 1027 was not opened within {limit:?}"),
                ));
            };
            waiting = self.arrived.wait_timeout(waiting, left).unwrap_or_else(|p| p.into_inner()).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn pair() -> (Stream, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (a.into(), b)
    }

    #[test]
    fn a_stream_is_found_before_and_after_it_comes_and_only_once() {
        let streams = Arc::new(Streams::default());
        let (ours, mut theirs) = pair();
        let waiter = {
            let streams = streams.clone();
            std::thread::spawn(move || streams.take(7).unwrap())
        };
        streams.put(7, ours);
        waiter.join().unwrap().write_all(b"x").unwrap();
        let mut byte = [0];
        theirs.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let e = streams.take_within(7, Duration::from_millis(5)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(e.to_string().contains("stream 7"), "{e}");
    }

    #[test]
    fn streams_that_nobody_claims_are_closed() {
        let streams = Streams::default();
        let (first, mut theirs) = pair();
        streams.put(0, first);
        for n in 1..=UNCLAIMED as u32 {
            streams.put(n, pair().0);
        }
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        assert!(streams.take_within(1, Duration::ZERO).is_ok());
    }
}
