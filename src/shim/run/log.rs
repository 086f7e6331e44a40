//! What a detached command wrote, kept for `osc logs`: the line format of CRI, as the kubelet writes it.
//!
//! `2026-01-02T03:04:05.000000006Z stdout F text`; `P` instead of `F` marks a piece whose line goes on in the next one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::shim::sandbox::io::Sink;

/// /run is memory: what a command writes beyond this is dropped, with one line that says so.
const LIMIT: u64 = 64 << 20;

/// One of the two streams of a log.
#[derive(Debug)]
pub struct LogSink {
    stream: &'static str,
    shared: Arc<Mutex<Log>>,
}

#[derive(Debug)]
struct Log {
    file: File,
    written: u64,
}

/// The two ends of a new log at `path`.
pub fn create(path: &Path) -> io::Result<(LogSink, LogSink)> {
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    let shared = Arc::new(Mutex::new(Log { file, written: 0 }));
    Ok((LogSink { stream: "stdout", shared: shared.clone() }, LogSink { stream: "stderr", shared }))
}

impl Sink for LogSink {}

/// A descriptor of this process: whoever reads it is told by its exit why a command ended.
#[derive(Debug)]
pub struct Ours(pub File);

impl Write for Ours {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Sink for Ours {
    fn takes_last_word(&self) -> bool {
        false
    }
}

impl Write for LogSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.shared.lock().unwrap_or_else(|p| p.into_inner());
        if log.written > LIMIT {
            return Ok(bytes.len());
        }
        let now = timestamp(SystemTime::now());
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let (tag, body) = match piece.strip_suffix(b"\n") {
                Some(body) => ('F', body),
                None => ('P', piece),
            };
            write!(text, "{now} {} {tag} ", self.stream)?;
            text.extend_from_slice(body);
            text.push(b'\n');
        }
        log.written += text.len() as u64;
        if log.written > LIMIT {
            writeln!(text, "{now} stderr F osc: the log has reached {LIMIT} bytes; the rest is dropped")?;
        }
        log.file.write_all(&text)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints a log: each stream's text to its own place.
pub fn print(path: &Path, stdout: &mut dyn Write, stderr: &mut dyn Write) -> io::Result<()> {
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        let mut fields = line.splitn(4, |&b| b == b' ');
        let (Some(_), Some(stream), Some(tag), Some(body)) = (fields.next(), fields.next(), fields.next(), fields.next()) else { continue };
        let out: &mut dyn Write = if stream == b"stderr" { stderr } else { stdout };
        out.write_all(body)?;
        if tag == b"F" {
            out.write_all(b"\n")?;
        }
    }
    stdout.flush()
}

/// RFC 3339 with nanoseconds, UTC.
fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() as libc::time_t;
    // SAFETY: tm is plain data for which all zeroes is a value; gmtime_r writes it and keeps no pointer.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&seconds, &mut tm);
        tm
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn both_streams_come_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut out, mut err) = create(&path).unwrap();
        for piece in [&b"one\ntw"[..], b"o\n", b"\n", b"no end"] {
            out.write_all(piece).unwrap();
        }
        err.write_all(b"oops \xff\n").unwrap();
        let (mut o, mut e) = (Vec::new(), Vec::new());
        print(&path, &mut o, &mut e).unwrap();
        assert_eq!(o, b"one\ntwo\n\nno end");
        assert_eq!(e, b"oops \xff\n");
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
