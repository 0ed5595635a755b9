//! The store's files: one tenant as JSON, and how files with keys are read and replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use hedgerow_runtime::{clock, disk};
use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::TenantCa;
use hedgerow_shared::verify::config::{SignedConfig, Version};
use hedgerow_shared::verify::licence::SignedLicence;
use hedgerow_shared::wire::message::OpenActivation;
use hedgerow_shared::{EntityId, Origin, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use super::{StoreError, Tenant, TenantState};
use crate::licence::Kept;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OnDisk {
    id: TenantId,
    srp_key: String,
    state: TenantState,
    created: UnixTime,
    domains: BTreeSet<String>,
    #[serde(default)]
    names: BTreeMap<String, Origin>,
    #[serde(default)]
    withheld: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    blocked: BTreeSet<EntityId>,
    ca: Option<String>,
    /// While the CA is rolled over: the other one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more_cas: Vec<String>,
    config: Option<String>,
    seen: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    licence: Option<LicenceOnDisk>,
    open: Vec<(String, UnixTime)>,
}

/// Verified when it came. Who can change it here can add tenants too.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LicenceOnDisk {
    pem: String,
    /// The key that it was verified with: `LicenceKey::id` in hexadecimal.
    key: String,
}

impl From<&Tenant> for OnDisk {
    fn from(tenant: &Tenant) -> Self {
        Self {
            id: tenant.id.clone(),
            srp_key: HEXLOWER.encode(tenant.srp_key.expose()),
            state: tenant.state,
            created: tenant.created,
            domains: tenant.domains.clone(),
            names: tenant.names.clone(),
            withheld: tenant.withheld.clone(),
            blocked: tenant.blocked.clone(),
            ca: tenant.ca.as_ref().map(|ca| BASE64.encode(&ca.der())),
            more_cas: tenant.ca.iter().flat_map(|ca| ca.ders()).skip(1).map(|der| BASE64.encode(&der)).collect(),
            config: tenant.signed.as_ref().and_then(|s| minicbor::to_vec(s).ok()).map(|b| BASE64.encode(&b)),
            seen: tenant.seen,
            licence: tenant
                .licence
                .as_ref()
                .map(|kept| LicenceOnDisk { pem: kept.signed.to_pem(), key: HEXLOWER.encode(&kept.key) }),
            open: tenant.open.iter().map(|o| (HEXLOWER.encode(&o.hash), UnixTime(o.until))).collect(),
        }
    }
}

pub(super) fn read_tenant(path: &Path) -> Result<Tenant, StoreError> {
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    let disk: OnDisk = serde_json::from_slice(&read_secret(path)?).map_err(|e| damaged(e.to_string()))?;
    if path.file_stem().and_then(|s| s.to_str()) != Some(disk.id.as_str()) {
        return Err(damaged(format!("it holds tenant {}", disk.id)));
    }
    let srp_key = HEXLOWER.decode(disk.srp_key.as_bytes()).ok().filter(|k| k.len() == 32);
    let srp_key = Secret::new(srp_key.ok_or_else(|| damaged("srp_key is not 64 hexadecimal digits".into()))?);
    let bytes = |text: &str| BASE64.decode(text.as_bytes()).map_err(|e| damaged(e.to_string()));
    let ca = match &disk.ca {
        Some(first) => {
            let ders =
                std::iter::once(first).chain(&disk.more_cas).map(|text| bytes(text)).collect::<Result<Vec<_>, _>>()?;
            Some(TenantCa::from_ders(&ders).map_err(|e| damaged(e.to_string()))?)
        }
        None => None,
    };
    let signed: Option<SignedConfig> = match &disk.config {
        Some(text) => Some(minicbor::decode(&bytes(text)?).map_err(|e| damaged(e.to_string()))?),
        None => None,
    };
    // One that has expired meanwhile is no configuration: whoever needs one is refused until the core sends another.
    let config = match (&signed, &ca) {
        (Some(signed), Some(ca)) => signed.verify(ca, disk.seen, clock::now()).ok(),
        _ => None,
    };
    let licence = match &disk.licence {
        Some(LicenceOnDisk { pem, key }) => {
            let signed = SignedLicence::from_pem(pem).map_err(|e| damaged(e.to_string()))?;
            let licence = signed.unverified().map_err(|e| damaged(e.to_string()))?;
            let key = HEXLOWER.decode(key.as_bytes()).ok().and_then(|k| k.try_into().ok());
            let key = key.ok_or_else(|| damaged("the licence's key".into()))?;
            Some(Arc::new(Kept { signed, licence, key }))
        }
        None => None,
    };
    let mut open = Vec::with_capacity(disk.open.len());
    for (hash, until) in &disk.open {
        let hash = HEXLOWER.decode(hash.as_bytes()).ok().and_then(|h| h.try_into().ok());
        open.push(OpenActivation { hash: hash.ok_or_else(|| damaged("an address hash".into()))?, until: until.0 });
    }
    Ok(Tenant {
        id: disk.id,
        srp_key,
        state: disk.state,
        domains: disk.domains,
        names: disk.names,
        withheld: disk.withheld,
        blocked: disk.blocked,
        ca,
        config,
        seen: disk.seen,
        licence,
        created: disk.created,
        signed,
        open: Arc::new(open),
    })
}

/// Reads a key, or makes it the first time.
pub(super) fn key(path: &Path) -> Result<[u8; 32], StoreError> {
    if !path.exists() {
        let key = clock::random::<32>();
        write_secret(path, HEXLOWER.encode(&key).as_bytes())?;
        return Ok(key);
    }
    let text = read_secret(path)?;
    HEXLOWER
        .decode(text.trim_ascii())
        .ok()
        .and_then(|k| k.try_into().ok())
        .ok_or_else(|| StoreError::Damaged { path: path.to_owned(), why: "it is not 64 hexadecimal digits".into() })
}

pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error("opening", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::InUse(path.parent().unwrap_or(path).to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io_error("locking", path)(source)),
    }
}

/// Replaces a file as a whole, readable by us alone.
///
/// # Errors
/// `Io`; the old file stays then.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    disk::replace(path, bytes).map_err(io_error("writing", path))
}

/// Reads a file that others must not be able to read.
///
/// # Errors
/// `Exposed`, `Io`.
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mode = fs::metadata(path).map_err(io_error("reading", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(StoreError::Exposed(path.to_owned()));
    }
    fs::read(path).map_err(io_error("reading", path))
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(io_error("writing", folder))
}

pub(super) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { what, path: path.to_owned(), source }
}
