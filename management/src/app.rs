//! What every part of the core shares: the domain, the TLS identity, the relays' standing, and who waits for a change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hedgerow_proxy::publish::Published;
use hedgerow_runtime::clock;
use hedgerow_runtime::tls::{self, Clients, InForce, Own, SigningKey};
use hedgerow_shared::fault::Fault;
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::{TenantCa, Version};
use hedgerow_shared::wire::core_api::ALPN_HTTP;
use hedgerow_shared::wire::message::{LicenceVerdict, ServiceReply};
use hedgerow_shared::wire::names::{RefusedName, RegisteredName};
use hedgerow_shared::{EntityId, Role, TenantId, UnixTime};
use hedgerow_uem_core::account::{Email, NodeState, TenantSettings};
use hedgerow_uem_core::config::Configs;
use hedgerow_uem_core::service::{NewTenant, Swept};
use hedgerow_uem_core::store::Page;
use hedgerow_uem_core::{Actor, Call, Core, CoreError};
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::Instant;

use crate::store::{Database, Lock, State, SystemRandom};

/// The domain over the database.
pub type Domain = Core<Database>;

/// Connections to `core` and `bws` served at once; more are refused with `Limited`.
pub const MAX_CONNECTIONS: usize = 1024;
/// Devices that wait to be woken; where there are more, all are.
const WAKES: usize = 256;
/// Our own certificate is made anew when less than this is left of it.
const IDENTITY_RESERVE_SECONDS: u64 = 30 * 24 * 3600;

/// See the module. Shared as `Arc<App>`.
pub struct App {
    /// Whose core this is.
    pub tenant: TenantId,
    /// The domain.
    pub domain: Domain,
    /// The tenant's CA.
    pub ca: TenantCa,
    /// Timers.
    pub timers: Timers,
    /// When this process started.
    pub started: Instant,
    /// Where each configured relay stands.
    pub(crate) relays: Vec<RelayState>,
    /// Permission to do the curve arithmetic of an activation: as many as there are processors, since each takes
    /// milliseconds of one.
    pub(crate) curve: Semaphore,
    /// Permission to serve a connection.
    pub(crate) connections: Arc<Semaphore>,
    /// Held while rules or routes are read, changed and written back.
    pub(crate) policy: tokio::sync::Mutex<()>,
    /// Servers that names of origin `mdm` lead to.
    pub(crate) published: Published,
    identity: RwLock<Arc<Identity>>,
    /// The documents of the version that was asked for last.
    configs: Mutex<Option<Arc<Configs>>>,
    web: Option<WebFiles>,
    /// Keeps a second process out of the state directory.
    _lock: Lock,
    changes: watch::Sender<u64>,
    acknowledgements: watch::Sender<u64>,
    /// Devices that are to ask for their commands.
    wakes: broadcast::Sender<EntityId>,
}

/// The server side of TLS for both origins.
pub(crate) struct Identity {
    pub(crate) core: Arc<ServerConfig>,
    pub(crate) bws: Arc<ServerConfig>,
    not_after: UnixTime,
    /// Key of the CA that our certificate stands under.
    issuer: [u8; 32],
    /// The certificate of the web services as it was read.
    web: Option<Own>,
}

/// Where the web services' own certificate lies, when they have one. It is read again while the core runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// Its key, PEM, open to its owner only.
    pub key: PathBuf,
}

impl WebFiles {
    /// # Errors
    /// A file cannot be read, or key and certificate do not fit.
    pub(crate) fn read(&self) -> anyhow::Result<Own> {
        let chain = tls::read_certificates(&self.certificate).context("bws.certificate")?;
        let own = Own { chain, key: SigningKey::read(&self.key).context("bws.key_file")? };
        tls::as_relay(own.chain.clone(), own.key.to_rustls(), &[ALPN_HTTP])?;
        Ok(own)
    }
}

/// One configured relay.
pub(crate) struct RelayState {
    /// Its name; its holder's name in acknowledgements is `relay:NAME`.
    pub(crate) name: String,
    /// What is known of it.
    pub(crate) standing: Mutex<Standing>,
}

/// What is known of a relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether the link is up, and since when.
    pub(crate) up: Option<UnixTime>,
    /// Transport of the link, and why that one.
    pub(crate) transport: Option<(&'static str, &'static str)>,
    /// What went wrong last; cleared when the relay is up to date.
    pub(crate) fault: Option<Fault>,
    /// Whether it has our CA.
    pub(crate) ca: bool,
    /// The configuration in force there, as it said on this link.
    pub(crate) config: Option<Version>,
    /// The addresses it answers for, as last published on this link.
    pub(crate) registrations: Vec<Email>,
    /// The server names it was told on this link.
    pub(crate) names: Option<Vec<RegisteredName>>,
    /// Whether it knows of names at all.
    pub(crate) knows_names: bool,
    /// Those of them that it does not pass through.
    pub(crate) refused: Vec<RefusedName>,
    /// Where web-services clients find it as an HTTP proxy.
    pub(crate) web: Vec<String>,
    /// What it makes of the licence that it was shown last on this link.
    pub(crate) licence: LicenceAt,
}

/// Where a licence stands at one relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum LicenceAt {
    /// None was shown on this link.
    #[default]
    NotShown,
    /// It was shown, and nothing was answered yet; a relay that knows nothing of licences never answers.
    Shown {
        /// Of the presentation.
        request: u32,
        /// Which licence: the id.
        id: String,
    },
    /// The relay has answered.
    Judged {
        /// Which licence: the id.
        id: String,
        /// What it said.
        verdict: LicenceVerdict,
    },
}

impl LicenceAt {
    /// The relay's answer about a licence.
    pub(crate) fn verdict_on(&self, wanted: &str) -> Option<&LicenceVerdict> {
        match self {
            Self::Judged { id, verdict } if id == wanted => Some(verdict),
            Self::Judged { .. } | Self::Shown { .. } | Self::NotShown => None,
        }
    }
}

/// Where one server name stands at one relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameAt {
    /// Its clients are passed through.
    Passed,
    /// The relay has not been told.
    NotYet,
    /// It will not.
    Refused(Fault),
    /// It does not know of names.
    Unknown,
}

/// A call of the domain, now, by `actor`.
#[must_use]
pub fn call(actor: Actor) -> Call<'static> {
    // The source has no size: nothing is allocated, and nothing leaks.
    Call::new(actor, clock::now(), Box::leak(Box::new(SystemRandom)))
}

impl App {
    /// Opens the domain: makes the tenant when there is none, or brings its settings up to date, and issues the
    /// core's own certificate.
    ///
    /// # Errors
    /// The storage holds another tenant, or does not work.
    pub async fn open(
        state: State,
        new: NewTenant,
        relays: &[String],
        web: Option<WebFiles>,
        published: Published,
        timers: Timers,
    ) -> anyhow::Result<Arc<Self>> {
        let State { store, kek, lock } = state;
        let domain = Core::new(store, kek);
        let tenant = new.id.clone();
        bring_up(&domain, new).await?;
        let ca = domain.tenant_ca(&tenant).await?;
        let shown = web.as_ref().map(WebFiles::read).transpose()?;
        let identity = RwLock::new(Arc::new(issue(&domain, &tenant, &ca, shown).await?));
        let relays = relays.iter().map(|name| RelayState { name: name.clone(), standing: Mutex::default() }).collect();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Arc::new(Self {
            tenant,
            domain,
            ca,
            timers,
            started: Instant::now(),
            relays,
            curve: Semaphore::new(cores),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            policy: tokio::sync::Mutex::new(()),
            identity,
            configs: Mutex::default(),
            web,
            published,
            _lock: lock,
            changes: watch::Sender::new(0),
            acknowledgements: watch::Sender::new(0),
            wakes: broadcast::Sender::new(WAKES),
        }))
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.identity.read().clone()
    }

    /// Makes a new certificate for ourselves when the old one comes near its end, and shows the web services' when its
    /// files have changed. One that cannot be read changes nothing.
    pub(crate) async fn renew_identity(&self) -> anyhow::Result<()> {
        let identity = self.identity();
        let due = clock::now().plus(IDENTITY_RESERVE_SECONDS) >= identity.not_after;
        let read = self.web.as_ref().map(WebFiles::read).transpose();
        let web = match &read {
            Ok(web) => web.clone(),
            Err(_) => identity.web.clone(),
        };
        let chain = |own: &Option<Own>| own.as_ref().map(|own| own.chain.clone());
        if due || chain(&web) != chain(&identity.web) {
            let fresh = issue(&self.domain, &self.tenant, &self.ca, web).await?;
            *self.identity.write() = Arc::new(fresh);
            tracing::info!("the core shows new certificates");
        }
        read.context("the web services' certificate could not be read again; the old one stays in use").map(|_| ())
    }

    /// Believes the CAs that the tenant has now; where the one in force is another, our own certificate is made anew.
    pub(crate) async fn know_cas(&self) -> anyhow::Result<()> {
        let now = self.domain.tenant_ca(&self.tenant).await?;
        // First: should it fail, it is tried again, and we are believed under both until then.
        let identity = self.identity();
        if identity.issuer != now.key_id() {
            let fresh = issue(&self.domain, &self.tenant, &self.ca, identity.web.clone()).await?;
            *self.identity.write() = Arc::new(fresh);
        }
        if now == self.ca {
            return Ok(());
        }
        self.ca.replace(&now.ders())?;
        tracing::info!(cas = now.ders().len(), first = self.ca.pin(), "the tenant's CA changes");
        Ok(())
    }

    /// Shows when certificates of the tenant end.
    pub(crate) async fn show_expiry(&self) -> Result<(), CoreError> {
        let row = self.domain.tenant(&self.tenant).await?;
        tls::show_expiry("tenant-ca", &row.ca_certificate);
        tls::show_expiry("config-key", &row.config_certificate);
        Ok(())
    }

    /// Something was committed: relays must be told.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Judges one page of devices; relays learn of what changed, and devices that have something to fetch are woken.
    pub(crate) async fn sweep(&self, call: &mut Call<'_>, page: Page) -> Result<Swept, CoreError> {
        let swept = self.domain.sweep(call, &self.tenant, page).await?;
        if swept.changed > 0 {
            self.changed();
        }
        swept.to_wake.iter().for_each(|device| self.wake(*device));
        Ok(swept)
    }

    /// A device has something to fetch: it is told by whatever relay it has a link to.
    pub(crate) fn wake(&self, device: EntityId) {
        // Without a link to any relay nobody listens: the device asks by itself when it is back.
        let _ = self.wakes.send(device);
    }

    pub(crate) fn wakes(&self) -> broadcast::Receiver<EntityId> {
        self.wakes.subscribe()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The documents in force. Made once a version.
    pub(crate) async fn configs(&self) -> Result<Arc<Configs>, CoreError> {
        let version = self.domain.config_version(&self.tenant).await?;
        if let Some(known) = self.configs.lock().as_ref().filter(|known| known.version == version) {
            return Ok(known.clone());
        }
        let made = Arc::new(self.domain.configs(&self.tenant).await?);
        *self.configs.lock() = Some(made.clone());
        Ok(made)
    }

    /// Notes that a relay or node has a version in force.
    pub(crate) async fn acknowledge(&self, holder: &str, version: Version) -> Result<(), CoreError> {
        self.domain.acknowledge(&self.tenant, holder, version, clock::now()).await?;
        self.acknowledgements.send_modify(|n| *n = n.wrapping_add(1));
        Ok(())
    }

    /// Who must have the configuration in force: every configured relay, every active node; with the version each
    /// has, if it ever said.
    pub(crate) async fn holders(&self) -> Result<Vec<(String, Option<Version>)>, CoreError> {
        let acknowledged = self.domain.acknowledgements(&self.tenant).await?;
        let version = |holder: &str| acknowledged.iter().find(|a| a.holder == holder).map(|a| a.version);
        let mut holders: Vec<String> = self.relays.iter().map(|r| format!("relay:{}", r.name)).collect();
        let mut page = Page::first();
        loop {
            let nodes = self.domain.nodes(&self.tenant, page).await?;
            holders.extend(nodes.iter().filter(|n| n.state == NodeState::Active).map(|n| format!("node:{}", n.id)));
            let Some(next) = page.behind(&nodes, |node| node.id) else { break };
            page = next;
        }
        Ok(holders.into_iter().map(|h| (h.clone(), version(&h))).collect())
    }

    /// Notes what a relay answers for and passes through.
    pub(crate) fn registered(
        &self,
        relay: &RelayState,
        addresses: Vec<Email>,
        names: Vec<RegisteredName>,
        reply: ServiceReply,
    ) {
        let mut standing = relay.standing.lock();
        standing.registrations = addresses;
        standing.names = Some(names);
        standing.knows_names = reply.refused.is_some();
        standing.refused = reply.refused.unwrap_or_default();
        standing.web = reply.web;
        drop(standing);
        self.acknowledgements.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Notes what a relay says of a licence that it was shown.
    pub(crate) fn licence_judged(&self, relay: &RelayState, verdict: LicenceVerdict) {
        let mut standing = relay.standing.lock();
        match &standing.licence {
            LicenceAt::Shown { request, id } if *request == verdict.request => {
                standing.licence = LicenceAt::Judged { id: id.clone(), verdict };
            }
            // Of one that was shown before; the answer to the last one is still to come.
            LicenceAt::Shown { .. } | LicenceAt::Judged { .. } | LicenceAt::NotShown => {}
        }
        drop(standing);
        self.acknowledgements.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Waits, at most `limit`, until every relay whose link is up has judged this licence. Which have not yet, those that
    /// are down included. Cancel safe.
    pub(crate) async fn licence_told(&self, limit: Duration, licence: &str) -> Vec<String> {
        self.lacking(limit, |standing| standing.licence.verdict_on(licence).is_none()).await
    }

    /// Waits, at most `limit`, until every relay whose link is up has been told a list for which `told` holds. Which have
    /// not yet, those that are down included. Cancel safe.
    pub(crate) async fn names_told(&self, limit: Duration, told: impl Fn(&[RegisteredName]) -> bool) -> Vec<String> {
        self.lacking(limit, |standing| !standing.names.as_ref().is_some_and(|n| told(n))).await
    }

    /// Where a name stands at each relay.
    pub(crate) fn name_at_relays(&self, name: &RegisteredName) -> Vec<(String, NameAt)> {
        let at = |standing: &Standing| match &standing.names {
            Some(names) if names.contains(name) => match standing.refused.iter().find(|r| r.name == name.name) {
                Some(refused) => NameAt::Refused(refused.fault.clone()),
                None if standing.knows_names => NameAt::Passed,
                None => NameAt::Unknown,
            },
            _ => NameAt::NotYet,
        };
        self.relays.iter().map(|relay| (relay.name.clone(), at(&relay.standing.lock()))).collect()
    }

    /// Waits, at most `limit`, until every relay whose link is up answers for `address`. Which do not yet, those that
    /// are down included. Cancel safe.
    pub(crate) async fn not_listed(&self, address: &Email, limit: Duration) -> Vec<String> {
        self.lacking(limit, |standing| !standing.registrations.contains(address)).await
    }

    /// Waits, at most `limit`, until no relay whose link is up lacks something. Which do still, those that are down
    /// included. Cancel safe.
    async fn lacking(&self, limit: Duration, lacks: impl Fn(&Standing) -> bool) -> Vec<String> {
        let mut news = self.acknowledgements.subscribe();
        let deadline = Instant::now() + limit;
        loop {
            news.borrow_and_update();
            let late: Vec<&RelayState> = self.relays.iter().filter(|relay| lacks(&relay.standing.lock())).collect();
            let none_up = late.iter().all(|r| r.standing.lock().up.is_none());
            if none_up || tokio::time::timeout_at(deadline, news.changed()).await.is_err() {
                return late.iter().map(|r| format!("relay:{}", r.name)).collect();
            }
        }
    }

    /// Waits, at most `limit`, until everybody has `version`. Who has not yet. Cancel safe.
    pub(crate) async fn not_yet(&self, version: Version, limit: Duration) -> Result<Vec<String>, CoreError> {
        let mut news = self.acknowledgements.subscribe();
        let deadline = Instant::now() + limit;
        loop {
            news.borrow_and_update();
            let holders = self.holders().await?;
            let late: Vec<String> =
                holders.into_iter().filter(|(_, v)| v.is_none_or(|v| v < version)).map(|(h, _)| h).collect();
            if late.is_empty() || tokio::time::timeout_at(deadline, news.changed()).await.is_err() {
                return Ok(late);
            }
        }
    }
}

/// Makes the tenant, or checks that it is the one and updates what the file decides.
async fn bring_up(domain: &Domain, new: NewTenant) -> anyhow::Result<()> {
    let tenants = domain.tenants().await?;
    if let Some(other) = tenants.iter().find(|t| **t != new.id) {
        anyhow::bail!("the state directory belongs to tenant {other}, but the configuration names {}", new.id);
    }
    let mut call = call(Actor::System);
    if tenants.is_empty() {
        let row = domain.create_tenant(&mut call, new).await.context("the tenant cannot be made")?;
        tracing::info!(tenant = %row.id, "tenant made, with its CA");
        return Ok(());
    }
    let row = domain.tenant(&new.id).await?;
    let settings: TenantSettings = new.settings;
    if row.settings != settings {
        domain.set_settings(&mut call, &new.id, settings).await.context("the relays cannot be set")?;
    }
    Ok(())
}

async fn issue(domain: &Domain, tenant: &TenantId, ca: &TenantCa, web: Option<Own>) -> anyhow::Result<Identity> {
    let made = domain.core_identity(&mut call(Actor::System), tenant).await?;
    let issuer = TenantCa::from_der(&made.ca)?.key_id();
    let key = SigningKey::from_pkcs8(&made.key).context("the core's own key cannot be used")?;
    // The CA goes along so that an enrolling node can compare it with its token's pin.
    let own = Own { chain: vec![CertificateDer::from(made.certificate), CertificateDer::from(made.ca)], key };
    let core = tls::as_tenant(
        ca.clone(),
        &[Role::Node, Role::Device],
        Clients::Anyone,
        &InForce::new(own.clone()),
        &[ALPN_HTTP],
    )?;
    let shown = web.as_ref().unwrap_or(&own);
    let bws = tls::as_relay(shown.chain.clone(), shown.key.to_rustls(), &[ALPN_HTTP])?;
    for (name, own) in [("own", Some(&own)), ("web", web.as_ref())] {
        own.and_then(|own| own.chain.first()).inspect(|leaf| tls::show_expiry(name, leaf));
    }
    Ok(Identity { core, bws, not_after: made.not_after, issuer, web })
}
