//! Services of the relay for a tenant's core: its CA, its configuration, its open activations and names.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hedgerow_runtime::clock;
use hedgerow_runtime::link::{Channel, Incoming, Stream};
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::verify::config;
use hedgerow_shared::wire::message::{CaRegistration, ConfigUpload, Registrations, Service, ServiceReply};
use hedgerow_shared::wire::names::MAX_NAMES;
use hedgerow_shared::{Origin, Role};

use crate::registry::Live;
use crate::state::{Relay, count_refusal};
use crate::store::{MAX_REGISTRATIONS, StoreError};

/// The largest configuration with what is around it, and so many open activations and names.
const MAX_REQUEST: usize =
    if config::MAX_PAYLOAD > MAX_REGISTRATIONS * 48 { config::MAX_PAYLOAD } else { MAX_REGISTRATIONS * 48 }
        + MAX_NAMES * 264
        + 64 * 1024;

/// Answers one request.
pub(super) async fn serve(relay: &Arc<Relay>, live: &Arc<Live<Channel>>, incoming: Incoming, service: Service) {
    if live.facts.role != Role::Core {
        let fault = Fault::new(Code::Forbidden, "this service of the relay is for cores");
        count_refusal(&fault);
        return incoming.refuse(fault);
    }
    let mut stream = incoming.accept();
    let reply = match read(&mut stream, relay.timers.request).await {
        Ok(request) => carry_out(relay, live, service, request).await,
        Err(fault) => Err(fault),
    };
    let reply = reply.unwrap_or_else(|fault| {
        count_refusal(&fault);
        tracing::warn!(tenant = %live.facts.tenant, ?service, reason = %fault, "a core's request was refused");
        ServiceReply::new(fault)
    });
    let Ok(bytes) = minicbor::to_vec(&reply) else { return };
    if stream.write_chunk(bytes.into()).await.is_ok() {
        stream.finish();
    }
}

async fn read(stream: &mut Stream, limit: Duration) -> Result<Bytes, Fault> {
    let read = async {
        let mut request = BytesMut::new();
        while let Some(chunk) = stream.read_chunk().await? {
            if request.len() + chunk.len() > MAX_REQUEST {
                return Err(Fault::new(Code::Limited, format!("the request is larger than {MAX_REQUEST} bytes")));
            }
            request.extend_from_slice(&chunk);
        }
        Ok(request.freeze())
    };
    let late = || Fault::new(Code::TimedOut, "the request did not come in time");
    tokio::time::timeout(limit, read).await.map_err(|_| late())?
}

/// The store waits for the disk, so it is asked off the async threads.
async fn carry_out(
    relay: &Arc<Relay>,
    live: &Arc<Live<Channel>>,
    service: Service,
    request: Bytes,
) -> Result<ServiceReply, Fault> {
    let (own, live, tenant) = (relay.clone(), live.clone(), live.facts.tenant.clone());
    let work = move || -> Result<ServiceReply, Fault> {
        let mut reply = ServiceReply::new(Fault::new(Code::Ok, ""));
        match service {
            Service::RegisterCa => {
                let CaRegistration { certificate } = read_as(&request)?;
                own.store.register_ca(&tenant, &certificate).map_err(refusal)?;
            }
            Service::PutConfig => {
                let upload: ConfigUpload = read_as(&request)?;
                let config = own.store.put_config(&tenant, upload, clock::now()).map_err(refusal)?;
                reply.version = Some(config.head.version);
                let cut = own.enforce(Some(&tenant));
                tracing::info!(%tenant, version = %config.head.version, cut, "configuration is in force");
            }
            Service::PutRegistrations => {
                let Registrations { open, names, serves } = read_as(&request)?;
                if let Some(other) = serves.iter().find(|o| **o != Origin::Mdm) {
                    return Err(Fault::new(Code::Forbidden, format!("a core does not announce origin {other}")));
                }
                let refused =
                    own.store.put_registrations(&tenant, open, names, |n| own.config.is_own(n)).map_err(refusal)?;
                live.announce_mdm(!serves.is_empty());
                let cut = own.cut_lost_names();
                if cut > 0 {
                    tracing::info!(%tenant, cut, "names withdrawn");
                }
                tracing::debug!(%tenant, refused = refused.len(), "names registered");
                let mut refused = refused;
                refused.extend(own.unlicensed_names(&tenant));
                reply.refused = Some(refused);
                reply.web = own.web.get().cloned().unwrap_or_default();
            }
        }
        Ok(reply)
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Fault::new(Code::Internal, "the request could not be carried out")))
}

fn read_as<T: for<'b> minicbor::Decode<'b, ()>>(request: &[u8]) -> Result<T, Fault> {
    minicbor::decode(request).map_err(|_| Fault::new(Code::Protocol, "the request is malformed"))
}

/// What the core is told: its own mistakes in full, the relay's troubles in general.
fn refusal(error: StoreError) -> Fault {
    match error {
        StoreError::Io { .. } | StoreError::Damaged { .. } | StoreError::Exposed(_) | StoreError::InUse(_) => {
            tracing::error!(%error, "the tenant could not be stored");
            Fault::new(Code::Internal, "the relay could not store this: its operator finds the reason in its log")
        }
        StoreError::UnknownTenant(_)
        | StoreError::Exists(_)
        | StoreError::NotADomain(_)
        | StoreError::DomainTaken(_)
        | StoreError::ForeignCa(_)
        | StoreError::CaKeyTaken
        | StoreError::CaFixed
        | StoreError::OlderLicence { .. }
        | StoreError::NoCa => Fault::new(Code::Forbidden, error.to_string()),
        StoreError::TooManyRegistrations | StoreError::TooManyNames | StoreError::TooManyBlocked => {
            Fault::new(Code::Limited, error.to_string())
        }
        StoreError::Ca(why) => Fault::new(Code::Forbidden, why.to_string()),
        StoreError::Config(why) => Fault::new(Code::Forbidden, why.to_string()),
    }
}
