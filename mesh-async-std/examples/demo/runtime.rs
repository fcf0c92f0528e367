//! Where the demo runs: the one thing in which async-std and smol differ.

use std::future::Future;

use mesh_async_std::{MeshServer, MeshServerBuilder};

#[cfg(feature = "async-std")]
pub(crate) use self::async_std::{block_on, build, spawn};
#[cfg(not(feature = "async-std"))]
pub(crate) use self::smol::{block_on, build, spawn};

#[cfg(feature = "async-std")]
mod async_std {
    use mesh_async_std::MeshServerBuilderExt;

    use super::{Future, MeshServer, MeshServerBuilder};

    pub(crate) fn block_on<T: Send + 'static>(run: impl Future<Output = T> + Send + 'static) -> T {
        // On a worker: what runs right here has a thread of its own.
        async_std::task::block_on(async_std::task::spawn(run))
    }

    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        drop(async_std::task::spawn(task)); // Which detaches it.
    }

    pub(crate) fn build(builder: MeshServerBuilder) -> MeshServer {
        builder.build()
    }
}

/// On an executor of its own with a thread for each core, for that of `smol::spawn` has one.
#[cfg(not(feature = "async-std"))]
mod smol {
    use std::{
        num::NonZero,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Arc, LazyLock},
        thread,
    };

    use mesh_async_std::AsyncIoRuntime;
    use mesh_core::driver::inside;
    use smol::{Executor, future::pending};

    use super::{Future, MeshServer, MeshServerBuilder};

    static EXECUTOR: LazyLock<Arc<Executor<'static>>> = LazyLock::new(|| {
        let executor = Arc::new(Executor::new());
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..threads {
            let executor = Arc::clone(&executor);
            thread::spawn(move || {
                let _inside = inside::enter();
                // A task that panics comes out here; the others go on.
                let mut run = || smol::block_on(executor.run(pending::<()>()));
                while catch_unwind(AssertUnwindSafe(&mut run)).is_err() {}
            });
        }
        executor
    });

    pub(crate) fn block_on<T: Send + 'static>(run: impl Future<Output = T> + Send + 'static) -> T {
        // Without a look at the sockets, which are for the threads that handle what comes from them.
        smol::future::block_on(EXECUTOR.spawn(run))
    }

    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        EXECUTOR.spawn(task).detach();
    }

    pub(crate) fn build(builder: MeshServerBuilder) -> MeshServer {
        builder.build_on(Arc::new(AsyncIoRuntime::on(&EXECUTOR)))
    }
}
