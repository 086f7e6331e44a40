//! Who makes pod VMs. A cloud is one file that implements [`Provider`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::settings::Settings;
use crate::error::{Failure, Result, Stage};
use crate::net::Prefix;
use crate::rpc::Code;

/// Makes a VM's user-data for the address at which it reaches this worker; `None`: the worker's own.
pub type UserData = Box<dyn Fn(Option<Prefix>) -> Result<String> + Send + Sync>;

/// What a VM is to be.
pub struct Wish {
    /// Names this VM and no other, for ever: a second create with it is the first one.
    pub token: String,
    /// For people.
    pub name: String,
    /// 0: the provider's default.
    pub vcpus: u32,
    /// MiB; 0: the provider's default.
    pub mib: u64,
    /// Empty: by size.
    pub instance_type: String,
    /// Empty: the configured one.
    pub image: String,
    /// cloud-init's user-data. It holds the VM's key.
    pub user_data: UserData,
}

/// A VM that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    /// The first is where the forwarder answers.
    pub addresses: Vec<IpAddr>,
}

/// A VM that carries our mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub id: String,
    pub token: String,
    /// False for one that ended, or that is only half made.
    pub alive: bool,
}

/// A size that a provider sells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceType {
    pub name: String,
    pub vcpus: u32,
    pub mib: u64,
    pub gpus: u32,
}

/// Calls block and may be made from several threads at once.
pub trait Provider: Send + Sync {
    /// Whether this configuration can work, asked once at start.
    fn verify_config(&self) -> Result<()>;

    /// The sizes there are; none where any size is.
    fn instance_types(&self) -> Vec<InstanceType> {
        Vec::new()
    }

    /// Makes the VM, or finds the one that was made for the token. After an error there may be one all the same: the caller
    /// deletes by token.
    fn create(&self, wish: &Wish) -> Result<Instance>;

    /// Returns when the VM of `token` and everything that was made for it is gone; that it never was is no error.
    fn delete(&self, token: &str) -> Result<()>;

    /// Every VM that this adaptor made, also those it does not remember.
    fn list_owned(&self) -> Result<Vec<Owned>>;

    /// Between two questions which VMs there are.
    fn pace(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Why a VM did not come up, where the provider can see: the last lines of its console.
    fn last_words(&self, _token: &str) -> Vec<String> {
        Vec::new()
    }
}

/// The provider that `settings` name.
pub fn open(settings: &Settings) -> Result<Arc<dyn Provider>> {
    match settings.provider.as_str() {
        "qemu" => Ok(Arc::new(super::qemu::Local::new(settings)?)),
        "libvirt" => Ok(Arc::new(super::libvirt::Libvirt::new(settings))),
        other => {
            let cause = format!("provider {other:?} is not known");
            Err(Failure::new(Stage::Request, cause).code(Code::InvalidArgument).way_out("qemu, libvirt"))
        }
    }
}

/// The smallest of `types` that has it all.
pub fn best_fit(types: &[InstanceType], vcpus: u32, mib: u64, gpus: u32) -> Option<&InstanceType> {
    let fits = types.iter().filter(|t| t.vcpus >= vcpus && t.mib >= mib && t.gpus >= gpus);
    fits.min_by_key(|t| (t.gpus, t.mib, t.vcpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(name: &str, vcpus: u32, mib: u64) -> InstanceType {
        InstanceType { name: name.into(), vcpus, mib, gpus: 0 }
    }

    #[test]
    fn the_smallest_that_fits_whatever_the_order() {
        let types = [size("F16", 16, 32 << 10), size("E8", 8, 64 << 10), size("c2", 8, 16 << 10), size("m2", 8, 32 << 10)];
        let name = |vcpus, gib: u64| best_fit(&types, vcpus, gib << 10, 0).map(|t| t.name.as_str());
        assert_eq!(name(16, 32), Some("F16"));
        assert_eq!(name(8, 16), Some("c2"));
        assert_eq!(name(1, 33), Some("E8"));
        assert_eq!(name(32, 1), None);
        assert_eq!(best_fit(&types, 1, 1, 1), None);
    }
}
