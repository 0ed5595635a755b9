//! The operator's half: a key, and licences signed with it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hedgerow_runtime::clock;
use hedgerow_runtime::tls::SigningKey;
use hedgerow_shared::verify::licence::{Feature, Licence, LicenceKey, SignedLicence};
use hedgerow_shared::{TenantId, UnixTime};
use hedgerow_uem_core::ca::Key;
use rand::TryRngCore as _;
use serde_json::json;
use zeroize::Zeroizing;

use super::super::control::day;
use crate::{output, secrets};

const DAY: u64 = 24 * 3600;

#[derive(Debug, clap::Args)]
pub(super) struct IssueArgs {
    /// The secret half of the licence key
    #[arg(long = "key", value_name = "FILE", env = "HEDGEROW_LICENCE_KEY_FILE")]
    key_file: PathBuf,
    /// Whose licence it is
    #[arg(long, env = "HEDGEROW_LICENCE_TENANT")]
    tenant: TenantId,
    /// The organisation's name [default: none]
    #[arg(long, env = "HEDGEROW_LICENCE_LICENSEE", default_value = "", hide_default_value = true)]
    licensee: String,
    /// Devices at once [default: no bound]
    #[arg(long, env = "HEDGEROW_LICENCE_SEATS")]
    seats: Option<u32>,
    /// What it grants: proxy, tunnel, gateway, directory, mdm
    #[arg(long, value_name = "FEATURE", env = "HEDGEROW_LICENCE_FEATURES", value_delimiter = ',', required = true)]
    features: Vec<String>,
    /// Days it is valid, from its begin
    #[arg(long, env = "HEDGEROW_LICENCE_DAYS", conflicts_with = "expires", required_unless_present = "expires")]
    days: Option<u64>,
    /// Its end: 2027-01-31 (00:00 UTC), or seconds since 1970
    #[arg(long, value_name = "TIME", env = "HEDGEROW_LICENCE_EXPIRES", value_parser = moment)]
    expires: Option<u64>,
    /// Its begin, likewise [default: now]
    #[arg(long, value_name = "TIME", env = "HEDGEROW_LICENCE_NOT_BEFORE", value_parser = moment)]
    not_before: Option<u64>,
    /// Days after its end for which everything goes on, with warnings
    #[arg(long, env = "HEDGEROW_LICENCE_GRACE_DAYS", default_value_t = 30)]
    grace_days: u64,
    /// Its number, for people who speak about it [default: a new one]
    #[arg(long, env = "HEDGEROW_LICENCE_ID")]
    id: Option<String>,
    /// Write it to a new file instead of showing it
    #[arg(long, value_name = "FILE", env = "HEDGEROW_LICENCE_OUT")]
    out: Option<PathBuf>,
}

/// Where the halves of a new key lie.
pub(super) struct Made {
    pub(super) secret: PathBuf,
    pub(super) public: PathBuf,
}

pub(super) fn keygen(folder: &Path) -> anyhow::Result<Made> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let made = Made { secret: folder.join("licence-key.pem"), public: folder.join("licence-key.pub.pem") };
    ensure!(!made.public.exists(), "{} exists already; no key is written over", made.public.display());
    let mut broken = false;
    let mut random = |bytes: &mut [u8]| broken |= rand::rngs::OsRng.try_fill_bytes(bytes).is_err();
    let key = Key::generate(&mut random)?;
    ensure!(!broken, "the system has no random numbers");
    let public = LicenceKey::from_der(&key.public_key_info())?;
    let secret = Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", key.to_pkcs8().to_vec())));
    secrets::write_new(&made.secret, secret.trim_end().as_bytes())?;
    write_public(&made.public, &public.to_pem())?;
    Ok(made)
}

pub(super) fn issue(args: &IssueArgs, json: bool) -> anyhow::Result<()> {
    let licence = wanted(args, clock::now())?;
    let payload = licence.payload()?;
    let key = SigningKey::read(&args.key_file)?;
    let signature = key.sign(&SignedLicence::message(&payload));
    ensure!(!signature.is_empty(), "the key could not sign");
    let pem = SignedLicence { payload, signature }.to_pem();
    let mut answer = serde_json::to_value(&licence)?;
    match &args.out {
        None => {
            answer["pem"] = json!(pem);
            output::answer(json, &answer, |_| pem)
        }
        Some(file) => {
            write_public(file, &pem)?;
            let until = output::time(licence.expires.0);
            let sentence = format!("licence {} written to {}; valid until {until}\n", licence.id, file.display());
            output::answer(json, &answer, |_| sentence)
        }
    }
}

fn wanted(args: &IssueArgs, now: UnixTime) -> anyhow::Result<Licence> {
    let features: BTreeSet<String> = args.features.iter().map(|f| f.trim().to_owned()).collect();
    let known: Vec<&str> = Feature::ALL.iter().map(|f| f.as_str()).collect();
    if let Some(unknown) = features.iter().find(|f| !known.contains(&f.as_str())) {
        bail!("there is no feature {unknown:?}; known are: {}", known.join(" "));
    }
    let has = |feature: Feature| features.contains(feature.as_str());
    ensure!(
        !has(Feature::Tunnel) || has(Feature::Proxy),
        "a tunnel is asked for inside a session with a node: name proxy beside tunnel"
    );
    let not_before = args.not_before.map_or(now, UnixTime);
    let expires = match (args.expires, args.days) {
        (Some(expires), _) => UnixTime(expires),
        (None, Some(days)) => not_before.plus(days.saturating_mul(DAY)),
        (None, None) => bail!("say when it ends: --days or --expires"),
    };
    let fresh = || format!("L-{:016x}", u64::from_be_bytes(clock::random()));
    Ok(Licence {
        id: args.id.clone().unwrap_or_else(fresh),
        tenant: args.tenant.clone(),
        licensee: args.licensee.clone(),
        issued: now,
        not_before,
        expires,
        grace_seconds: args.grace_days.saturating_mul(DAY),
        seats: args.seats,
        features,
    })
}

/// A file that others may read, and that is never replaced.
fn write_public(path: &Path, text: &str) -> anyhow::Result<()> {
    let open = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = open.with_context(|| format!("{} cannot be made", path.display()))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.with_context(|| format!("{} cannot be written", path.display()))
}

/// `2027-01-31`, the begin of that day in UTC, or seconds since 1970.
fn moment(text: &str) -> Result<u64, String> {
    let wrong = || "expected a day such as 2027-01-31, or seconds since 1970".to_owned();
    text.parse().ok().or_else(|| day(text)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p04_days_and_seconds_are_read() {
        assert_eq!(moment("2000-02-29"), Ok(951_782_400));
        assert_eq!(moment("1795309534"), Ok(1_795_309_534));
        // A licence is of no past: how long ago is no answer here.
        for bad in ["", "2027-02-29", "24h", "soon", "-5"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn p04_a_key_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let made = keygen(&dir.path().join("keys")).unwrap();
        assert_eq!(std::fs::metadata(&made.secret).unwrap().permissions().mode() & 0o777, 0o600);
        let public = LicenceKey::from_pem(&std::fs::read_to_string(&made.public).unwrap()).unwrap();
        let key = SigningKey::read(&made.secret).unwrap();
        let payload =
            br#"{"id":"x","tenant":"S12345678","licensee":"","issued":1,"not_before":1,"expires":9}"#.to_vec();
        let signature = key.sign(&SignedLicence::message(&payload));
        assert!(SignedLicence { payload, signature }.verify(&[public]).is_ok());
        assert!(keygen(&dir.path().join("keys")).is_err());
    }
}
