//! Interrupts follow the processors: what the boot put on the first one is spread over all that are online.
//!
//! Without it a pod whose processors were plugged has all its network and file traffic on one of them.

use std::fs;
use std::path::Path;

/// Deals the interrupts of virtio queues, and the receive and transmit steering of interfaces, over `processors`.
pub fn over(processors: &[u32]) {
    if processors.is_empty() {
        return;
    }
    let lines = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    for (irq, processor) in queues(&lines).into_iter().zip(processors.iter().cycle()) {
        // The kernel itself manages some (one queue for each processor): it refuses, and has spread them already.
        let file = format!("/proc/irq/{irq}/smp_affinity_list");
        if let Err(e) = fs::write(&file, processor.to_string()) {
            log::debug!("{file}: {e}");
        }
    }
    let mask = mask(processors);
    for interface in entries(Path::new("/sys/class/net")) {
        for queue in entries(&interface.join("queues")) {
            let receives = queue.file_name().is_some_and(|n| n.to_string_lossy().starts_with("rx-"));
            let file = queue.join(if receives { "rps_cpus" } else { "xps_cpus" });
            // The loopback and a device with one queue have no choice of transmit queues.
            let _ = fs::write(file, &mask);
        }
    }
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Numbers of the interrupts that are virtio queues (not their configuration changes), as /proc/interrupts lists them.
fn queues(interrupts: &str) -> Vec<u32> {
    let queue = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let name = rest.split_whitespace().last()?;
        (name.starts_with("virtio") && !name.ends_with("-config")).then(|| number.trim().parse().ok())?
    };
    interrupts.lines().filter_map(queue).collect()
}

/// A CPU mask as sysfs takes it: words of 32 bits in hexadecimal, the highest first.
fn mask(processors: &[u32]) -> String {
    let words = processors.iter().max().map_or(1, |&n| n as usize / 32 + 1);
    let mut mask = vec![0u32; words];
    processors.iter().for_each(|&n| mask[n as usize / 32] |= 1 << (n % 32));
    mask.iter().rev().map(|w| format!("{w:08x}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_told_from_the_rest() {
        let text = "           CPU0       CPU1\n  1:   9  0  IO-APIC   1-edge      i8042\n 24:   0  0   PCI-MSI 65536-edge      virtio0-config\n \
                    25:  12  3   PCI-MSI 65537-edge      virtio0-input.0\n 26:  1  1   PCI-MSI 65538-edge      virtio0-output.0\nNMI:  0  0   Non-maskable interrupts\n";
        assert_eq!(queues(text), [25, 26]);
    }

    #[test]
    fn masks_as_sysfs_takes_them() {
        assert_eq!(mask(&[0, 1, 2]), "00000007");
        assert_eq!(mask(&[0, 33]), "00000002,00000001");
    }
}
