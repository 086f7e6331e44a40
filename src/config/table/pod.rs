//! `[agent.kata]`, `[runtime]` and what old files have besides.

use super::devices::choice;
use super::vm::number32;
use crate::config::Hypervisor::{Qemu, Remote};
use crate::config::NetworkModel;
use crate::config::key::Lit::{Bool, EmptyList, Number as N, Text};
use crate::config::key::Section::{Agent as A, Image, MemAgent, Runtime as R};
use crate::config::key::{Key, Number, Rule, Unit, key};

const TRACING: &str = "OpenTelemetry traces are not done: --timings, osc metrics";
const MEM_AGENT: &str = "the memory agent is not done: free pages go back by themselves";
const POLICY: &str = "policy engines are not done";
const GUEST_PULL: &str = "force_guest_pull is for peer pods; Kata's other experiments are not done";

/// A day.
const MOST_SECONDS: u64 = 86_400;

const CREATE_TIMEOUT: Rule = Rule::Number { at: Number::Seconds(|c| &mut c.create_container_timeout), range: (1, MOST_SECONDS), unit: "s" };

pub const KEYS: &[Key] = &[
    // [agent.kata]
    key(A, "enable_debug", Rule::Bool(|c| &mut c.agent_debug), "a talkative agent")
        .proof("`shim::sandbox::boot` what_a_configuration_changes"),
    key(A, "log_level", Rule::Moot, "enable_debug alone decides"),
    key(A, "enable_tracing", Rule::Only(&[Bool(false)]), TRACING).noted(),
    key(A, "kernel_modules", Rule::List(|c| &mut c.kernel_modules), "modules with their parameters, loaded in the guest")
        .noted()
        .proof("`shim::sandbox::boot` what_a_configuration_changes"),
    key(A, "debug_console_enabled", Rule::Bool(|c| &mut c.debug_console_enabled), "osc debug opens a shell in the guest")
        .proof("`containerd` a_shell_in_the_guest_"),
    key(
        A,
        "container_pipe_size",
        number32(|c| &mut c.container_pipe_size, (0, 1 << 20), "bytes"),
        "of a container's stdio pipes; 0: the kernel's",
    )
    .noted()
    .proof("`shim::sandbox::boot` what_a_configuration_changes"),
    key(
        A,
        "dial_timeout",
        Rule::AtLeast(|c| &mut c.boot_timeout, Unit::Seconds),
        "how long a boot may take, where that is more than 60 s: our clock starts with QEMU",
    )
    .proof("`config::tests::files` a_boot_takes_"),
    key(A, "dial_timeout_ms", Rule::Moot, "the guest tells when it is ready: nobody dials again and again"),
    key(
        A,
        "reconnect_timeout_ms",
        Rule::AtLeast(|c| &mut c.boot_timeout, Unit::Milliseconds),
        "how long a boot may take, where that is more than 60 s: our clock starts with QEMU",
    )
    .proof("`config::tests::files` a_boot_takes_"),
    key(A, "create_container_timeout", CREATE_TIMEOUT, "how long a container may take to be created")
        .alias_of("runtime.create_container_timeout"),
    key(A, "cdh_api_timeout", Rule::Moot, "there is no Confidential Data Hub"),
    key(A, "cdh_api_timeout_ms", Rule::Moot, "there is no Confidential Data Hub").noted(),
    key(A, "health_check_request_timeout_ms", Rule::Moot, "a dead guest is seen at once: nobody polls"),
    key(A, "server_port", Rule::Only(&[N(1024)]), "the agent's port is fixed"),
    key(A, "log_port", Rule::Only(&[N(1025)]), "the log's port is fixed"),
    key(A, "passfd_listener_port", Rule::Moot, "stdio always has streams of its own"),
    key(A, "policy", Rule::Only(&[Text("")]), POLICY).noted(),
    key(MemAgent, "mem_agent_enable", Rule::Only(&[Bool(false)]), MEM_AGENT),
    key(MemAgent, "enable", Rule::Only(&[Bool(false)]), MEM_AGENT),
    key(MemAgent, "memcg_*", Rule::Moot, MEM_AGENT),
    key(MemAgent, "compact_*", Rule::Moot, MEM_AGENT),
    // [runtime]
    key(R, "enable_debug", Rule::Bool(|c| &mut c.runtime_debug), "a talkative shim"),
    key(R, "log_level", Rule::Moot, "enable_debug alone decides"),
    key(R, "name", Rule::Only(&[Text("virt_container"), Text("")]), "osc runs containers in VMs only").noted(),
    key(R, "hypervisor_name", Rule::Selects, "which [hypervisor.*] section counts; else the only one, else the name the shim is called by")
        .proof("`config::tests::files` which_section_counts")
        .noted(),
    key(R, "agent_name", Rule::Only(&[Text("kata"), Text("")]), "osc's agent answers to Kata's protocol").noted(),
    key(
        R,
        "internetworking_model",
        choice!(internetworking_model: NetworkModel { "tcfilter" => TcFilter, "none" => None }),
        "tcfilter or none; macvtap and l3forwarding are not done",
    )
    .noted()
    .proof("`cni` the_configuration_decides_how_a_pod_is_attached"),
    key(
        R,
        "disable_new_netns",
        Rule::Bool(|c| &mut c.disable_new_netns),
        "QEMU stays in the host's network namespace; with internetworking_model none only",
    )
    .noted()
    .proof("`cni` the_configuration_decides_how_a_pod_is_attached"),
    key(R, "dan_conf", Rule::Moot, "directly attached networks are not done"),
    key(
        R,
        "disable_guest_seccomp",
        Rule::Bool(|c| &mut c.disable_guest_seccomp),
        "containers run without their seccomp profile; our default is with",
    )
    .noted(),
    key(R, "guest_selinux_label", Rule::Only(&[Text("")]), "osc's guest has no SELinux policy"),
    key(R, "enable_vcpus_pinning", Rule::Bool(|c| &mut c.enable_vcpus_pinning), "each vCPU's thread stays on a CPU of the pod's cpuset")
        .noted()
        .later(),
    key(
        R,
        "sandbox_cgroup_only",
        Rule::Bool(|c| &mut c.sandbox_cgroup_only),
        "all of a pod's processes are in its cgroup; needs a pod overhead",
    )
    .noted(),
    key(
        R,
        "static_sandbox_resource_mgmt",
        Rule::Bool(|c| &mut c.static_sandbox_resource_mgmt),
        "a VM is sized once, by the sandbox's annotations",
    ),
    key(R, "sandbox_bind_mounts", Rule::List(|c| &mut c.sandbox_bind_mounts), "host paths that the guest sees, in sandbox-mounts")
        .noted()
        .barred("it would show the pod any path of the node")
        .spaced()
        .proof("`shim::sandbox::boot` paths_that_the_guest_"),
    key(R, "shared_mounts", Rule::Only(&[EmptyList]), "mounts that containers share are volumes").noted(),
    key(
        R,
        "emptydir_mode",
        Rule::Only(&[Text("shared-fs"), Text("")]),
        "an emptyDir on disk stays on the node, where the kubelet counts it",
    ),
    key(R, "disable_guest_empty_dir", Rule::Moot, "an emptyDir on disk always stays on the node"),
    key(R, "kubelet_root_dir", Rule::Place(|c| &mut c.kubelet_root_dir), "where the kubelet keeps volumes").later(),
    key(R, "create_container_timeout", CREATE_TIMEOUT, "how long a container may take to be created").noted(),
    key(R, "vfio_mode", Rule::Only(&[Text("guest-kernel"), Text("")]), "VFIO passthrough is not done").noted(),
    key(R, "pod_resource_api_sock", Rule::Only(&[Text("")]), "VFIO passthrough is not done"),
    key(R, "enable_tracing", Rule::Only(&[Bool(false)]), TRACING),
    key(R, "jaeger_*", Rule::Moot, TRACING),
    key(R, "enable_pprof", Rule::Only(&[Bool(false)]), "pprof is Go's").noted(),
    key(R, "keep_abnormal", Rule::Only(&[Bool(false)]), "a sandbox that failed is removed; its record and console tell why"),
    key(R, "use_passfd_io", Rule::Moot, "stdio always has streams of its own"),
    key(R, "passfd_listener_port", Rule::Moot, "stdio always has streams of its own"),
    key(R, "experimental", Rule::Only(&[EmptyList]), GUEST_PULL).on(Qemu).noted().spaced(),
    key(R, "experimental", Rule::Experimental, GUEST_PULL)
        .on(Remote)
        .noted()
        .spaced()
        .proof("`config::tests::files` the_remote_hypervisors_"),
    key(R, "experimental_force_guest_pull", Rule::Only(&[Bool(false)]), GUEST_PULL).on(Qemu),
    key(R, "experimental_force_guest_pull", Rule::Bool(|c| &mut c.force_guest_pull), "images are pulled in the guest")
        .on(Remote)
        .proof("`guest_pull` a_pod_vm_pulls_"),
    // [image], which Go files had before 3.0.
    key(Image, "provision", Rule::Moot, "nydus is not done"),
    key(Image, "service_offload", Rule::Only(&[Bool(false)]), "images are pulled by the manager"),
];
