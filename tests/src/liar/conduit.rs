//! The way between two ends of an inner TLS, record by record: that is where a relay can alter, repeat, reorder, leave
//! out, cut and misroute.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use hedgerow_runtime::clock::random;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Mutex;

use super::{Shared, agreed, lock};

/// Anything with bytes in and out.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
pub(super) type Conn = Box<dyn Io>;

/// Whose bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A session between device and node over a joined lane.
    Lane,
    /// The same over streams of the links.
    LinkStream,
    /// The inner TLS to the core.
    Core,
}

impl What {
    /// For `Liar::agreed`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Lane => "a session on a lane",
            Self::LinkStream => "a session on a link's stream",
            Self::Core => "the inner TLS to the core",
        }
    }
}

/// Which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the TLS server: node or core.
    Up,
    /// To the TLS client: device, or node at the core.
    Down,
}

/// What is done to one record of application data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alteration {
    /// One bit of it is another, at a random place.
    Flip,
    /// It says of itself that it is not application data.
    Retype,
    /// Before it comes a close_notify that nobody has sealed.
    ForgedClose,
    /// It comes twice.
    Repeat,
    /// It comes after the next one.
    Swap,
    /// It does not come.
    Omit,
    /// Instead of it comes a record of another session, the same way.
    Foreign,
    /// It goes back to its sender too.
    Reflect,
    /// It and everything after it does not come; both connections end in order.
    Cut,
    /// Half of it comes, then both connections end in order.
    CutInside,
    /// It and everything after it does not come, this direction ends in order, the other goes on.
    Finish,
    /// It and everything after it comes when `Liar::release` is called, whatever has become of the others until then.
    Hold,
}

impl Alteration {
    /// All of them that need nothing more.
    pub const ALL: [Self; 11] = [
        Self::Flip,
        Self::Retype,
        Self::ForgedClose,
        Self::Repeat,
        Self::Swap,
        Self::Omit,
        Self::Foreign,
        Self::Reflect,
        Self::Cut,
        Self::CutInside,
        Self::Finish,
    ];
}

/// A lie about bytes.
#[derive(Debug, Clone, Copy)]
pub struct Meddling {
    /// Where.
    pub what: What,
    /// Which direction.
    pub way: Way,
    /// How.
    pub how: Alteration,
    /// Once so many bytes have passed that way in one conduit.
    pub after: u64,
    /// So often, then the liar stops.
    pub times: u32,
}

/// A record of an earlier conduit.
pub(super) struct Sample {
    conduit: u64,
    what: What,
    way: Way,
    record: Bytes,
}

/// Samples kept.
const SAMPLES: usize = 64;
/// Of a sample, bytes: nothing that could stand for a small message.
const SAMPLE: usize = 1000;
/// TLS: application data, and the header of a record.
const APPLICATION_DATA: u8 = 23;
const HEADER: usize = 5;

type Writer = Arc<Mutex<WriteHalf<Conn>>>;

/// Why a direction ends.
enum End {
    /// The sender has finished.
    Finished,
    /// The liar wants both to end.
    Cut,
}

/// Carries bytes between the opener (`near`) and the server (`far`) until one of them has had enough.
pub(super) async fn carry(shared: Arc<Shared>, what: What, near: Conn, far: Conn) {
    let id = shared.conduits.fetch_add(1, Ordering::SeqCst);
    for way in [Way::Up, Way::Down] {
        lock(shared.last(way)).clear();
    }
    let cut = shared.cut.notified();
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let (near_write, far_write) = (Arc::new(Mutex::new(near_write)), Arc::new(Mutex::new(far_write)));
    let up = Direction { shared: &shared, id, what, way: Way::Up, passed: 0, held: None, withheld: None };
    let down = Direction { shared: &shared, id, what, way: Way::Down, passed: 0, held: None, withheld: None };
    let up = up.run(near_read, far_write.clone(), near_write.clone());
    let down = down.run(far_read, near_write.clone(), far_write.clone());
    // In a function of its own: a direction that is dropped in the middle of a write lets go of its writer.
    until_one_ends(up, down, cut).await;
    for writer in [near_write, far_write] {
        // An end in order, so that nothing but the sealing tells of the cut.
        let _ = writer.lock().await.shutdown().await;
    }
}

async fn until_one_ends(
    up: impl Future<Output = io::Result<End>>,
    down: impl Future<Output = io::Result<End>>,
    cut: impl Future<Output = ()>,
) {
    tokio::pin!(up, down, cut);
    let (mut up_done, mut down_done) = (false, false);
    while !(up_done && down_done) {
        let end = tokio::select! {
            end = &mut up, if !up_done => { up_done = true; end }
            end = &mut down, if !down_done => { down_done = true; end }
            () = &mut cut => return,
        };
        if !matches!(end, Ok(End::Finished)) {
            return;
        }
    }
}

struct Direction<'a> {
    shared: &'a Arc<Shared>,
    id: u64,
    what: What,
    way: Way,
    passed: u64,
    held: Option<Bytes>,
    /// What `Hold` keeps back from here on.
    withheld: Option<Arc<std::sync::Mutex<Vec<u8>>>>,
}

impl Direction<'_> {
    async fn run(mut self, mut from: ReadHalf<Conn>, to: Writer, back: Writer) -> io::Result<End> {
        let mut input = BytesMut::new();
        loop {
            while let Some(record) = take_record(&mut input) {
                self.passed += record.len() as u64;
                self.keep_sample(&record);
                lock(self.shared.last(self.way)).extend_from_slice(&record);
                if self.way == Way::Down
                    && let Some(group) = agreed::group(&record)
                {
                    self.shared.note_group(self.what.label(), group);
                }
                if let Some(withheld) = &self.withheld {
                    lock(withheld).extend_from_slice(&record);
                    continue;
                }
                match self.alteration(&record) {
                    None => self.send(&to, record).await?,
                    Some(how) => match self.alter(how, record, &to, &back).await? {
                        None => {}
                        Some(end @ End::Cut) => return Ok(end),
                        Some(End::Finished) => {
                            to.lock().await.shutdown().await?;
                            // What still comes is taken and forgotten: the sender must not notice by standing still.
                            while from.read_buf(&mut input).await? > 0 {
                                input.clear();
                            }
                            return Ok(End::Finished);
                        }
                    },
                }
            }
            if from.read_buf(&mut input).await? == 0 {
                let mut to = to.lock().await;
                to.write_all(&input).await?;
                to.shutdown().await?;
                return Ok(End::Finished);
            }
        }
    }

    async fn send(&mut self, to: &Writer, record: Bytes) -> io::Result<()> {
        let mut to = to.lock().await;
        to.write_all(&record).await?;
        if let Some(held) = self.held.take() {
            to.write_all(&held).await?;
        }
        to.flush().await
    }

    async fn alter(&mut self, how: Alteration, record: Bytes, to: &Writer, back: &Writer) -> io::Result<Option<End>> {
        match how {
            Alteration::Flip => {
                let mut record = record.to_vec();
                let dice = u64::from_be_bytes(random());
                let at = HEADER + usize::try_from(dice >> 8).unwrap_or(0) % (record.len() - HEADER);
                record[at] ^= 1 << (dice & 7);
                self.send(to, record.into()).await?;
            }
            Alteration::Retype => {
                let mut record = record.to_vec();
                record[0] = 21;
                self.send(to, record.into()).await?;
            }
            Alteration::ForgedClose => {
                self.send(to, Bytes::from_static(&[21, 3, 3, 0, 2, 1, 0])).await?;
                self.send(to, record).await?;
            }
            Alteration::Repeat => {
                self.send(to, record.clone()).await?;
                self.send(to, record).await?;
            }
            Alteration::Swap => self.held = Some(record),
            Alteration::Omit => {}
            Alteration::Foreign => {
                let foreign = self.foreign().unwrap_or(record);
                self.send(to, foreign).await?;
            }
            Alteration::Reflect => {
                back.lock().await.write_all(&record).await?;
                back.lock().await.flush().await?;
                self.send(to, record).await?;
            }
            Alteration::Cut => return Ok(Some(End::Cut)),
            Alteration::CutInside => {
                self.send(to, record.slice(..record.len() / 2)).await?;
                return Ok(Some(End::Cut));
            }
            Alteration::Finish => return Ok(Some(End::Finished)),
            Alteration::Hold => self.withhold(record, to.clone()),
        }
        Ok(None)
    }

    /// Keeps the way out to itself until the release, so that it does not end with the conduit.
    fn withhold(&mut self, record: Bytes, to: Writer) {
        let withheld = Arc::new(std::sync::Mutex::new(record.to_vec()));
        self.withheld = Some(withheld.clone());
        let (shared, released) = (self.shared.clone(), self.shared.released.clone());
        self.shared.scope.spawn(async move {
            let mut to = to.lock_owned().await;
            released.cancelled().await;
            let late = std::mem::take(&mut *lock(&withheld));
            // Whether it arrives is up to who is still there; what counts is that it was sent.
            let _ = to.write_all(&late).await;
            let _ = to.flush().await;
            shared.counts.late.fetch_add(late.len() as u64, Ordering::SeqCst);
        });
    }

    /// What is to be done to this record, counted when it is something.
    fn alteration(&self, record: &[u8]) -> Option<Alteration> {
        let mut lies = lock(&self.shared.lies);
        let from = lies.from;
        let meddling = lies.meddling.as_mut()?;
        let meant =
            meddling.what == self.what && meddling.way == self.way && meddling.after < self.passed && from <= self.id;
        let possible = record[0] == APPLICATION_DATA
            && record.len() > HEADER
            && (meddling.how != Alteration::Foreign || self.foreign().is_some());
        if !(meant && possible && meddling.times > 0) {
            return None;
        }
        meddling.times -= 1;
        let how = meddling.how;
        if meddling.times == 0
            && let Some(next) = lies.afterwards.take()
        {
            lies.meddling = Some(next);
            lies.from = self.shared.conduits.load(Ordering::SeqCst);
        }
        Shared::count(&self.shared.counts.altered);
        Some(how)
    }

    fn keep_sample(&self, record: &Bytes) {
        let mut samples = lock(&self.shared.samples);
        let ours = |s: &Sample| s.conduit == self.id && s.way == self.way;
        if record.len() >= SAMPLE && record[0] == APPLICATION_DATA && !samples.iter().any(ours) {
            samples.truncate(SAMPLES);
            samples.insert(0, Sample { conduit: self.id, what: self.what, way: self.way, record: record.clone() });
        }
    }

    fn foreign(&self) -> Option<Bytes> {
        let samples = lock(&self.shared.samples);
        let fits = |s: &&Sample| s.conduit != self.id && s.what == self.what && s.way == self.way;
        samples.iter().find(fits).map(|s| s.record.clone())
    }
}

/// The first whole TLS record; whatever is no TLS is passed on as it comes.
fn take_record(input: &mut BytesMut) -> Option<Bytes> {
    let kind = *input.first()?;
    if !(20..=23).contains(&kind) {
        return Some(input.split().freeze());
    }
    let header = input.first_chunk::<HEADER>()?;
    let whole = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    (input.len() >= whole).then(|| input.split_to(whole).freeze())
}
