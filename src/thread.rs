//! The one way to start a thread: named, so that `/proc/PID/task/*/comm` reads like a diagram, and with a small stack,
//! because a sandbox has a dozen of them and they are the price of not having an async runtime.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Enough for every thread of ours; large buffers live on the heap.
const STACK: usize = 192 * 1024;

/// Starts `f` on a thread called `name` (at most 15 bytes show in `ps`).
///
/// Panics where the kernel refuses a thread: nothing can go on without it, and the panic hook reports it.
pub fn start<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    try_start(name, f).unwrap_or_else(|e| panic!("cannot start thread {name}: {e}"))
}

/// The same for who can go on without it: a server that refuses one call.
pub fn try_start<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).stack_size(STACK).spawn(f)
}

/// The same for a thread that borrows: `scope` waits for it.
pub fn scoped<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    name: &str,
    f: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<std::thread::ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).stack_size(STACK).spawn_scoped(scope, f)
}
