//! Datagrams on their way from the receive loop to quinn. Bounded in bytes; what comes when it is full is dropped, as
//! the network would.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use quinn_udp::RecvMeta;

/// Bytes that may wait: what quinn takes in one turn, many times over.
const MOST: usize = 4 * 1024 * 1024;

/// See the module. The lock is held for one copy.
#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    batches: VecDeque<Batch>,
    bytes: usize,
    reader: Option<Waker>,
}

#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    meta: RecvMeta,
}

impl Queue {
    /// Appends datagrams of one sender. `false` when there was no room.
    pub(super) fn push(&self, datagrams: &[u8], meta: RecvMeta) -> bool {
        let mut inner = self.inner.lock();
        if inner.bytes + datagrams.len() > MOST {
            return false;
        }
        inner.bytes += datagrams.len();
        inner.batches.push_back(Batch { bytes: datagrams.to_vec(), meta: RecvMeta { len: datagrams.len(), ..meta } });
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// Fills buffers of quinn's.
    pub(super) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<usize> {
        let mut inner = self.inner.lock();
        let mut taken = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some(batch) = inner.batches.front() else { break };
            // quinn's buffers hold whole batches, because it asks us how long those may be; should they not, what does
            // not fit comes with the next buffer, cut between datagrams.
            let stride = batch.meta.stride.max(1);
            let fits =
                if batch.bytes.len() <= buffer.len() { batch.bytes.len() } else { buffer.len() / stride * stride };
            let rest = if fits == 0 { Vec::new() } else { batch.bytes[fits..].to_vec() };
            buffer[..fits].copy_from_slice(&batch.bytes[..fits]);
            *meta = RecvMeta { len: fits, ..batch.meta };
            let (whole, of) = (batch.bytes.len(), batch.meta);
            inner.batches.pop_front();
            inner.bytes -= whole;
            if !rest.is_empty() {
                inner.bytes += rest.len();
                inner.batches.push_front(Batch { bytes: rest, meta: of });
            }
            taken += 1;
        }
        if taken == 0 {
            inner.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(len: usize, stride: usize) -> RecvMeta {
        RecvMeta { len, stride, ..RecvMeta::default() }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_cut_between_datagrams() {
        let queue = Queue::default();
        assert!(queue.push(&[1, 1, 1, 2, 2, 2, 3], meta(7, 3)));
        let mut first = [0; 5];
        let mut second = [0; 5];
        let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        let mut metas = [meta(0, 0); 2];
        let cx = &mut Context::from_waker(Waker::noop());
        assert_eq!(queue.poll_take(cx, &mut buffers, &mut metas), Poll::Ready(2));
        assert_eq!((metas[0].len, metas[1].len), (3, 4));
        assert_eq!((&first[..3], &second[..4]), (&[1, 1, 1][..], &[2, 2, 2, 3][..]));
        assert!(queue.poll_take(cx, &mut [IoSliceMut::new(&mut first)], &mut [meta(0, 0)]).is_pending());
        assert_eq!(queue.inner.lock().bytes, 0);
    }

    #[test]
    fn a_full_queue_takes_nothing_more() {
        let queue = Queue::default();
        let batch = vec![0x40; 64 * 1024];
        let pushed = (0..1000).filter(|_| queue.push(&batch, meta(batch.len(), 1200))).count();
        assert_eq!(pushed, MOST / batch.len());
    }
}
