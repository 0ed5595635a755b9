//! Between records and rows. Reading checks everything: a database is input.

use std::fmt::Display;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hedgerow_shared::verify::Version;
use hedgerow_shared::{EntityId, Role, TenantId, UnixTime};
use hedgerow_uem_core::account::{
    Device, DeviceState, Node, NodeState, SealedKey, ServerName, Tenant, Token, User, UserSource,
};
use hedgerow_uem_core::activation::ActivationPassword;
use hedgerow_uem_core::audit;
use hedgerow_uem_core::ca::CertificateRecord;
use hedgerow_uem_core::licence::Installed;
use hedgerow_uem_core::store::{Acknowledgement, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sql::SqlRow;

/// A number as SQL keeps it. Times and counters beyond 2^63 do not occur; saturating keeps them in order.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn time(time: Option<UnixTime>) -> Option<i64> {
    time.map(|t| int(t.0))
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Backend(Box::new(e)))
}

pub(super) fn device_state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Active => "active",
        DeviceState::Revoked => "revoked",
    }
}

pub(super) fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Revoked => "revoked",
    }
}

/// One row of a kind of record.
pub(super) struct Row<'a> {
    what: &'static str,
    row: &'a SqlRow,
}

impl<'a> Row<'a> {
    pub(super) fn new(what: &'static str, row: &'a SqlRow) -> Self {
        Self { what, row }
    }

    pub(super) fn corrupt(&self, column: &str, why: impl Display) -> StoreError {
        StoreError::Corrupt { what: self.what, why: format!("{column}: {why}") }
    }

    pub(super) fn text(&self, column: &str) -> Result<String, StoreError> {
        self.row.get(column).map_err(|e| self.corrupt(column, e))
    }

    pub(super) fn text_or_null(&self, column: &str) -> Result<Option<String>, StoreError> {
        self.row.get(column).map_err(|e| self.corrupt(column, e))
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T, StoreError> {
        self.text(column)?.parse().map_err(|e| self.corrupt(column, e))
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|e| self.corrupt(column, e))
    }

    fn json_or_null<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, StoreError> {
        let text = self.text_or_null(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|e| self.corrupt(column, e))).transpose()
    }

    fn bytes(&self, column: &str) -> Result<Vec<u8>, StoreError> {
        STANDARD.decode(self.text(column)?).map_err(|e| self.corrupt(column, e))
    }

    fn array<const N: usize>(&self, column: &str) -> Result<[u8; N], StoreError> {
        self.bytes(column)?.try_into().map_err(|_| self.corrupt(column, "wrong length"))
    }

    pub(super) fn number(&self, column: &str) -> Result<u64, StoreError> {
        let number: i64 = self.row.get(column).map_err(|e| self.corrupt(column, e))?;
        u64::try_from(number).map_err(|e| self.corrupt(column, e))
    }

    pub(super) fn time(&self, column: &str) -> Result<UnixTime, StoreError> {
        self.number(column).map(UnixTime)
    }

    fn number_or_null(&self, column: &str) -> Result<Option<u64>, StoreError> {
        let number: Option<i64> = self.row.get(column).map_err(|e| self.corrupt(column, e))?;
        number.map(|n| u64::try_from(n).map_err(|e| self.corrupt(column, e))).transpose()
    }

    pub(super) fn time_or_null(&self, column: &str) -> Result<Option<UnixTime>, StoreError> {
        Ok(self.number_or_null(column)?.map(UnixTime))
    }

    fn version(&self, epoch: &str, version: &str) -> Result<Version, StoreError> {
        Ok(Version { epoch: self.number(epoch)?, version: self.number(version)? })
    }

    pub(super) fn tenant(&self) -> Result<Tenant, StoreError> {
        Ok(Tenant {
            id: self.parse("id")?,
            name: self.text("name")?,
            created: self.time("created")?,
            revision: self.number("revision")?,
            config: self.version("config_epoch", "config_version")?,
            config_issued: self.time("config_issued")?,
            ca_certificate: self.bytes("ca_certificate")?,
            ca_key: SealedKey(self.bytes("ca_key")?),
            rollover: self.json_or_null("rollover")?,
            config_certificate: self.bytes("config_certificate")?,
            config_key: SealedKey(self.bytes("config_key")?),
            settings: self.json("settings")?,
            default_route: self.parse("default_route")?,
            audit: audit::Head { number: self.number("audit_number")?, hash: self.array("audit_hash")? },
        })
    }

    pub(super) fn user(&self) -> Result<User, StoreError> {
        Ok(User {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            email: self.parse("email")?,
            display_name: self.text("display_name")?,
            active: self.number("active")? != 0,
            created: self.time("created")?,
            source: self.user_source()?,
        })
    }

    fn user_source(&self) -> Result<UserSource, StoreError> {
        match (self.text_or_null("directory")?, self.text_or_null("external")?) {
            (None, None) => Ok(UserSource::Local),
            (Some(directory), Some(external)) => {
                let directory = directory.parse().map_err(|e| self.corrupt("directory", e))?;
                Ok(UserSource::Directory { directory, external })
            }
            _ => Err(self.corrupt("external", "half of a directory's user")),
        }
    }

    pub(super) fn bytes_or_null(&self, column: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let text = self.text_or_null(column)?;
        text.map(|text| STANDARD.decode(text).map_err(|e| self.corrupt(column, e))).transpose()
    }

    pub(super) fn password(&self) -> Result<ActivationPassword, StoreError> {
        let sealed = self.text_or_null("sealed")?;
        let sealed = sealed.map(|s| STANDARD.decode(s).map_err(|e| self.corrupt("sealed", e))).transpose()?;
        Ok(ActivationPassword {
            tenant: self.parse("tenant")?,
            user: self.parse("account")?,
            id: self.parse("id")?,
            sealed,
            created: self.time("created")?,
            expires: self.time("expires")?,
            wrong: u8::try_from(self.number("wrong")?).unwrap_or(u8::MAX),
        })
    }

    pub(super) fn device(&self) -> Result<Device, StoreError> {
        let id = self.parse("id")?;
        let state = match self.text("state")?.as_str() {
            "active" => DeviceState::Active,
            "revoked" => DeviceState::Revoked,
            _ => return Err(self.corrupt("state", "unknown word")),
        };
        Ok(Device {
            tenant: self.parse("tenant")?,
            id,
            user: self.parse("account")?,
            name: self.text("name")?,
            platform: self.text("platform")?,
            certificate: self.newest_certificate(id, Role::Device)?,
            state,
            created: self.time("created")?,
            revoked: self.time_or_null("revoked")?,
            last_seen: self.time_or_null("last_seen")?,
            obeys: match (self.number_or_null("obeys_epoch")?, self.number_or_null("obeys_version")?) {
                (Some(epoch), Some(version)) => Some(Version { epoch, version }),
                _ => None,
            },
            activation: match self.text("activation")?.as_str() {
                "" => None,
                word => Some(word.parse().map_err(|e| self.corrupt("activation", e))?),
            },
        })
    }

    pub(super) fn node(&self) -> Result<Node, StoreError> {
        let id = self.parse("id")?;
        let state = match self.text("state")?.as_str() {
            "active" => NodeState::Active,
            "revoked" => NodeState::Revoked,
            _ => return Err(self.corrupt("state", "unknown word")),
        };
        Ok(Node {
            tenant: self.parse("tenant")?,
            id,
            name: self.text("name")?,
            group: self.parse("server_group")?,
            origins: self.json("origins")?,
            certificate: self.newest_certificate(id, Role::Node)?,
            state,
            created: self.time("created")?,
            revoked: self.time_or_null("revoked")?,
            last_seen: self.time_or_null("last_seen")?,
        })
    }

    fn newest_certificate(&self, holder: EntityId, role: Role) -> Result<CertificateRecord, StoreError> {
        Ok(CertificateRecord {
            serial: self.text("serial")?,
            holder,
            role,
            fingerprint: self.text("fingerprint")?,
            issuer: self.text("issuer")?,
            not_before: self.time("not_before")?,
            not_after: self.time("not_after")?,
        })
    }

    pub(super) fn certificate(&self) -> Result<CertificateRecord, StoreError> {
        self.newest_certificate(self.parse("holder")?, self.parse("role")?)
    }

    pub(super) fn token(&self) -> Result<Token, StoreError> {
        let used_by = self.text_or_null("used_by")?;
        let used_by = used_by.map(|id| id.parse().map_err(|e| self.corrupt("used_by", e))).transpose()?;
        Ok(Token {
            tenant: self.parse("tenant")?,
            id: self.parse("id")?,
            secret_hash: self.array("secret_hash")?,
            name: self.text("name")?,
            group: self.parse("server_group")?,
            origins: self.json("origins")?,
            created: self.time("created")?,
            expires: self.time("expires")?,
            used: self.time_or_null("used")?.zip(used_by),
            revoked: self.time_or_null("revoked")?,
        })
    }

    pub(super) fn server_name(&self) -> Result<ServerName, StoreError> {
        Ok(ServerName {
            tenant: self.parse("tenant")?,
            name: self.text("name")?,
            origin: self.parse("origin")?,
            created: self.time("created")?,
        })
    }

    pub(super) fn licence(&self) -> Result<Installed, StoreError> {
        Installed::read(&self.text("text")?, self.time("installed")?).map_err(|e| self.corrupt("text", e))
    }

    pub(super) fn audit(&self) -> Result<audit::Record, StoreError> {
        Ok(audit::Record {
            number: self.number("number")?,
            time: self.time("time")?,
            actor: self.text("actor")?,
            action: self.text("action")?,
            subject: self.text("subject")?,
            outcome: self.parse("outcome")?,
            detail: self.text("detail")?,
            hash: self.array("hash")?,
        })
    }

    pub(super) fn acknowledgement(&self) -> Result<Acknowledgement, StoreError> {
        Ok(Acknowledgement {
            holder: self.text("holder")?,
            version: self.version("epoch", "version")?,
            time: self.time("time")?,
        })
    }

    pub(super) fn tenant_id(&self) -> Result<TenantId, StoreError> {
        self.parse("id")
    }
}
