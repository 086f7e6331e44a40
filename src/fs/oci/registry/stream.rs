//! A pull straight into a root file system: layers are fetched, decompressed and written at once, so that neither memory nor disk
//! has to hold one.

use std::path::Path;

use super::{Client, PullError, Resolved};
use crate::fs::oci::layout;

/// Applies every layer to the empty directory `dest`. On an error the caller removes `dest`; beside it nothing is made.
pub fn unpack(client: &Client, image: &Resolved, dest: &Path, progress: &dyn Fn(&str)) -> Result<(), PullError> {
    let tree = layout::root(dest)?;
    for (n, layer) in image.layers.iter().enumerate() {
        progress(&format!("pulling layer {} of {}", n + 1, image.layers.len()));
        let mut blob = client.blob(layer, 0);
        if let Err(e) = layer.unpack(&tree, &mut blob) {
            return Err(blob.fault().unwrap_or(e.into()));
        }
    }
    Ok(())
}
