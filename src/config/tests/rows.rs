use std::collections::BTreeSet;

use crate::config::key::{Number, Rule, Section};
use crate::config::table::{all, find};
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
