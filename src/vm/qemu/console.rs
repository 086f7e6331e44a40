//! The guest's console log: kept for whoever asks why, and kept small.
//!
//! QEMU appends to the file; a guest can write as much as it likes to its serial port, and the file lies in memory. So what
//! is neither its beginning (the boot) nor its end is cut out of it now and then.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use crate::watch::last_lines;

/// What is kept of the beginning and of the end, bytes.
const HEAD: u64 = 256 * 1024;
const TAIL: u64 = 1024 * 1024;

/// How often the log is looked at. A serial port carries some 100 KB/s.
pub const TRIM_EVERY: Duration = Duration::from_secs(30);

/// What is read of the end to find its last lines, bytes.
const LOOK: u64 = 64 * 1024;

/// The last lines of the log; none if there is no log.
pub fn tail(log: &Path, lines: usize) -> Vec<String> {
    last_lines(&end(log).unwrap_or_default(), lines)
}

fn end(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOOK)))?;
    let mut bytes = Vec::new();
    // What arrives meanwhile is left for the next time.
    file.take(LOOK).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gives the memory back that the log's middle takes; its length stays, the middle reads as zeros.
pub fn trim(log: &Path) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let file = File::options().write(true).open(log)?;
    let length = file.metadata()?.len();
    if length <= HEAD + TAIL {
        return Ok(());
    }
    Ok(fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, HEAD, length - HEAD - TAIL)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn last_lines_of_a_long_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert!(tail(&log, 3).is_empty());
        let text: String = (0..20_000).map(|i| format!("[    1.0] line {i}\r\n")).collect();
        std::fs::write(&log, text).unwrap();
        assert_eq!(tail(&log, 2), ["[    1.0] line 19998", "[    1.0] line 19999"]);
    }

    #[test]
    fn the_middle_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        let line = b"all work and no play\n";
        std::fs::write(&log, line.repeat(8 << 20 >> 4)).unwrap();
        let (length, blocks) = std::fs::metadata(&log).map(|m| (m.len(), m.blocks())).unwrap();
        trim(&log).unwrap();
        let after = std::fs::metadata(&log).unwrap();
        assert_eq!(after.len(), length);
        assert!(after.blocks() * 512 < HEAD + TAIL + 64 * 1024, "{} of {blocks} blocks are left", after.blocks());
        assert_eq!(tail(&log, 1), ["all work and no play"]);
        let mut head = [0; 21];
        File::open(&log).unwrap().read_exact(&mut head).unwrap();
        assert_eq!(&head, line);
    }
}
