//! A new node, by the secret of its token.

use bytes::Bytes;
use hedgerow_shared::wire::core_api::{EnrolNode, NodeEnrolled};
use hedgerow_uem_core::Actor;
use hedgerow_uem_core::service::{EnrolError, NodeEnrolRequest, TokenRefusal};
use http::StatusCode;

use super::http::Answer;
use super::{Peer, failed, read};
use crate::app::call;

impl Peer {
    pub(super) async fn enrol(&self, body: &Bytes) -> Answer {
        let request: EnrolNode = match read(body) {
            Ok(request) => request,
            Err(answer) => return answer,
        };
        let Ok(secret) = <[u8; 32]>::try_from(request.secret.as_slice()) else {
            return self.refused(TokenRefusal::Unknown);
        };
        let app = &self.app;
        let config = match app.domain.configs(&app.tenant).await {
            Ok(configs) => configs.node,
            Err(error) => return failed("enrolment", &error),
        };
        let request = NodeEnrolRequest { token: request.token, secret, csr: request.csr, name: request.name };
        match app.domain.enrol_node(&mut call(Actor::Stranger), &app.tenant, &request).await {
            Ok((reply, node)) => {
                app.changed();
                metrics::counter!("hedgerow_core_enrolments_total", "result" => "ok").increment(1);
                tracing::info!(node = %node.id, name = node.name, group = %node.group, from = self.from, "node enrolled");
                Answer::json(&NodeEnrolled {
                    node: reply.node,
                    name: reply.name,
                    group: reply.group,
                    origins: reply.origins,
                    certificate: reply.certificate,
                    ca: reply.ca,
                    relays: reply.relays,
                    relay_name: reply.relay_name,
                    relay_ca_pem: reply.relay_ca_pem,
                    config,
                })
            }
            Err(EnrolError::Refused(refusal)) => self.refused(refusal),
            Err(EnrolError::Core(error)) => {
                metrics::counter!("hedgerow_core_enrolments_total", "result" => "failed").increment(1);
                failed("enrolment", &error)
            }
        }
    }

    fn refused(&self, refusal: TokenRefusal) -> Answer {
        metrics::counter!("hedgerow_core_enrolments_total", "result" => refusal.label()).increment(1);
        tracing::info!(reason = refusal.label(), from = self.from, "enrolment refused");
        let status = match refusal {
            TokenRefusal::Unknown => StatusCode::UNAUTHORIZED,
            TokenRefusal::Used | TokenRefusal::Expired | TokenRefusal::Revoked => StatusCode::FORBIDDEN,
            TokenRefusal::Request => StatusCode::BAD_REQUEST,
        };
        Answer::refused(status, refusal.to_string())
    }
}
