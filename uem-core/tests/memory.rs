//! The domain over memory.

#[macro_use]
mod suite;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use hedgerow_uem_core::store::Memory;

/// Nothing in memory ever waits, so one poll is enough; a runtime is not needed, and not there.
fn with_memory<F: Future<Output = ()> + Send>(case: impl FnOnce(Memory) -> F) {
    let future = pin!(case(Memory::new()));
    let Poll::Ready(()) = future.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("storage in memory waited for something");
    };
}

suite!(with_memory);
