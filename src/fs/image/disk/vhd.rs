//! The footer of a fixed virtual hard disk (Microsoft's "Virtual Hard Disk Image Format Specification"): a raw disk before it is
//! what Azure takes. `qemu-img` would put the time and a random identity into it.

/// Bytes of the footer.
pub const FOOTER: usize = 512;

/// What Azure wants a disk's size to be a multiple of.
pub const ALIGNMENT: u64 = 1 << 20;

const FIXED: u32 = 2;

/// For a disk of `size` bytes; `id` is its identity.
pub fn footer(size: u64, id: [u8; 16]) -> [u8; FOOTER] {
    let mut f = Vec::with_capacity(FOOTER);
    f.extend(b"conectix");
    // Features: a reserved bit that is always set. Version 1.0, no further structure, made at the epoch.
    f.extend([2u32, 0x0001_0000, u32::MAX, u32::MAX, 0].map(u32::to_be_bytes).concat());
    // Readers believe the size of who calls itself so, and only the geometry of others.
    f.extend(b"win ");
    f.extend(0x0001_0000u32.to_be_bytes());
    f.extend(b"Wi2k");
    f.extend([size, size].map(u64::to_be_bytes).concat());
    f.extend(geometry(size / super::gpt::SECTOR));
    f.extend(FIXED.to_be_bytes());
    let sum_at = f.len();
    f.extend([0; 4]);
    f.extend(id);
    f.resize(FOOTER, 0);
    let sum = !f.iter().map(|&b| u32::from(b)).sum::<u32>();
    f[sum_at..sum_at + 4].copy_from_slice(&sum.to_be_bytes());
    let mut footer = [0; FOOTER];
    footer.copy_from_slice(&f);
    footer
}

/// Cylinders (two bytes), heads, sectors per track: the specification's appendix.
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(65535 * 16 * 255);
    let (per_track, heads, tracks) = if sectors >= 65535 * 16 * 63 {
        (255, 16, sectors / 255)
    } else {
        let tracks = sectors / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads * 1024 && heads <= 16 {
            (17, heads, tracks)
        } else if sectors / 31 < 16 * 1024 {
            (31, 16, sectors / 31)
        } else {
            (63, 16, sectors / 63)
        }
    };
    let cylinders = ((tracks / heads) as u16).to_be_bytes();
    [cylinders[0], cylinders[1], heads as u8, per_track as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_sums_up() {
        let f = footer(64 << 20, [9; 16]);
        assert!(f.starts_with(b"conectix") && f[48..56] == (64u64 << 20).to_be_bytes());
        let mut bare = f;
        bare[64..68].fill(0);
        let sum: u32 = bare.iter().map(|&b| u32::from(b)).sum();
        assert_eq!(f[64..68], (!sum).to_be_bytes());
        assert_eq!(&f[68..84], [9; 16]);
    }

    #[test]
    fn geometries_are_those_of_the_specification() {
        // 64 MiB: 131072 sectors, 17 a track, 7710 tracks, 8 heads.
        assert_eq!(geometry(131_072), [3, 195, 8, 17]);
        assert_eq!(geometry(u64::MAX), [0xff, 0xff, 16, 255]);
    }
}
