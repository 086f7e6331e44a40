//! A process's stdio as a manager names it.
//!
//! | name | what it is |
//! | --- | --- |
//! | empty | nowhere |
//! | a path, `fifo://PATH` | a fifo of the manager's |
//! | `file://PATH` | a file that is appended to |
//! | `binary://PROGRAM?KEY=VALUE` | a logger: started with KEY VALUE as arguments, reads stdout on 3 and stderr on 4, closes 5 when it is ready |
//!
//! Both ends of a fifo are kept open for as long as its process lives, as containerd's own shim does: a manager that
//! restarts neither ends the process's stdin nor breaks its stdout.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::sandbox::io::{Hold, Names, Sink, Source, Stdio};
use crate::process::{Session, Spawn, pipe};

/// Whose stdio it is: loggers are told in their environment.
pub struct Whose<'a> {
    pub namespace: &'a str,
    /// The container's id, or the exec's.
    pub id: &'a str,
}

/// Opens what the names say.
pub fn open(terminal: bool, names: Names, whose: &Whose) -> io::Result<Stdio> {
    let stdin = match names.stdin.as_str() {
        "" => None,
        name => Some(Source::At(name.strip_prefix("fifo://").unwrap_or(name).into())),
    };
    let mut stdio = Stdio { terminal, stdin, ..Default::default() };
    if let Some(logger) = names.stdout.strip_prefix("binary://") {
        let (out, err) = start_logger(logger, whose)?;
        stdio.stdout = Some(Box::new(out));
        stdio.stderr = (!terminal).then_some(Box::new(err));
    } else {
        stdio.stdout = sink(&names.stdout)?;
        stdio.stderr = if terminal { None } else { sink(&names.stderr)? };
    }
    stdio.names = names;
    Ok(stdio)
}

fn sink(name: &str) -> io::Result<Option<Box<dyn Sink>>> {
    if let Some(path) = name.strip_prefix("file://") {
        let path = Path::new(path);
        return Ok(Some(Box::new(named(File::options().append(true).create(true).mode(0o600).open(path), path)?)));
    }
    if let Some((scheme, _)) = name.split_once("://").filter(|(s, _)| *s != "fifo") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{scheme}:// is no place for output: fifo, file or binary")));
    }
    let name = name.strip_prefix("fifo://").unwrap_or(name);
    if name.is_empty() {
        return Ok(None);
    }
    let path = Path::new(name);
    if !named(std::fs::metadata(path), path)?.file_type().is_fifo() {
        return Ok(Some(Box::new(named(File::options().write(true).open(path), path)?)));
    }
    // Ours first: a writer alone would wait in open(2) for somebody to read.
    let hold = named(File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path), path)?;
    let writer = named(File::options().write(true).open(path), path)?;
    Ok(Some(Box::new(Fifo { writer, hold: Arc::new(Mutex::new(Some(hold))) })))
}

fn named<T>(r: io::Result<T>, path: &Path) -> io::Result<T> {
    r.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// A fifo that a manager may close and open again.
#[derive(Debug)]
struct Fifo {
    writer: File,
    hold: Hold,
}

impl Write for Fifo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Fifo {
    fn hold(&self) -> Option<Hold> {
        Some(self.hold.clone())
    }
}

/// Numbers of a logger's descriptors.
const LOGGER_STDOUT: i32 = 3;
const LOGGER_STDERR: i32 = 4;
const LOGGER_READY: i32 = 5;

/// Starts the logger and waits until it says that it is ready. It ends at the end of its input.
fn start_logger(url: &str, whose: &Whose) -> io::Result<(File, File)> {
    let (program, query) = url.split_once('?').unwrap_or((url, ""));
    let (out_r, out) = pipe()?;
    let (err_r, err) = pipe()?;
    let (mut ready, ready_w) = pipe()?;
    let mut spawn = Spawn::new(program).session(Session::Group);
    for (key, value) in query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
        spawn = spawn.arg(unescape(key));
        if !value.is_empty() {
            spawn = spawn.arg(unescape(value));
        }
    }
    let ours = [("CONTAINER_ID", whose.id), ("CONTAINER_NAMESPACE", whose.namespace)];
    let inherited = std::env::vars().filter(|(k, _)| !ours.iter().any(|(o, _)| o == k));
    let env = inherited.chain(ours.map(|(k, v)| (k.into(), v.into()))).filter_map(|(k, v)| CString::new(format!("{k}={v}")).ok());
    spawn.env = Some(env.collect());
    let child = spawn.fd(out_r, LOGGER_STDOUT).fd(err_r, LOGGER_STDERR).fd(ready_w, LOGGER_READY).start()?;
    // One byte or the end: either says that it has begun.
    let _ = ready.read(&mut [0])?;
    crate::thread::start("logger", move || drop(child.wait()));
    Ok((out, err))
}

/// `%41` and `+` of a query.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = [bytes.next().unwrap_or(b'%'), bytes.next().unwrap_or(b'%')];
                let value = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
                out.push(value.unwrap_or(b'%'));
            }
            b => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOSE: Whose = Whose { namespace: "test", id: "c1" };

    fn names(stdout: String) -> Names {
        Names { stdout, ..Default::default() }
    }

    #[test]
    fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for _ in 0..2 {
            let mut stdio = open(false, names(format!("file://{}", path.display())), &WHOSE).unwrap();
            stdio.stdout.as_mut().unwrap().write_all(b"line\n").unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "line\nline\n");
    }

    #[test]
    fn a_logger_gets_both_streams_its_arguments_and_whose_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (script, out) = (dir.path().join("logger"), dir.path().join("out"));
        let text = format!(
            "#!/bin/sh\nexec 5>&-\n{{ echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $*\"; cat <&3; cat <&4; }} >{0}.part\nmv {0}.part {0}\n",
            out.display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut stdio = open(false, names(format!("binary://{}?a=b%20c", script.display())), &WHOSE).unwrap();
        stdio.stdout.take().unwrap().write_all(b"from stdout\n").unwrap();
        stdio.stderr.take().unwrap().write_all(b"from stderr\n").unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !out.exists() && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert_eq!(std::fs::read_to_string(out).unwrap(), "test c1 a b c\nfrom stdout\nfrom stderr\n");
    }

    #[test]
    fn a_fifo_is_opened_without_a_reader_and_waits_for_one_until_its_hold_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut stdio = open(false, names(path.display().to_string()), &WHOSE).unwrap();
        let mut sink = stdio.stdout.take().unwrap();
        let hold = sink.hold().unwrap();
        let writer = std::thread::spawn(move || sink.write_all(&vec![0; 1 << 20]));
        drop(hold.lock().unwrap().take());
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_unknown_scheme_is_named() {
        let e = open(false, names("npipe:////./pipe".into()), &WHOSE).unwrap_err();
        assert!(e.to_string().contains("npipe://"), "{e}");
    }
}
