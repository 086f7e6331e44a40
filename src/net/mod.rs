//! Netlink verbs and endpoints.
