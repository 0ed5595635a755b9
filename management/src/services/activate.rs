//! Activation: the PAKE of `uem_core::activation`, one run on one connection, bound to its exporter.

use bytes::Bytes;
use hedgerow_shared::wire::core_api::Activated;
use hedgerow_uem_core::Actor;
use hedgerow_uem_core::activation::pake::{Proof, Sealed, Start};
use hedgerow_uem_core::activation::{ActivationError, Confirmed, Started};
use http::StatusCode;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::http::Answer;
use super::{Peer, failed, read};
use crate::app::call;

/// How far the activation on a connection has come. Each step takes what the one before left; a step that fails
/// leaves `Over`.
pub(super) enum Stage {
    Fresh,
    Begun(Started),
    Confirmed(Confirmed),
    Over,
}

impl Peer {
    pub(super) async fn start(&self, body: &Bytes) -> Answer {
        let Stage::Fresh = self.take() else { return out_of_order() };
        let start: Start = match read(body) {
            Ok(start) => start,
            Err(answer) => return answer,
        };
        let _permit = match self.turn().await {
            Ok(permit) => permit,
            Err(answer) => return answer,
        };
        let app = &self.app;
        match app.domain.begin_activation(&mut call(Actor::Stranger), &app.tenant, &start, self.exporter).await {
            Ok((started, offer)) => {
                tracing::info!(session = %started.session(), from = self.from, "activation begun");
                *self.stage.lock() = Stage::Begun(started);
                Answer::json(&offer)
            }
            Err(error) => self.ended(error),
        }
    }

    pub(super) async fn confirm(&self, body: &Bytes) -> Answer {
        let Stage::Begun(started) = self.take() else { return out_of_order() };
        let proof: Proof = match read(body) {
            Ok(proof) => proof,
            Err(answer) => return answer,
        };
        let _permit = match self.turn().await {
            Ok(permit) => permit,
            Err(answer) => return answer,
        };
        let app = &self.app;
        let result = app.domain.confirm_activation(&mut call(Actor::Stranger), started, &proof).await;
        match result {
            Ok((confirmed, confirmation)) => {
                *self.stage.lock() = Stage::Confirmed(confirmed);
                Answer::json(&confirmation)
            }
            Err(error) => {
                // The fifth wrong attempt closes the activation: relays forget the address.
                app.changed();
                self.ended(error)
            }
        }
    }

    pub(super) async fn finish(&self, body: &Bytes) -> Answer {
        let Stage::Confirmed(confirmed) = self.take() else { return out_of_order() };
        let sealed: Sealed = match read(body) {
            Ok(sealed) => sealed,
            Err(answer) => return answer,
        };
        let app = &self.app;
        // Asked first: once the password is used up nothing may fail any more.
        let config = match app.domain.configs(&app.tenant).await {
            Ok(configs) => configs.device,
            Err(error) => return failed("activation", &error),
        };
        match app.domain.finish_activation(&mut call(Actor::Stranger), confirmed, &sealed).await {
            Ok((sealed, device)) => {
                app.changed();
                metrics::counter!("hedgerow_core_activations_total", "result" => "ok").increment(1);
                tracing::info!(device = %device.id, user = %device.user, from = self.from, "device activated");
                Answer::json(&Activated { sealed, config })
            }
            Err(error) => self.ended(error),
        }
    }

    fn take(&self) -> Stage {
        std::mem::replace(&mut *self.stage.lock(), Stage::Over)
    }

    /// Waits for a processor to do the curve arithmetic on; strangers may ask for it, so it is rationed.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Answer> {
        match timeout(self.app.timers.handshake, self.app.curve.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                metrics::counter!("hedgerow_core_activations_total", "result" => "limited").increment(1);
                let why = "too many activations at this moment; try again";
                Err(Answer::refused(StatusCode::TOO_MANY_REQUESTS, why)
                    .header("retry-after", "10")
                    .header("connection", "close"))
            }
        }
    }

    fn ended(&self, error: ActivationError) -> Answer {
        match error {
            ActivationError::Refused(refusal) => {
                metrics::counter!("hedgerow_core_activations_total", "result" => refusal.label()).increment(1);
                tracing::info!(reason = refusal.label(), from = self.from, "activation refused");
                Answer::refused(StatusCode::UNAUTHORIZED, error.to_string())
            }
            ActivationError::Unlicensed(why) => self.in_the_way(why.label(), &why),
            ActivationError::Barred(why) => self.in_the_way(why.label(), &why),
            ActivationError::Core(error) => {
                metrics::counter!("hedgerow_core_activations_total", "result" => "failed").increment(1);
                failed("activation", &error)
            }
        }
    }

    /// Whoever gets here knows the password, and is told what is in the way.
    fn in_the_way(&self, label: &'static str, why: &dyn std::fmt::Display) -> Answer {
        metrics::counter!("hedgerow_core_activations_total", "result" => label).increment(1);
        tracing::warn!(reason = %why, from = self.from, "activation refused");
        Answer::refused(StatusCode::FORBIDDEN, why.to_string())
    }
}

fn out_of_order() -> Answer {
    let why = "an activation is start, confirm, finish on one connection, each once; begin again on a new connection";
    Answer::refused(StatusCode::CONFLICT, why)
}
