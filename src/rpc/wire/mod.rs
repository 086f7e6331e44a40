//! The messages that osc exchanges with programs it does not control: names, numbers and types as they have them.
//!
//! Plain structs with prost's derives, so there is no protoc and no generated code. One module per protobuf package (or per
//! few small ones); a module's header lists the methods of its service. Rust names are snake_case; a message keeps the
//! name it has on the wire, in Rust's capitals (`GetOOMEventRequest` is [`agent::GetOomEventRequest`]).
//!
//! A field of enumeration type is an `i32`: peers may be newer than us. Maps are ordered, so that encoding is reproducible.

pub mod agent;
pub mod apf;
pub mod bootstrap;
pub mod cgroups1;
pub mod cgroups2;
pub mod containerd;
pub mod events;
pub mod google;
pub mod guest_pull;
pub mod hypervisor;
pub mod oci;
pub mod options;
pub mod podvm;
pub mod sandbox;
pub mod task;
pub mod ttrpc;
pub mod types;

/// A message that travels inside an [`google::Any`], with the name it has there.
pub trait Named: prost::Message + Default {
    /// Package and name: `containerd.events.TaskExit`.
    const TYPE: &str;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    /// Whatever decodes, encodes to something that decodes to the same.
    fn stable<M: Message + Default + std::fmt::Debug>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            let again = M::decode(message.encode_to_vec().as_slice());
            // Compared as text: NaN is not equal to itself.
            assert_eq!(again.map(|a| format!("{a:?}")), Ok(format!("{message:?}")));
        }
    }

    /// Every peer's messages: those with maps, lists, messages in messages, optional fields and enumerations.
    const DECODERS: [fn(&[u8]); 12] = [
        stable::<ttrpc::Request>,
        stable::<ttrpc::Response>,
        stable::<google::Any>,
        stable::<task::CreateTaskRequest>,
        stable::<task::StateResponse>,
        stable::<bootstrap::BootstrapParams>,
        stable::<sandbox::SandboxStatusResponse>,
        stable::<cgroups2::Metrics>,
        stable::<hypervisor::CreateVmRequest>,
        stable::<agent::CreateContainerRequest>,
        stable::<agent::StatsContainerResponse>,
        stable::<oci::Spec>,
    ];

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            DECODERS.iter().for_each(|decode| decode(&bytes));
        }

        /// Mostly well formed: tags that exist, with lengths that mostly fit.
        #[test]
        fn any_fields_are_a_message_or_an_error(
            fields in proptest::collection::vec((1u8..16, 0u8..6, proptest::collection::vec(any::<u8>(), 0..20)), 0..20),
        ) {
            let mut bytes = Vec::new();
            for (number, kind, payload) in fields {
                bytes.push(number << 3 | kind);
                if kind == 2 {
                    bytes.push(payload.len() as u8);
                }
                bytes.extend(payload);
            }
            DECODERS.iter().for_each(|decode| decode(&bytes));
        }
    }
}
