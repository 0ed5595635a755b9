//! The control socket: HTTP with JSON over a unix socket that only this user (and root) can open. Through it the
//! command line changes a running core or relay. File permissions are the authentication: the directory is 0700,
//! the socket 0600, and the peer's user id is checked besides.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::{MAX_CONNECTIONS, back_off, serve_connection};
use crate::scope::Scope;

/// Longest wait of `request`, from connecting to the whole answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer read.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// What a handler answers when it refuses: a status, and a text that says what was wrong and what to do. Becomes
/// `{"error": "text"}`.
#[derive(Debug, Clone)]
pub struct Problem {
    /// 4xx: the request's fault; 5xx: ours.
    pub status: StatusCode,
    /// For people.
    pub text: String,
}

impl Problem {
    /// A problem.
    #[must_use]
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// 400.
    #[must_use]
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// 404.
    #[must_use]
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// 409.
    #[must_use]
    pub fn conflict(text: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, text)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, axum::Json(json!({ "error": self.text }))).into_response()
    }
}

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process answers on it.
    #[error("another process already serves {}; is this role running twice on one state directory?", .0.display())]
    InUse(PathBuf),
    /// The directory is open to others.
    #[error("the directory {} of the control socket is open to others (mode {mode:04o}); chmod 700 it", .path.display())]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The directory is somebody else's.
    #[error("the directory {} of the control socket belongs to another user", .0.display())]
    ForeignDirectory(PathBuf),
    /// Anything else.
    #[error("the control socket {} cannot be made", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Binds `path` and serves `router` on it until the scope ends; then the socket is removed. A socket left behind by
/// a process that died is replaced.
///
/// # Errors
/// The directory is open to others, another process serves the socket, or the system refused.
pub async fn serve(path: &Path, router: Router, scope: &Scope) -> Result<(), ServeError> {
    let listener = bind(path).await?;
    let guard = RemoveOnDrop(path.to_owned());
    let tasks = scope.clone();
    scope.spawn(async move {
        let _guard = guard;
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((io, _)) => {
                    let router = router.clone();
                    tasks.spawn(async move {
                        if is_ours(&io) {
                            serve_connection(io, router).await;
                        } else {
                            tracing::warn!("a control connection of another user was refused");
                        }
                        drop(permit);
                    });
                }
                Err(error) => back_off(&error).await,
            }
        }
    });
    Ok(())
}

async fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let io = |source| ServeError::Io { path: path.to_owned(), source };
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
    let metadata = std::fs::metadata(directory).map_err(io)?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ServeError::OpenDirectory { path: directory.to_owned(), mode });
    }
    if metadata.uid() != our_user() && metadata.uid() != 0 {
        return Err(ServeError::ForeignDirectory(directory.to_owned()));
    }
    match UnixStream::connect(path).await {
        Ok(_) => return Err(ServeError::InUse(path.to_owned())),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(io)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(io(e)),
    }
    let listener = UnixListener::bind(path).map_err(io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    Ok(listener)
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // It may be gone already; the next start replaces it either way.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn our_user() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

fn is_ours(io: &UnixStream) -> bool {
    io.peer_cred().is_ok_and(|peer| peer.uid() == our_user() || peer.uid() == 0)
}

/// Why a control request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nothing is there.
    #[error("no socket at {}: is the role running? Where its state is elsewhere, --relay-socket or --core-socket says where", .0.display())]
    NoSocket(PathBuf),
    /// A socket without a process.
    #[error("nobody answers at {}: the process that made it has ended", .0.display())]
    NobodyAnswers(PathBuf),
    /// Not this user's.
    #[error("no permission to open {}: run this as the user the role runs as, or as root", .0.display())]
    NotPermitted(PathBuf),
    /// The role refused, and says why.
    #[error("{text}")]
    Refused {
        /// The HTTP status, for programs.
        status: StatusCode,
        /// For people.
        text: String,
    },
    /// No answer in time.
    #[error("no answer from {} within {} s", .0.display(), REQUEST_TIMEOUT.as_secs())]
    TimedOut(PathBuf),
    /// The answer is not what was agreed.
    #[error("the answer from {path} cannot be read: {why}", path = .path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Sends one request and reads the JSON answer (`null` when it is empty). Dropping the future gives up waiting; the
/// role may still carry the request out.
///
/// # Errors
/// Nobody is there, or the role refused.
pub async fn request(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ControlError> {
    let exchange = exchange(socket, method, path, body);
    match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
        Ok(result) => result,
        Err(_) => Err(ControlError::TimedOut(socket.to_owned())),
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ControlError> {
    let malformed = |why: String| ControlError::Malformed { path: socket.to_owned(), why };
    let io = UnixStream::connect(socket).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => ControlError::NoSocket(socket.to_owned()),
        ErrorKind::ConnectionRefused => ControlError::NobodyAnswers(socket.to_owned()),
        ErrorKind::PermissionDenied => ControlError::NotPermitted(socket.to_owned()),
        _ => malformed(e.to_string()),
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| malformed(e.to_string()))?;
    let payload = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
    let mut request = http::Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(payload)).map_err(|e| malformed(e.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| malformed(e.to_string()))?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| malformed(e.to_string()))?;
        Ok((status, body.to_bytes()))
    };
    // The connection is driven here, beside the request: nothing outlives this call.
    let (status, bytes) = tokio::select! {
        answer = answer => answer?,
        Err(error) = connection => return Err(malformed(error.to_string())),
    };
    if !status.is_success() {
        let said =
            serde_json::from_slice::<Value>(&bytes).ok().and_then(|v| v.get("error")?.as_str().map(str::to_owned));
        let text = said.unwrap_or_else(|| match String::from_utf8_lossy(&bytes).trim() {
            "" => format!("{status} for {path}"),
            text => format!("{status}: {}", text.chars().take(500).collect::<String>()),
        });
        return Err(ControlError::Refused { status, text });
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::routing::{get, post};

    use super::*;

    fn router() -> Router {
        Router::new()
            .route("/echo", post(|Json(v): Json<Value>| async move { Json(v) }))
            .route("/empty", get(|| async { StatusCode::NO_CONTENT }))
            .route(
                "/gone",
                get(|| async { Problem::not_found("no such user: u@example; `hedgerow user list` names them") }),
            )
    }

    #[tokio::test]
    async fn requests_are_answered_and_refusals_keep_their_text() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/core.sock");
        let scope = Scope::new();
        serve(&socket, router(), &scope).await.unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!((mode(socket.parent().unwrap()), mode(&socket)), (0o700, 0o600));
        let body = json!({ "a": ["b", 1] });
        assert_eq!(request(&socket, Method::POST, "/echo", Some(&body)).await.unwrap(), body);
        assert_eq!(request(&socket, Method::GET, "/empty", None).await.unwrap(), Value::Null);
        let refused = request(&socket, Method::GET, "/gone", None).await.unwrap_err();
        assert!(matches!(&refused, ControlError::Refused { status: StatusCode::NOT_FOUND, .. }), "{refused}");
        assert!(refused.to_string().starts_with("no such user"), "{refused}");
        assert!(matches!(serve(&socket, router(), &scope).await, Err(ServeError::InUse(_))));
        assert_eq!(scope.stop(Duration::from_secs(5)).await, 0);
        assert!(!socket.exists());
    }

    #[tokio::test]
    async fn a_missing_socket_and_a_dead_one_are_told_apart_and_the_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let socket = dir.path().join("core.sock");
        let absent = request(&socket, Method::GET, "/", None).await.unwrap_err();
        assert!(
            matches!(absent, ControlError::NoSocket(_)) && absent.to_string().contains("--core-socket"),
            "{absent}"
        );
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(matches!(request(&socket, Method::GET, "/", None).await, Err(ControlError::NobodyAnswers(_))));
        let scope = Scope::new();
        serve(&socket, router(), &scope).await.unwrap();
        assert!(request(&socket, Method::GET, "/empty", None).await.is_ok());
    }

    #[tokio::test]
    async fn a_directory_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let refused = serve(&dir.path().join("x.sock"), router(), &Scope::new()).await.unwrap_err();
        assert!(matches!(refused, ServeError::OpenDirectory { mode: 0o755, .. }), "{refused}");
    }
}
