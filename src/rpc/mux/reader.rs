//! The reading thread: takes frames off the channel and puts them where they belong. It waits for nothing but the channel.

use std::io::{self, Read};
use std::sync::Arc;

use super::stream::{MuxStream, Shared};
use super::{Core, HEADER, MAX_DATA, MOST_LEFTOVERS, MOST_STREAMS, gone, kind};

const MAX_FRAME: usize = HEADER + MAX_DATA;

/// Room for a frame that is not complete yet, wherever in the buffer it begins, and for what comes after it.
const BUFFER: usize = 2 * MAX_FRAME;

/// Reads until the channel ends between two frames. The guest's device gives 4096 bytes at a time and a socket as much as
/// it has; frames are picked out of the buffer where they lie, so a payload is copied once, to its stream.
pub(super) fn read_all(core: &Arc<Core>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let (mut start, mut end) = (0, 0);
    loop {
        while let Some(length) = frame_length(&buffer[start..end])? {
            core.frame(&buffer[start..start + length])?;
            start += length;
        }
        if BUFFER - start < MAX_FRAME || start == end {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        match (&core.channel).read(&mut buffer[end..]) {
            Ok(0) if start == end => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => end += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The length of the frame at the start of `bytes`, if it is there whole.
fn frame_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(&[_, _, _, _, kind, x, y, z, a, b, c, d]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    if !(kind::OPEN..=kind::RESET).contains(&kind) || [x, y, z] != [0; 3] {
        return Err(malformed(format!("a frame of kind {kind}")));
    }
    let payload = if kind == kind::DATA { u32::from_be_bytes([a, b, c, d]) as usize } else { 0 };
    if payload > MAX_DATA {
        return Err(malformed(format!("a payload of {payload} bytes")));
    }
    Ok((bytes.len() >= HEADER + payload).then_some(HEADER + payload))
}

impl Core {
    /// Acts on one whole frame.
    fn frame(self: &Arc<Core>, frame: &[u8]) -> io::Result<()> {
        let Some((&[a, b, c, d, kind, _, _, _, w, x, y, z], payload)) = frame.split_first_chunk::<HEADER>() else { return Ok(()) };
        let (id, argument) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([w, x, y, z]));
        if kind == kind::OPEN {
            return self.opened(id, argument);
        }
        let known = {
            let table = self.table();
            if let Some(why) = &table.ended {
                return Err(gone(why));
            }
            table.streams.get(&id).cloned()
        };
        let Some(shared) = known else { return Ok(()) };
        let allowed = match kind {
            kind::DATA => shared.put(payload),
            kind::CREDIT => shared.credit(argument as usize),
            kind::FIN => shared.ended_by_peer(),
            kind::STOP => shared.stopped_by_peer(),
            _ => shared.reset_by_peer(),
        };
        allowed.map_err(|what| malformed(format!("stream {id} {what}")))
    }

    fn opened(self: &Arc<Core>, id: u32, port: u32) -> io::Result<()> {
        let mut table = self.table();
        if let Some(why) = &table.ended {
            return Err(gone(why));
        }
        if id == 0 || id % 2 == self.side.parity() || table.streams.contains_key(&id) {
            return Err(malformed(format!("stream {id} is opened, which is not the peer's to open")));
        }
        if table.theirs >= MOST_STREAMS + MOST_LEFTOVERS {
            return Err(malformed(format!("more than {MOST_STREAMS} streams")));
        }
        let shared = Shared::new(id);
        table.streams.insert(id, shared.clone());
        table.theirs += 1;
        table.inbox.push_back((port, MuxStream::new(shared, self.clone())));
        self.arrived.notify_one();
        Ok(())
    }
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the peer does not keep to the mux's protocol: {what}"))
}
