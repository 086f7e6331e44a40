//! PAX extended headers (POSIX.1-2017, pax "Extended Header"): what a member is beyond its ustar header.
//!
//! Records are `length key=value\n` and are cut by their length, never at line feeds: the values of extended attributes
//! are binary (a file capability may well hold a 0x0a).

use std::io;

/// Extended attributes as star, GNU tar and every image builder write them.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What a header says of the next member. Unset fields are the ustar header's.
#[derive(Debug, Default)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// GNU tar's sparse files in PAX clothes: 0.0 and 0.1 have the map here, 1.0 has it before the data.
#[derive(Debug, Default)]
pub struct Sparse {
    pub major: u64,
    pub minor: u64,
    /// The member's real path.
    pub name: Option<Vec<u8>>,
    /// The file's length, holes included.
    pub size: Option<u64>,
    /// offset, length, offset, length ...
    pub map: Vec<u64>,
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed PAX header: {what}"))
}

fn number(value: &[u8]) -> io::Result<u64> {
    let digits = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|v| v.parse().ok()).ok_or_else(|| malformed(&format!("{:?} is no number", String::from_utf8_lossy(value))))
}

/// `[-]seconds[.fraction]`
fn time(value: &[u8]) -> io::Result<Time> {
    const DIGITS: usize = 9;
    let text = std::str::from_utf8(value).map_err(|_| malformed("a time"))?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: i64 = whole.parse().map_err(|_| malformed(&format!("{text:?} is no time")))?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed(&format!("{text:?} is no time")));
    }
    let mut nanoseconds: u32 = format!("{:0<DIGITS$}", &fraction[..fraction.len().min(DIGITS)]).parse().unwrap_or(0);
    if whole.starts_with('-') && nanoseconds > 0 {
        // -1.25 is 0.75 after -2.
        seconds = seconds.checked_sub(1).ok_or_else(|| malformed("a time"))?;
        nanoseconds = 1_000_000_000 - nanoseconds;
    }
    Ok(Time { seconds, nanoseconds })
}

fn name(value: &[u8]) -> io::Result<Vec<u8>> {
    if value.contains(&0) { Err(malformed("a path with a NUL byte")) } else { Ok(value.to_owned()) }
}

impl Pax {
    /// Takes in the records of one header; of two for the same key the later counts.
    pub fn read(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            let space = records.iter().position(|&b| b == b' ').ok_or_else(|| malformed("a record without a length"))?;
            let length = usize::try_from(number(&records[..space])?).map_err(|_| malformed("a record's length"))?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(malformed("a record's length is wrong"));
            }
            let record = &records[space + 1..length - 1];
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(|| malformed("a record without ="))?;
            self.record(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattrs.retain(|(n, _)| n != name);
            self.xattrs.push((name.to_owned(), value.to_owned()));
            return Ok(());
        }
        // An empty value takes the word of earlier headers away.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| name(value)).transpose()?,
            b"linkpath" => self.link = given.then(|| name(value)).transpose()?,
            b"size" => self.size = given.then(|| number(value)).transpose()?,
            b"uid" => self.uid = given.then(|| number(value)).transpose()?,
            b"gid" => self.gid = given.then(|| number(value)).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            b"GNU.sparse.major" => self.sparse.major = number(value)?,
            b"GNU.sparse.minor" => self.sparse.minor = number(value)?,
            b"GNU.sparse.name" => self.sparse.name = Some(name(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(number(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|&b| b == b',').filter(|v| !v.is_empty());
                self.sparse.map = numbers.map(number).collect::<io::Result<_>>()?;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[u8]) -> io::Result<Pax> {
        let mut pax = Pax::default();
        pax.read(records).map(|()| pax)
    }

    #[test]
    fn values_may_hold_anything() {
        let pax = read(b"31 SCHILY.xattr.user.a=x\ny=\0 z\n12 path=a\nb\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\ny=\0 z".to_vec())]);
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
    }

    #[test]
    fn the_later_record_counts_and_an_empty_one_takes_back() {
        let pax = read(b"9 uid=10\n9 uid=20\n9 gid=30\n7 gid=\n").unwrap();
        assert_eq!((pax.uid, pax.gid), (Some(20), None));
    }

    #[test]
    fn times() {
        let of = |t: &str| time(t.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(of("1700000000.123456789123").unwrap(), (1_700_000_000, 123_456_789));
        assert_eq!(of("5").unwrap(), (5, 0));
        assert_eq!(of("5.5").unwrap(), (5, 500_000_000));
        assert_eq!(of("-1.25").unwrap(), (-2, 750_000_000));
        for bad in ["", "x", "1.x", "1.5.5", "99999999999999999999"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_told() {
        for bad in
            [&b"x"[..], b"3 a\n", b"99 path=a\n", b"8 path=a\n", b"9 path=a\0\n", b"1 \n", b"18446744073709551616 a=b\n", b"10 size=-1\n"]
        {
            assert!(read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
