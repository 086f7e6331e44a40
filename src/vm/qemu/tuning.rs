//! What a configuration may change about QEMU itself; every default is what nobody has to think about.

use std::path::PathBuf;

use serde_json::{Value, json};

/// Keys of `[hypervisor.qemu]` that end in QEMU's arguments.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// `machine_accelerators`: more properties of `-machine`.
    pub machine: Option<String>,
    /// `cpu_features`: more properties of `-cpu`.
    pub cpu: Option<String>,
    /// `seccompsandbox`: the whole of `-sandbox`.
    pub sandbox: Option<String>,
    /// `entropy_source`: a file of random bytes; else the host kernel's generator, by system call.
    pub entropy: Option<PathBuf>,
    pub memory: Backing,
    /// `reclaim_guest_freed_memory`: the guest reports free pages, the host takes them.
    pub reclaim: bool,
    /// `memory_slots`: how often memory can grow by DIMMs; 0 is as often as can be.
    pub slots: u32,
    /// `indep_iothreads`: threads that disks share.
    pub disk_threads: u32,
}

/// What a VM's memory is made of, that which it boots with and that which is plugged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// Pages of hugetlbfs, 2 MiB each. They are taken before the VM boots: one that is missing later would kill it.
    pub huge: bool,
    /// All of it is there before it is used.
    pub prealloc: bool,
}

/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;

impl Backing {
    /// A backend of `mib`, as `object-add` takes it. A memfd that vhost-user daemons can map.
    pub fn object(self, id: &str, mib: u64) -> Value {
        let mut object = json!({"qom-type": "memory-backend-memfd", "id": id, "size": mib << 20, "share": true});
        if self.huge {
            object["hugetlb"] = json!(true);
            object["hugetlbsize"] = json!(HUGE);
        }
        if self.whole() {
            object["prealloc"] = json!(true);
        }
        object
    }

    /// The same for `-object`.
    pub fn option(self, id: &str, mib: u64) -> String {
        let prealloc = if self.whole() { ",prealloc=on" } else { "" };
        format!("memory-backend-memfd,id={id},size={mib}M,share=on{}{prealloc}", self.pages())
    }

    /// A backend that a virtio-mem device takes from piece by piece, and what the device has to be told.
    pub fn reserve(self, id: &str, mib: u64) -> (String, &'static str) {
        let device = if self.whole() { ",prealloc=on" } else { "" };
        (format!("memory-backend-memfd,id={id},size={mib}M,share=on,reserve=off{}", self.pages()), device)
    }

    fn pages(self) -> &'static str {
        if self.huge { ",hugetlb=on,hugetlbsize=2M" } else { "" }
    }

    fn whole(self) -> bool {
        self.prealloc || self.huge
    }
}

/// `a, b` as `,a,b`: properties after others.
pub fn more(list: Option<&str>) -> String {
    list.unwrap_or_default().split(',').map(str::trim).filter(|p| !p.is_empty()).map(|p| format!(",{p}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_huge_pages_is_taken_at_once() {
        let huge = Backing { huge: true, prealloc: false };
        assert_eq!(huge.option("m0", 512), "memory-backend-memfd,id=m0,size=512M,share=on,hugetlb=on,hugetlbsize=2M,prealloc=on");
        let (backend, device) = huge.reserve("vmem0", 1024);
        assert_eq!(backend, "memory-backend-memfd,id=vmem0,size=1024M,share=on,reserve=off,hugetlb=on,hugetlbsize=2M");
        assert_eq!(device, ",prealloc=on");
        // Memory that is plugged later is no different.
        let dimm = huge.object("dimm-0-m", 128);
        assert_eq!((&dimm["hugetlb"], &dimm["hugetlbsize"], &dimm["prealloc"]), (&json!(true), &json!(HUGE), &json!(true)));
    }

    #[test]
    fn ordinary_memory() {
        assert_eq!(Backing::default().option("m0", 256), "memory-backend-memfd,id=m0,size=256M,share=on");
        assert_eq!(Backing { huge: false, prealloc: true }.option("m0", 256), "memory-backend-memfd,id=m0,size=256M,share=on,prealloc=on");
        assert_eq!(Backing::default().object("x", 1).get("prealloc"), None);
    }

    #[test]
    fn lists_of_properties() {
        assert_eq!(more(Some("pmu=off, vmx=off,")), ",pmu=off,vmx=off");
        assert_eq!(more(Some(" ")) + &more(None), "");
    }
}
