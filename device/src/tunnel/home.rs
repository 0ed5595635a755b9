//! Whether this machine is in the very network that the tunnel leads to: then the way past the tunnel is the better one.
//!
//! Any network can claim an address or a name. So a server inside is asked by TLS, past the tunnel, and must hold the key of
//! the one certificate that the configuration names.

use std::time::Duration;

use hedgerow_runtime::{dial, tls};
use hedgerow_shared::fault::Fault;
use hedgerow_shared::limits::Timers;
use sha2::{Digest as _, Sha256};
use tracing::debug;

use crate::config::Home;

/// How often it is looked, beside every change of the network.
pub(super) const LOOK: Duration = Duration::from_secs(60);
/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks once; `false` also where nothing was configured.
pub(super) async fn is_here(home: &Home, timers: &Timers) -> bool {
    let (Some(server), Some(pin)) = (&home.server, home.pin()) else { return false };
    match tokio::time::timeout(PATIENCE, certificate(server, timers)).await {
        Ok(Ok(shown)) => shown == pin,
        Ok(Err(fault)) => {
            debug!(server, reason = %fault, "not in the network that the tunnel leads to");
            false
        }
        Err(_) => false,
    }
}

/// SHA-256 of the certificate whose key the server holds.
async fn certificate(server: &str, timers: &Timers) -> Result<[u8; 32], Fault> {
    // This process's sockets are marked, and pass by the tunnel's routes.
    let tcp = dial::tcp(&[server.to_owned()], PATIENCE).await?;
    let stream = dial::client_tls(tls::to_anyone(&[])?, tls::any_name(), tcp, timers).await?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    Ok(leaf.map(|leaf| Sha256::digest(leaf).into()).unwrap_or_default())
}
