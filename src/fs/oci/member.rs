//! The members of a tar stream: ustar, PAX, GNU and old ones, as Go's archive/tar reads them, since it wrote nearly
//! every layer there is and two readers that disagree are how files are smuggled past one of them.
//!
//! The tar crate knows a header's layout. Its own iterator will not do for images from anywhere: it keeps extension
//! headers of any length in memory, cuts PAX records at line feeds, and hides where a sparse file's holes are.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax::{Pax, Time};

const BLOCK: u64 = 512;

/// The most that an extension header may hold, bytes: a path is at most 4 KiB and an attribute 64.
const LARGEST_EXTENSION: u64 = 1 << 20;

/// The most pieces a sparse file may have.
const MOST_EXTENTS: u64 = 1 << 18;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
    /// A type that no image has: its byte.
    Other(u8),
}

impl Kind {
    fn of(byte: u8, path: &[u8]) -> Kind {
        match byte {
            // Before there was a type for directories, their names ended in a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        }
    }
}

/// A piece of a file that has data, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// A member, its data excepted: that is read from [`Members`] before the next one is asked for.
#[derive(Debug)]
pub struct Member {
    /// As it stands in the archive.
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permissions, setuid, setgid and sticky bits.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Time,
    /// Major and minor number.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of the file, holes included.
    pub size: u64,
    /// Where the data goes, in the order in which it comes; all else is holes.
    pub extents: Vec<Extent>,
    /// Where the data begins in the stream.
    pub position: u64,
}

impl Member {
    /// Whether its data is the file, byte for byte.
    pub fn is_plain(&self) -> bool {
        self.kind == Kind::File && self.extents.iter().map(|e| e.length).sum::<u64>() == self.size
    }
}

/// Reads members one after the other. [`Read`] reads the data of the present one.
pub struct Members<R> {
    from: R,
    /// How `from` goes forward over what nobody wants to see.
    skip: fn(&mut R, u64) -> io::Result<()>,
    /// Position in the stream.
    at: u64,
    /// Bytes of the present member's data that were not read, and its padding.
    left: u64,
    padding: u64,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut short")
}

/// Goes forward by reading.
fn by_reading(from: &mut impl Read, length: u64) -> io::Result<()> {
    match io::copy(&mut from.take(length), &mut io::sink())? {
        n if n == length => Ok(()),
        _ => Err(cut_short()),
    }
}

impl<R: Read> Members<R> {
    pub fn new(from: R) -> Members<R> {
        Members { from, skip: by_reading, at: 0, left: 0, padding: 0 }
    }

    /// For a source that need not be read to go forward. `skip` may go beyond its end.
    pub fn seeking(from: R, skip: fn(&mut R, u64) -> io::Result<()>) -> Members<R> {
        Members { from, skip, at: 0, left: 0, padding: 0 }
    }

    /// The next member, or `None` at the end of the archive (two blocks of zeros, or the stream's end).
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        let (mut pax, mut long_path, mut long_link) = (Pax::default(), None, None);
        let mut extended = false;
        loop {
            let Some(header) = self.header()? else {
                return if extended { Err(cut_short()) } else { Ok(None) };
            };
            let byte = header.as_old().linkflag[0];
            match byte {
                b'x' => pax.read(&self.extension(&header)?)?,
                b'L' => long_path = Some(text(&self.extension(&header)?)),
                b'K' => long_link = Some(text(&self.extension(&header)?)),
                // Said of every member that follows; image builders put comments there.
                b'g' => drop(self.extension(&header)?),
                _ => {
                    pax.path = long_path.or(pax.path);
                    pax.link = long_link.or(pax.link);
                    return self.member(&header, byte, pax).map(Some);
                }
            }
            extended = byte != b'g';
        }
    }

    /// The next header that is not one of the two zero blocks at the end.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let left = std::mem::take(&mut self.left);
        let over = left + std::mem::take(&mut self.padding);
        (self.skip)(&mut self.from, left)?;
        // An archive that ends without the padding of its last member is whole.
        if self.take(over - left)?.is_none() {
            return Ok(None);
        }
        self.at += left;
        let Some(block) = self.take(BLOCK)? else { return Ok(None) };
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        verify(&header)?;
        Ok(Some(header))
    }

    /// Exactly `length` bytes, or `None` where the stream ends before the first.
    fn take(&mut self, length: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        self.from.by_ref().take(length).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        match bytes.len() as u64 {
            n if n == length => Ok(Some(bytes)),
            0 => Ok(None),
            _ => Err(cut_short()),
        }
    }

    fn begin_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
    }

    /// The data of an extension header, in memory.
    fn extension(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = size_of(header)?;
        if size > LARGEST_EXTENSION {
            return Err(invalid(format!("an extension header of {size} bytes, more than {LARGEST_EXTENSION}")));
        }
        self.begin_data(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn member(&mut self, header: &Header, byte: u8, pax: Pax) -> io::Result<Member> {
        let path = pax.sparse.name.clone().or(pax.path.clone()).unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = Kind::of(byte, &path);
        let stored = match kind {
            Kind::File | Kind::Other(_) => pax.size.map_or_else(|| size_of(header), Ok)?,
            // These have no data, whatever their size field says.
            _ => 0,
        };
        if stored > i64::MAX as u64 {
            return Err(invalid(format!("a member of {stored} bytes")));
        }
        let old_sparse = if byte == b'S' { Some(self.gnu_extents(header)?) } else { None };
        self.begin_data(stored);
        let (size, extents) = match old_sparse {
            Some(sparse) => sparse,
            None if kind == Kind::File => self.pax_extents(&pax, stored)?,
            None => (0, Vec::new()),
        };
        check_extents(&extents, size, self.left)?;
        let old = header.as_old();
        Ok(Member {
            link: pax.link.unwrap_or_else(|| header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default()),
            mode: field(&old.mode)? as u32 & 0o7777,
            uid: pax.uid.map_or_else(|| unsigned(&old.uid), Ok)?,
            gid: pax.gid.map_or_else(|| unsigned(&old.gid), Ok)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time { seconds: field(&old.mtime)?, nanoseconds: 0 },
            },
            device: if matches!(kind, Kind::Char | Kind::Block) { device(header)? } else { (0, 0) },
            xattrs: pax.xattrs,
            position: self.at,
            path,
            kind,
            size,
            extents,
        })
    }

    /// Size and pieces of an old GNU sparse file: four in the header, 21 in each further block.
    fn gnu_extents(&mut self, header: &Header) -> io::Result<(u64, Vec<Extent>)> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file without a GNU header"))?;
        let mut extents = Vec::new();
        let mut add = |pieces: &[GnuSparseHeader]| -> io::Result<()> {
            for piece in pieces.iter().filter(|p| !p.is_empty()) {
                extents.push(Extent { offset: unsigned(&piece.offset)?, length: unsigned(&piece.numbytes)? });
            }
            if extents.len() as u64 > MOST_EXTENTS { Err(too_many()) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            let bytes = self.take(BLOCK)?.ok_or_else(cut_short)?;
            block.as_mut_bytes().copy_from_slice(&bytes);
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok((unsigned(&gnu.realsize)?, extents))
    }

    /// Size and pieces of any other file.
    fn pax_extents(&mut self, pax: &Pax, stored: u64) -> io::Result<(u64, Vec<Extent>)> {
        let sparse = &pax.sparse;
        let map = match (sparse.major, sparse.minor) {
            (1, 0) => self.map_before_data()?,
            (0, _) if !sparse.map.is_empty() => sparse.map.clone(),
            (0, 0) => return Ok((stored, vec![Extent { offset: 0, length: stored }])),
            (major, minor) => return Err(invalid(format!("a sparse file of version {major}.{minor}"))),
        };
        let size = sparse.size.ok_or_else(|| invalid("a sparse file without a size"))?;
        if map.len() % 2 != 0 {
            return Err(invalid("a sparse file's map of an odd length"));
        }
        Ok((size, map.chunks(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()))
    }

    /// The map of a PAX 1.0 sparse file: decimal numbers, one a line, the number of pieces first, filled up to a block.
    fn map_before_data(&mut self) -> io::Result<Vec<u64>> {
        const DIGITS: usize = 20;
        let (mut numbers, mut digits) = (Vec::new(), Vec::new());
        let mut wanted = 1;
        while (numbers.len() as u64) < wanted {
            let mut block = [0; BLOCK as usize];
            self.read_exact(&mut block).map_err(|_| cut_short())?;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits.len() < DIGITS => digits.push(byte),
                    b'\n' => {
                        let number = std::str::from_utf8(&digits).ok().and_then(|d| d.parse().ok());
                        numbers.push(number.ok_or_else(|| invalid("a sparse file's map"))?);
                        digits.clear();
                        if numbers.len() == 1 {
                            wanted = Some(numbers[0]).filter(|&n| n <= MOST_EXTENTS).ok_or_else(too_many)? * 2 + 1;
                        }
                    }
                    _ => return Err(invalid("a sparse file's map")),
                }
                if numbers.len() as u64 == wanted {
                    break;
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.from.read(&mut buf[..most])?;
        if n == 0 && most > 0 {
            return Err(cut_short());
        }
        self.left -= n as u64;
        self.at += n as u64;
        Ok(n)
    }
}

fn too_many() -> io::Error {
    invalid(format!("a sparse file of more than {MOST_EXTENTS} pieces"))
}

/// In order, not overlapping, within the file, and exactly the data that is there.
fn check_extents(extents: &[Extent], size: u64, data: u64) -> io::Result<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for e in extents {
        let next = e.offset.checked_add(e.length).filter(|&next| e.offset >= end && next <= size);
        end = next.ok_or_else(|| invalid("the pieces of a sparse file do not fit together"))?;
        sum += e.length;
    }
    if !extents.is_empty() && sum != data {
        return Err(invalid(format!("a sparse file has {data} bytes of data and its map names {sum}")));
    }
    if size > i64::MAX as u64 {
        return Err(invalid(format!("a file of {size} bytes")));
    }
    Ok(())
}

/// The sum of a header's bytes, its own field taken as spaces; old programs took bytes as signed.
fn verify(header: &Header) -> io::Result<()> {
    let bytes = header.as_bytes().iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { b' ' } else { b });
    let (unsigned, signed) = bytes.fold((0i64, 0i64), |(u, s), b| (u + i64::from(b), s + i64::from(b as i8)));
    match field(&header.as_old().cksum) {
        Ok(sum) if sum == unsigned || sum == signed => Ok(()),
        _ => Err(invalid("a header's checksum is wrong")),
    }
}

fn size_of(header: &Header) -> io::Result<u64> {
    unsigned(&header.as_old().size)
}

fn device(header: &Header) -> io::Result<(u32, u32)> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(h), _) => (&h.dev_major, &h.dev_minor),
        (_, Some(h)) => (&h.dev_major, &h.dev_minor),
        _ => return Err(invalid("a device without numbers")),
    };
    let number = |f: &[u8]| unsigned(f).and_then(|n| u32::try_from(n).map_err(|_| invalid(format!("device number {n}"))));
    Ok((number(major)?, number(minor)?))
}

fn unsigned(field_bytes: &[u8]) -> io::Result<u64> {
    u64::try_from(field(field_bytes)?).map_err(|_| invalid("a negative number in a header"))
}

/// A number of a header: octal digits between spaces and NULs, or, with the first bit set, big-endian binary.
fn field(bytes: &[u8]) -> io::Result<i64> {
    if bytes[0] & 0x80 != 0 {
        // The bit beside the mark is the sign.
        let first = (bytes[0] & 0x7f) as i8;
        let first = if first & 0x40 != 0 { first | i8::MIN } else { first };
        let value = bytes[1..].iter().try_fold(i128::from(first), |v, &b| v.checked_mul(256)?.checked_add(i128::from(b)));
        return value.and_then(|v| i64::try_from(v).ok()).ok_or_else(|| invalid("a number in a header is too large"));
    }
    let text: &[u8] = bytes.split(|&b| b == 0).find(|part| !part.is_empty()).unwrap_or_default();
    let text = text.trim_ascii();
    text.iter()
        .try_fold(0i64, |v, &b| {
            Some(b).filter(|b| (b'0'..=b'7').contains(b)).and_then(|b| v.checked_mul(8)?.checked_add(i64::from(b - b'0')))
        })
        .ok_or_else(|| invalid(format!("{:?} in a header is no number", String::from_utf8_lossy(text))))
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|&b| b == 0).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
