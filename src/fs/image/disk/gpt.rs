//! A GUID partition table (UEFI specification, chapter 5), and in front of it the boot code and the protective MBR that a BIOS wants.

use std::io;

use flate2::Crc;

pub const SECTOR: u64 = 512;

/// Bytes of a table: 128 entries of 128 bytes.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const TABLE: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;

/// First sector that a partition may have; the last is as far from the disk's end, less the MBR.
const FIRST: u64 = 2 + TABLE;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER: usize = 92;

/// Code of an MBR, before the disk's signature.
const CODE: usize = 440;

/// An EFI system partition, and one for Linux' files.
pub const EFI_SYSTEM: Guid = Guid::new(0xc12a7328, 0xf81f, 0x11d2, [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
pub const LINUX: Guid = Guid::new(0x0fc63daf, 0x8483, 0x4772, [0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);

/// Attribute: a BIOS boots from it (`gptmbr.bin` looks for this one).
pub const LEGACY_BOOT: u64 = 1 << 2;

/// As it lies on a disk: the first three fields in little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    const fn new(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        Guid([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }
}

/// A partition. Sectors of 512 bytes, the last one included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub kind: Guid,
    pub id: Guid,
    pub first: u64,
    pub last: u64,
    pub attributes: u64,
    pub name: String,
}

impl Partition {
    fn bytes(&self) -> [u8; ENTRY] {
        let mut e = [0; ENTRY];
        e[..16].copy_from_slice(&self.kind.0);
        e[16..32].copy_from_slice(&self.id.0);
        e[32..40].copy_from_slice(&self.first.to_le_bytes());
        e[40..48].copy_from_slice(&self.last.to_le_bytes());
        e[48..56].copy_from_slice(&self.attributes.to_le_bytes());
        for (to, unit) in e[56..].chunks_exact_mut(2).zip(self.name.encode_utf16()) {
            to.copy_from_slice(&unit.to_le_bytes());
        }
        e
    }

    fn read(e: &[u8]) -> Option<Partition> {
        let number = |at: usize| e.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let guid = |at: usize| e.get(at..at + 16)?.try_into().ok().map(Guid);
        let units: Vec<u16> = e.get(56..ENTRY)?.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).take_while(|&u| u != 0).collect();
        let name = String::from_utf16_lossy(&units);
        let found = Partition { kind: guid(0)?, id: guid(16)?, first: number(32)?, last: number(40)?, attributes: number(48)?, name };
        (found.kind.0 != [0; 16]).then_some(found)
    }
}

/// What stands at a disk's beginning and at its end.
pub struct Table {
    /// From the disk's first byte.
    pub head: Vec<u8>,
    /// Up to its last.
    pub tail: Vec<u8>,
}

/// The table of a disk of `sectors`, named `disk`, with `code` for a BIOS.
pub fn table(sectors: u64, disk: Guid, partitions: &[Partition], code: &[u8]) -> io::Result<Table> {
    let last = sectors.saturating_sub(FIRST);
    let wrong = |p: &&Partition| p.first < FIRST || p.last > last || p.first > p.last;
    if let Some(p) = partitions.iter().find(wrong) {
        return Err(io::Error::other(format!("partition {}: sectors {} to {} are not on a disk of {sectors}", p.name, p.first, p.last)));
    }
    if code.len() > CODE || partitions.len() > ENTRIES {
        return Err(io::Error::other("too much for a partition table"));
    }
    let mut entries: Vec<u8> = partitions.iter().flat_map(|p| p.bytes()).collect();
    entries.resize(ENTRIES * ENTRY, 0);
    let header = |own: u64, other: u64, at: u64| {
        let mut h = Vec::with_capacity(SECTOR as usize);
        h.extend(SIGNATURE);
        h.extend(REVISION.to_le_bytes());
        h.extend((HEADER as u32).to_le_bytes());
        h.extend([0; 8]);
        [own, other, FIRST, last].iter().for_each(|n| h.extend(n.to_le_bytes()));
        h.extend(disk.0);
        h.extend(at.to_le_bytes());
        [ENTRIES as u32, ENTRY as u32, crc(&entries)].iter().for_each(|n| h.extend(n.to_le_bytes()));
        let sum = crc(&h);
        h[16..20].copy_from_slice(&sum.to_le_bytes());
        h.resize(SECTOR as usize, 0);
        h
    };
    let head = [protective(sectors, code), header(1, sectors - 1, 2), entries.clone()].concat();
    let tail = [entries.clone(), header(sectors - 1, 1, sectors - 1 - TABLE)].concat();
    Ok(Table { head, tail })
}

fn crc(data: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(data);
    crc.sum()
}

/// One partition of type 0xEE over the whole disk, so that who knows no GPT takes nothing for free.
fn protective(sectors: u64, code: &[u8]) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR as usize];
    mbr[..code.len()].copy_from_slice(code);
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX).to_le_bytes();
    mbr[446..458].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    mbr[458..462].copy_from_slice(&length);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// Bytes from a disk's beginning that [`read`] wants.
pub const HEAD: usize = (FIRST * SECTOR) as usize;

/// The partitions that a disk's beginning names, by number; none if it has no such table or a damaged one.
pub fn read(head: &[u8]) -> Vec<(u32, Partition)> {
    let sector = SECTOR as usize;
    let number = |at: usize| head.get(sector + at..sector + at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(header), Some(entries)) = (head.get(sector..sector + HEADER), head.get(2 * sector..HEAD)) else { return Vec::new() };
    let ours = number(80) == Some(ENTRIES as u32) && number(84) == Some(ENTRY as u32);
    let mut summed = header.to_vec();
    summed[16..20].fill(0);
    if !header.starts_with(SIGNATURE) || !ours || number(16) != Some(crc(&summed)) || number(88) != Some(crc(entries)) {
        return Vec::new();
    }
    entries.chunks_exact(ENTRY).zip(1..).filter_map(|(e, n)| Some((n, Partition::read(e)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn partitions() -> Vec<Partition> {
        let one = |kind, first, last, name: &str| Partition {
            kind,
            id: Guid([first as u8; 16]),
            first,
            last,
            attributes: LEGACY_BOOT,
            name: name.into(),
        };
        vec![one(EFI_SYSTEM, 2048, 4095, "boot"), one(LINUX, 4096, 8191, "osc-storage")]
    }

    #[test]
    fn what_is_written_is_read_and_stands_where_it_should() {
        let t = table(10240, Guid([7; 16]), &partitions(), b"code").unwrap();
        assert_eq!((t.head.len(), t.tail.len()), (HEAD, 33 * 512));
        assert!(t.head.starts_with(b"code") && t.head[510..512] == [0x55, 0xaa]);
        assert_eq!(read(&t.head), partitions().into_iter().enumerate().map(|(n, p)| (n as u32 + 1, p)).collect::<Vec<_>>());
        assert_eq!(&t.tail[32 * 512..][..8], SIGNATURE);
    }

    #[test]
    fn a_partition_off_the_disk_is_refused() {
        for sectors in [0, 1, 4096, 8192, 8224] {
            assert!(table(sectors, Guid([0; 16]), &partitions(), b"").is_err(), "{sectors}");
        }
        assert!(table(8225, Guid([0; 16]), &partitions(), b"").is_ok());
    }

    #[test]
    fn a_damaged_table_is_none() {
        let t = table(10240, Guid([7; 16]), &partitions(), b"").unwrap();
        for at in [512, 512 + 20, 1024 + 33] {
            let mut head = t.head.clone();
            head[at] ^= 1;
            assert!(read(&head).is_empty(), "{at}");
        }
        assert!(read(&t.head[..700]).is_empty() && read(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn no_disk_makes_it_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }
}
