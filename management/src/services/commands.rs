//! A device's commands, one at a time: it tells what became of the last one, and gets the next.

use bytes::Bytes;
use hedgerow_runtime::clock;
use hedgerow_shared::Role;
use hedgerow_uem_core::command::{Order, Reply, Report};
use hedgerow_uem_core::{Actor, CoreError};
use http::StatusCode;

use super::http::Answer;
use super::{Peer, failed, read};
use crate::app::call;

/// Commands that a device may put off in one conversation.
const MAX_PUT_OFF: usize = 200;

impl Peer {
    pub(super) async fn command(&self, body: &Bytes) -> Answer {
        let Some(certificate) = &self.certificate else {
            let why = "show the certificate of a device in the TLS hand-shake";
            return Answer::refused(StatusCode::UNAUTHORIZED, why);
        };
        if certificate.identity.role != Role::Device {
            let why = format!("the certificate is for role {}, not device", certificate.identity.role);
            return Answer::refused(StatusCode::FORBIDDEN, why);
        }
        let report: Report = match read(body) {
            Ok(report) => report,
            Err(refusal) => return refusal,
        };
        if report.put_off.len() > MAX_PUT_OFF {
            return Answer::refused(StatusCode::BAD_REQUEST, format!("at most {MAX_PUT_OFF} commands can be put off"));
        }
        let (domain, tenant, device) = (&self.app.domain, &self.app.tenant, certificate.identity.id);
        match domain.admit(certificate, clock::now()).await {
            Ok(_) => {}
            Err(error @ CoreError::Revoked { .. }) => return Answer::refused(StatusCode::FORBIDDEN, error.to_string()),
            Err(error) => return failed("admission", &error),
        }
        if let Some(answered) = report.answered {
            let label = match &answered.reply {
                Reply::Done { .. } => "done",
                Reply::Failed { .. } => "failed",
                Reply::NotNow => "not_now",
            };
            metrics::counter!("hedgerow_core_commands_answered_total", "reply" => label).increment(1);
            let call = &mut call(Actor::Device(device));
            match domain.answer_command(call, tenant, device, answered.id, answered.reply).await {
                Ok(command) if command.kind.ends_the_device() && !command.state.is_open() => {
                    // It is revoked now, and relays and nodes are to know.
                    self.app.changed();
                    return Answer::empty();
                }
                Ok(_) => {}
                // Forgotten, or never one of its own: nothing becomes of it, and the queue goes on.
                Err(CoreError::NotFound { .. }) => {}
                Err(error) => return failed("a command's answer", &error),
            }
        }
        match domain.next_command(&mut call(Actor::Device(device)), tenant, device, &report.put_off).await {
            Ok(None) => Answer::empty(),
            Ok(Some((command, properties))) => {
                metrics::counter!("hedgerow_core_commands_sent_total", "kind" => command.kind.as_str()).increment(1);
                Answer::json(&Order { id: command.id, kind: command.kind, properties })
            }
            Err(error) => failed("the next command", &error),
        }
    }
}
