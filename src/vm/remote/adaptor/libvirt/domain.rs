//! A pod VM as libvirt describes one (libvirt.org/formatdomain.html).
//!
//! Both disks are virtio ones: the SATA that the field uses is nothing that a cloud kernel has a driver for.

/// What it is to be.
pub struct Domain<'a> {
    pub name: &'a str,
    pub uuid: &'a str,
    /// For people.
    pub title: &'a str,
    pub kvm: bool,
    pub vcpus: u32,
    pub mib: u64,
    /// CPUs of the host; empty: any.
    pub cpuset: &'a str,
    /// UEFI's code; empty or `none`: a BIOS.
    pub firmware: &'a str,
    pub pool: &'a str,
    pub root: &'a str,
    pub seed: &'a str,
    pub network: &'a str,
}

impl Domain<'_> {
    pub fn xml(&self) -> String {
        let (kind, cpu) = if self.kvm { ("kvm", "host-model") } else { ("qemu", "maximum") };
        let cpuset = if self.cpuset.is_empty() { String::new() } else { format!(" cpuset='{}'", escape(self.cpuset)) };
        format!(
            "<domain type='{kind}'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  <title>{title}</title>\n\
             \x20 <memory unit='MiB'>{mib}</memory>\n  <vcpu{cpuset}>{vcpus}</vcpu>\n\
             \x20 <os>\n    <type arch='x86_64' machine='q35'>hvm</type>\n{firmware}    <boot dev='hd'/>\n  </os>\n\
             \x20 <features><acpi/><apic/><vmport state='off'/></features>\n  <cpu mode='{cpu}'/>\n\
             \x20 <on_poweroff>destroy</on_poweroff>\n  <on_reboot>destroy</on_reboot>\n  <on_crash>destroy</on_crash>\n\
             \x20 <devices>\n{root}{seed}    <interface type='network'>\n      <source network='{network}'/>\n      <model type='virtio'/>\n\
             \x20     <rom enabled='no'/>\n    </interface>\n    <controller type='usb' model='none'/>\n    <memballoon model='none'/>\n\
             \x20   <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n    <serial type='pty'/>\n  </devices>\n</domain>\n",
            name = escape(self.name),
            uuid = self.uuid,
            title = escape(self.title),
            mib = self.mib,
            vcpus = self.vcpus,
            firmware = self.firmware(),
            root = self.disk(self.root, "qcow2", "vda", ""),
            seed = self.disk(self.seed, "raw", "vdb", "      <readonly/>\n"),
            network = escape(self.network),
        )
    }

    /// UEFI's variables are a copy of those that come with its code (OVMF_CODE_4M.fd, OVMF_VARS_4M.fd).
    fn firmware(&self) -> String {
        if self.firmware.is_empty() || self.firmware == "none" {
            return String::new();
        }
        let code = escape(self.firmware);
        let variables = code.replace("_CODE", "_VARS");
        let nvram = if variables == code { String::new() } else { format!("    <nvram template='{variables}'/>\n") };
        format!("    <loader readonly='yes' type='pflash'>{code}</loader>\n{nvram}")
    }

    fn disk(&self, volume: &str, format: &str, target: &str, more: &str) -> String {
        let (pool, volume) = (escape(self.pool), escape(volume));
        format!(
            "    <disk type='volume' device='disk'>\n      <driver name='qemu' type='{format}'/>\n      <source pool='{pool}' volume='{volume}'/>\n\
             \x20     <target dev='{target}' bus='virtio'/>\n{more}    </disk>\n"
        )
    }
}

fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |done, c| match c {
        '&' => done + "&amp;",
        '<' => done + "&lt;",
        '>' => done + "&gt;",
        '\'' => done + "&apos;",
        '"' => done + "&quot;",
        c => done + c.encode_utf8(&mut [0; 4]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: Domain = Domain {
        name: "podvm-1",
        uuid: "u",
        title: "web <&'\">",
        kvm: false,
        vcpus: 2,
        mib: 8192,
        cpuset: "",
        firmware: "",
        pool: "default",
        root: "r",
        seed: "s",
        network: "default",
    };

    #[test]
    fn sizes_firmware_and_processors_are_as_asked() {
        let xml = DOMAIN.xml();
        for part in [
            "<domain type='qemu'>",
            "<memory unit='MiB'>8192</memory>",
            "<vcpu>2</vcpu>",
            "mode='maximum'",
            "web &lt;&amp;&apos;&quot;&gt;",
        ] {
            assert!(xml.contains(part), "{part}: {xml}");
        }
        assert!(!xml.contains("<loader"));
        let xml = Domain { kvm: true, cpuset: "0-1", firmware: "/f/OVMF_CODE_4M.fd", ..DOMAIN }.xml();
        for part in
            ["<domain type='kvm'>", "host-model", "<vcpu cpuset='0-1'>2", "/f/OVMF_CODE_4M.fd</loader>", "template='/f/OVMF_VARS_4M.fd'"]
        {
            assert!(xml.contains(part), "{part}: {xml}");
        }
        assert!(!Domain { firmware: "none", ..DOMAIN }.xml().contains("<loader"));
    }
}
