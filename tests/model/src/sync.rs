//! `std`'s locks and atomics, with steps.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{LockResult, PoisonError, TryLockError, TryLockResult},
};

/// Decides who holds a lock that was made in a model. It is `None` for all others, and `std`'s lock alone decides.
#[cfg(not(miri))]
mod turn {
    use std::sync::PoisonError;

    use super::Busy;
    use crate::schedule::{is_scheduled, step};

    type Lock = shuttle::sync::RwLock<()>;

    #[derive(Debug)]
    pub(super) struct Turn(Option<Lock>);

    #[derive(Debug)]
    pub(super) enum Taken<'a> {
        Shared {
            _guard: shuttle::sync::RwLockReadGuard<'a, ()>,
        },
        Alone {
            _guard: shuttle::sync::RwLockWriteGuard<'a, ()>,
        },
    }

    /// A step behind the end of a turn. What comes next may be an atomic that shuttle knows nothing of, such as that of a waker.
    #[derive(Debug)]
    pub(super) struct After(bool);

    impl After {
        pub(super) fn new(turn: &Option<Taken<'_>>) -> Self {
            Self(turn.is_some())
        }
    }

    impl Drop for After {
        fn drop(&mut self) {
            if self.0 && !std::thread::panicking() {
                step();
            }
        }
    }

    impl Turn {
        pub(super) fn new() -> Self {
            Self(is_scheduled().then(|| Lock::new(())))
        }

        pub(super) fn alone(&self) -> Option<Taken<'_>> {
            let lock = self.0.as_ref()?;
            let _guard = lock.write().unwrap_or_else(PoisonError::into_inner);
            Some(Taken::Alone { _guard })
        }

        pub(super) fn try_alone(&self) -> Result<Option<Taken<'_>>, Busy> {
            let Some(lock) = &self.0 else {
                return Ok(None);
            };
            match lock.try_write() {
                Ok(_guard) => Ok(Some(Taken::Alone { _guard })),
                Err(_) => Err(Busy),
            }
        }

        pub(super) fn shared(&self) -> Option<Taken<'_>> {
            let lock = self.0.as_ref()?;
            let _guard = lock.read().unwrap_or_else(PoisonError::into_inner);
            Some(Taken::Shared { _guard })
        }
    }
}

#[cfg(miri)]
mod turn {
    use super::Busy;

    #[derive(Debug)]
    pub(super) struct Turn;

    pub(super) type Taken<'a> = std::marker::PhantomData<&'a ()>;

    #[derive(Debug)]
    pub(super) struct After;

    impl After {
        pub(super) fn new(_turn: &Option<Taken<'_>>) -> Self {
            Self
        }
    }

    impl Turn {
        pub(super) fn new() -> Self {
            Self
        }

        pub(super) fn alone(&self) -> Option<Taken<'_>> {
            None
        }

        pub(super) fn try_alone(&self) -> Result<Option<Taken<'_>>, Busy> {
            Ok(None)
        }

        pub(super) fn shared(&self) -> Option<Taken<'_>> {
            None
        }
    }
}

use turn::{After, Taken, Turn};

/// Somebody holds the lock.
struct Busy;

/// As [`std::sync::Mutex`].
pub struct Mutex<T> {
    turn: Turn,
    inner: std::sync::Mutex<T>,
}

/// As [`std::sync::MutexGuard`].
#[derive(Debug)]
pub struct MutexGuard<'a, T>(Guard<'a, std::sync::MutexGuard<'a, T>>);

/// As [`std::sync::RwLock`].
pub struct RwLock<T> {
    turn: Turn,
    inner: std::sync::RwLock<T>,
}

/// As [`std::sync::RwLockReadGuard`].
#[derive(Debug)]
pub struct RwLockReadGuard<'a, T>(Guard<'a, std::sync::RwLockReadGuard<'a, T>>);

/// As [`std::sync::RwLockWriteGuard`].
#[derive(Debug)]
pub struct RwLockWriteGuard<'a, T>(Guard<'a, std::sync::RwLockWriteGuard<'a, T>>);

/// Given back before the turn is, so that nobody ever waits for `std`'s lock in a model.
#[derive(Debug)]
struct Guard<'a, G> {
    inner: G,
    _turn: Option<Taken<'a>>,
    _after: After,
}

fn guarded<'a, G, W>(
    turn: Option<Taken<'a>>,
    inner: LockResult<G>,
    wrap: impl FnOnce(Guard<'a, G>) -> W,
) -> LockResult<W> {
    let _after = After::new(&turn);
    let guard = |inner| {
        wrap(Guard {
            inner,
            _turn: turn,
            _after,
        })
    };
    match inner {
        Ok(inner) => Ok(guard(inner)),
        Err(poisoned) => Err(PoisonError::new(guard(poisoned.into_inner()))),
    }
}

impl<T> Mutex<T> {
    /// A lock that nobody holds.
    pub fn new(value: T) -> Self {
        Self {
            turn: Turn::new(),
            inner: std::sync::Mutex::new(value),
        }
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// Who held it panicked.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let turn = self.turn.alone();
        guarded(turn, self.inner.lock(), MutexGuard)
    }

    /// Takes the lock if nobody holds it.
    ///
    /// # Errors
    /// Somebody does, or who held it panicked.
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        let Ok(turn) = self.turn.try_alone() else {
            return Err(TryLockError::WouldBlock);
        };
        match self.inner.try_lock() {
            Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
            Err(TryLockError::Poisoned(poisoned)) => {
                let inner = Err(poisoned);
                guarded(turn, inner, MutexGuard).map_err(TryLockError::Poisoned)
            }
            Ok(inner) => guarded(turn, Ok(inner), MutexGuard).map_err(TryLockError::Poisoned),
        }
    }

    /// The value, which nobody else can hold.
    ///
    /// # Errors
    /// Who held it panicked.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.inner.get_mut()
    }
}

impl<T> RwLock<T> {
    /// A lock that nobody holds.
    pub fn new(value: T) -> Self {
        Self {
            turn: Turn::new(),
            inner: std::sync::RwLock::new(value),
        }
    }

    /// Waits to read.
    ///
    /// # Errors
    /// Who wrote panicked.
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        let turn = self.turn.shared();
        guarded(turn, self.inner.read(), RwLockReadGuard)
    }

    /// Waits to write.
    ///
    /// # Errors
    /// Who wrote panicked.
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        let turn = self.turn.alone();
        guarded(turn, self.inner.write(), RwLockWriteGuard)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.inner
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.inner
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.inner
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.inner
    }
}

/// As [`std::sync::atomic`].
pub mod atomic {
    pub use std::sync::atomic::Ordering;

    #[cfg(not(miri))]
    use crate::schedule::step;

    #[cfg(miri)]
    fn step() {}

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            #[doc = concat!("As [`std::sync::atomic::", stringify!($name), "`].")]
            #[derive(Debug, Default)]
            pub struct $name(std::sync::atomic::$name);

            impl $name {
                /// With this value.
                pub const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                /// The value.
                pub fn load(&self, order: Ordering) -> $value {
                    step();
                    self.0.load(order)
                }

                /// Replaces the value.
                pub fn store(&self, value: $value, order: Ordering) {
                    step();
                    self.0.store(value, order);
                }

                /// Replaces the value, and returns what it was.
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    step();
                    self.0.swap(value, order)
                }

                /// The value, which nobody else can hold.
                pub fn get_mut(&mut self) -> &mut $value {
                    self.0.get_mut()
                }
            }
        };
        ($name:ident, $value:ty, counts) => {
            atomic!($name, $value);

            impl $name {
                /// Adds to the value, and returns what it was.
                pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    step();
                    self.0.fetch_add(value, order)
                }

                /// Subtracts from the value, and returns what it was.
                pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    step();
                    self.0.fetch_sub(value, order)
                }
            }
        };
    }

    atomic!(AtomicBool, bool);
    atomic!(AtomicU64, u64, counts);
    atomic!(AtomicUsize, usize, counts);
}
