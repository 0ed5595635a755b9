//! The signed configuration for nodes and devices. Their question is also their acknowledgement.

use hedgerow_shared::Role;
use hedgerow_shared::wire::core_api::{MEDIA_CBOR, read_have};
use hedgerow_uem_core::CoreError;
use hedgerow_uem_core::service::Holder;
use http::StatusCode;

use super::http::Answer;
use super::{Peer, failed};

impl Peer {
    pub(super) async fn config(&self, role: Role, query: Option<&str>) -> Answer {
        let Some(certificate) = &self.certificate else {
            return Answer::refused(
                StatusCode::UNAUTHORIZED,
                format!("show the certificate of a {role} in the TLS hand-shake"),
            );
        };
        if certificate.identity.role != role {
            let why = format!("the certificate is for role {}, not {role}", certificate.identity.role);
            return Answer::refused(StatusCode::FORBIDDEN, why);
        }
        let have = match query {
            None | Some("") => None,
            Some(query) => match query.strip_prefix("have=").and_then(read_have) {
                Some(have) => Some(have),
                None => return Answer::refused(StatusCode::BAD_REQUEST, "expected have=EPOCH.VERSION"),
            },
        };
        let app = &self.app;
        let holder = match app.domain.admit(certificate, hedgerow_runtime::clock::now()).await {
            Ok(holder) => holder,
            Err(error @ CoreError::Revoked { .. }) => {
                return Answer::refused(StatusCode::FORBIDDEN, error.to_string());
            }
            Err(error) => return failed("admission", &error),
        };
        if let Some(have) = have {
            let noted = match &holder {
                Holder::Node(node) => app.acknowledge(&format!("node:{}", node.id), have).await,
                Holder::Device(device) => app.domain.device_obeys(device, have).await,
            };
            if let Err(error) = noted {
                return failed("an acknowledgement", &error);
            }
        }
        let configs = match app.configs().await {
            Ok(configs) => configs,
            Err(error) => return failed("the configuration", &error),
        };
        if have == Some(configs.version) {
            return Answer::empty();
        }
        let document = match role {
            Role::Node => &configs.node,
            _ => configs.for_device(&certificate.identity.id),
        };
        match minicbor::to_vec(document) {
            Ok(cbor) => Answer::of(StatusCode::OK, MEDIA_CBOR, cbor),
            Err(error) => failed("the configuration", &error),
        }
    }
}
