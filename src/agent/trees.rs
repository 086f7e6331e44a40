//! Whole directories from and to the host, for a guest that sees none of the host's files (a pod VM).
//!
//! A stream to port 1029 begins with one line: `UNPACK <path>\n` and a tar up to the end of the stream; `REMOVE <path>\n`; `SYNC
//! <path>\n` and a tar, of a volume that changes ([`super::live`]); or `READ <path>\n`, answered `OK\n` and the file. The answer is `OK\n` or `ERR <why>\n`. Paths are below /run/kata-containers.

use std::fs;
use std::io::{self, Write};
use std::net::Shutdown;
use std::path::{Component, Path};

use super::boot::KATA_RUN;
use crate::fs::mount;
use crate::fs::oci::{Layer, Tree};
use crate::rpc::{Stream, relay};

/// Serves one stream on a thread of its own.
pub fn serve(stream: Stream) {
    let started = crate::thread::try_start("trees", move || {
        if let Err(e) = act(&stream) {
            log::warn!("files from the host: {e}");
            let text = e.to_string().replace('\n', " ");
            let _ = (&stream).write_all(format!("ERR {text}\n").as_bytes());
        }
        let _ = stream.shutdown(Shutdown::Write);
    });
    if let Err(e) = started {
        log::warn!("files from the host: {e}");
    }
}

fn act(stream: &Stream) -> io::Result<()> {
    let line = relay::line(stream)?;
    let (verb, path) = line.split_once(' ').unwrap_or((&line, ""));
    let path = ours(path)?;
    let mut answer = stream;
    match verb {
        "UNPACK" => {
            fs::create_dir_all(path)?;
            let layer = Layer { name: path.display().to_string(), ..Default::default() };
            layer.unpack(&Tree::open(path)?, stream).map_err(|e| {
                let _ = fs::remove_dir_all(path);
                io::Error::other(e)
            })?;
            answer.write_all(b"OK\n")
        }
        "SYNC" => {
            super::live::sync(path, stream)?;
            answer.write_all(b"OK\n")
        }
        "REMOVE" => {
            // A delete shall reach into nothing that is mounted there.
            mount::detach_below(path)?;
            match fs::symlink_metadata(path) {
                Ok(m) if m.is_dir() => fs::remove_dir_all(path)?,
                Ok(_) => fs::remove_file(path)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            answer.write_all(b"OK\n")
        }
        "READ" => {
            let mut file = fs::File::open(path)?;
            answer.write_all(b"OK\n")?;
            io::copy(&mut file, &mut answer).map(drop)
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{other:?} is no UNPACK, SYNC, REMOVE or READ"))),
    }
}

fn ours(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.starts_with(KATA_RUN) || path == Path::new(KATA_RUN) || !plain {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: not below {KATA_RUN}", path.display())));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_ours() {
        assert!(ours("/run/kata-containers/c1/rootfs").is_ok());
        for bad in ["/run/kata-containers", "/run/kata-containers/../../etc", "/etc/passwd", "", "run/kata-containers/x"] {
            assert!(ours(bad).is_err(), "{bad}");
        }
    }
}
