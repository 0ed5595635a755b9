//! A stream the peer opened, until it is answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::wire::frame::{self, kind};

use super::inner::Inner;
use super::stream::{ReadHalf, WriteHalf};
use crate::scope::Scope;

/// The stream number in OPEN and ANSWER: QUIC has its own, so it says nothing.
pub(super) const THIS_STREAM: u32 = 1;

/// A stream the peer opened, waiting for an answer. Dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {
    halves: Option<(ReadHalf, WriteHalf)>,
    header: Bytes,
    scope: Scope,
    link: Arc<Inner>,
    /// In the link's own queue, where nobody can answer it any more once the link has ended.
    pub(super) waits: bool,
}

impl Incoming {
    pub(super) fn new(link: Arc<Inner>, halves: (ReadHalf, WriteHalf), header: Bytes) -> Self {
        Self { halves: Some(halves), header, scope: link.scope.clone(), link, waits: false }
    }

    /// The CBOR header of OPEN.
    #[must_use]
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// Opens it.
    #[must_use]
    pub fn accept(mut self) -> (ReadHalf, WriteHalf) {
        let (read, write) = self.halves.take().expect("taken only here and in refuse, which consume self");
        self.link.opened.fetch_add(1, Ordering::Relaxed);
        write.answer(frame::cbor(kind::ANSWER, THIS_STREAM, &Fault::new(Code::Ok, "")), &self.scope);
        (read, write)
    }

    /// Refuses it.
    pub fn refuse(mut self, fault: Fault) {
        self.answer_no(&fault);
    }

    fn answer_no(&mut self, fault: &Fault) {
        if let Some((_, mut write)) = self.halves.take() {
            write.answer(frame::cbor(kind::ANSWER, THIS_STREAM, fault), &self.scope);
            write.finish();
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.waits {
            self.answer_no(&Fault::new(Code::Internal, "the request was dropped"));
        }
    }
}
