//! Types that every protobuf speaker shares (packages `google.protobuf` and `google.rpc`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Named;

/// The answer that says nothing but that it was done.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// A point in time: seconds since 1970, and nanoseconds (0 to 999,999,999) after that.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    pub fn now() -> Timestamp {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(t: SystemTime) -> Timestamp {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp { seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nanos: d.subsec_nanos() as i32 },
            // Before 1970: only a guest whose clock is not set yet. Nobody compares such times.
            Err(_) => Timestamp::default(),
        }
    }
}

impl From<Timestamp> for SystemTime {
    /// What lies before 1970 or beyond what this system can represent reads as 1970.
    fn from(t: Timestamp) -> SystemTime {
        let (s, n) = (u64::try_from(t.seconds).unwrap_or(0), u32::try_from(t.nanos).unwrap_or(0).min(999_999_999));
        UNIX_EPOCH.checked_add(Duration::new(s, n)).unwrap_or(UNIX_EPOCH)
    }
}

/// A message of any type: its name and its bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Any {
    /// Managers differ in what they put before the name: compare by [`Any::is`] only.
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Any {
    /// `message` under its bare name, as containerd writes it.
    pub fn pack<M: Named>(message: &M) -> Any {
        Any { type_url: M::TYPE.to_owned(), value: message.encode_to_vec() }
    }

    /// Whether the name's last component is that of `name`: `a/b/1/Process` is `Process`, and so is `Process` itself.
    pub fn is(&self, name: &str) -> bool {
        last(&self.type_url) == last(name)
    }

    /// The message, if it is one of type `M` and well formed.
    pub fn unpack<M: Named>(&self) -> Option<M> {
        if self.is(M::TYPE) { M::decode(self.value.as_slice()).ok() } else { None }
    }
}

fn last(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// How a call failed (`google.rpc.Status`); [`crate::rpc::Status`] is what our code uses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    /// A [`crate::rpc::Code`]; 0 is success.
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    /// Nobody we talk to fills this in.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::events::TaskExit;

    #[test]
    fn any_is_known_by_its_last_component() {
        let exit = TaskExit { container_id: "c".into(), exit_status: 137, ..Default::default() };
        let mut any = Any::pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(any.unpack::<TaskExit>(), Some(exit.clone()));
        any.type_url = "type.googleapis.com/containerd.events.TaskExit".into();
        assert_eq!(any.unpack::<TaskExit>(), Some(exit));
        any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".into();
        assert!(any.is("Process") && !any.is("LinuxResources"));
        assert_eq!(any.unpack::<TaskExit>(), None);
    }

    #[test]
    fn absurd_times_do_not_panic() {
        for (seconds, nanos) in [(i64::MAX, i32::MAX), (i64::MIN, i32::MIN), (-1, -1)] {
            let _ = SystemTime::from(Timestamp { seconds, nanos });
        }
        let t = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        assert_eq!(SystemTime::from(Timestamp::from(t)), t);
    }
}
