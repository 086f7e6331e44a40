//! A sandbox's processes are paid for by its pod: few arenas, what is free goes back, and code that only its start needed
//! does not stay in memory for the hours that follow.

/// Settings of the allocator. To be called before a second thread exists.
pub fn tune() {
    const ARENAS: i32 = 2;
    const TRIM: i32 = 128 * 1024;
    const MMAP: i32 = 64 * 1024;
    // SAFETY: settings of the allocator, made before a second thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP);
    }
}

/// Gives free memory back, and lets go of the pages of our own code: those that are still needed come back from the page
/// cache as they are.
pub fn settle() {
    // SAFETY: returns free memory to the kernel; takes the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in code(&maps) {
        // SAFETY: a private mapping of a file that is executable and not writable has nothing in it that the file has not.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// (start, length) of the mappings of files that hold code.
fn code(maps: &str) -> Vec<(usize, usize)> {
    let one = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, flags, inode) = (fields.next()?, fields.next()?, fields.nth(2)?);
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (flags == "r-xp" && inode != "0").then_some((start, end - start))
    };
    maps.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_files_and_nothing_else() {
        let maps = "7f0000000000-7f0000001000 r--p 00000000 fe:00 123 /bin/osc\n7f0000001000-7f0000003000 r-xp 00001000 fe:00 123 /bin/osc\n\
                    7f0000003000-7f0000004000 rw-p 00003000 fe:00 123 /bin/osc\n7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(code(maps), [(0x7f0000001000, 0x2000)]);
    }

    #[test]
    fn the_program_goes_on_after_it_has_settled() {
        settle();
        assert!(!code(&std::fs::read_to_string("/proc/self/maps").unwrap()).is_empty());
    }
}
