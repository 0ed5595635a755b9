//! What the system is told about a tunnel: addresses, routes, rules, masquerade. Linux, by `ip` (iproute2) and `nft`
//! (nftables), which say in plain words what is wrong and leave what they made for everybody to see.

use std::net::IpAddr;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Duration, timeout};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the system was not changed.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// The program is not there.
    #[error("cannot run {program}: {source}; it comes with Debian's package {package}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// Where it comes from.
        package: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The program refused.
    #[error("{command}: {why}")]
    Refused {
        /// The command.
        command: String,
        /// Its words.
        why: String,
    },
}

/// Runs `ip` with these words.
///
/// # Errors
/// It is not installed, or says no.
pub async fn ip(words: &str) -> Result<String, SystemError> {
    let words: Vec<&str> = words.split_whitespace().collect();
    run("ip", "iproute2", &words, None).await
}

/// Runs `nft` over a whole rule set, which counts as one change.
///
/// # Errors
/// As `ip`.
pub async fn nft(rules: &str) -> Result<(), SystemError> {
    run("nft", "nftables", &["-f", "-"], Some(rules)).await.map(|_| ())
}

/// `-4` or `-6`, for `ip`.
#[must_use]
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

async fn run(
    program: &'static str,
    package: &'static str,
    words: &[&str],
    input: Option<&str>,
) -> Result<String, SystemError> {
    let refused = |why: String| SystemError::Refused { command: format!("{program} {}", words.join(" ")), why };
    let mut child = Command::new(program)
        .args(words)
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| SystemError::Missing { program, package, source })?;
    let stdin = child.stdin.take();
    let whole = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // What it does not read it does not want.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match timeout(LIMIT, whole).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(refused(error.to_string())),
        Err(_) => return Err(refused(format!("no answer within {} s", LIMIT.as_secs()))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().chars().take(300).collect();
    Err(refused(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_program_refuses_is_said_in_its_words() {
        let error = ip("route add 10.0.0.0/8 dev no-such-device").await.unwrap_err().to_string();
        assert!(error.contains("no-such-device"), "{error}");
        let error = run("no-such-program", "nothing", &[], None).await.unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("package"), "{error}");
    }
}
