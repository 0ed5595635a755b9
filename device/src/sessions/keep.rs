//! One session's life: it is resumed when its lanes are lost, moves off a relay that drains and back to a lane when it
//! can have one, gets more lanes for long streams, and closes when nothing has used it for a while.

use std::time::Duration;

use hedgerow_runtime::clock;
use hedgerow_runtime::lane::ResumeError;
use hedgerow_runtime::link::{Link, Transport};
use hedgerow_shared::fault::{Code, Fault};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::{Carried, Sessions};

/// The first pause after a failed attempt to resume; it doubles up to `LONGEST`, with jitter.
const FIRST: Duration = Duration::from_millis(100);
/// The longest: a relay that comes back is used again within this time.
const LONGEST: Duration = Duration::from_secs(1);
/// On a stream of a QUIC link a node that vanished without a word is noticed by nothing but silence; after so much of it,
/// while streams are open, the node is asked.
const SILENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether something better can be had.
const LOOK: Duration = Duration::from_millis(500);

impl Sessions {
    /// Keeps a session going until it ends.
    pub(super) async fn keep(&self, mut carried: Carried) {
        let mux = carried.session.mux.clone();
        let idle = self.inner.timers.session_idle;
        let (mut opened, mut since) = (mux.stats().opened, Instant::now());
        let mut improve_at = Instant::now();
        let mut heard = (mux.stats().bytes_in, Instant::now());
        loop {
            tokio::select! {
                suspended = mux.suspended() => match suspended {
                    Some(why) => self.resume(&mut carried, &why).await,
                    None => break,
                },
                () = sleep(LOOK) => {
                    if Instant::now() >= improve_at && !self.improve(&mut carried).await {
                        improve_at = Instant::now() + clock::jitter(LONGEST);
                    }
                    let stats = mux.stats();
                    if stats.bytes_in != heard.0 || stats.streams == 0 {
                        heard = (stats.bytes_in, Instant::now());
                    } else if heard.1.elapsed() >= SILENCE && carried.link.transport == Transport::Quic && carried.path == "link" {
                        mux.probe();
                        heard.1 = Instant::now();
                    }
                    if stats.streams > 0 || stats.opened != opened {
                        (opened, since) = (stats.opened, Instant::now());
                    } else if since.elapsed() >= idle {
                        // Forgotten first: nobody may begin a stream on a session that is about to close.
                        self.forget(&carried);
                        mux.close(Fault::new(Code::Ok, "idle"));
                    }
                }
            }
        }
        let reason = mux.closed().await;
        if reason.code == Code::Ok {
            debug!(group = %carried.group, %reason, "session to node ended");
        } else {
            info!(group = %carried.group, %reason, "session to node ended");
        }
        self.forget(&carried);
        self.inner.live.lock().remove(&carried.session.id);
    }

    /// Tries until the session goes on or is over; the multiplexer ends it when that takes too long.
    async fn resume(&self, carried: &mut Carried, why: &Fault) {
        let (mux, since) = (carried.session.mux.clone(), Instant::now());
        info!(group = %carried.group, reason = %why, "session to node lost what carried it");
        // Whatever took the lane may have taken the link: over UDP nothing but silence would tell.
        self.inner.uplink.probe(&self.inner.scope);
        let mut pause = FIRST;
        while mux.is_suspended() && !mux.is_closed() {
            let link = tokio::select! {
                link = self.inner.uplink.link(LONGEST) => link,
                _ = mux.closed() => return,
            };
            let fault = match link {
                Ok(link) => match self.go_on(carried, &link).await {
                    Ok(path) => {
                        self.moved(carried, path, link);
                        info!(group = %carried.group, path, ms = since.elapsed().as_millis() as u64, "session to node goes on");
                        metrics::counter!("hedgerow_device_sessions_resumed_total", "path" => path).increment(1);
                        return;
                    }
                    Err(ResumeError::Refused(fault)) => {
                        mux.close(fault);
                        return;
                    }
                    Err(ResumeError::Failed(fault)) => fault,
                },
                Err(fault) if matches!(fault.code, Code::Revoked | Code::Unauthenticated | Code::Forbidden) => {
                    mux.close(fault);
                    return;
                }
                Err(fault) => fault,
            };
            debug!(group = %carried.group, reason = %fault, "cannot resume the session yet");
            tokio::select! {
                () = sleep(clock::jitter(pause)) => {}
                _ = mux.closed() => return,
            }
            pause = (2 * pause).min(LONGEST);
        }
    }

    /// One attempt to resume; not longer than the session waits for it, whatever the relay holds back.
    async fn go_on(&self, carried: &Carried, link: &Link) -> Result<&'static str, ResumeError> {
        tokio::select! {
            gone_on = self.inner.go_on(link, &carried.group, &carried.session, false) => gone_on,
            fault = carried.session.mux.closed() => Err(ResumeError::Refused(fault)),
        }
    }

    /// Moves the session to something better, or gives it another lane. `false` when that failed: it goes on as it is.
    async fn improve(&self, carried: &mut Carried) -> bool {
        let Some(link) = self.inner.uplink.current() else { return true };
        let mux = &carried.session.mux;
        if mux.is_suspended() || (mux.open_streams() == 0 && mux.is_going_away()) {
            return true;
        }
        let same_link = link.accept.session == carried.link.accept.session;
        let lanes = self.inner.may_use_lanes(&link);
        // A lane outlives its link, unless its relay goes down: then a link to another relay is up.
        let here = |l: &Link| (l.accept.relay.clone(), l.address.clone());
        let relay_drains = carried.link.mux.is_going_away() && here(&carried.link) != here(&link);
        let leaves = !same_link && (carried.path == "link" || relay_drains);
        let better = carried.path == "link" && lanes;
        if leaves || better {
            match self.inner.go_on(&link, &carried.group, &carried.session, !leaves).await {
                Ok(path) => {
                    info!(group = %carried.group, path, relay = link.accept.relay, "session to node moved");
                    metrics::counter!("hedgerow_device_sessions_moved_total", "path" => path).increment(1);
                    self.moved(carried, path, link);
                }
                Err(ResumeError::Refused(fault) | ResumeError::Failed(fault)) => {
                    debug!(group = %carried.group, reason = %fault, "the session stays where it is");
                    return false;
                }
            }
        } else if carried.path == "lane" && lanes && mux.wants_lane() {
            match self.inner.add_lane(&link, &carried.group, &carried.session).await {
                Ok(()) => metrics::counter!("hedgerow_device_session_lanes_added_total").increment(1),
                Err(fault) => {
                    debug!(group = %carried.group, reason = %fault, "no further lane for the session");
                    return false;
                }
            }
        }
        true
    }

    fn moved(&self, carried: &mut Carried, path: &'static str, link: Link) {
        carried.path = path;
        carried.link = link;
        if let Some(live) = self.inner.live.lock().get_mut(&carried.session.id) {
            *live = carried.clone();
        }
    }
}
