//! Questions to the guest's port for trees: one line, bytes up to the end, `OK` or `ERR <why>`. `src/agent/trees.rs` answers.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use crate::rpc::relay;
use crate::vm::{Vm, port};

/// What is sent at once.
const CHUNK: usize = 1 << 20;

/// Asks `line`, gives what `send` writes, and answers what came after `OK`.
pub fn ask(vm: &dyn Vm, line: &str, send: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let stream = vm.dial(port::TREES).map_err(io::Error::other)?;
    let mut to = io::BufWriter::with_capacity(CHUNK, &stream);
    writeln!(to, "{line}")?;
    let sent = send(&mut to).and_then(|()| to.flush());
    drop(to);
    let _ = stream.shutdown(Shutdown::Write);
    // A guest that refuses says why, whatever became of the sending.
    let answer = match (relay::line(&stream), sent) {
        (Ok(answer), _) => answer,
        (Err(_), Err(e)) | (Err(e), Ok(())) => return Err(e),
    };
    if answer != "OK" {
        return Err(io::Error::other(answer.strip_prefix("ERR ").unwrap_or(&answer).to_owned()));
    }
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest)?;
    Ok(rest)
}
