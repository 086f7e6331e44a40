//! The image's own configuration: what runs in it unless told otherwise (OCI image-spec `config.md`).

use std::collections::BTreeMap;

use serde::Deserialize;

/// `application/vnd.oci.image.config.v1+json`, the parts that matter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub architecture: String,
    pub os: String,
    config: Option<Inner>,
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Inner {
    user: String,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: String,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: String,
}

/// Digests of the layers, uncompressed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RootFs {
    pub diff_ids: Vec<String>,
}

/// What a process in the image is unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessDefaults {
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Empty: the root.
    pub cwd: String,
    /// `user[:group]`; empty: root.
    pub user: String,
}

impl ImageConfig {
    /// `command` takes the place of the image's own, behind its entrypoint.
    pub fn process(&self, command: &[String]) -> ProcessDefaults {
        let c = self.config.clone().unwrap_or_default();
        let entrypoint = c.entrypoint.unwrap_or_default();
        let rest = if command.is_empty() { c.cmd.unwrap_or_default() } else { command.to_vec() };
        ProcessDefaults {
            args: entrypoint.into_iter().chain(rest).collect(),
            env: c.env.unwrap_or_default(),
            cwd: c.working_dir,
            user: c.user,
        }
    }

    /// Paths that the image wants as volumes.
    pub fn volumes(&self) -> Vec<String> {
        self.config.as_ref().and_then(|c| c.volumes.as_ref()).map(|v| v.keys().cloned().collect()).unwrap_or_default()
    }

    /// `80/tcp`
    pub fn exposed_ports(&self) -> Vec<String> {
        self.config.as_ref().and_then(|c| c.exposed_ports.as_ref()).map(|v| v.keys().cloned().collect()).unwrap_or_default()
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        self.config.as_ref().and_then(|c| c.labels.clone()).unwrap_or_default()
    }

    /// Empty: SIGTERM.
    pub fn stop_signal(&self) -> &str {
        self.config.as_ref().map(|c| c.stop_signal.as_str()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_replaces_cmd_and_keeps_the_entrypoint() {
        let config: ImageConfig = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/entry"],"Cmd":["serve"],"Env":["A=1"],"WorkingDir":"/w",
            "User":"app:staff","Volumes":null,"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGINT"},"rootfs":{"diff_ids":["sha256:a"]}}"#,
        )
        .unwrap();
        let p = config.process(&[]);
        assert_eq!(
            (p.args, p.env, p.cwd.as_str(), p.user.as_str()),
            (vec!["/entry".into(), "serve".into()], vec!["A=1".into()], "/w", "app:staff")
        );
        assert_eq!(config.process(&["x".into()]).args, ["/entry", "x"]);
        assert_eq!((config.exposed_ports(), config.stop_signal()), (vec!["80/tcp".to_string()], "SIGINT"));
        assert!(serde_json::from_str::<ImageConfig>("{}").unwrap().process(&[]).args.is_empty());
    }
}
