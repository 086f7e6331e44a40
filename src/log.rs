//! Where log lines go: stderr at a prompt, the manager's `log` fifo in a shim, the console in a guest.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use log::{LevelFilter, Log, Metadata, Record};

/// `level=info sandbox=ab12 msg="..."`: one line each, in containerd's own form.
struct Lines {
    sink: Mutex<File>,
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
    }

    fn flush(&self) {}
}

/// Sends every later log line to `sink`. Only the first call counts.
pub fn init(sink: File, sandbox: Option<&str>, level: LevelFilter) {
    let context = sandbox.map(|id| format!("sandbox={id} ")).unwrap_or_default();
    if log::set_boxed_logger(Box::new(Lines { sink: Mutex::new(sink), context })).is_ok() {
        log::set_max_level(level);
    }
}
