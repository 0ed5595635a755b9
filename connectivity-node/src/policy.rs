//! The configuration in force: where it comes from, what may replace it, and when it stops counting.
//!
//! At start the one on disk counts, if it still verifies. A newer one is fetched from the core when the link comes up,
//! when the core sends word (Wake), and every ten minutes; it is verified, kept on disk, then put in force. Without a
//! valid one everything is denied.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hedgerow_proxy::acl::Acl;
use hedgerow_proxy::target::Target;
use hedgerow_runtime::clock;
use hedgerow_runtime::core_client::{self, CoreClient};
use hedgerow_runtime::dial::{self, RelayTarget};
use hedgerow_runtime::link::Uplinks;
use hedgerow_runtime::scope::Scope;
use hedgerow_runtime::tls;
use hedgerow_shared::fault::{Code, Fault};
use hedgerow_shared::limits::Timers;
use hedgerow_shared::verify::policy::{Action, Rule, TargetPattern};
use hedgerow_shared::verify::scope;
use hedgerow_shared::verify::{NodeConfig, Revoked, Scopes, SignedConfig, VerifiedCertificate, Version};
use hedgerow_shared::wire::core_api;
use hedgerow_shared::{EntityId, GroupName, Origin, Role, UnixTime};
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::sessions::Sessions;
use crate::state::{Enrolled, State};

/// How often the core is asked without being told to.
const REFRESH: Duration = Duration::from_secs(600);
/// The pause after a first failure; it doubles up to `LONGEST_RETRY`.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Address ranges in a grant.
const MAX_NETWORKS: usize = 1000;
/// Between word from the core and the question: several words become one.
const WAKE_PAUSE: Duration = Duration::from_millis(100);

/// What counts now.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    /// The rules for devices that are in no scope.
    for_all: Arc<Rules>,
    /// For those of each scope, its own before the rules for all.
    scoped: Vec<(scope::Scope, Arc<Rules>)>,
    scopes: Scopes,
    /// Keys of the CAs that certify devices.
    authorities: Vec<[u8; 32]>,
    pub(crate) revoked: Revoked,
    pub(crate) version: Option<Version>,
    pub(crate) expires: UnixTime,
}

/// What the devices of one scope may reach.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) acl: Acl,
    pub(crate) rules: Vec<Rule>,
}

impl Policy {
    /// The rules that count for a device.
    pub(crate) fn rules(&self, device: &EntityId) -> &Arc<Rules> {
        self.scope(device).map_or(&self.for_all, |(_, rules)| rules)
    }

    fn scope(&self, device: &EntityId) -> Option<&(scope::Scope, Arc<Rules>)> {
        self.scopes.of(device).and_then(|at| self.scoped.get(at))
    }

    /// The rules for all, those of each scope, and whose scope is which.
    pub(crate) fn parts(&self) -> (&Arc<Rules>, impl Iterator<Item = &Arc<Rules>>, &Scopes) {
        (&self.for_all, self.scoped.iter().map(|(_, rules)| rules), &self.scopes)
    }

    /// Whether a device may have an IP tunnel.
    ///
    /// # Errors
    /// `DeniedByPolicy`, naming its profile.
    pub(crate) fn admits_tunnel(&self, device: &EntityId) -> Result<(), Fault> {
        match self.scope(device) {
            Some((scope, _)) if !(scope.enabled && scope.tunnel) => {
                let text = format!("the enterprise connectivity profile {:?} of this device has no tunnel", scope.name);
                Err(Fault::new(Code::DeniedByPolicy, text))
            }
            _ => Ok(()),
        }
    }

    /// Whether this device may have a session, or keep it.
    ///
    /// # Errors
    /// `Revoked`, `Unauthenticated` for a certificate that does not count any more, `DeniedByPolicy` for a device whose
    /// scope is switched off.
    pub(crate) fn admits(&self, device: &VerifiedCertificate) -> Result<(), Fault> {
        if self.revoked.names(&device.identity.id, &device.serial) {
            return Err(Fault::new(Code::Revoked, "this device was revoked"));
        }
        // Without a configuration it is its connections that are denied, and told why.
        let is_known = self.version.is_none() || self.authorities.contains(&device.issuer);
        if device.not_after < clock::now() || !is_known {
            let text = "the device's certificate has expired, or stands under a CA that the organisation has replaced";
            return Err(Fault::new(Code::Unauthenticated, text));
        }
        match self.scope(&device.identity.id) {
            Some((scope, _)) if !scope.enabled => {
                let text = format!("the device reaches nothing through nodes: {}", scope.name);
                Err(Fault::new(Code::DeniedByPolicy, text))
            }
            _ => Ok(()),
        }
    }

    /// The address ranges that rules for nodes of this group allow: what a tunnel's device may send here at all.
    pub(crate) fn networks(&self, device: &EntityId, group: Option<&GroupName>) -> Vec<(IpAddr, u8)> {
        let allows =
            |rule: &&Rule| rule.action == Action::Allow && rule.group.as_ref().is_none_or(|g| Some(g) == group);
        let networks = |rule: &Rule| match &rule.target {
            TargetPattern::Network { network, prefix } => vec![(*network, *prefix)],
            TargetPattern::Any => vec![(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0)],
            TargetPattern::Domain(_) | TargetPattern::Suffix(_) => Vec::new(),
        };
        let mut all: Vec<_> = self.rules(device).rules.iter().filter(allows).flat_map(networks).collect();
        all.sort_unstable();
        all.dedup();
        // A grant is small; what does not fit is reached by routes of the device's own configuration.
        all.truncate(MAX_NETWORKS);
        all
    }
}

/// The holder of the policy. `current` is read by every stream, replaced by one task.
pub(crate) struct Policies {
    state: State,
    enrolled: Arc<Enrolled>,
    own: Vec<Target>,
    /// A short write once a configuration; readers take a pointer.
    current: RwLock<Arc<Policy>>,
    seen: RwLock<Option<Version>>,
    sessions: Arc<Sessions>,
    changed: watch::Sender<()>,
    pub(crate) wake: Notify,
}

impl Policies {
    /// Begins with what is on disk. `own` is never reachable for devices.
    pub(crate) fn start(state: State, enrolled: Arc<Enrolled>, own: Vec<Target>, sessions: Arc<Sessions>) -> Self {
        let (config, seen) = state.config();
        let policies = Self {
            state,
            enrolled,
            own,
            current: RwLock::new(Arc::new(Policy::default())),
            seen: RwLock::new(seen),
            sessions,
            changed: watch::Sender::new(()),
            wake: Notify::new(),
        };
        match config.map(|config| policies.accept(&config, false)) {
            Some(Ok(version)) => info!(%version, "the configuration on disk is in force"),
            Some(Err(error)) => {
                warn!(%error, "the configuration on disk cannot be used: everything is denied until the core answers")
            }
            None => info!("no configuration yet: everything is denied until the core answers"),
        }
        policies
    }

    /// Tells of every policy that comes into force, and of its end.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The policy in force now; one that denies everything once it has expired.
    pub(crate) fn current(&self) -> Arc<Policy> {
        let current = self.current.read().clone();
        if current.version.is_some() && current.expires <= clock::now() { Arc::default() } else { current }
    }

    /// Verifies a configuration and puts it in force.
    fn accept(&self, signed: &SignedConfig, store: bool) -> anyhow::Result<Version> {
        let seen = *self.seen.read();
        let config: NodeConfig = signed.verify(&self.enrolled.ca, seen, clock::now()).inspect_err(|_| {
            metrics::counter!("hedgerow_node_configs_refused_total").increment(1);
        })?;
        let version = config.head.version;
        if self.current.read().version == Some(version) {
            return Ok(version);
        }
        let ca = &self.enrolled.ca;
        let believed = ca.after(&config.authorities)?;
        // Whenever the power fails, what is on disk verifies: a new CA comes before its documents, an old one goes after.
        let keep_config = || if store { self.state.store_config(signed, version) } else { Ok(()) };
        match &believed {
            Some(believed) if believed.len() < ca.ders().len() => {
                keep_config()?;
                self.state.store_cas(believed)?;
            }
            Some(believed) => {
                self.state.store_cas(believed)?;
                keep_config()?;
            }
            None => keep_config()?,
        }
        if let Some(believed) = believed {
            ca.replace(&believed)?;
            info!(cas = believed.len(), first = ca.pin(), "the tenant's CA changes");
        }
        *self.seen.write() = Some(version);
        let group = self.enrolled.certificate.identity.group.as_ref();
        let rules = |rules: Vec<Rule>| {
            let acl = Acl::new(&rules, group).refusing(self.own.clone());
            Arc::new(Rules { acl, rules })
        };
        let scopes = Scopes::new(&config.scopes);
        let scoped = config.scopes.into_iter().map(|mut scope| {
            // Where it is switched off there is no rule, and without a rule everything is denied.
            let own = if scope.enabled { [scope.rules.as_slice(), &config.rules].concat() } else { Vec::new() };
            scope.devices = Vec::new();
            (scope, rules(own))
        });
        let policy = Arc::new(Policy {
            scoped: scoped.collect(),
            scopes,
            authorities: self.enrolled.ca.key_ids(),
            for_all: rules(config.rules.clone()),
            revoked: config.revoked,
            version: Some(version),
            expires: config.head.expires,
        });
        *self.current.write() = policy.clone();
        self.sessions.enforce(&policy);
        self.changed.send_replace(());
        metrics::gauge!("hedgerow_node_config_expires_seconds").set(policy.expires.0 as f64);
        metrics::counter!("hedgerow_node_configs_applied_total").increment(1);
        Ok(version)
    }

    /// Denies everything from here on and ends what runs, when the configuration has expired.
    fn expire(&self) {
        let expired = self.current.read().version.is_some() && self.current().version.is_none();
        if expired {
            warn!("the configuration has expired and the core did not renew it: everything is denied");
            *self.current.write() = Arc::default();
            self.sessions.cut_all(&Fault::new(Code::DeniedByPolicy, "the node's configuration has expired"));
            self.changed.send_replace(());
        }
    }

    /// Keeps the policy fresh until the scope ends.
    pub(crate) async fn keep_fresh(
        &self,
        uplinks: &Uplinks,
        relays: &[RelayTarget],
        timers: &Timers,
        scale: f64,
        scope: &Scope,
        on_change: impl Fn(&Policy),
    ) {
        let mut failures = 0u32;
        loop {
            let before = self.current().version;
            let fetched = self.fetch(uplinks, relays, timers, scope).await;
            let pause = match fetched.and_then(|signed| signed.map(|s| self.accept(&s, true)).transpose()) {
                Ok(Some(version)) if before != Some(version) => {
                    info!(%version, "configuration in force");
                    failures = 0;
                    // Asking again at once tells the core that it is.
                    Duration::ZERO
                }
                Ok(_) => {
                    failures = 0;
                    REFRESH.mul_f64(scale)
                }
                Err(error) => {
                    warn!(error = format!("{error:#}"), "no new configuration from the core");
                    metrics::counter!("hedgerow_node_config_fetches_failed_total").increment(1);
                    failures += 1;
                    FIRST_RETRY.saturating_mul(1 << failures.min(6)).min(LONGEST_RETRY)
                }
            };
            on_change(&self.current());
            let expiry = Duration::from_secs(self.current().expires.since(clock::now()).saturating_add(1));
            let jitter = 0.9 + 0.1 * f64::from(clock::random::<1>()[0]) / 255.0;
            tokio::select! {
                // A relay that cries wolf costs a request now and then, not a loop.
                () = self.wake.notified() => sleep(WAKE_PAUSE).await,
                () = sleep(pause.mul_f64(jitter)) => {}
                () = sleep(expiry), if self.current().version.is_some() => {}
            }
            self.expire();
            on_change(&self.current());
        }
    }

    async fn fetch(
        &self,
        uplinks: &Uplinks,
        relays: &[RelayTarget],
        timers: &Timers,
        scope: &Scope,
    ) -> anyhow::Result<Option<SignedConfig>> {
        let tenant = self.enrolled.record.tenant.clone();
        // Made each time: certificate and key may have been renewed.
        let (ca, own) = (self.enrolled.ca.clone(), self.enrolled.own.get());
        let config = tls::to_tenant(ca, Role::Core, None, Some(&own), &[core_api::ALPN_HTTP])?;
        let have = self.current().version;
        let link = uplinks.link(timers.request).await?;
        let answer = match core_client::open(&link, &tenant, timers).await {
            Ok(stream) => {
                let mut core = CoreClient::handshake(config.clone(), stream, timers, scope).await?;
                core.config(core_api::CONFIG_NODE, have).await?
            }
            Err(fault) => {
                // The relay may know the core by CONNECT only.
                let relay = relays.iter().find(|r| r.name == link.accept.relay).or(relays.first()).ok_or(fault)?;
                let stream = dial::origin(relay, &tenant, Origin::Core, timers, scope).await?;
                let mut core = CoreClient::handshake(config.clone(), stream, timers, scope).await?;
                core.config(core_api::CONFIG_NODE, have).await?
            }
        };
        Ok(answer)
    }
}
