//! Sessions that outlive their lanes: cut, moved, and refused where they must be.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::mux::Stream;

const SOON: Duration = Duration::from_secs(10);

/// A node that answers on a socket, a device, and a wire between them that can be cut.
struct World {
    ca: TestCa,
    scope: Scope,
    device: Endpoint,
    device_own: tls::Own,
    node_id: hedgerow_shared::EntityId,
    node: std::net::SocketAddr,
    sessions: Arc<Mutex<HashMap<SessionId, Session>>>,
    /// Cuts every lane that runs now.
    cut: Mutex<CancellationToken>,
}

impl World {
    async fn new(resume: Duration) -> Arc<Self> {
        let (ca, scope) = (TestCa::new("S12345678"), Scope::new());
        let timers = Timers { resume, ..Timers::default() };
        let end = || Endpoint::new(ca.ca.clone(), instance(), timers, scope.clone());
        let (device_own, _) = ca.issue(Role::Device, &[]);
        let (node_own, node_id) = ca.issue(Role::Node, &[]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (node, sessions) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(HashMap::new())));
        let as_node =
            tls::as_tenant(ca.ca.clone(), &[Role::Device], tls::Clients::Certified, &tls::InForce::new(node_own), ALPN)
                .unwrap();
        let (endpoint, table, tasks) = (end(), sessions.clone(), scope.clone());
        scope.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (endpoint, table, as_node, echoes) =
                    (endpoint.clone(), table.clone(), as_node.clone(), tasks.clone());
                tasks.spawn(async move {
                    let known = table.clone();
                    let find = move |id| known.lock().get(&id).cloned();
                    if let Ok(Served::New(session)) = endpoint.serve(tcp, as_node, |_| Ok(()), find).await {
                        echo(session.mux.clone(), &echoes);
                        table.lock().insert(session.id, session);
                    }
                });
            }
        });
        let device = end();
        Arc::new(Self { ca, scope, device, device_own, node_id, node, sessions, cut: Mutex::default() })
    }

    fn config(&self, own: &tls::Own) -> Arc<ClientConfig> {
        tls::to_tenant(self.ca.ca.clone(), Role::Node, Some(self.node_id), Some(own), ALPN).unwrap()
    }

    /// A connection to the node that `cut` ends, with whatever is on it.
    async fn lane(&self) -> DuplexStream {
        let mut tcp = TcpStream::connect(self.node).await.unwrap();
        let (ours, mut far) = duplex(1 << 16);
        let cut = self.cut.lock().clone();
        self.scope.spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut far, &mut tcp) => {}
                () = cut.cancelled() => {}
            }
        });
        ours
    }

    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock()).cancel();
    }

    async fn open(&self) -> Session {
        self.device.open(self.lane().await, self.config(&self.device_own), tls::any_name()).await.unwrap()
    }

    async fn resume(&self, session: &Session) -> Result<(), ResumeError> {
        self.device.resume(session, self.lane().await, self.config(&self.device_own), tls::any_name()).await
    }

    async fn add(&self, session: &Session) -> Result<(), ResumeError> {
        self.device.add(session, self.lane().await, self.config(&self.device_own), tls::any_name()).await
    }

    /// Resumes whenever it is needed, until the session ends.
    fn keep(self: &Arc<Self>, session: &Session) {
        let (world, session) = (self.clone(), session.clone());
        self.scope.spawn(async move {
            while session.mux.suspended().await.is_some() {
                // A lane that is cut at once: the next one.
                let _ = world.resume(&session).await;
            }
        });
    }
}

async fn echoed(stream: &mut Stream, text: &'static [u8]) {
    stream.write_chunk(Bytes::from_static(text)).await.unwrap();
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend_from_slice(&stream.read_chunk().await.unwrap().unwrap());
    }
    assert_eq!(got, text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n09_transfers_survive_a_lane_that_is_cut_again_and_again() {
    let world = World::new(SOON).await;
    let session = world.open().await;
    world.keep(&session);
    let (cutter, scope) = (world.clone(), world.scope.clone());
    let cuts = scope.spawn_owned(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            cutter.cut();
        }
    });
    let three = async {
        tokio::join!(
            round_trip(&session.mux, 8 << 20, &world.scope),
            round_trip(&session.mux, 100_000, &world.scope),
            round_trip(&session.mux, 3 << 20, &world.scope),
        );
        // Streams opened while lanes come and go.
        for _ in 0..20 {
            round_trip(&session.mux, 1000, &world.scope).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), three).await.unwrap();
    drop(cuts);
    assert!(session.mux.stats().resumed > 0, "the lane was never cut");
    world.scope.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n09_a_session_moves_to_another_lane_while_the_old_one_still_stands() {
    let world = World::new(SOON).await;
    let session = world.open().await;
    let mut stream = session.mux.open(&header()).await.unwrap();
    echoed(&mut stream, b"before").await;
    for _ in 0..3 {
        world.resume(&session).await.unwrap();
        echoed(&mut stream, b"after").await;
    }
    assert_eq!(session.mux.stats().resumed, 3);
    assert_eq!(world.sessions.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p02_a_long_stream_gets_a_lane_of_its_own_and_the_loss_of_either_loses_nothing() {
    let world = World::new(SOON).await;
    let session = world.open().await;
    world.keep(&session);
    world.add(&session).await.unwrap();
    assert_eq!(session.mux.stats().lanes, 2);
    let mut small = session.mux.open(&header()).await.unwrap();
    let bulk = round_trip(&session.mux, 32 << 20, &world.scope);
    let beside = async {
        for _ in 0..50 {
            echoed(&mut small, b"small").await;
        }
        world.cut();
        for _ in 0..50 {
            echoed(&mut small, b"small").await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(bulk, beside) }).await.unwrap();
    assert!(session.mux.stats().resumed > 0);
    for _ in 0..5 {
        if world.add(&session).await.is_err() {
            break;
        }
    }
    assert!(session.mux.stats().lanes <= hedgerow_shared::session::MAX_LANES);
    echoed(&mut small, b"still").await;
    world.scope.stop(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_nobody_resumes_ends_with_a_clear_error_at_both_ends() {
    let world = World::new(Duration::from_millis(300)).await;
    let session = world.open().await;
    let mut stream = session.mux.open(&header()).await.unwrap();
    echoed(&mut stream, b"hello").await;
    world.cut();
    let fault = tokio::time::timeout(SOON, stream.read_chunk()).await.unwrap().unwrap_err();
    assert_eq!(fault.code, Code::Lost);
    assert!(fault.text.contains("not resumed within"), "{fault}");
    let node = world.sessions.lock().values().next().cloned().unwrap();
    let fault = tokio::time::timeout(SOON, node.mux.closed()).await.unwrap();
    assert!(fault.text.contains("not resumed within"), "{fault}");
    assert!(matches!(world.resume(&session).await, Err(ResumeError::Refused(f)) if f.code == Code::Gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_resumed_by_its_own_device_with_its_own_secret_only() {
    let world = World::new(SOON).await;
    let session = world.open().await;
    let mut stream = session.mux.open(&header()).await.unwrap();
    echoed(&mut stream, b"hello").await;
    // Another device of the tenant that has learnt id and secret.
    let (other, _) = world.ca.issue(Role::Device, &[]);
    let stolen = world.device.resume(&session, world.lane().await, world.config(&other), tls::any_name()).await;
    assert!(matches!(stolen, Err(ResumeError::Refused(f)) if f.code == Code::Gone));
    // The device itself, with a secret that is not the session's: nothing moves, nothing is told.
    let guess = Session { secret: Secret(Arc::new([7; 32])), ..session.clone() };
    let guessed = world.resume(&guess).await;
    assert!(
        matches!(&guessed, Err(ResumeError::Failed(f)) if f.text.contains("does not know the session's secret")),
        "{guessed:?}"
    );
    // One that does not check the node's proof and sends its own.
    let (io, config) = (world.lane().await, world.config(&world.device_own));
    let (records, _) = shake::client(io, config, tls::any_name()).await.unwrap();
    let answer = greet::tests::prove_wrongly(records, session.id, instance()).await;
    assert_eq!(answer.code, Code::Unauthenticated);
    // None of them disturbed the session.
    echoed(&mut stream, b"still here").await;
    assert_eq!(session.mux.stats().resumed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_kept_for_a_replay_are_counted_and_given_back() {
    let world = World::new(SOON).await;
    let session = world.open().await;
    let budget = world.device.budget.clone();
    let stream = session.mux.open(&header()).await.unwrap();
    let (_read, mut write) = stream.into_split();
    // Nobody reads what comes back: the node stops reading, and acknowledges no more.
    let chunk = Bytes::from(vec![1; 1 << 20]);
    while tokio::time::timeout(Duration::from_secs(1), write.write_chunk(chunk.clone())).await.is_ok() {}
    let stats = session.mux.stats();
    assert!(stats.retained > 0 && stats.retained <= 2 * limits::CONNECTION_WINDOW, "{stats:?}");
    assert_eq!(budget.used(), stats.retained);
    session.mux.close(Fault::new(Code::Ok, "enough"));
    session.mux.closed().await;
    assert_eq!(budget.used(), 0, "what was kept is given back");
}
