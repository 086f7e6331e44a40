//! A sandbox's processes are paid for by its pod: few arenas, what is free goes back, and code that only its start needed
//! does not stay in memory for the hours that follow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

/// How long after a container's start its callers' own calls are over: a Wait, a State, the first words of output.
const QUIET: Duration = Duration::from_secs(1);

/// Whether somebody waits already to settle.
static WAITING: AtomicBool = AtomicBool::new(false);

/// [`settle`], once what is going on now is likely to be over. At once it would only make the pages come back that the next
/// call needs, while somebody waits for it.
pub fn settle_soon() {
    if WAITING.swap(true, Ordering::Relaxed) {
        return;
    }
    let waiting = crate::thread::try_start("settle", || {
        std::thread::sleep(QUIET);
        WAITING.store(false, Ordering::Relaxed);
        settle();
    });
    // Memory that stays is slower to share, nothing else.
    if waiting.is_err() {
        WAITING.store(false, Ordering::Relaxed);
    }
}

/// Gives free memory back, and lets go of the pages of our own file: those that are still needed come back from the page
/// cache as they are.
fn settle() {
    // SAFETY: returns free memory to the kernel; takes the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in unchanged(&maps) {
        // SAFETY: a private mapping of a file, none of whose pages was written, has nothing in it that the file has not.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// (start, length) of the mappings of files that cannot be written and have no page of their own: code and constants, but not
/// the constants that were relocated.
fn unchanged(maps: &str) -> Vec<(usize, usize)> {
    let mut list = Vec::new();
    let mut current = None;
    for line in maps.lines() {
        match line.strip_prefix("Anonymous:") {
            Some(rest) if rest.trim() == "0 kB" => list.extend(current.take()),
            Some(_) => current = None,
            None => current = mapping(line).unwrap_or(current),
        }
    }
    list
}

/// What a line that begins a mapping says: `Some(Some(range))` if it is of a file and cannot be written. `None`: another line.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let (flags, inode) = (fields.next()?, fields.nth(2)?);
    Some((flags.ends_with("p") && !flags.contains('w') && inode != "0").then_some((start, end - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_has_as_well_and_nothing_else() {
        let maps = "7f0000000000-7f0000001000 r--p 00000000 fe:00 123 /bin/osc\nRss: 4 kB\nAnonymous:             0 kB\nKSM: 0 kB\n\
                    7f0000001000-7f0000003000 r-xp 00001000 fe:00 123 /bin/osc\nAnonymous:             0 kB\n\
                    7f0000003000-7f0000004000 r--p 00003000 fe:00 123 /bin/osc\nAnonymous:             4 kB\n\
                    7f0000004000-7f0000005000 rw-p 00004000 fe:00 123 /bin/osc\nAnonymous:             0 kB\n\
                    7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:             0 kB\n";
        assert_eq!(unchanged(maps), [(0x7f0000000000, 0x1000), (0x7f0000001000, 0x2000)]);
    }

    #[test]
    fn the_program_goes_on_after_it_has_settled() {
        settle();
        assert!(!unchanged(&std::fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
    }
}
