//! What the adaptor gave this VM at its making, as cloud-init calls it: files to write, and the VM's own network.
//!
//! The guest image of a pod VM made by QEMU carries it in its initramfs; it holds the VM's private key, so it is taken
//! from there before anything else runs, and what is written to a file has no key in it.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::malformed;
use crate::error::{At, Result, Stage};
use crate::rpc::wire::apf::{self, Apf};

/// Where an initramfs, or a NoCloud disk that somebody mounted, has it.
pub const DIR: &str = "/media/cidata";

/// Files that an adaptor may write: nothing else in this VM is its to change.
const ALLOWED: &[&str] = &["/run/peerpod/auth.json", "/run/peerpod/initdata", "/run/peerpod/scratch-space.marker"];

/// A seed.
#[derive(Default)]
pub struct Seed {
    files: Vec<File>,
    pub network: NetworkConfig,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct File {
    pub path: String,
    pub content: String,
}

#[derive(Deserialize)]
struct UserData {
    #[serde(default)]
    write_files: Vec<File>,
}

/// cloud-init's network configuration, version 2; what we use of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    pub ethernets: std::collections::BTreeMap<String, Ethernet>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ethernet {
    pub r#match: Match,
    pub addresses: Vec<String>,
    pub gateway4: Option<String>,
    pub nameservers: Nameservers,
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Match {
    pub macaddress: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Nameservers {
    pub addresses: Vec<String>,
}

impl Seed {
    /// Takes the seed out of the initramfs; `None` where this guest is no pod VM. To be called before the root changes.
    pub fn take() -> Option<Result<Seed>> {
        let seed = Seed::read()?;
        for name in ["user-data", "network-config"] {
            let _ = fs::remove_file(Path::new(DIR).join(name));
        }
        Some(seed)
    }

    /// What lies there now.
    pub fn read() -> Option<Result<Seed>> {
        let dir = Path::new(DIR);
        let user_data = fs::read_to_string(dir.join("user-data")).ok()?;
        let network = fs::read_to_string(dir.join("network-config")).unwrap_or_default();
        Some(Seed::parse(&user_data, &network))
    }

    fn parse(user_data: &str, network: &str) -> Result<Seed> {
        let files = files(user_data).map_err(|e| malformed(format!("user-data: {e}")))?;
        let network = if network.trim().is_empty() { Ok(NetworkConfig::default()) } else { serde_json::from_str(network) };
        Ok(Seed { files, network: network.map_err(|e| malformed(format!("network-config: {e}")))? })
    }

    /// The forwarder's configuration.
    pub fn apf(&self) -> Result<Apf> {
        let file = self.files.iter().find(|f| f.path == apf::PATH).ok_or_else(|| malformed("user-data does not hold it"))?;
        serde_json::from_str(&file.content).map_err(malformed)
    }

    /// Writes what may be written, for root alone; apf.json without its keys.
    pub fn write_files(&self) -> Result<()> {
        let mut apf = self.apf()?;
        apf.tls_server_key.clear();
        let text = serde_json::to_string(&apf).map_err(malformed)?;
        write(apf::PATH, &text)?;
        for file in self.files.iter().filter(|f| f.path != apf::PATH) {
            if ALLOWED.contains(&file.path.as_str()) {
                write(&file.path, &file.content)?;
            } else {
                log::warn!("user-data: {}: not a file that an adaptor writes; left out", file.path);
            }
        }
        Ok(())
    }
}

fn write(path: &str, content: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let all = || {
        fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new("/")))?;
        fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content.as_bytes())
    };
    all().at(Stage::Agent, || format!("write {path}"))
}

/// `write_files` of a cloud-config: JSON (which is YAML), or the block form that the field's adaptor writes.
fn files(user_data: &str) -> Result<Vec<File>, String> {
    let body: String = user_data.lines().skip_while(|l| l.starts_with('#') || l.trim().is_empty()).map(|l| format!("{l}\n")).collect();
    if body.trim_start().starts_with('{') {
        return serde_json::from_str::<UserData>(&body).map(|u| u.write_files).map_err(|e| e.to_string());
    }
    blocks(&body)
}

/// `- path: P` and `content: |` with an indented block, below `write_files:`.
fn blocks(body: &str) -> Result<Vec<File>, String> {
    let mut lines = body.lines().peekable();
    if lines.next().map(str::trim_end) != Some("write_files:") {
        return Err("it does not begin with write_files:".into());
    }
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut files: Vec<File> = Vec::new();
    while let Some(line) = lines.next() {
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        let (text, new) = match text.strip_prefix("- ") {
            Some(rest) => (rest.trim(), true),
            None => (text, false),
        };
        if new {
            files.push(File::default());
        }
        let (key, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is no key"))?;
        let file = files.last_mut().ok_or_else(|| format!("{text:?} belongs to no file"))?;
        match (key.trim(), value.trim()) {
            ("path", path) => file.path = path.trim_matches('"').to_owned(),
            ("content", "|" | "|-") => {
                let keys = indent(line) + if new { 2 } else { 0 };
                let first = lines.peek().map_or(0, |l| indent(l));
                while let Some(line) = lines.next_if(|l| first > keys && (l.trim().is_empty() || indent(l) >= first)) {
                    file.content += line.get(first..).unwrap_or_default();
                    file.content.push('\n');
                }
            }
            ("content", text) => file.content = text.trim_matches('"').to_owned(),
            // Owners and modes: everything is root's.
            _ => {}
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_user_data_say_the_same() {
        let json = "#cloud-config\n{\"write_files\":[{\"path\":\"/run/peerpod/apf.json\",\"content\":\"{}\\n\"}]}";
        let yaml = "#cloud-config\n\nwrite_files:\n  - path: /run/peerpod/apf.json\n    content: |\n      {}\n\n  - path: /x\n    content: |\n      a\n        b\n";
        assert_eq!(files(json).unwrap()[0].content, "{}\n");
        let found = files(yaml).unwrap();
        assert_eq!((found.len(), found[0].path.as_str(), found[0].content.trim()), (2, apf::PATH, "{}"));
        assert_eq!(found[1].content, "a\n  b\n");
    }

    #[test]
    fn what_is_malformed_is_told() {
        for bad in ["#cloud-config\n{", "#cloud-config\nruncmd:\n", "write_files:\n  path: x\n"] {
            assert!(files(bad).is_err(), "{bad}");
        }
        let none = Seed::parse("#cloud-config\n{\"write_files\":[]}", "").unwrap();
        assert!(none.apf().unwrap_err().cause.contains("does not hold"));
        assert!(Seed::parse("#cloud-config\n{}", "{").is_err());
    }
}
