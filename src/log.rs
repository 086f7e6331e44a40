//! Where log lines go: stderr at a prompt, the manager's `log` fifo in a shim, the console in a guest.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, OnceLock};

use log::{LevelFilter, Log, Metadata, Record};

/// `level=info sandbox=ab12 msg="..."`: one line each, in containerd's own form.
struct Lines {
    sink: Mutex<File>,
    others: Mutex<Vec<Sink>>,
    /// `sandbox=<id> `, or empty.
    context: String,
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level().as_str().to_ascii_lowercase();
        let line = format!("level={level} {}msg={:?}\n", self.context, record.args().to_string());
        // One write a line, so that lines of several processes do not mix; a sink that is gone is nobody's error.
        let _ = self.sink.lock().unwrap_or_else(|p| p.into_inner()).write_all(line.as_bytes());
        self.others.lock().unwrap_or_else(|p| p.into_inner()).retain_mut(|s| s.write_all(line.as_bytes()).is_ok());
    }

    fn flush(&self) {}
}

/// A further place for log lines. It must not block, nor log anything itself; it is dropped at its first error.
pub type Sink = Box<dyn Write + Send>;

static LINES: OnceLock<Lines> = OnceLock::new();

/// Sends every later log line to `sink`. Only the first call counts.
pub fn init(sink: File, sandbox: Option<&str>, level: LevelFilter) {
    let context = sandbox.map(|id| format!("sandbox={id} ")).unwrap_or_default();
    let lines = LINES.get_or_init(|| Lines { sink: Mutex::new(sink), others: Mutex::default(), context });
    if log::set_logger(lines).is_ok() {
        log::set_max_level(level);
    }
}

/// Sends every later log line to `sink` as well.
pub fn tee(sink: Sink) {
    if let Some(lines) = LINES.get() {
        lines.others.lock().unwrap_or_else(|p| p.into_inner()).push(sink);
    }
}
