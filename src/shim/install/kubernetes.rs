//! `osc install --kubernetes`, `osc install --peer-pods`: what a cluster is given with `kubectl apply -f -`.
//!
//! The objects are text, since that is what people read, change and keep; only names, the image and the settings are put in.
//! Labels, classes, variables and names of maps and secrets are those that Kata's deployment and the adaptor's use, so that one
//! can take the other's place.

use std::path::Path;

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
use crate::vm::remote::adaptor::settings::{Setting, TABLE};

/// Memory of the pod's host side, MiB: what `scripts/bench start` shows of shim, QEMU and virtiofsd together with one idle
/// container (PSS; 286 under TCG), rounded up to the next ten.
pub const OVERHEAD_MIB: u32 = 290;

/// The same of a peer pod's shim and its part of the adaptor.
pub const REMOTE_OVERHEAD_MIB: u32 = 60;

/// The label of nodes that have the runtime (kata-deploy's).
const LABEL: &str = "katacontainers.io/kata-runtime";

/// Providers that the adaptor has.
pub const PROVIDERS: [&str; 2] = ["qemu", "libvirt"];

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Cluster<'a> {
    pub namespace: &'a str,
    pub image: &'a str,
    pub prefix: &'a Path,
}

/// RuntimeClass `kata`, and a DaemonSet that installs, labels, and uninstalls when it is deleted.
pub fn kata(to: &Cluster) -> Result<String> {
    to.check()?;
    let class = to.fill(&CLASS.replace("$CLASS", "kata").replace("$OVERHEAD", &OVERHEAD_MIB.to_string()));
    let account = to.fill(&ACCOUNT.replace("$ACCOUNT", "osc").replace("$RULES", NODE_RULES));
    let installer = to.fill(&INSTALLER.replace("$SCRIPT", &indented(INSTALL_SCRIPT, 14)));
    Ok([IMAGE_NOTE, &class, &account, &installer].join("---\n"))
}

/// The same for peer pods, whose VMs `provider` makes: RuntimeClass `kata-remote`, the settings, the adaptor's DaemonSet.
pub fn peer_pods(to: &Cluster, provider: &str) -> Result<String> {
    to.check()?;
    if !PROVIDERS.contains(&provider) {
        return Err(Failure::new(Stage::Request, format!("--provider {provider}"))
            .code(Code::InvalidArgument)
            .way_out(format!("want one of {}", PROVIDERS.join(", "))));
    }
    let class = CLASS.replace("$CLASS", "kata-remote").replace("$OVERHEAD", &REMOTE_OVERHEAD_MIB.to_string());
    let settings = SETTINGS.replace("$DATA", &data(provider));
    let account = ACCOUNT.replace("$ACCOUNT", "cloud-api-adaptor").replace("$RULES", ADAPTOR_RULES);
    let adaptor = ADAPTOR.replace("$SCRIPT", &indented(ADVERTISE_SCRIPT, 14));
    let parts: Vec<String> = [class, settings, account, adaptor].iter().map(|t| to.fill(t)).collect();
    Ok(format!("{IMAGE_NOTE}---\n{}", parts.join("---\n")))
}

impl Cluster<'_> {
    /// Everything here becomes text in YAML.
    fn check(&self) -> Result<()> {
        let refuse = |what: &str, value: &str, way_out: &str| {
            Err(Failure::new(Stage::Request, format!("{what} {value:?}")).code(Code::InvalidArgument).way_out(way_out))
        };
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.namespace.is_empty() || self.namespace.len() > 63 || !self.namespace.chars().all(label) {
            return refuse("--namespace", self.namespace, "want 1 to 63 of a-z, 0-9 and -");
        }
        if self.image.is_empty() || !self.image.chars().all(|c| c.is_ascii_alphanumeric() || "./:@_-".contains(c)) {
            return refuse("--image", self.image, "want a reference such as registry.example/osc:1");
        }
        let prefix = self.prefix.to_string_lossy();
        if !prefix.starts_with('/') || !prefix.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) {
            return refuse("--prefix", &prefix, "want a path from the root, of letters, digits and . _ -");
        }
        Ok(())
    }

    fn fill(&self, text: &str) -> String {
        text.replace("$NAMESPACE", self.namespace)
            .replace("$IMAGE", self.image)
            .replace("$PREFIX", &self.prefix.to_string_lossy())
            .replace("$LABEL", LABEL)
    }
}

/// The settings that concern `provider`, each with what it is for; those that have no default wait to be filled in.
fn data(provider: &str) -> String {
    let others: Vec<String> = PROVIDERS.iter().filter(|p| **p != provider).map(|p| format!("{}_", p.to_uppercase())).collect();
    let concerns =
        |s: &&Setting| !s.variable.is_empty() && !s.help.is_empty() && !others.iter().any(|o| s.variable.starts_with(o.as_str()));
    let line = |s: &Setting| {
        let value = if s.variable == "CLOUD_PROVIDER" { provider } else { s.default };
        format!("  # {}\n  {}: {value:?}\n", s.help, s.variable)
    };
    TABLE.iter().filter(concerns).map(line).collect()
}

fn indented(text: &str, by: usize) -> String {
    text.lines().map(|l| if l.is_empty() { "\n".to_owned() } else { format!("{:by$}{l}\n", "") }).collect()
}

const IMAGE_NOTE: &str = "# The image has this binary as /usr/local/bin/osc, and sh, nsenter and kubectl:
#   FROM alpine
#   RUN apk add --no-cache util-linux kubectl
#   COPY osc /usr/local/bin/osc
";

const CLASS: &str = "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: $CLASS
handler: $CLASS
overhead:
  podFixed:
    memory: $OVERHEADMi
scheduling:
  nodeSelector:
    $LABEL: \"true\"
";

const ACCOUNT: &str = "apiVersion: v1
kind: ServiceAccount
metadata:
  name: $ACCOUNT
  namespace: $NAMESPACE
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: $ACCOUNT
rules:
$RULES---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: $ACCOUNT
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: $ACCOUNT
subjects:
  - kind: ServiceAccount
    name: $ACCOUNT
    namespace: $NAMESPACE
";

const NODE_RULES: &str = "  - apiGroups: [\"\"]
    resources: [nodes]
    verbs: [get, patch]
  - apiGroups: [apps]
    resources: [daemonsets]
    verbs: [get]
";

const ADAPTOR_RULES: &str = "  - apiGroups: [\"\"]
    resources: [nodes, nodes/status]
    verbs: [get, patch]
  - apiGroups: [apps]
    resources: [daemonsets]
    verbs: [get]
";

const INSTALLER: &str = "apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: osc
  namespace: $NAMESPACE
  labels: {app: osc}
spec:
  selector:
    matchLabels: {app: osc}
  updateStrategy:
    rollingUpdate: {maxUnavailable: 1}
  template:
    metadata:
      labels: {app: osc}
    spec:
      serviceAccountName: osc
      hostPID: true # nsenter restarts the container manager
      tolerations:
        - operator: Exists
      terminationGracePeriodSeconds: 120
      containers:
        - name: osc
          image: $IMAGE
          command: [\"/bin/sh\", \"-c\"]
          args:
            - |
$SCRIPT          env:
            - name: NODE_NAME
              valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
          resources:
            requests: {cpu: 10m, memory: 32Mi}
          securityContext:
            privileged: true
          volumeMounts:
            - {name: host, mountPath: /host}
      volumes:
        - name: host
          hostPath: {path: /, type: Directory}
";

/// Runs in the DaemonSet's pod. Installing is repeatable, and the manager is restarted only where something of it changed; a
/// pod that is replaced leaves everything as it is, and only the DaemonSet's own deletion uninstalls.
const INSTALL_SCRIPT: &str = r#"set -u
on_node() { nsenter --target 1 --mount -- "$@"; }
apply() { # a line `next: COMMAND` for each thing that the node has to do now
  osc "$@" --root /host >/tmp/report || return 1
  cat /tmp/report
  sed -n 's/^next: //p' /tmp/report | while read -r line; do on_node $line || exit 1; done
}
finish() {
  if kubectl -n $NAMESPACE get daemonset osc -o 'jsonpath={.metadata.deletionTimestamp}' >/tmp/gone 2>/tmp/error && [ ! -s /tmp/gone ]; then
    exit 0 # replaced, not removed
  fi
  grep -qi 'forbidden\|refused\|timeout' /tmp/error && exit 0 # nobody knows: what is there stays
  kubectl label node "$NODE_NAME" $LABEL-
  apply uninstall
  exit 0
}
trap finish TERM
apply install --prefix $PREFIX || exit 1
kubectl label node "$NODE_NAME" --overwrite $LABEL=true || exit 1
while :; do sleep 3600 & wait $!; done
"#;

const SETTINGS: &str = "apiVersion: v1
kind: ConfigMap
metadata:
  name: peer-pods-cm
  namespace: $NAMESPACE
data:
$DATA---
# Credentials of the provider, as variables of the same kind.
apiVersion: v1
kind: Secret
metadata:
  name: peer-pods-secret
  namespace: $NAMESPACE
type: Opaque
stringData: {}
";

const ADAPTOR: &str = "apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: cloud-api-adaptor-daemonset
  namespace: $NAMESPACE
  labels: {app: cloud-api-adaptor}
spec:
  selector:
    matchLabels: {app: cloud-api-adaptor}
  updateStrategy:
    rollingUpdate: {maxUnavailable: 1} # a restarted adaptor takes its pods over
  template:
    metadata:
      labels: {app: cloud-api-adaptor}
    spec:
      serviceAccountName: cloud-api-adaptor
      hostNetwork: true
      nodeSelector:
        $LABEL: \"true\"
      tolerations:
        - operator: Exists
      containers:
        - name: cloud-api-adaptor
          image: $IMAGE
          command: [osc, adaptor]
          envFrom:
            - configMapRef: {name: peer-pods-cm}
            - secretRef: {name: peer-pods-secret}
          env:
            - name: NODE_NAME
              valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
          startupProbe:
            exec: {command: [osc, adaptor, status]}
            failureThreshold: 30
            periodSeconds: 2
          resources:
            requests: {cpu: 50m, memory: 64Mi}
          securityContext:
            privileged: true # tunnels are made in the pods' network namespaces
          volumeMounts:
            - {name: peerpod, mountPath: /run/peerpod}
            - {name: netns, mountPath: /run/netns, mountPropagation: HostToContainer}
            - {name: modules, mountPath: /lib/modules, readOnly: true}
            - {name: cache, mountPath: /var/cache/kata-containers}
        - name: extended-resource
          image: $IMAGE
          command: [\"/bin/sh\", \"-c\"]
          args:
            - |
$SCRIPT          envFrom:
            - configMapRef: {name: peer-pods-cm}
          env:
            - name: NODE_NAME
              valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
          resources:
            requests: {cpu: 5m, memory: 16Mi}
      volumes:
        - name: peerpod
          hostPath: {path: /run/peerpod, type: DirectoryOrCreate}
        - name: netns
          hostPath: {path: /run/netns, type: DirectoryOrCreate}
        - name: modules
          hostPath: {path: /lib/modules}
        - name: cache
          hostPath: {path: /var/cache/kata-containers, type: DirectoryOrCreate}
";

/// Tells the scheduler how many pod VMs this node may have, and takes it back when the DaemonSet goes. kubectl 1.24 patches
/// a node's status; again and again, since a node that registers anew forgets it.
const ADVERTISE_SCRIPT: &str = r#"set -u
status() { kubectl patch node "$NODE_NAME" --subresource=status --type=merge -p "{\"status\":{\"capacity\":{\"kata.peerpods.io/vm\":$1}}}"; }
finish() {
  kubectl -n $NAMESPACE get daemonset cloud-api-adaptor-daemonset >/dev/null 2>&1 || status null
  exit 0
}
trap finish TERM
limit=${PEERPODS_LIMIT_PER_NODE:-10}
while :; do
  [ "$limit" -lt 0 ] || status "\"$limit\""
  sleep 300 & wait $!
done
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster<'static> {
        Cluster { namespace: "kube-system", image: "registry.example/osc:1", prefix: Path::new("/opt/osc") }
    }

    /// Nothing is left to be put in, and what a reader looks for is there.
    fn assert_whole(text: &str, wanted: &[&str]) {
        for name in ["$CLASS", "$OVERHEAD", "$NAMESPACE", "$IMAGE", "$PREFIX", "$LABEL", "$ACCOUNT", "$RULES", "$SCRIPT", "$DATA"] {
            assert!(!text.contains(name), "{name} in:\n{text}");
        }
        wanted.iter().for_each(|w| assert!(text.contains(w), "{w} is not in:\n{text}"));
        assert!(text.lines().all(|l| !l.contains('\t')));
    }

    #[test]
    fn a_cluster_for_local_pods() {
        let text = kata(&cluster()).unwrap();
        let wanted = [
            "kind: RuntimeClass",
            "name: kata\n",
            "memory: 290Mi",
            "kind: DaemonSet",
            "image: registry.example/osc:1",
            "--prefix /opt/osc",
        ];
        assert_whole(&text, &wanted);
    }

    #[test]
    fn a_cluster_for_peer_pods_has_the_settings_of_its_provider() {
        let text = peer_pods(&cluster(), "libvirt").unwrap();
        let wanted = [
            "name: kata-remote",
            "name: peer-pods-cm",
            "name: peer-pods-secret",
            "CLOUD_PROVIDER: \"libvirt\"",
            "LIBVIRT_URI: \"qemu+ssh",
            "kata.peerpods.io/vm",
            "kind: ClusterRoleBinding",
        ];
        assert_whole(&text, &wanted);
        assert!(!text.contains("QEMU_CPU"));
        assert!(peer_pods(&cluster(), "qemu").unwrap().contains("QEMU_CPU: \"2\""));
    }

    #[test]
    fn what_would_be_other_yaml_is_refused() {
        let with = |namespace: &'static str, image: &'static str, prefix: &'static str| {
            kata(&Cluster { namespace, image, prefix: Path::new(prefix) })
        };
        assert!(with("a: b", "i", "/p").unwrap_err().cause.contains("--namespace"));
        assert!(with("a", "i\nx: y", "/p").unwrap_err().cause.contains("--image"));
        assert!(with("a", "i", "/p;rm -r /").unwrap_err().cause.contains("--prefix"));
        let e = peer_pods(&cluster(), "abacus").unwrap_err();
        assert!(e.cause.contains("abacus") && e.way_out.contains("libvirt"), "{e}");
    }
}
