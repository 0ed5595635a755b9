//! Activation: an e-mail address and an activation password become a certified device.
//!
//! ```text
//!   look-up: whose address?  -->  CONNECT to that tenant's core  -->  TLS to anyone  -->  PAKE over its exporter
//!     key made and stored, 0600  -->  confirmed: request sealed, answer opened  -->  verified  -->  stored
//! ```
//! Nothing is believed of the other end before the PAKE has confirmed it, and nothing is stored of what it says before
//! it verified. `certificate.pem` is written last: a state folder without it is not activated, and activation may be
//! tried again there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hedgerow_runtime::clock;
use hedgerow_runtime::core_client::CoreClient;
use hedgerow_runtime::dial::{self, RelayTarget};
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls::{self, SigningKey};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{DeviceConfig, SignedConfig, TenantCa, Usage};
use hedgerow_shared::wire::core_api::{self, ALPN_HTTP};
use hedgerow_shared::{EntityId, Origin, Role, TenantId};
use hedgerow_uem_core::account::Email;
use hedgerow_uem_core::activation::pake::{Confirmation, Context, Initiator, Offer, Sealed};
use hedgerow_uem_core::activation::{EnrolReply, EnrolRequest};
use hedgerow_uem_core::ca::Key;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rand::{RngCore, TryRngCore};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::state::{self, RelayFile};

/// The largest look-up answer read, bytes.
const MAX_LOOKUP: usize = 4096;

/// What an activation needs.
#[derive(Debug, Clone)]
pub struct ActivateRequest {
    /// The relay to ask, as the user or the QR code gave it.
    pub relay: RelayTarget,
    /// The tenant, when it is known; the relay is asked otherwise.
    pub tenant: Option<TenantId>,
    /// The user's e-mail address.
    pub email: String,
    /// The activation password.
    pub password: Secret,
    /// What the device calls itself.
    pub name: String,
    /// Operating system and version.
    pub platform: String,
    /// The state folder; must not hold an activated device.
    pub state: PathBuf,
}

/// A device that is one of the tenant's now; everything else lies in the state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activated {
    /// Whose device.
    pub tenant: TenantId,
    /// Its id.
    pub device: EntityId,
    /// The user's address, as the core spells it.
    pub email: String,
    /// The user's name.
    pub display_name: String,
    /// The relay it will link to.
    pub relay: RelayFile,
    /// The configuration's routes and where everything else goes.
    pub config: DeviceConfig,
}

/// Activates this device.
///
/// # Errors
/// `NoRoute` when nobody is responsible for the address, `Unauthenticated` when address or password are not right or
/// somebody sits in between (the core tells no more), otherwise what failed. Dropped or failed before its end, it
/// leaves at most a key behind; the password may have been used up when the answer was lost.
pub async fn activate(request: ActivateRequest, timers: &Timers, scope: &Scope) -> Result<Activated, Fault> {
    if request.state.join(state::CERTIFICATE).exists() {
        let text = format!("{} already holds an activated device: use another state folder", request.state.display());
        return Err(Fault::new(Code::Forbidden, text));
    }
    let email: Email = request.email.parse().map_err(|e| Fault::new(Code::Protocol, format!("{e}")))?;
    let tenant = match &request.tenant {
        Some(tenant) => tenant.clone(),
        None => look_up(&request.relay, &email, timers, scope).await?,
    };
    tracing::info!(%tenant, relay = request.relay.name, "activating");
    let io = dial::origin(&request.relay, &tenant, Origin::Core, timers, scope).await?;
    enrol(request, tenant, email, io, timers, scope).await
}

/// Asks the relay whose user has this address.
async fn look_up(relay: &RelayTarget, email: &Email, timers: &Timers, scope: &Scope) -> Result<TenantId, Fault> {
    #[derive(Deserialize)]
    struct Found {
        tenant: TenantId,
    }
    let lost = |e: &dyn std::fmt::Display| Fault::new(Code::Lost, format!("the look-up at the relay failed: {e}"));
    let exchange = async {
        let stream = dial::relay_tls(relay, &[ALPN_HTTP], timers).await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| lost(&e))?;
        let _connection = scope.spawn_owned(async move {
            // The answer tells of errors; the connection's own result adds nothing.
            let _ = connection.await;
        });
        let body = json!({ "email": email }).to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/lookup")
            .header(header::HOST, &relay.name)
            .header(header::CONTENT_TYPE, core_api::MEDIA_JSON)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| lost(&e))?;
        let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_LOOKUP).collect().await.map_err(|e| lost(&e))?.to_bytes();
        match status {
            StatusCode::OK => {
                let found: Found = serde_json::from_slice(&body)
                    .map_err(|_| Fault::new(Code::Protocol, "the relay's look-up answer cannot be read"))?;
                Ok(found.tenant)
            }
            status => {
                let code = match status {
                    StatusCode::NOT_FOUND => Code::NoRoute,
                    StatusCode::TOO_MANY_REQUESTS => Code::Limited,
                    _ => Code::Protocol,
                };
                let said = String::from_utf8_lossy(&body);
                let said: String = said.trim().chars().filter(|c| !c.is_control()).collect();
                Err(Fault::new(
                    code,
                    if said.is_empty() { format!("the relay's look-up answered {status}") } else { said },
                ))
            }
        }
    };
    timeout(timers.request, exchange)
        .await
        .map_err(|_| Fault::new(Code::TimedOut, "the relay did not answer the look-up in time"))?
}

/// The exchange with the core over `io`, which leads to it.
async fn enrol<IO>(
    request: ActivateRequest,
    tenant: TenantId,
    email: Email,
    io: IO,
    timers: &Timers,
    scope: &Scope,
) -> Result<Activated, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut random = |bytes: &mut [u8]| rand::rngs::OsRng.unwrap_err().fill_bytes(bytes);
    let bad_password = |e| Fault::new(Code::Protocol, format!("{e}"));
    let mut core = CoreClient::handshake(tls::to_anyone(&[ALPN_HTTP])?, io, timers, scope).await?;
    let context = Context { user: email, tenant: tenant.clone(), exporter: *core.exporter() };
    let (initiator, start) = Initiator::start(context, &request.password).map_err(bad_password)?;
    let offer: Offer = core.post(core_api::ACTIVATE_START, &start).await?;
    let (waiting, proof) = initiator.respond(&offer, &mut random).map_err(not_the_core)?;

    // On disk before the password is shown to be known: no certificate will ever be lost for want of its key.
    let key = Key::generate(&mut random).map_err(|e| Fault::new(Code::Internal, e.to_string()))?;
    let stored = keep_key(&request.state, &key)?;

    let confirmation: Confirmation = core.post(core_api::ACTIVATE_CONFIRM, &proof).await?;
    let mut channel = waiting.confirm(&confirmation).map_err(not_the_core)?;
    let csr = key.certificate_request().map_err(|e| Fault::new(Code::Internal, e.to_string()))?;
    let enrol = EnrolRequest { csr, name: request.name, platform: request.platform };
    let enrol = serde_json::to_vec(&enrol).map_err(|e| Fault::new(Code::Internal, e.to_string()))?;
    let sealed = channel.seal(&enrol, &mut random).map_err(not_the_core)?;
    let answer: core_api::Activated<Sealed> = core.post(core_api::ACTIVATE_FINISH, &sealed).await?;
    let reply = channel.open(&answer.sealed).map_err(not_the_core)?;
    let reply: EnrolReply = serde_json::from_slice(&reply).map_err(|_| wrong("it cannot be read"))?;
    keep(&request.state, &tenant, reply, &answer.config, &stored)
}

fn keep_key(folder: &Path, key: &Key) -> Result<Arc<SigningKey>, Fault> {
    let pkcs8 = key.to_pkcs8();
    let text = Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", pkcs8.to_vec())));
    state::make_dir(folder).and_then(|()| state::write_file(folder, state::KEY, text.as_bytes())).map_err(disk)?;
    // Read back as every later start will: whatever is wrong with the folder shows now.
    SigningKey::read(&folder.join(state::KEY)).map_err(|e| Fault::new(Code::Internal, e.to_string()))
}

/// Checks what the core sent and stores it.
fn keep(
    folder: &Path,
    tenant: &TenantId,
    reply: EnrolReply,
    config: &SignedConfig,
    key: &SigningKey,
) -> Result<Activated, Fault> {
    let now = clock::now();
    let ca = TenantCa::from_der(&reply.ca).map_err(|e| wrong(&e.to_string()))?;
    if ca.tenant() != tenant {
        return Err(wrong("its CA is another tenant's"));
    }
    let leaf = CertificateDer::from(reply.certificate.as_slice());
    let verified = ca.verify(&leaf, Role::Device, Usage::Client, now).map_err(|e| wrong(&e.to_string()))?;
    if verified.identity.id != reply.device {
        return Err(wrong("the certificate names another device"));
    }
    if !key.is_of(&leaf) {
        return Err(wrong("the certificate is for another key"));
    }
    let document: DeviceConfig = config.verify(&ca, None, now).map_err(|e| wrong(&e.to_string()))?;
    let name =
        core_api::relay_name(reply.relay_name.as_deref(), &reply.relays).ok_or_else(|| wrong("it names no relay"))?;
    let relay = RelayFile { addresses: reply.relays, name, ca: reply.relay_ca_pem };
    relay.targets().map_err(|e| wrong(&format!("{e:#}")))?;

    let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
    let relay_json = serde_json::to_vec_pretty(&relay).map_err(|e| Fault::new(Code::Internal, e.to_string()))?;
    let cbor = minicbor::to_vec(config).map_err(|e| Fault::new(Code::Internal, e.to_string()))?;
    let files = [
        (state::TENANT_CA, pem(&reply.ca).into_bytes()),
        (state::RELAY, relay_json),
        (state::CONFIG, cbor),
        // Last: from here on the folder holds an activated device.
        (state::CERTIFICATE, pem(&reply.certificate).into_bytes()),
    ];
    for (name, bytes) in files {
        state::write_file(folder, name, &bytes).map_err(disk)?;
    }
    tracing::info!(device = %reply.device, %tenant, "activated");
    Ok(Activated {
        tenant: tenant.clone(),
        device: reply.device,
        email: reply.email.to_string(),
        display_name: reply.display_name,
        relay,
        config: document,
    })
}

fn not_the_core(error: hedgerow_uem_core::activation::pake::PakeError) -> Fault {
    let text = format!("activation stopped, nothing was accepted: {error}");
    Fault::new(Code::Unauthenticated, text)
}

fn wrong(why: &str) -> Fault {
    Fault::new(Code::Protocol, format!("the core's answer was not accepted: {why}"))
}

fn disk(error: anyhow::Error) -> Fault {
    Fault::new(Code::Internal, format!("{error:#}"))
}

#[cfg(test)]
mod tests;
