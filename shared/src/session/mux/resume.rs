//! A session that lost its lane and goes on over another: what each end tells the other, and what each sends again.
//!
//! Nothing is sent while a session is suspended; the application goes on reading, writing and opening streams. The
//! two ends then exchange RESUME. Of every stream that both know, the sender goes back to the byte the other expects
//! next. A stream that the other never saw is opened again. One that the other has forgotten was over there: when it
//! was over here too it is forgotten, else it is reset.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Broken, Event, Mux, broken, closed, ended_cleanly};
use crate::fault::{Code, DropReason, Fault};
use crate::session::stream::Finish;
use crate::wire::frame::StreamId;
use crate::wire::message::{Resume, ResumeStream};

impl Mux {
    /// The lanes are lost: half-read frames and what only mattered to them are forgotten.
    pub fn suspend(&mut self, now: Duration) {
        self.one_new_lane(now);
        self.control.clear();
        self.control_bytes = 0;
        for _ in self.datagrams.drain(..) {
            self.events.push_back(Event::Dropped(DropReason::DatagramQueueFull));
        }
        self.grant_due = false;
    }

    /// Where this end stands, for the other. Call after `suspend`.
    #[must_use]
    pub fn resumption(&self) -> Resume {
        let stands = |(id, s): (&StreamId, &super::Stream)| ResumeStream {
            stream: id.0,
            expected: s.receiving.received(),
            limit: s.receiving.limit(),
            finished: s.receiving.finished(),
            reset: s.reset.is_some(),
            answered: s.answered.is_some() || !self.is_ours(*id),
        };
        Resume {
            streams: self.streams.iter().map(stands).collect(),
            highest_opened: self.next_local.saturating_sub(2),
            highest_accepted: self.highest_remote,
            more: false,
            mac: None,
        }
    }

    /// Goes on from where the other end stands.
    ///
    /// # Errors
    /// `Protocol`: the other end claims what cannot be. The session is over.
    pub fn resume(&mut self, theirs: &Resume, now: Duration) -> Result<(), Fault> {
        self.resume_checked(theirs, now).map_err(|Broken(fault)| fault)
    }

    fn resume_checked(&mut self, theirs: &Resume, now: Duration) -> Result<(), Broken> {
        self.one_new_lane(now);
        let stands: BTreeMap<StreamId, &ResumeStream> =
            theirs.streams.iter().map(|s| (StreamId(s.stream), s)).collect();
        for id in stands.keys() {
            if self.is_ours(*id) && id.0 >= self.next_local {
                return Err(broken("RESUME names a stream that was never opened"));
            }
        }
        if theirs.highest_accepted >= self.next_local {
            return Err(broken("RESUME says that a stream was accepted which was never opened"));
        }
        // Whatever was under way on the old lanes counts no more; the other end grants anew.
        self.sent = 0;
        self.send_limit = 0;
        self.received_before = self.received;
        self.grant_due = true;
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            match stands.get(&id) {
                Some(stream) => self.go_on(id, stream)?,
                None => self.is_unknown_there(id, theirs)?,
            }
            self.collect(id);
        }
        self.recount();
        if let Some(message) = self.farewell.clone() {
            // The control queue was just emptied.
            let _ = self.queue_control(message);
        }
        Ok(())
    }

    /// A stream that both ends know.
    fn go_on(&mut self, id: StreamId, theirs: &ResumeStream) -> Result<(), Broken> {
        let ours = self.is_ours(id);
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if theirs.reset {
            if stream.reset.is_none() {
                self.was_reset(id, Fault::new(Code::ConnectionReset, "the other end reset the connection"));
            }
            return Ok(());
        }
        if ours {
            stream.open = None;
        } else {
            let accepted = stream.answer.is_none() && stream.accepted;
            if !theirs.answered && accepted {
                stream.answer = Some(Fault::new(Code::Ok, ""));
            }
        }
        if stream.reset.is_some() {
            stream.reset_due = stream.answer.is_none();
        } else {
            stream
                .sending
                .rewind(theirs.expected, theirs.limit, theirs.finished)
                .map_err(|()| broken("RESUME expects bytes that were acknowledged, or never sent"))?;
        }
        self.post(id);
        self.enqueue(id);
        Ok(())
    }

    /// A stream that the other end does not know, or no more.
    fn is_unknown_there(&mut self, id: StreamId, theirs: &Resume) -> Result<(), Broken> {
        let ours = self.is_ours(id);
        if !ours && id.0 > theirs.highest_opened {
            return Err(broken("RESUME forgets a stream that was opened"));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if ours && id.0 > theirs.highest_accepted {
            let Some(header) = stream.header.clone().or_else(|| stream.open.clone()) else {
                return Err(broken("RESUME forgets a stream that was answered"));
            };
            stream.open = Some(header);
            stream.reset_due = stream.reset.is_some();
            if stream.reset.is_none() {
                stream
                    .sending
                    .rewind(0, self.config.theirs.stream_window, false)
                    .map_err(|()| broken("RESUME forgets a stream whose bytes were acknowledged"))?;
            }
            self.post(id);
            self.enqueue(id);
            return Ok(());
        }
        if ended_cleanly(stream) {
            stream.sending.all_acknowledged();
        } else if stream.reset.is_none() {
            let fault = if ours && stream.answered.is_none() {
                Fault::new(Code::Lost, "the answer was lost with the connection")
            } else {
                closed()
            };
            self.was_reset(id, fault);
        } else {
            stream.answer = None;
            stream.reset_due = false;
        }
        Ok(())
    }

    fn was_reset(&mut self, id: StreamId, fault: Fault) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reset.get_or_insert(fault);
            stream.reset_due = false;
            stream.open = None;
            stream.answer = None;
        }
        self.drop_contents(id);
        self.events.push_back(Event::Answered(id));
        self.events.push_back(Event::Readable(id));
        self.events.push_back(Event::Writable(id));
    }
}

/// Whether our FINISH was sent and, where sent bytes are retained, acknowledged.
pub(super) fn is_acknowledged(finish: Finish, retained: bool) -> bool {
    match finish {
        Finish::Acknowledged => true,
        Finish::Sent => !retained,
        Finish::Open | Finish::Wanted => false,
    }
}
