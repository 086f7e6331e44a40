use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::key::{Key, Lit, Number, Rule, Section};
use crate::config::table::{all, find};
use crate::config::value::Value;
use crate::config::{Config, Hypervisor};

/// Keys of the field's QEMU files, by section; both dialects.
const QEMU: [(Section, &str); 4] = [
    (
        Section::Hypervisor,
        "path kernel image initrd machine_type machine_accelerators rootfs_type vm_rootfs_driver kernel_params kernel_verity_params
         firmware firmware_volume pflashes cpu_features seccomp_sandbox seccompsandbox rootless disable_selinux disable_guest_selinux
         disable_image_nvdimm disable_nesting_checks default_vcpus overhead_vcpus default_maxvcpus default_memory overhead_memory
         memory_slots default_maxmemory memory_offset enable_virtio_mem enable_mem_prealloc enable_hugepages hugepage_type
         reclaim_guest_freed_memory enable_guest_swap guest_swap_path guest_swap_size_percent guest_swap_create_threshold_secs
         guest_memory_dump_path guest_memory_dump_paging shared_fs virtio_fs_daemon virtio_fs_cache virtio_fs_cache_size
         virtio_fs_queue_size virtio_fs_extra_args virtio_fs_inode_file_handles virtio_fs_is_dax disable_block_device_use
         block_device_driver block_device_aio block_device_cache_set block_device_cache_direct block_device_cache_noflush
         block_device_logical_sector_size block_device_physical_sector_size enable_iothreads indep_iothreads queue_size num_queues
         enable_vhost_user_store vhost_user_store_path vhost_user_reconnect_timeout_sec disable_vhost_net network_queues
         rx_rate_limiter_max_rate tx_rate_limiter_max_rate net_rate_limiter_bw_max_rate disk_rate_limiter_bw_max_rate default_bridges
         pcie_root_port pcie_switch_port cold_plug_vfio hot_plug_vfio hotplug_vfio_on_root_bus enable_iommu enable_iommu_platform
         entropy_source guest_hook_path enable_debug extra_monitor_socket enable_annotations valid_hypervisor_paths
         valid_virtio_fs_daemon_paths valid_jailer_paths valid_vhost_user_store_paths valid_entropy_sources valid_file_mem_backends
         file_mem_backend confidential_guest sev_snp_guest enable_numa numa_mapping use_legacy_serial msize_9p hypervisor_loglevel
         log_level ctlpath valid_ctlpaths prefetch_list_path rootless_user boot_to_be_template boot_from_template memory_path
         device_state_path selinux_label initdata measurement_algo",
    ),
    (Section::Factory, "enable_template template_path vm_cache_number vm_cache_endpoint"),
    (
        Section::Agent,
        "enable_debug enable_tracing kernel_modules debug_console_enabled dial_timeout dial_timeout_ms reconnect_timeout_ms
         create_container_timeout cdh_api_timeout cdh_api_timeout_ms container_pipe_size server_port log_port passfd_listener_port
         health_check_request_timeout_ms policy log_level",
    ),
    (
        Section::Runtime,
        "enable_debug internetworking_model name hypervisor_name agent_name disable_guest_seccomp enable_vcpus_pinning enable_tracing
         jaeger_endpoint jaeger_user jaeger_password disable_new_netns sandbox_cgroup_only static_sandbox_resource_mgmt
         sandbox_bind_mounts vfio_mode emptydir_mode disable_guest_empty_dir kubelet_root_dir pod_resource_api_sock experimental
         experimental_force_guest_pull enable_pprof dan_conf create_container_timeout guest_selinux_label keep_abnormal shared_mounts
         use_passfd_io passfd_listener_port log_level",
    ),
];

/// Annotations of the field, by prefix.
const ANNOTATIONS: [(Section, &str); 3] = [
    (
        Section::Hypervisor,
        "asset_hash_type blk_logical_sector_size blk_physical_sector_size block_device_cache_direct block_device_cache_noflush
         block_device_cache_set block_device_driver block_device_num_queues block_device_queue_size cc_init_data cpu_features
         default_gpus default_gpu_model default_max_vcpus default_memory default_vcpus disable_block_device_use disable_image_nvdimm
         disable_vhost_net enable_guest_swap enable_hugepages enable_iommu enable_iommu_platform enable_iothreads enable_mem_prealloc
         enable_vhost_user_store enable_virtio_mem entropy_source firmware firmware_hash guest_hook_path hugepage_type image image_hash
         indep_iothreads initrd initrd_hash jailer_path jailer_hash kernel kernel_hash kernel_params kernel_verity_params
         machine_accelerators machine_type memory_offset memory_slots network_queues path path_hash pcie_root_port pcie_switch_port
         prefetch_files.list rootless rx_rate_limiter_max_rate tx_rate_limiter_max_rate shared_fs vhost_user_store_path virtio_fs_cache
         virtio_fs_cache_size virtio_fs_daemon virtio_fs_extra_args",
    ),
    (
        Section::Runtime,
        "name hypervisor_name agent_name create_container_timeout disable_guest_seccomp disable_new_netns enable_pprof
         enable_vcpus_pinning experimental internetworking_model sandbox_bind_mounts sandbox_cgroup_only shared_mounts vfio_mode",
    ),
    (Section::Agent, "enable_tracing container_pipe_size kernel_modules cdh_api_timeout_ms policy"),
];

#[test]
fn every_key_of_the_field_has_a_row() {
    for (section, names) in QEMU {
        for name in names.split_whitespace() {
            assert!(find(section, name, Hypervisor::Qemu).is_some(), "{section:?} {name}");
        }
    }
}

#[test]
fn every_annotation_of_the_field_has_a_row() {
    for (section, names) in ANNOTATIONS {
        for name in names.split_whitespace() {
            let found = all().any(|k| k.section == section && k.annotation == Some(name));
            assert!(found, "{section:?} {name}");
        }
    }
}

#[test]
fn a_key_has_one_row_for_each_hypervisor() {
    for hypervisor in [Hypervisor::Qemu, Hypervisor::Remote] {
        let mut seen = BTreeSet::new();
        for k in crate::config::table::rows(hypervisor) {
            assert!(seen.insert((k.section, k.name)), "{} twice", k.id());
            assert!(!k.effect.is_empty() && !k.effect.ends_with('.'), "{}", k.id());
        }
    }
}

#[test]
fn numbers_fit_their_fields_and_defaults_their_ranges() {
    let mut config = Config::default();
    for k in all() {
        if let Rule::Number { at, range, .. } = &k.rule {
            assert!(!matches!(at, Number::U32(_)) || range.1 <= u64::from(u32::MAX), "{}", k.id());
            let default: u64 = k.rule.show(&mut config).unwrap().parse().unwrap();
            assert!((range.0..=range.1).contains(&default), "{}: {default}", k.id());
        }
    }
}

#[test]
fn the_default_of_every_key_is_allowed() {
    let mut config = Config::default();
    for k in all() {
        let Some(shown) = k.rule.show(&mut config) else { continue };
        let text = format!("v = {shown}");
        let table = toml::de::DeTable::parse(&text).unwrap_or_else(|e| panic!("{}: {shown}: {e}", k.id()));
        let value = crate::config::value::Value::of(table.get_ref()["v"].get_ref());
        k.rule.set(&mut config, &value).unwrap_or_else(|e| panic!("{} = {shown}: {e}", k.id()));
        assert_eq!(k.rule.show(&mut config).as_ref(), Some(&shown), "{}", k.id());
    }
}

#[test]
fn what_is_refused_says_why() {
    for k in all() {
        let Rule::Only(lits) = &k.rule else { continue };
        let wrong = match lits[0] {
            Lit::Bool(b) => Value::Bool(!b),
            Lit::Number(_) => Value::Int(7),
            Lit::Text(_) => Value::Text("/something/else".into()),
            Lit::EmptyList => Value::List(vec!["something".into()]),
        };
        let mut config = Config::default();
        assert!(k.rule.set(&mut config, &wrong).unwrap_err().starts_with("want "), "{}", k.id());
        let file = format!("[{}]\n{} = {wrong}\n", section_of(k), k.name.replace('*', "x"));
        let errors = super::of(&file).errors;
        assert!(errors.len() == 1 && errors[0].ends_with(k.effect), "{file}{errors:?}");
        assert!(errors[0].contains(&format!(":2: {} = {wrong}: want", k.name.replace('*', "x"))), "{errors:?}");
    }
}

#[test]
fn what_has_no_effect_is_told() {
    for k in all() {
        let file = format!("[{}]\n{} = \"/x\"\n", section_of(k), k.name.replace('*', "x"));
        let got = match k.rule {
            Rule::Moot => super::of(&file).notes,
            Rule::Replaced(_) => super::of(&file).config.warnings,
            _ => continue,
        };
        assert!(got.len() == 1 && got[0].contains(&format!("no effect: {}", k.effect)), "{file}{got:?}");
    }
}

fn section_of(key: &Key) -> &'static str {
    match (key.section, key.only_for) {
        (Section::Hypervisor, Some(Hypervisor::Remote)) => "hypervisor.remote",
        (Section::Hypervisor, _) => "hypervisor.qemu",
        (Section::Agent, _) => "agent.kata",
        (Section::MemAgent, _) => "agent.kata.mem_agent",
        (other, _) => other.name(),
    }
}

/// The text of every file under `dir`, but for this module's own.
fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(at).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() && !entry.ends_with("src/config") {
                todo.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                found.push((entry.clone(), std::fs::read_to_string(entry).unwrap()));
            }
        }
    }
    found
}

/// A row says `later` as long as nobody reads its field, and no longer.
#[test]
fn what_has_no_effect_yet_is_marked() {
    let sources = sources("src");
    let read = |field: &str| {
        let needle = format!("config.{field}");
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '(');
        sources.iter().any(|(_, text)| text.match_indices(&needle).any(|(at, _)| ends(&text[at + needle.len()..])))
    };
    let mut wrong = Vec::new();
    for k in all() {
        let field = match (k.section, k.name) {
            (Section::Hypervisor, "seccompsandbox") => "seccomp_sandbox",
            (Section::Agent, "dial_timeout" | "reconnect_timeout_ms") => "boot_timeout",
            (Section::Agent, "enable_debug") => "agent_debug",
            (Section::Runtime, "enable_debug") => "runtime_debug",
            (Section::Runtime, "experimental" | "experimental_force_guest_pull") => "force_guest_pull",
            (_, name) => name,
        };
        // What the configuration itself acts on: what it allows, and what must go together.
        let ours = ["enable_annotations", "disable_new_netns"].contains(&field) || field.starts_with("valid_");
        match k.rule {
            Rule::Only(_) | Rule::Moot | Rule::Replaced(_) | Rule::Selects => continue,
            _ if ours || read(field) != k.later => continue,
            _ if k.later => wrong.push(format!("{} is read now: its row is not later() any more", k.id())),
            _ => wrong.push(format!("nobody reads {}: its row is later()", k.id())),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every test that a row names is there.
#[test]
fn proofs_are_tests() {
    let all_sources: Vec<_> = sources("src").into_iter().chain(sources("tests")).chain(sources("src/config")).collect();
    for k in all().filter(|k| !k.proof.is_empty()) {
        let (module, test) = k.proof.strip_prefix('`').and_then(|p| p.split_once("` ")).unwrap_or_else(|| panic!("{}", k.proof));
        let file = module.rsplit("::").next().unwrap();
        let found = |(path, text): &(PathBuf, String)| {
            path.components().any(|c| Path::new(c.as_os_str()).file_stem().is_some_and(|s| s == file))
                && text.contains(&format!("fn {test}"))
        };
        assert!(all_sources.iter().any(found), "{}: {}", k.id(), k.proof);
    }
}

/// The README's table is this one; with OSC_WRITE set it is written there, else compared.
#[test]
fn the_readme_has_the_table() {
    const MARKS: (&str, &str) = ("<!-- config:keys -->\n", "<!-- /config:keys -->");
    let table = crate::config::docs::markdown();
    println!("{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(MARKS.0).expect("a mark in README.md");
    let (there, after) = rest.split_once(MARKS.1).expect("its end in README.md");
    if std::env::var_os("OSC_WRITE").is_some() {
        return std::fs::write(path, format!("{before}{}\n{table}\n{}{after}", MARKS.0, MARKS.1)).unwrap();
    }
    let first = there.trim().lines().zip(table.trim().lines()).find(|(a, b)| a != b);
    assert!(there.trim() == table.trim(), "README.md is stale: OSC_WRITE=1 cargo test --lib the_readme_has; first: {first:?}");
}
