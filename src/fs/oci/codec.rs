//! What blobs and archives are compressed with, and their digests.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};

/// Read from the source at once, bytes.
const BUFFER: usize = 128 << 10;

/// What a stream is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// By its first bytes: media types lie, and `docker save` has none.
pub fn compression(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame may come first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The bytes inside, whatever they are compressed with.
pub fn decompress<'a>(from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut from = from;
    let mut head = Vec::new();
    from.by_ref().take(4).read_to_end(&mut head)?;
    let kind = compression(&head);
    let whole = io::Cursor::new(head).chain(from);
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, whole))),
        Compression::Zstd => Box::new(Zstd { from: BufReader::with_capacity(BUFFER, whole), frame: FrameDecoder::new() }),
    })
}

/// Frame after frame, as parallel compressors and zstd:chunked write them; skippable ones are skipped.
struct Zstd<R: Read> {
    from: BufReader<R>,
    frame: FrameDecoder,
}

fn broken(e: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {e}"))
}

impl<R: Read> Zstd<R> {
    /// False at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        if self.frame.get_checksum_from_data().is_some_and(|sum| self.frame.get_calculated_checksum() != Some(sum)) {
            return Err(broken("a frame's checksum is wrong"));
        }
        while !self.from.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.from) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.from.by_ref().take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(broken(e)),
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.frame.can_collect() == 0 && !buf.is_empty() {
            if !self.frame.is_finished() {
                self.frame.decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBlocks(1)).map_err(broken)?;
            } else if !self.next_frame()? {
                return Ok(0);
            }
        }
        self.frame.read(buf)
    }
}

/// Pieces that wait for their reader.
const AHEAD: usize = 4;

/// Both ends of what is decompressed by one thread and read by another.
pub fn pieces() -> (Sender, Pieces) {
    let (full, filled) = sync_channel(AHEAD);
    let (back, empty) = channel();
    (Sender { full, empty }, Pieces { filled, back, piece: Vec::new(), at: 0 })
}

pub struct Sender {
    full: SyncSender<io::Result<Vec<u8>>>,
    /// Pieces that were read, to be filled again.
    empty: Receiver<Vec<u8>>,
}

impl Sender {
    /// Sends the bytes inside `blob`; answers its digest (where it is wanted) and length. `None`: the reader is gone, or knows why.
    pub fn send_all(self, blob: impl Read, wanted: bool) -> Option<(Option<String>, u64)> {
        let mut blob = Hashing::new(blob, wanted);
        let sent = decompress(&mut blob).and_then(|plain| self.send(plain)).and_then(|()| blob.finish());
        sent.map_err(|e| self.full.send(Err(e))).ok()
    }

    fn send(&self, mut plain: impl Read) -> io::Result<()> {
        loop {
            let mut piece = self.empty.try_recv().unwrap_or_default();
            piece.resize(BUFFER, 0);
            match plain.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) => piece.truncate(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            self.full.send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
    }
}

/// Reads what a [`Sender`] sends.
pub struct Pieces {
    filled: Receiver<io::Result<Vec<u8>>>,
    back: std::sync::mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            // Its end is the sender's; that it came too early, the sender's answer tells.
            let Ok(piece) = self.filled.recv() else { return Ok(0) };
            let _ = self.back.send(std::mem::replace(&mut self.piece, piece?));
            self.at = 0;
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Reads, and counts and hashes what was read.
pub struct Hashing<R> {
    inner: R,
    /// None where nobody asks for the digest.
    hash: Option<Sha256>,
    length: u64,
}

impl<R: Read> Hashing<R> {
    /// `wanted`: somebody asks for the digest.
    pub fn new(inner: R, wanted: bool) -> Hashing<R> {
        Hashing { inner, hash: wanted.then(Sha256::new), length: 0 }
    }

    /// Reads what is left; answers digest (where it was wanted) and length of it all.
    pub fn finish(mut self) -> io::Result<(Option<String>, u64)> {
        let mut buffer = vec![0; BUFFER];
        while self.read(&mut buffer)? > 0 {}
        Ok((self.hash.map(|h| named(&h.finalize())), self.length))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = loop {
            match self.inner.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                r => break r?,
            }
        };
        self.hash.iter_mut().for_each(|h| h.update(&buf[..n]));
        self.length += n as u64;
        Ok(n)
    }
}

/// `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    named(&Sha256::digest(bytes))
}

/// The same of what was hashed already.
pub fn named(hash: &[u8]) -> String {
    format!("sha256:{}", crate::fs::hex(hash))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gzip, zstd};
    use super::*;

    fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)?.read_to_end(&mut out).map(|_| out)
    }

    fn text(lines: usize) -> Vec<u8> {
        (0..lines).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
    }

    #[test]
    fn each_kind_and_several_in_a_row() {
        let text = text(50_000);
        assert_eq!(all(&text).unwrap(), text);
        assert_eq!(all(b"").unwrap(), b"");
        assert_eq!(all(&gzip(&text)).unwrap(), text);
        assert_eq!(all(&zstd(&text)).unwrap(), text);
        let twice = [text.clone(), text.clone()].concat();
        assert_eq!(all(&[gzip(&text), gzip(&text)].concat()).unwrap(), twice);
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let frames = [skippable.clone(), zstd(&text), skippable.clone(), zstd(&text), skippable].concat();
        assert_eq!(all(&frames).unwrap(), twice);
    }

    #[test]
    fn what_is_cut_short_or_changed_is_an_error() {
        let text = text(20_000);
        for whole in [gzip(&text), zstd(&text)] {
            for length in [5, 17, whole.len() / 2, whole.len() - 1] {
                assert!(all(&whole[..length]).is_err(), "{length} of {}", whole.len());
            }
        }
        let mut changed = gzip(&text);
        let middle = changed.len() / 2;
        changed[middle] ^= 0x55;
        assert!(all(&changed).is_err());
        assert!(all(&[zstd(&text), b"garbage".to_vec()].concat()).is_err());
    }

    #[test]
    fn a_stream_is_counted_and_hashed_to_its_end() {
        let mut hashing = Hashing::new(&b"abc"[..], true);
        hashing.read_exact(&mut [0]).unwrap();
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hashing.finish().unwrap(), (Some(abc.to_owned()), 3));
        assert_eq!(digest(b"abc"), abc);
    }
}
