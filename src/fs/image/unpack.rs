//! The compressions that kernels and their modules come in, and a bound on what comes out of each.

use std::io::Read;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Gzip,
    Xz,
    Zstd,
    /// LZ4's legacy frame; only kernels come in it.
    Lz4,
}

/// (magic, compression, its name for a reader, suffix of a module's file).
const TABLE: [(&[u8], Packing, &str, &str); 4] = [
    (&[0x1f, 0x8b], Packing::Gzip, "gzip", "gz"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Packing::Xz, "xz", "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd, "zstd", "zst"),
    (&[0x02, 0x21, 0x4c, 0x18], Packing::Lz4, "LZ4", "lz4"),
];

/// What an xz decoder may take, KiB: a damaged header must not ask for 4 GiB.
const XZ_MEMORY: u32 = 512 << 10;

/// Largest block of a legacy frame (LZ4's frame format, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;

impl Packing {
    pub fn of(data: &[u8]) -> Option<Packing> {
        TABLE.iter().find(|row| data.starts_with(row.0)).map(|row| row.1)
    }

    /// By the last part of a file's name.
    pub fn of_suffix(suffix: &str) -> Option<Packing> {
        TABLE.iter().find(|row| row.3 == suffix).map(|row| row.1)
    }

    pub fn name(self) -> &'static str {
        TABLE.iter().find(|row| row.1 == self).map_or("", |row| row.2)
    }

    /// Unpacks `data`; more than `limit` bytes are an error.
    pub fn unpack(self, data: &[u8], limit: u64) -> Result<Vec<u8>, String> {
        let text = |e: std::io::Error| e.to_string();
        match self {
            Packing::Gzip => all(flate2::read::GzDecoder::new(data), limit),
            Packing::Xz => all(lzma_rust2::XzReader::new_mem_limit(data, false, XZ_MEMORY), limit),
            Packing::Zstd => all(ruzstd::decoding::StreamingDecoder::new(data).map_err(|e| text(std::io::Error::other(e)))?, limit),
            Packing::Lz4 => lz4_legacy(data, limit),
        }
    }
}

fn all(reader: impl Read, limit: u64) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut out).map_err(|e| e.to_string())?;
    if out.len() as u64 > limit { Err(format!("it unpacks to more than {limit} bytes")) } else { Ok(out) }
}

/// Packs into LZ4's legacy frame, the one LZ4 format that a kernel takes an initrd in.
pub fn lz4_frame(data: &[u8]) -> Vec<u8> {
    let mut frame = TABLE[3].0.to_vec();
    for chunk in data.chunks(LZ4_BLOCK) {
        let block = lz4_flex::block::compress(chunk);
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
    }
    frame
}

/// Magic, then `u32 length, block` over and over.
fn lz4_legacy(data: &[u8], limit: u64) -> Result<Vec<u8>, String> {
    let mut rest = data.get(4..).unwrap_or_default();
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or("a block's length is cut short")?;
        let (packed, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("a block is cut short")?;
        let n = lz4_flex::block::decompress_into(packed, &mut block).map_err(|e| e.to_string())?;
        if (out.len() + n) as u64 > limit {
            return Err(format!("it unpacks to more than {limit} bytes"));
        }
        out.extend_from_slice(&block[..n]);
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    pub fn pack(packing: Packing, data: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Gzip => {
                let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                e.write_all(data).unwrap();
                e.finish().unwrap()
            }
            Packing::Xz => {
                let mut w = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
                w.write_all(data).unwrap();
                w.finish().unwrap()
            }
            Packing::Zstd => ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest),
            Packing::Lz4 => lz4_frame(data),
        }
    }

    pub const ALL: [Packing; 4] = [Packing::Gzip, Packing::Xz, Packing::Zstd, Packing::Lz4];

    /// Compressible, and longer than one LZ4 block.
    fn long() -> Vec<u8> {
        (0..LZ4_BLOCK as u32 + 5000).map(|i| (i / 97) as u8).collect()
    }

    #[test]
    fn each_comes_out_on_a_thread_of_ours() {
        for packing in ALL {
            // Its stack is small, and every start of a pod runs on one.
            let packed = pack(packing, &long());
            let out = crate::thread::start("unpack", move || packing.unpack(&packed, 1 << 24)).join().unwrap();
            assert!(out.unwrap() == long(), "{packing:?}");
            assert_eq!(Packing::of(&pack(packing, b"x")), Some(packing));
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        for packing in ALL {
            let packed = pack(packing, &[7; 1000]);
            assert!(packing.unpack(&packed, 999).unwrap_err().contains("more than 999"), "{packing:?}");
            assert_eq!(packing.unpack(&packed, 1000).unwrap(), [7; 1000]);
        }
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let data: Vec<u8> = (0..3000u32).map(|i| (i * i / 7) as u8).collect();
        for packing in ALL {
            let packed = pack(packing, &data);
            for end in [packed.len() / 2, packed.len() - 1] {
                let out = packing.unpack(&packed[..end], 1 << 20);
                assert!(out.is_err() || out.as_ref().is_ok_and(|o| o == &data), "{packing:?} {end}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_damage_makes_it_panic(kind in 0usize..4, hits in prop::collection::vec((0usize..4000, any::<u8>()), 1..8)) {
            let data: Vec<u8> = (0..3000u32).map(|i| (i * i / 7) as u8).collect();
            let mut packed = pack(ALL[kind], &data);
            for (at, byte) in hits {
                let at = at % packed.len();
                packed[at] = byte;
            }
            let _ = ALL[kind].unpack(&packed, 1 << 20);
        }

        #[test]
        fn nor_do_arbitrary_bytes(kind in 0usize..4, tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let data = [TABLE[kind].0, &tail].concat();
            let _ = ALL[kind].unpack(&data, 1 << 20);
        }
    }
}
