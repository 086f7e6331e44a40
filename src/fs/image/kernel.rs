//! The guest kernel: which one, where its files are, and how its ELF image is taken out of a bzImage.
//!
//! Format: the kernel's `Documentation/arch/x86/boot.rst` (setup_sects at 0x1f1, the payload's place at 0x248 and 0x24c).

use std::cmp::Ordering;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::ImageError;

/// Where kernels lie that were unpacked but not installed: `<release>/{vmlinuz,modules/}`.
pub const UNPACKED: &str = "/var/cache/kata-containers/kernels";

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Holds `modules.dep`.
    pub modules: PathBuf,
    /// Its build configuration, where it is installed.
    pub config: Option<PathBuf>,
}

/// Finds the kernel of `release`, else the host's own, else the newest usable one.
pub fn find(release: Option<&str>) -> Result<Kernel, ImageError> {
    let running = rustix::system::uname().release().to_string_lossy().into_owned();
    find_in(Path::new("/"), release, &running)
}

fn find_in(root: &Path, release: Option<&str>, running: &str) -> Result<Kernel, ImageError> {
    if let Some(release) = release {
        return installed(root, release).or_else(|| unpacked(root, release)).ok_or_else(|| ImageError::Kernel {
            release: release.into(),
            what: format!("it is not under /lib/modules/{release} and /boot/vmlinuz-{release}, nor under {UNPACKED}/{release}"),
        });
    }
    if let Some(kernel) = installed(root, running) {
        return Ok(kernel);
    }
    newest(root, "boot", |name| name.strip_prefix("vmlinuz-"))
        .into_iter()
        .find_map(|r| installed(root, &r))
        .or_else(|| newest(root, UNPACKED.trim_start_matches('/'), |name| Some(name)).into_iter().find_map(|r| unpacked(root, &r)))
        .ok_or_else(|| ImageError::NoKernel {
            looked: format!(
                "the running kernel {running} has no modules in /lib/modules/{running}, and neither /boot/vmlinuz-* nor {UNPACKED} has one that does"
            ),
        })
}

fn installed(root: &Path, release: &str) -> Option<Kernel> {
    let modules = root.join("lib/modules").join(release);
    let boot = root.join("boot");
    let vmlinuz = [modules.join("vmlinuz"), boot.join(format!("vmlinuz-{release}"))].into_iter().find(|p| p.is_file())?;
    let config = [boot.join(format!("config-{release}")), modules.join("config")].into_iter().find(|p| p.is_file());
    usable(Kernel { release: release.into(), vmlinuz, modules, config })
}

fn unpacked(root: &Path, release: &str) -> Option<Kernel> {
    let dir = root.join(UNPACKED.trim_start_matches('/')).join(release);
    let config = Some(dir.join("config")).filter(|p| p.is_file());
    usable(Kernel { release: release.into(), vmlinuz: dir.join("vmlinuz"), modules: dir.join("modules"), config })
}

fn usable(kernel: Kernel) -> Option<Kernel> {
    (kernel.vmlinuz.is_file() && kernel.modules.join("modules.dep").is_file()).then_some(kernel)
}

/// Releases named in a directory, newest first.
fn newest(root: &Path, dir: &str, release: fn(&str) -> Option<&str>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root.join(dir)) else { return Vec::new() };
    let names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let mut found: Vec<String> = names.iter().filter_map(|n| release(n)).map(str::to_owned).collect();
    found.sort_by(|a, b| compare(b, a));
    found
}

/// Orders releases as people do: runs of digits by their number.
fn compare(a: &str, b: &str) -> Ordering {
    fn pieces(s: &str) -> Vec<(u64, &str)> {
        let mut pieces = Vec::new();
        let mut rest = s;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let text = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (word, after) = after.split_at(text);
            pieces.push((number.parse().unwrap_or(0), word));
            rest = after;
        }
        pieces
    }
    pieces(a).cmp(&pieces(b))
}

/// What a bzImage's payload may be compressed with: (magic, name).
const MAGICS: [(&[u8], &str); 4] = [
    (&[0x1f, 0x8b], "gzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (&[0x02, 0x21, 0x4c, 0x18], "LZ4"),
];

const ELF: &[u8] = b"\x7fELF";

/// A kernel larger than this is none.
const LARGEST: u64 = 1 << 30;

/// Reads `path` and takes the ELF kernel out of it.
pub fn vmlinux(path: &Path) -> Result<Vec<u8>, ImageError> {
    let image = fs::read(path).map_err(ImageError::io(format!("read {}", path.display())))?;
    extract(image).map_err(|what| ImageError::Format { path: path.into(), what })
}

fn extract(image: Vec<u8>) -> Result<Vec<u8>, String> {
    if image.starts_with(ELF) {
        return pvh(image);
    }
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("neither a bzImage nor an ELF file".into());
    }
    let word = |at: usize| image.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).ok_or("it ends within its header");
    let setup = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup + 1) * 512 + word(0x248)? as usize;
    let length = word(0x24c)? as usize;
    let payload = start.checked_add(length).and_then(|end| image.get(start..end)).ok_or("it is cut short: its payload is not all there")?;
    let (_, name) = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)).ok_or_else(|| {
        format!(
            "its payload is compressed by something other than gzip, xz, zstd or LZ4 (it begins {:02x?})",
            &payload[..payload.len().min(6)]
        )
    })?;
    let elf = decompress(name, payload).map_err(|e| format!("its {name} payload is damaged: {e}"))?;
    pvh(elf)
}

fn decompress(name: &str, payload: &[u8]) -> Result<Vec<u8>, String> {
    // The last four bytes of the payload are the uncompressed size, little endian, whatever the compression.
    let size =
        payload.len().checked_sub(4).map(|at| u32::from_le_bytes([payload[at], payload[at + 1], payload[at + 2], payload[at + 3]]) as u64);
    let size = size.filter(|&s| s <= LARGEST).ok_or("its stated size is no size")?;
    let mut out = Vec::with_capacity(size as usize);
    let all = |reader: &mut dyn Read, out: &mut Vec<u8>| reader.take(LARGEST).read_to_end(out).map(drop).map_err(|e| e.to_string());
    match name {
        "gzip" => all(&mut flate2::read::GzDecoder::new(payload), &mut out)?,
        "xz" => all(&mut lzma_rust2::XzReader::new(payload, false), &mut out)?,
        "zstd" => all(&mut ruzstd::decoding::StreamingDecoder::new(payload).map_err(|e| e.to_string())?, &mut out)?,
        _ => lz4_legacy(&payload[4..payload.len() - 4], &mut out)?,
    }
    if out.len() as u64 != size {
        return Err(format!("it unpacks to {} bytes and states {size}", out.len()));
    }
    Ok(out)
}

/// LZ4's legacy frame without its magic: `u32 length, block` over and over, each block 8 MiB at most.
fn lz4_legacy(mut rest: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    const BLOCK: usize = 8 << 20;
    let mut block = vec![0; BLOCK];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (packed, after) = after.split_at_checked(length).ok_or("a block is cut short")?;
        let n = lz4_flex::block::decompress_into(packed, &mut block).map_err(|e| e.to_string())?;
        if out.len() + n > LARGEST as usize {
            return Err("it has no end".into());
        }
        out.extend_from_slice(&block[..n]);
        rest = after;
    }
    Ok(())
}

/// QEMU starts an ELF kernel by its PVH entry: the note `Xen`, type 18, of `include/xen/interface/elfnote.h`.
fn pvh(elf: Vec<u8>) -> Result<Vec<u8>, String> {
    const NOTE: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    const NOTE_32: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";
    if !elf.starts_with(ELF) {
        return Err("what is inside is no ELF file".into());
    }
    let table = note_segments(&elf).ok_or("its ELF header makes no sense")?;
    let found = table.iter().any(|segment| segment.windows(NOTE.len()).any(|w| w == NOTE || w == NOTE_32));
    if found { Ok(elf) } else { Err("it has no PVH entry (CONFIG_PVH)".into()) }
}

/// The contents of an ELF64 file's note segments.
fn note_segments(elf: &[u8]) -> Option<Vec<&[u8]>> {
    const PT_NOTE: u64 = 4;
    let number =
        |at: usize, size: usize| elf.get(at..at.checked_add(size)?).map(|b| b.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte)));
    let (table, size, count) = (number(0x20, 8)? as usize, number(0x36, 2)? as usize, number(0x38, 2)? as usize);
    let mut notes = Vec::new();
    for i in 0..count {
        let header = table.checked_add(i * size)?;
        if number(header, 4)? == PT_NOTE {
            let (offset, length) = (number(header + 8, 8)? as usize, number(header + 32, 8)? as usize);
            notes.push(elf.get(offset..offset.checked_add(length)?)?);
        }
    }
    Some(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// The smallest ELF64 file with a PVH note.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 0x40 + 56];
        elf[..4].copy_from_slice(ELF);
        elf[0x20] = 0x40;
        elf[0x36] = 56;
        elf[0x38] = 1;
        elf[0x40] = 4;
        elf[0x48] = 0x78;
        elf[0x60] = 24;
        elf.extend(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\0\0\0\x01\0\0\0\0");
        elf.extend(vec![7; 1000]);
        elf
    }

    fn bzimage(compressed: &[u8]) -> Vec<u8> {
        let mut payload = compressed.to_vec();
        payload.extend((elf().len() as u32).to_le_bytes());
        let mut image = vec![0; 5 * 512];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(data).unwrap();
        e.finish().unwrap()
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(data);
        [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut w = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        w.write_all(data).unwrap();
        w.finish().unwrap()
    }

    #[test]
    fn every_compression_comes_out() {
        let zstd = ruzstd::encoding::compress_to_vec(elf().as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        for packed in [gzip(&elf()), lz4(&elf()), xz(&elf()), zstd] {
            assert_eq!(extract(bzimage(&packed)).unwrap(), elf());
        }
        assert_eq!(extract(elf()).unwrap(), elf());
    }

    #[test]
    fn damage_is_told() {
        let mut cut = bzimage(&gzip(&elf()));
        cut.truncate(cut.len() - 100);
        assert!(extract(cut).unwrap_err().contains("cut short"));
        assert!(extract(bzimage(b"BZh91AY")).unwrap_err().contains("other than gzip"));
        assert!(extract(b"MZ".repeat(600)).unwrap_err().contains("neither a bzImage"));
        let mut noteless = elf();
        noteless[0x78 + 8] = 0x11;
        assert!(extract(noteless).unwrap_err().contains("PVH"));
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(at in 0usize..3000, byte: u8, end in 0usize..4000) {
            let mut image = bzimage(&lz4(&elf()));
            if let Some(b) = image.get_mut(at) { *b = byte; }
            image.truncate(end);
            let _ = extract(image);
        }
    }

    #[test]
    fn releases_are_ordered_by_number() {
        let mut all = vec!["6.1.0-9-amd64", "6.10.0-1-amd64", "6.1.0-56-amd64", "5.19.0-1-amd64"];
        all.sort_by(|a, b| compare(b, a));
        assert_eq!(all, ["6.10.0-1-amd64", "6.1.0-56-amd64", "6.1.0-9-amd64", "5.19.0-1-amd64"]);
    }

    #[test]
    fn the_hosts_own_kernel_goes_first_and_one_without_modules_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let put = |path: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        assert!(matches!(find_in(root, None, "1.0"), Err(ImageError::NoKernel { .. })));
        put("var/cache/kata-containers/kernels/3.0/vmlinuz");
        put("var/cache/kata-containers/kernels/3.0/modules/modules.dep");
        assert_eq!(find_in(root, None, "1.0").unwrap().release, "3.0");
        put("boot/vmlinuz-9.0");
        put("boot/vmlinuz-2.0");
        put("lib/modules/2.0/modules.dep");
        assert_eq!(find_in(root, None, "1.0").unwrap().release, "2.0");
        put("boot/vmlinuz-1.0");
        put("lib/modules/1.0/modules.dep");
        assert_eq!(find_in(root, None, "1.0").unwrap().release, "1.0");
        assert_eq!(find_in(root, Some("3.0"), "1.0").unwrap().release, "3.0");
        assert!(matches!(find_in(root, Some("9.0"), "1.0"), Err(ImageError::Kernel { .. })));
    }
}
