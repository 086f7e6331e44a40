//! A VM run by QEMU on this host.
