//! Mounts, the share and its daemon, guest images, container images.
