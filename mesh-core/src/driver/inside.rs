//! Whether the current thread is running mesh, so that blocking it would stall mesh itself.
//!
//! Whoever polls a task, a handler or a callback of mesh holds a [`Guard`] meanwhile. A call that blocks its thread asks
//! [`is_inside`] first and fails at once instead of waiting for what it holds up itself.

use std::{
    cell::Cell,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Marks the current thread until it is dropped.
#[derive(Debug)]
#[must_use = "the mark lasts as long as the guard"]
pub struct Guard(PhantomData<*const ()>); // Not `Send`: the mark belongs to one thread.

/// Marks the current thread as running mesh. Guards nest.
///
/// ```
/// use mesh_core::driver::inside;
///
/// let guard = inside::enter();
/// assert!(inside::is_inside());
/// drop(guard);
/// assert!(!inside::is_inside());
/// ```
pub fn enter() -> Guard {
    DEPTH.with(|depth| depth.set(depth.get().saturating_add(1)));
    Guard(PhantomData)
}

/// Whether a [`Guard`] is held on the current thread.
pub fn is_inside() -> bool {
    DEPTH.with(|depth| depth.get() > 0)
}

impl Drop for Guard {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get().saturating_sub(1)));
    }
}

/// A future whose polls are marked.
#[derive(Debug)]
pub(super) struct Inside<F>(pub(super) F);

impl<F: Future + Unpin> Future for Inside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _inside = enter();
        Pin::new(&mut self.0).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{enter, is_inside};

    #[test]
    fn guards_nest_and_end() {
        assert!(!is_inside());
        let outer = enter();
        let inner = enter();
        drop(inner);
        assert!(is_inside());
        drop(outer);
        assert!(!is_inside());
    }
}
