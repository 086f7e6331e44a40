//! A process's stdio as a manager names it: paths of fifos.
//!
//! Both ends of a fifo are kept open for as long as its process lives, as containerd's own shim does: a manager that
//! restarts neither ends the process's stdin nor breaks its stdout.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::sandbox::io::{Sink, Stdio};

/// Opens what the paths name; an empty path is nowhere.
pub fn open(terminal: bool, stdin: &str, stdout: &str, stderr: &str) -> io::Result<Stdio> {
    Ok(Stdio {
        terminal,
        stdin: if stdin.is_empty() { None } else { Some(source(Path::new(stdin))?) },
        stdout: sink(stdout)?,
        stderr: if terminal { None } else { sink(stderr)? },
    })
}

/// A fifo is opened both ways: without a writer of our own, the first client that goes would end the process's stdin.
/// `CloseIO` is what ends it.
fn source(path: &Path) -> io::Result<File> {
    let fifo = named(std::fs::metadata(path), path)?.file_type().is_fifo();
    named(File::options().read(true).write(fifo).custom_flags(libc::O_NONBLOCK).open(path), path)
}

fn sink(path: &str) -> io::Result<Option<Box<dyn Sink>>> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = Path::new(path);
    let fifo = named(std::fs::metadata(path), path)?.file_type().is_fifo();
    Ok(Some(Box::new(named(File::options().read(fifo).write(true).open(path), path)?)))
}

fn named<T>(r: io::Result<T>, path: &Path) -> io::Result<T> {
    r.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}
