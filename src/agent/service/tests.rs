use super::*;
use crate::agent::modules::Modules;
use crate::agent::reaper::Reaper;
use crate::agent::testing::in_own_process;
use crate::agent::uevent::Uevents;
use crate::rpc::wire::agent::*;
use prost::Message;

fn with_service(test: &str, body: impl FnOnce(&AgentService)) {
    in_own_process(&format!("agent::service::tests::{test}"), || {
        // A request that gets further than meant must not reach the machine.
        // SAFETY: system calls without pointers.
        unsafe { libc::unshare(libc::CLONE_NEWUTS | libc::CLONE_NEWNS) };
        let guest = Guest::new(Arc::new(Modules::new("/nonexistent")), Uevents::start().unwrap(), Reaper::start()).unwrap();
        guest.settled.open();
        body(&AgentService::new(Arc::new(guest)));
    });
}

#[allow(clippy::field_reassign_with_default)] // Not all of its fields are ours to name.
fn context(service: &str) -> Context {
    let mut context = Context::default();
    context.service = service.into();
    context
}

fn ask<A: Message + Default>(service: &AgentService, method: &str, request: impl Message) -> Answer<A> {
    let name = if agent::HEALTH_METHODS.contains(&method) { agent::HEALTH } else { agent::SERVICE };
    service.call(&context(name), method, &request.encode_to_vec()).map(|bytes| A::decode(bytes.as_slice()).unwrap())
}

#[test]
fn every_method_of_the_protocol_is_served_or_refused_in_a_sentence() {
    with_service("every_method_of_the_protocol_is_served_or_refused_in_a_sentence", |service| {
        // Those that wait, and those that would change the machine the test runs on.
        let waits = ["GetOOMEvent", "DestroySandbox", "CreateSandbox", "OnlineCPUMem", "SetGuestDateTime", "ReseedRandomDev"];
        for method in agent::METHODS.iter().filter(|m| !waits.contains(m)) {
            // A container id that does not exist, and fields whose types differ from call to call.
            if let Err(e) = service.call(&context(agent::SERVICE), method, &[0x0a, 1, b'x']) {
                assert!(!e.message.contains("has no method"), "{method}: {e}");
            }
        }
        for (name, why) in REFUSED {
            assert!(agent::METHODS.contains(name) && !why.ends_with('.'), "{name}");
            assert_eq!(service.call(&context(agent::SERVICE), name, &[]).unwrap_err().code, Code::Unimplemented);
        }
        assert_eq!(service.call(&context(agent::SERVICE), "Nonsense", &[]).unwrap_err().code, Code::Unimplemented);
        assert_eq!(service.call(&context("x.Y"), "Check", &[]).unwrap_err().code, Code::Unimplemented);
        assert_eq!(service.call(&context(agent::SERVICE), "StartContainer", &[0xff]).unwrap_err().code, Code::InvalidArgument);
    });
}

#[test]
fn health_details_and_metrics_answer() {
    with_service("health_details_and_metrics_answer", |service| {
        let health: HealthCheckResponse = ask(service, "Check", CheckRequest::default()).unwrap();
        assert_eq!(health.status, SERVING);
        let version: VersionCheckResponse = ask(service, "Version", CheckRequest::default()).unwrap();
        assert!(version.agent_version.contains('.'));
        let details: GuestDetailsResponse = ask(service, "GetGuestDetails", GuestDetailsRequest::default()).unwrap();
        let agent = details.agent_details.unwrap();
        assert!(agent.extra_features.contains(&"stdio-streams".to_owned()) && agent.storage_handlers.contains(&"virtio-fs".to_owned()));
        let metrics: Metrics = ask(service, "GetMetrics", GetMetricsRequest::default()).unwrap();
        assert!(metrics.metrics.contains("kata_guest_load{item=\"load1\"}"));
        let stats: VolumeStatsResponse = ask(service, "GetVolumeStats", VolumeStatsRequest { volume_guest_path: "/".into() }).unwrap();
        assert!(stats.usage[0].total > 0);
    });
}

#[test]
fn a_container_that_does_not_exist_is_not_found() {
    with_service("a_container_that_does_not_exist_is_not_found", |service| {
        for method in [
            "StartContainer",
            "RemoveContainer",
            "StatsContainer",
            "PauseContainer",
            "WaitProcess",
            "ReadStdout",
            "SignalProcess",
            "TtyWinResize",
        ] {
            let e = service
                .call(&context(agent::SERVICE), method, &StartContainerRequest { container_id: "c".into() }.encode_to_vec())
                .unwrap_err();
            assert_eq!((e.code, e.message.as_str()), (Code::NotFound, "container c does not exist"), "{method}");
        }
    });
}

#[test]
fn a_failed_creation_frees_the_name() {
    with_service("a_failed_creation_frees_the_name", |service| {
        let bad = Storage { driver: "floppy".into(), mount_point: "/mnt/x".into(), ..Default::default() };
        let create = |id: &str| CreateContainerRequest {
            container_id: id.into(),
            oci: Some(Default::default()),
            storages: vec![bad.clone()],
            ..Default::default()
        };
        for _ in 0..2 {
            let e = ask::<Empty>(service, "CreateContainer", create("c")).unwrap_err();
            assert!(e.message.contains("floppy"), "{e}");
        }
        let held = service.guest.reserve("c").unwrap();
        assert_eq!(ask::<Empty>(service, "CreateContainer", create("c")).unwrap_err().code, Code::AlreadyExists);
        drop(held);
        for id in ["", "../x", "a/b", ".hidden"] {
            assert_eq!(ask::<Empty>(service, "CreateContainer", create(id)).unwrap_err().code, Code::InvalidArgument, "{id}");
        }
    });
}

#[test]
fn files_are_copied_below_their_directory_only() {
    with_service("files_are_copied_below_their_directory_only", |service| {
        for path in ["/etc/passwd", "/run/kata-containers/../x", "relative", ""] {
            let request = CopyFileRequest { path: path.into(), file_mode: libc::S_IFREG, ..Default::default() };
            assert_eq!(ask::<Empty>(service, "CopyFile", request).unwrap_err().code, Code::InvalidArgument, "{path}");
        }
    });
}
