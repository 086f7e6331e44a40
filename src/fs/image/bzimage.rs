//! Takes the ELF kernel out of a bzImage, so that QEMU can start it by its PVH entry instead of unpacking it in the guest.
//!
//! Formats: the kernel's `Documentation/arch/x86/boot.rst` (setup_sects at 0x1f1, magic at 0x202, kernel_version at 0x20e,
//! payload_offset and payload_length at 0x248), ELF64, and the note `Xen` 18 of `include/xen/interface/elfnote.h`.

use std::fs;
use std::path::Path;

use super::ImageError;
use super::unpack::Packing;

/// A kernel as QEMU loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmlinux {
    pub elf: Vec<u8>,
    /// The release that the bzImage says it is of; an ELF file says nothing.
    pub release: Option<String>,
}

const ELF: &[u8] = b"\x7fELF";

/// A kernel larger than this is none.
const LARGEST: u64 = 1 << 30;

/// Reads `path` and takes the kernel out of it.
pub fn vmlinux(path: &Path) -> Result<Vmlinux, ImageError> {
    let image = fs::read(path).map_err(ImageError::io(format!("read {}", path.display())))?;
    extract(image).map_err(|what| ImageError::Format { path: path.into(), what })
}

fn extract(image: Vec<u8>) -> Result<Vmlinux, String> {
    if image.starts_with(ELF) {
        check(&image)?;
        return Ok(Vmlinux { elf: image, release: None });
    }
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("neither a bzImage nor an ELF file".into());
    }
    let payload = payload(&image).ok_or("it is cut short: its payload is not all there")?;
    let packing = Packing::of(payload).ok_or_else(|| {
        let magic = &payload[..payload.len().min(6)];
        format!("its payload is compressed by something other than gzip, xz, zstd or LZ4 (it begins {magic:02x?})")
    })?;
    let elf = decompress(packing, payload).map_err(|e| format!("its {} payload is damaged: {e}", packing.name()))?;
    check(&elf)?;
    Ok(Vmlinux { elf, release: release(&image) })
}

/// `size` bytes at `at`, little endian.
fn number(data: &[u8], at: u64, size: u64) -> Option<u64> {
    Some(range(data, at, size)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
}

fn range(data: &[u8], at: u64, size: u64) -> Option<&[u8]> {
    data.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(size)?).ok()?)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let setup = match number(image, 0x1f1, 1)? {
        0 => 4, // boot.rst: for backwards compatibility
        n => n,
    };
    range(image, (setup + 1) * 512 + number(image, 0x248, 4)?, number(image, 0x24c, 4)?)
}

/// The first word of the version text: `6.1.0-9-amd64 (builder@host) #1 SMP ...`.
fn release(image: &[u8]) -> Option<String> {
    let at = number(image, 0x20e, 2).filter(|&at| at != 0)? + 0x200;
    let text = image.get(at as usize..)?;
    let end = text.iter().position(|b| b.is_ascii_whitespace() || *b == 0)?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    (!word.is_empty()).then(|| word.to_owned())
}

/// The payload's last four bytes are its uncompressed size: gzip's own field, or what the kernel's build appends.
fn decompress(packing: Packing, payload: &[u8]) -> Result<Vec<u8>, String> {
    let at = payload.len().saturating_sub(4);
    let size = number(payload, at as u64, 4).filter(|&s| s > 0 && s <= LARGEST).ok_or("its stated size is no size")?;
    let packed = if packing == Packing::Gzip { payload } else { &payload[..at] };
    let out = packing.unpack(packed, size)?;
    if out.len() as u64 == size { Ok(out) } else { Err(format!("it unpacks to {} bytes and states {size}", out.len())) }
}

/// A kernel has half a dozen program headers; more are damage.
const MOST_SEGMENTS: u64 = 64;
/// And a few hundred bytes of notes.
const LONGEST_NOTES: u64 = 1 << 20;

const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;

/// A 64-bit ELF file for x86 that is all there and has a PVH entry.
fn check(elf: &[u8]) -> Result<(), String> {
    const CLASS_64: u64 = 2;
    const X86_64: u64 = 62;
    if !elf.starts_with(ELF) {
        return Err("what is inside is no ELF file".into());
    }
    if number(elf, 4, 1) != Some(CLASS_64) || number(elf, 0x12, 2) != Some(X86_64) {
        return Err("it is not for x86_64".into());
    }
    let segments = segments(elf).ok_or("its ELF header makes no sense")?;
    if let Some((_, offset, length)) = segments.iter().find(|(_, offset, length)| range(elf, *offset, *length).is_none()) {
        return Err(format!("it is cut short: {length} bytes at {offset} are not all there"));
    }
    let notes = segments.iter().filter(|s| s.0 == PT_NOTE).filter_map(|&(_, at, length)| range(elf, at, length.min(LONGEST_NOTES)));
    if notes.into_iter().any(has_pvh_entry) { Ok(()) } else { Err("it has no PVH entry (its CONFIG_PVH is not set)".into()) }
}

/// (type, offset in the file, length in the file) of what is loaded and of notes.
fn segments(elf: &[u8]) -> Option<Vec<(u64, u64, u64)>> {
    let (table, size, count) = (number(elf, 0x20, 8)?, number(elf, 0x36, 2)?, number(elf, 0x38, 2)?);
    if count > MOST_SEGMENTS {
        return None;
    }
    let header = |i: u64| {
        let at = table.checked_add(i * size)?;
        Some((number(elf, at, 4)?, number(elf, at.checked_add(8)?, 8)?, number(elf, at.checked_add(32)?, 8)?))
    };
    let all: Vec<_> = (0..count).map(header).collect::<Option<_>>()?;
    Some(all.into_iter().filter(|s| s.0 == PT_LOAD || s.0 == PT_NOTE).collect())
}

/// Notes are `u32 name length, u32 descriptor length, u32 type`, then both, each padded to four bytes.
fn has_pvh_entry(mut notes: &[u8]) -> bool {
    const PHYS32_ENTRY: u64 = 18;
    let padded = |n: u64| n.next_multiple_of(4);
    while let (Some(name), Some(desc), Some(kind)) = (number(notes, 0, 4), number(notes, 4, 4), number(notes, 8, 4)) {
        if kind == PHYS32_ENTRY && range(notes, 12, name) == Some(b"Xen\0") {
            return true;
        }
        let next = usize::try_from(12 + padded(name) + padded(desc)).unwrap_or(usize::MAX);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
pub mod tests {
    use super::super::unpack::tests::{ALL, pack};
    use super::*;
    use proptest::prelude::*;

    /// The smallest kernel: one note segment, and in it another note before PVH's.
    pub fn elf() -> Vec<u8> {
        const AT: usize = 0x78;
        let mut elf = vec![0; AT];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[0x12] = 62;
        elf[0x20] = 0x40;
        elf[0x36] = 56;
        elf[0x38] = 1;
        elf[0x40] = 4;
        elf[0x48] = AT as u8;
        elf.extend(b"\x04\0\0\0\x05\0\0\0\x06\0\0\0Xen\0abcde\0\0\0");
        elf.extend(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\0\0\0\x01\0\0\0\0");
        elf[0x60] = (elf.len() - AT) as u8;
        elf.extend((0..3000u32).map(|i| (i / 5) as u8));
        elf
    }

    pub fn bzimage(packing: Packing, release: &str) -> Vec<u8> {
        let mut payload = pack(packing, &elf());
        if packing != Packing::Gzip {
            payload.extend((elf().len() as u32).to_le_bytes());
        }
        wrap(&payload, release)
    }

    fn wrap(payload: &[u8], release: &str) -> Vec<u8> {
        let mut image = vec![0; 5 * 512];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = format!("{release} (builder@host) #1 SMP");
        image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn every_compression_comes_out_with_the_release() {
        for packing in ALL {
            let found = extract(bzimage(packing, "6.1.0-9-amd64")).unwrap();
            assert_eq!(found, Vmlinux { elf: elf(), release: Some("6.1.0-9-amd64".into()) }, "{packing:?}");
        }
        assert_eq!(extract(elf()).unwrap(), Vmlinux { elf: elf(), release: None });
    }

    #[test]
    fn damage_is_told() {
        for packing in ALL {
            let whole = bzimage(packing, "1.0");
            let error = |end: usize| extract(whole[..end].to_vec()).unwrap_err();
            assert!(error(whole.len() - 100).contains("cut short"));
            assert!(error(0x300).contains("cut short"));
            let mut wrong = whole.clone();
            let size = wrong.len() - 4;
            wrong[size] ^= 1;
            assert!(extract(wrong).unwrap_err().contains("payload is damaged"), "{packing:?}");
        }
        assert!(extract(wrap(b"BZh91AY", "1.0")).unwrap_err().contains("other than gzip"));
        assert!(extract(wrap(b"", "1.0")).unwrap_err().contains("other than gzip"));
        assert!(extract(b"MZ".repeat(600)).unwrap_err().contains("neither a bzImage"));
        assert!(extract(Vec::new()).unwrap_err().contains("neither a bzImage"));
    }

    #[test]
    fn a_kernel_that_qemu_could_not_start_is_told() {
        let mut noteless = elf();
        noteless[0x78 + 24 + 8] = 0x11;
        assert!(extract(noteless).unwrap_err().contains("CONFIG_PVH"));
        let mut foreign = elf();
        foreign[0x12] = 183;
        assert!(extract(foreign).unwrap_err().contains("x86_64"));
        let mut short = elf();
        short.truncate(0x80);
        assert!(extract(short).unwrap_err().contains("cut short"));
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(kind in 0usize..5, hits in prop::collection::vec((0usize..4000, any::<u8>()), 1..8), end in 0usize..8000) {
            let mut image = ALL.get(kind).map_or_else(elf, |p| bzimage(*p, "1.0"));
            for (at, byte) in hits {
                // The headers are short and the rest is long: hit both.
                let at = if at < 1000 { at % 0x80 + if kind < 4 { 0x1f0 } else { 0 } } else { at };
                if let Some(b) = image.get_mut(at) { *b = byte; }
            }
            image.truncate(end);
            let _ = extract(image);
        }
    }
}
