//! The next certificate of a device or node, and word that it works.

use bytes::Bytes;
use hedgerow_shared::Role;
use hedgerow_shared::verify::VerifiedCertificate;
use hedgerow_shared::wire::core_api::{Renew, Renewed};
use hedgerow_uem_core::{Actor, CoreError};
use http::StatusCode;

use super::http::Answer;
use super::{Peer, failed, read};
use crate::app::call;

impl Peer {
    pub(super) async fn renew(&self, body: &Bytes) -> Answer {
        let Some(certificate) = self.certificate.as_ref().or(self.lapsed.as_ref()) else { return unknown() };
        let request: Renew = match read(body) {
            Ok(request) => request,
            Err(refusal) => return refusal,
        };
        let call = &mut call(actor(certificate));
        let renewed = self.app.domain.renew(call, certificate, &request.csr).await;
        let label = if self.lapsed.is_some() { "lapsed" } else { "valid" };
        metrics::counter!("hedgerow_core_renewals_total", "certificate" => label, "result" => if renewed.is_ok() { "ok" } else { "refused" })
            .increment(1);
        match renewed {
            Ok(certificate) => Answer::json(&Renewed { certificate }),
            Err(error) => refused("a renewal", &error),
        }
    }

    pub(super) async fn confirm_certificate(&self) -> Answer {
        let Some(certificate) = &self.certificate else { return unknown() };
        let call = &mut call(actor(certificate));
        match self.app.domain.confirm_renewal(call, certificate).await {
            Ok(()) => Answer::empty(),
            Err(error) => refused("a renewal's confirmation", &error),
        }
    }
}

fn actor(certificate: &VerifiedCertificate) -> Actor {
    match certificate.identity.role {
        Role::Node => Actor::Node(certificate.identity.id),
        _ => Actor::Device(certificate.identity.id),
    }
}

fn unknown() -> Answer {
    Answer::refused(StatusCode::UNAUTHORIZED, "show the certificate of a device or node in the TLS hand-shake")
}

fn refused(what: &'static str, error: &CoreError) -> Answer {
    match error {
        CoreError::Revoked { .. } | CoreError::Lapsed => Answer::refused(StatusCode::FORBIDDEN, error.to_string()),
        CoreError::Invalid { .. } => Answer::refused(StatusCode::BAD_REQUEST, error.to_string()),
        CoreError::TooMany { .. } => {
            Answer::refused(StatusCode::TOO_MANY_REQUESTS, error.to_string()).header("retry-after", "3600")
        }
        _ => failed(what, error),
    }
}
