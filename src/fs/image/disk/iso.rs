//! An ISO 9660 volume (ECMA-119) of a few files: what cloud-init's NoCloud reads.
//!
//! Names are kept as they are (`user-data`), which is more than the standard's first level allows and what Linux reads.

/// Bytes of a sector.
const SECTOR: usize = 2048;

/// Sectors: what stands before the files.
const DESCRIPTOR: usize = 16;
const PATHS_LE: usize = 18;
const PATHS_BE: usize = 19;
const ROOT: usize = 20;
const FILES: usize = 21;

const DIRECTORY: u8 = 2;

/// Where a volume has its mark and its name, bytes from its beginning.
pub const MARK: (usize, &[u8]) = (DESCRIPTOR * SECTOR + 1, b"CD001");
pub const LABEL: usize = DESCRIPTOR * SECTOR + 40;
const LABEL_LENGTH: usize = 32;

/// The volume `label` with `files` (name, contents) in its root: a handful of them, with short names.
pub fn volume(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut at = FILES;
    let mut root = [record(&[0], ROOT, SECTOR, DIRECTORY), record(&[1], ROOT, SECTOR, DIRECTORY)].concat();
    let mut files = files.to_vec();
    files.sort();
    let mut data = Vec::new();
    for (name, contents) in &files {
        root.extend(record(name.as_bytes(), at, contents.len(), 0));
        data.extend_from_slice(contents);
        data.resize(data.len().next_multiple_of(SECTOR), 0);
        at = FILES + data.len() / SECTOR;
    }
    root.resize(SECTOR, 0);
    let mut volume = vec![0; DESCRIPTOR * SECTOR];
    for sector in
        [primary(label, at), terminator(), path_table(u32::to_le_bytes, u16::to_le_bytes), path_table(u32::to_be_bytes, u16::to_be_bytes)]
    {
        volume.extend(sector);
        volume.resize(volume.len().next_multiple_of(SECTOR), 0);
    }
    [volume, root, data].concat()
}

/// A number in both byte orders.
fn both32(n: usize) -> [u8; 8] {
    let n = n as u32;
    let (l, b) = (n.to_le_bytes(), n.to_be_bytes());
    [l[0], l[1], l[2], l[3], b[0], b[1], b[2], b[3]]
}

fn both16(n: u16) -> [u8; 4] {
    let (l, b) = (n.to_le_bytes(), n.to_be_bytes());
    [l[0], l[1], b[0], b[1]]
}

/// A directory record (9.1).
fn record(name: &[u8], sector: usize, size: usize, flags: u8) -> Vec<u8> {
    let length = (33 + name.len()).next_multiple_of(2);
    let mut r = vec![length as u8, 0];
    r.extend(both32(sector));
    r.extend(both32(size));
    // No date: the same bytes for the same files.
    r.extend([0; 7]);
    r.extend([flags, 0, 0]);
    r.extend(both16(1));
    r.push(name.len() as u8);
    r.extend(name);
    r.resize(length, 0);
    r
}

/// The primary volume descriptor (8.4).
fn primary(label: &str, sectors: usize) -> Vec<u8> {
    let padded = |text: &str, length: usize| text.bytes().chain(std::iter::repeat(b' ')).take(length).collect::<Vec<u8>>();
    let mut d = vec![1];
    d.extend(MARK.1);
    d.extend([1, 0]);
    d.extend(padded("LINUX", 32));
    d.extend(padded(label, LABEL_LENGTH));
    d.extend([0; 8]);
    d.extend(both32(sectors));
    d.extend([0; 32]);
    d.extend([both16(1), both16(1), both16(SECTOR as u16)].concat());
    d.extend(both32(10));
    d.extend([(PATHS_LE as u32).to_le_bytes(), [0; 4], (PATHS_BE as u32).to_be_bytes(), [0; 4]].concat());
    d.extend(record(&[0], ROOT, SECTOR, DIRECTORY));
    d.extend(padded("", 4 * 128 + 3 * 37));
    for _ in 0..4 {
        d.extend([b'0'; 16]);
        d.push(0);
    }
    d.push(1);
    d
}

fn terminator() -> Vec<u8> {
    [&[255][..], MARK.1, &[1]].concat()
}

/// The root alone (9.4).
fn path_table(u32_bytes: fn(u32) -> [u8; 4], u16_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let mut t = vec![1, 0];
    t.extend(u32_bytes(ROOT as u32));
    t.extend(u16_bytes(1));
    t.extend([0, 0]);
    t
}

/// The label of a volume that begins with `head`.
pub fn label(head: &[u8]) -> Option<String> {
    let (at, mark) = MARK;
    let label = head.get(at..at + mark.len()).filter(|m| *m == mark).and_then(|_| head.get(LABEL..LABEL + LABEL_LENGTH))?;
    Some(String::from_utf8_lossy(label).trim_end_matches([' ', '\0']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_label_and_files_are_where_they_belong() {
        let large = vec![7; 3000];
        let v = volume("cidata", &[("user-data", b"#cloud-config\n"), ("meta-data", &large)]);
        assert_eq!(v.len(), (FILES + 2 + 1) * SECTOR);
        assert_eq!(label(&v).as_deref(), Some("cidata"));
        // Sorted: meta-data comes first.
        assert_eq!(v[FILES * SECTOR + 2999], 7);
        assert!(v[(FILES + 2) * SECTOR..].starts_with(b"#cloud-config\n"));
        assert_eq!(label(&v[..LABEL]), None);
        assert_eq!(label(&vec![0; 1 << 16]), None);
    }
}
