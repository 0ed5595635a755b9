//! Changes of this machine's network addresses: cables, Wi-Fi, VPNs, sleep. What stands on an address that is gone
//! looks alive for minutes; whoever learns of the change can ask for a sign of life at once.

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::scope::Scope;

/// Several changes come together: an address goes, another comes, routes follow.
const SETTLE: Duration = Duration::from_millis(300);

/// Counts the changes from now on. Where the system does not tell of them (a container without netlink) it counts none.
#[must_use]
pub fn watch(scope: &Scope) -> watch::Receiver<u64> {
    let (changes, receiver) = watch::channel(0);
    scope.spawn(async move {
        let mut watcher = match if_watch::tokio::IfWatcher::new() {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::info!(%error, "the system does not tell of network changes; they are noticed by silence");
                return std::future::pending().await;
            }
        };
        // What is there already comes first, as if it were new.
        let _ = tokio::time::timeout(SETTLE, async { while watcher.next().await.is_some() {} }).await;
        while let Some(event) = watcher.next().await {
            if event.is_err() {
                continue;
            }
            sleep(SETTLE).await;
            changes.send_modify(|n| *n += 1);
            tracing::info!("the network changed: asking for signs of life");
            metrics::counter!("hedgerow_network_changes_total").increment(1);
        }
    });
    receiver
}
