//! Enrolment: a one-string token becomes a certified node.
//!
//! ```text
//!   token → relay (its CA pinned by the token) → CONNECT to the core → TLS (tenant CA pinned by the token)
//!     key made and stored, 0600 → POST token, secret, CSR → certificate and configuration checked → stored
//! ```
//! The key is on disk before the core is asked, and the certificate is stored before anyone is told of success: a
//! crash in between costs a token, never leaves a certified key that nobody has.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use hedgerow_runtime::boot::Unreachable;
use hedgerow_runtime::clock;
use hedgerow_runtime::core_client::CoreClient;
use hedgerow_runtime::dial::{self, Network, RelayTarget};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, RelayRoots};
use hedgerow_shared::Origin;
use hedgerow_shared::fault::Fault;
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{NodeConfig, TenantCa};
use hedgerow_shared::wire::core_api::{self, EnrolNode, NodeEnrolled};
use hedgerow_shared::wire::token::EnrolmentToken;
use rustls_pki_types::CertificateDer;
use tracing::info;
use zeroize::Zeroizing;

use crate::config::relay_host;
use crate::state::{Record, State, check_leaf};

/// As `enroll_over`, with relays reached directly.
///
/// # Errors
/// As `enroll_over`.
pub async fn enroll(folder: &Path, token: &Secret, name: Option<&str>, timers: &Timers) -> anyhow::Result<Record> {
    enroll_over(folder, token, name, &Network::default(), timers).await
}

/// Enrols a node into `folder`, which must not hold one yet. `name` is what the node is to be called; the token's name
/// when absent.
///
/// # Errors
/// The token is no good, nobody could be reached (`boot::Unreachable`), the core refused, or the folder cannot be
/// written.
pub async fn enroll_over(
    folder: &Path,
    token: &Secret,
    name: Option<&str>,
    network: &Network,
    timers: &Timers,
) -> anyhow::Result<Record> {
    let token = EnrolmentToken::from_secret(token)?;
    let state = State::create(folder)?;
    let _lock = state.lock()?;
    ensure!(!state.is_enrolled(), "{} already holds an enrolled node: use another state folder", folder.display());

    let scope = Scope::new();
    let _stop = scope.guard();
    let stream = reach_core(&token, network, timers, &scope).await?;

    let pair = rcgen::KeyPair::generate().context("cannot make a key")?;
    let key = state.store_key(&Zeroizing::new(pair.serialize_der()))?;
    let csr =
        rcgen::CertificateParams::default().serialize_request(&pair).context("cannot make a certificate request")?;
    let question = EnrolNode {
        token: token.id,
        secret: token.secret.to_vec(),
        csr: csr.der().to_vec(),
        name: name.map(str::to_owned),
    };
    let config = tls::to_pinned_tenant(token.tenant_ca_pin, &[core_api::ALPN_HTTP])?;
    let mut core = CoreClient::handshake(config, stream, timers, &scope).await?;
    let answer: NodeEnrolled = core.post(core_api::ENROL_NODE, &question).await.context("the node was not enrolled")?;

    let ca = TenantCa::from_der(&answer.ca).context("the core's CA certificate cannot be used")?;
    ensure!(
        ca.key_id() == token.tenant_ca_pin && *ca.tenant() == token.tenant,
        "the core answered with another CA than the token pins"
    );
    let certificate = check_leaf(&ca, &CertificateDer::from(answer.certificate.as_slice()), &key)?;
    ensure!(certificate.identity.id == answer.node, "the core's certificate names another node than its answer");
    let first_config: NodeConfig =
        answer.config.verify(&ca, None, clock::now()).context("the core's configuration cannot be used")?;

    let relays = if answer.relays.is_empty() { token.relays.clone() } else { answer.relays };
    let record = Record {
        tenant: token.tenant.clone(),
        id: answer.node,
        name: answer.name,
        group: answer.group,
        origins: answer.origins,
        relays,
        relay_name: answer.relay_name,
        relay_ca_pem: answer.relay_ca_pem,
        relay_ca_pin: token.relay_ca_pin.map(|pin| data_encoding::HEXLOWER.encode(&pin)),
    };
    state.store_config(&answer.config, first_config.head.version)?;
    state.store_enrolment(&record, &answer.ca, &answer.certificate)?;
    info!(node = %record.id, tenant = %record.tenant, group = %record.group, "enrolled");
    let _ = scope.stop(Duration::from_secs(1)).await;
    Ok(record)
}

/// A stream to the core through the first relay of the token that lets us.
async fn reach_core(
    token: &EnrolmentToken,
    network: &Network,
    timers: &Timers,
    scope: &Scope,
) -> anyhow::Result<dial::OriginStream> {
    let roots = token.relay_ca_pin.map_or(RelayRoots::System, RelayRoots::Pin);
    let mut tried: Vec<(String, Fault)> = Vec::new();
    for relay in &token.relays {
        let Some(name) = relay_host(relay) else { continue };
        let target = RelayTarget::new(vec![relay.clone()], name, roots.clone()).over(network.clone());
        match dial::origin(&target, &token.tenant, Origin::Core, timers, scope).await {
            Ok(stream) => return Ok(stream),
            Err(fault) => tried.push((relay.clone(), fault)),
        }
    }
    ensure!(!tried.is_empty(), "the enrolment token names no relay");
    let tried: Vec<String> = tried.into_iter().map(|(relay, fault)| format!("{relay}: {fault}")).collect();
    Err(Unreachable(format!("the core cannot be reached through any relay of the token: {}", tried.join("; "))).into())
}
