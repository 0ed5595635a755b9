//! Tasks that cannot outlive their owner, and the one way to stop them.
//!
//! A `Scope` is the only door to `tokio::spawn` (clippy refuses the others). Cancelling goes down the tree of
//! scopes; completion comes up: `stop` waits for every task, to a deadline, then aborts what is left and says how many.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// A family of tasks. Clones are the same family.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Scope {
    /// A scope of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope that is cancelled with this one, but can be cancelled alone. Its tasks count as this scope's too
    /// (`stop` here waits for them).
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: self.tracker.clone() }
    }

    /// Starts a task. It is dropped at its next await when the scope is cancelled; a task that must finish
    /// something first uses `spawn_until_done` and watches `cancelled` itself.
    #[expect(clippy::disallowed_methods, reason = "the one door")]
    pub fn spawn<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Boxed: a future that is passed on by value is stored once at each step, and connections have large ones.
        let (token, task) = (self.token.clone(), Box::pin(task));
        tokio::spawn(self.tracker.track_future(async move {
            token.run_until_cancelled(task).await;
        }))
    }

    /// Starts a task that is not dropped on cancellation: it must watch `cancelled` and end by itself.
    #[expect(clippy::disallowed_methods, reason = "the one door")]
    pub fn spawn_until_done<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(task))
    }

    /// Starts a task that also ends when the returned handle is dropped.
    pub fn spawn_owned<F>(&self, task: F) -> AbortOnDropHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        AbortOnDropHandle::new(self.spawn(task))
    }

    /// Asks every task of this scope and its children to end.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Whether `cancel` was called here or above.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Completes when the scope is cancelled. Cancel safe.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Cancels the scope when the guard is dropped.
    #[must_use]
    pub fn guard(&self) -> DropGuard {
        self.token.clone().drop_guard()
    }

    /// Cancels, waits for every task up to `deadline`, and says how many were still running then.
    pub async fn stop(&self, deadline: Duration) -> usize {
        self.cancel();
        self.tracker.close();
        match tokio::time::timeout(deadline, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cancelling_goes_down_and_completion_comes_up() {
        let scope = Scope::new();
        let child = scope.child();
        child.spawn(std::future::pending());
        assert_eq!(scope.stop(Duration::from_secs(5)).await, 0);
        assert!(child.is_cancelled());
    }

    #[tokio::test]
    async fn a_child_stops_alone() {
        let scope = Scope::new();
        let child = scope.child();
        child.cancel();
        assert!(!scope.is_cancelled());
    }
}
