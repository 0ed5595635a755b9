//! Nodes and the tokens that make them.

use hedgerow_shared::verify::{Identity, TenantCa};
use hedgerow_shared::wire::token::EnrolmentToken;
use hedgerow_shared::{EntityId, GroupName, Origin, Role, TenantId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Actor, Call, Core, Plan};
use crate::account::{self, Node, NodeState, Token, TokenState};
use crate::ca::CertificateRequest;
use crate::store::{Change, Page, Store};
use crate::{CoreError, encoding, random};

/// The longest a token may be good.
const MAX_TOKEN_LIFETIME_SECONDS: u64 = 30 * 24 * 3600;

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Name for the node, when the enrolling side gives none.
    pub name: String,
    /// Group of the node.
    pub group: GroupName,
    /// Origins the node may register; at least one, none that only the core serves.
    pub origins: Vec<Origin>,
    /// 1 second to 30 days.
    pub lifetime_seconds: u64,
}

/// What an enrolling node sends, inside TLS whose server certificate stood under the CA that its token pins.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEnrolRequest {
    /// The token's id.
    pub token: EntityId,
    /// The token's secret.
    #[serde(with = "encoding::base64")]
    pub secret: [u8; 32],
    /// PKCS#10, DER (`ca::Key::certificate_request`).
    #[serde(with = "encoding::base64")]
    pub csr: Vec<u8>,
    /// What the node is to be called; the token's name when absent.
    #[serde(default)]
    pub name: Option<String>,
}

impl std::fmt::Debug for NodeEnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeEnrolRequest(token {})", self.token)
    }
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEnrolReply {
    /// The node's id, as in its certificate.
    pub node: EntityId,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: GroupName,
    /// Origins it may register.
    pub origins: Vec<Origin>,
    /// The tenant CA, DER; the node compares its key with the token's pin once more.
    #[serde(with = "encoding::base64")]
    pub ca: Vec<u8>,
    /// The node's certificate, DER.
    #[serde(with = "encoding::base64")]
    pub certificate: Vec<u8>,
    /// Relays, `host:port`, in order of preference.
    pub relays: Vec<String>,
    /// The relays' TLS name when it is not the host part.
    #[serde(default)]
    pub relay_name: Option<String>,
    /// The relays' CA, PEM; absent for a public one.
    #[serde(default)]
    pub relay_ca_pem: Option<String>,
}

/// Why a token was refused. Only who has the token's secret is told more than `Unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenRefusal {
    /// No such token, or a wrong secret.
    #[error("the enrolment token is not known here")]
    Unknown,
    /// It made a node already.
    #[error("the enrolment token was used already; each is good once: ask for a new one")]
    Used,
    /// Its time is over.
    #[error("the enrolment token has expired: ask for a new one")]
    Expired,
    /// It was withdrawn.
    #[error("the enrolment token was withdrawn: ask for a new one")]
    Revoked,
    /// The certificate request is no good; the token is still good.
    #[error("the certificate request is not acceptable: it must be signed by an ECDSA P-256 key")]
    Request,
}

impl TokenRefusal {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Request => "request",
        }
    }
}

/// An enrolment that ended.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Refused; the node may be told.
    #[error(transparent)]
    Refused(#[from] TokenRefusal),
    /// The core itself failed; the node may try again.
    #[error("the core failed")]
    Core(#[from] CoreError),
}

impl<S: Store> Core<S> {
    /// Makes a token. The second part is the one string's content; its secret is not kept.
    ///
    /// # Errors
    /// `Invalid` (also when the tenant's settings name no relay yet), `NotFound`, `Busy`, `Store`.
    pub async fn create_token(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        new: NewToken,
    ) -> Result<(Token, EnrolmentToken), CoreError> {
        if !(1..=MAX_TOKEN_LIFETIME_SECONDS).contains(&new.lifetime_seconds) {
            return Err(CoreError::invalid("the lifetime", "use one second to 30 days"));
        }
        let mut origins = new.origins;
        origins.sort_unstable();
        origins.dedup();
        if origins.is_empty() || origins.iter().any(|o| o.anonymous()) {
            return Err(CoreError::invalid(
                "the list of origins",
                "a node serves at least one, and neither core nor bws",
            ));
        }
        let name = account::name("the node's name", &new.name)?;
        let secret: [u8; 32] = random::bytes(call.random);
        let record = Token {
            tenant: tenant.clone(),
            id: call.id(),
            secret_hash: Sha256::digest(secret).into(),
            name,
            group: new.group,
            origins,
            created: call.now,
            expires: call.now.plus(new.lifetime_seconds),
            used: None,
            revoked: None,
        };
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            if row.settings.relays.is_empty() {
                return Err(CoreError::invalid(
                    "the tenant's settings",
                    "no relay is set, so a node could not find the core",
                ));
            }
            let ca = TenantCa::from_der(&row.ca_certificate).map_err(|_| CoreError::Damaged("the CA certificate"))?;
            let token = EnrolmentToken {
                tenant: tenant.clone(),
                relays: row.settings.relays.clone(),
                relay_ca_pin: row.settings.relay_ca_pem.as_deref().map(key_pin).transpose()?,
                tenant_ca_pin: ca.key_id(),
                id: record.id,
                secret,
            };
            let plan = Plan::default().change(Change::PutToken(record.clone()));
            let detail = format!("{}, group {}, until {}", record.name, record.group, record.expires.0);
            if self.commit(call, row, plan.record("token.create", record.id.to_string(), detail)).await? {
                return Ok((record, token));
            }
        }
    }

    /// Withdraws a token that was not used yet.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn revoke_token(&self, call: &mut Call<'_>, tenant: &TenantId, id: EntityId) -> Result<Token, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let found = self.store.token(tenant, id).await.map_err(CoreError::Store)?;
            let mut token = found.ok_or_else(|| CoreError::not_found("token", id))?;
            if token.used.is_some() || token.revoked.is_some() {
                return Ok(token);
            }
            token.revoked = Some(call.now);
            let plan = Plan::default().change(Change::PutToken(token.clone()));
            if self.commit(call, row, plan.record("token.revoke", id.to_string(), token.name.clone())).await? {
                return Ok(token);
            }
        }
    }

    /// Tokens, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn tokens(&self, tenant: &TenantId, page: Page) -> Result<Vec<Token>, CoreError> {
        self.store.tokens(tenant, page).await.map_err(CoreError::Store)
    }

    /// Makes a node of whoever shows a token's secret; the token is used up in the same commit.
    ///
    /// # Errors
    /// `Refused`, `Core`.
    pub async fn enrol_node(
        &self,
        call: &mut Call<'_>,
        tenant: &TenantId,
        request: &NodeEnrolRequest,
    ) -> Result<(NodeEnrolReply, Node), EnrolError> {
        let hash: [u8; 32] = Sha256::digest(request.secret).into();
        let id = call.id();
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let found = self.store.token(tenant, request.token).await.map_err(CoreError::Store)?;
            let Some(mut token) = found.filter(|t| bool::from(t.secret_hash.ct_eq(&hash))) else {
                return Err(TokenRefusal::Unknown.into());
            };
            match token.state(call.now) {
                TokenState::Open => {}
                TokenState::Used => return Err(TokenRefusal::Used.into()),
                TokenState::Expired => return Err(TokenRefusal::Expired.into()),
                TokenState::Revoked => return Err(TokenRefusal::Revoked.into()),
            }
            let csr = CertificateRequest::from_der(&request.csr).map_err(|_| TokenRefusal::Request)?;
            let asked = request.name.as_deref().map(account::told).filter(|n| !n.is_empty());
            let name = asked.unwrap_or_else(|| token.name.clone());
            let (group, origins) = (token.group.clone(), token.origins.clone());
            let identity = Identity {
                tenant: tenant.clone(),
                role: Role::Node,
                id,
                group: Some(group.clone()),
                origins: origins.clone(),
            };
            let issued =
                self.authority(&row)?.issue(&csr, &identity, call.now, call.random).map_err(CoreError::from)?;
            let node = Node {
                tenant: tenant.clone(),
                id,
                name: name.clone(),
                group: group.clone(),
                origins: origins.clone(),
                certificate: issued.record.clone(),
                state: NodeState::Active,
                created: call.now,
                revoked: None,
                last_seen: Some(call.now),
            };
            token.used = Some((call.now, id));
            let reply = NodeEnrolReply {
                node: id,
                name,
                group,
                origins,
                ca: row.ca_certificate.clone(),
                certificate: issued.certificate,
                relays: row.settings.relays.clone(),
                relay_name: row.settings.relay_name.clone(),
                relay_ca_pem: row.settings.relay_ca_pem.clone(),
            };
            call.actor = Actor::Node(id);
            let plan = Plan::default()
                .change(Change::PutToken(token))
                .change(Change::PutNode(node.clone()))
                .change(Change::AddCertificate(issued.record))
                .record("node.enrol", id.to_string(), format!("{}, token {}", node.name, request.token));
            if self.commit(call, row, plan).await? {
                return Ok((reply, node));
            }
        }
    }

    /// Nodes, in the order of ids.
    ///
    /// # Errors
    /// `Store`.
    pub async fn nodes(&self, tenant: &TenantId, page: Page) -> Result<Vec<Node>, CoreError> {
        self.store.nodes(tenant, page).await.map_err(CoreError::Store)
    }

    /// One node.
    ///
    /// # Errors
    /// `NotFound`, `Store`.
    pub async fn node(&self, tenant: &TenantId, id: EntityId) -> Result<Node, CoreError> {
        self.store.node(tenant, id).await.map_err(CoreError::Store)?.ok_or_else(|| CoreError::not_found("node", id))
    }

    /// Revokes a node for ever.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Store`.
    pub async fn revoke_node(&self, call: &mut Call<'_>, tenant: &TenantId, id: EntityId) -> Result<Node, CoreError> {
        let mut turn = self.turn();
        loop {
            turn.next().await?;
            let row = self.load(tenant).await?;
            let mut node = self.node(tenant, id).await?;
            if node.state == NodeState::Revoked {
                return Ok(node);
            }
            node.state = NodeState::Revoked;
            node.revoked = Some(call.now);
            let plan = Plan::default().publish().change(Change::PutNode(node.clone()));
            if self.commit(call, row, plan.record("node.revoke", id.to_string(), node.name.clone())).await? {
                return Ok(node);
            }
        }
    }
}

/// SHA-256 of the public key info of a PEM certificate: the pin that tokens carry.
pub(super) fn key_pin(pem: &str) -> Result<[u8; 32], CoreError> {
    let bad = |why: &str| CoreError::invalid("the relay CA", why);
    let parsed = pem::parse(pem).map_err(|_| bad("it is not one PEM certificate"))?;
    if parsed.tag() != "CERTIFICATE" {
        return Err(bad("the PEM block is not a CERTIFICATE"));
    }
    let (_, certificate) =
        X509Certificate::from_der(parsed.contents()).map_err(|_| bad("it is not an X.509 certificate"))?;
    Ok(Sha256::digest(certificate.public_key().raw).into())
}
