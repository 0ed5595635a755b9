//! A core with one tenant, and the devices and nodes that come to it.

use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::config::Document;
use hedgerow_shared::verify::{DeviceConfig, NodeConfig, RelayConfig, TenantCa, Usage, VerifiedCertificate};
use hedgerow_shared::wire::token::EnrolmentToken;
use hedgerow_shared::{Origin, Role, TenantId, UnixTime};
use hedgerow_uem_core::account::{Device, Node, TenantSettings, User};
use hedgerow_uem_core::activation::pake::{Context, Initiator, Sealed};
use hedgerow_uem_core::activation::{
    ActivationError, Confirmed, DEFAULT_LIFETIME_SECONDS, EnrolReply, EnrolRequest, PasswordChoice, PasswordState,
    Refusal,
};
use hedgerow_uem_core::ca::Key;
use hedgerow_uem_core::seal::Kek;
use hedgerow_uem_core::service::{
    EnrolError, NewTenant, NewToken, NewUser, NodeEnrolReply, NodeEnrolRequest, TokenRefusal,
};
use hedgerow_uem_core::store::Store;
use hedgerow_uem_core::{Actor, Call, Core, CoreError, Random};
use rustls_pki_types::CertificateDer;

pub(super) const NOW: UnixTime = UnixTime(1_800_000_000);
pub(super) const EXPORTER: [u8; 32] = [5; 32];

pub(super) struct Seeded(pub(super) u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

/// A core with one tenant, and a clock that cases set.
pub(super) struct World<S> {
    pub(super) core: Core<S>,
    pub(super) tenant: TenantId,
    pub(super) now: UnixTime,
    pub(super) random: Seeded,
    /// What activating devices say they are.
    pub(super) platform: &'static str,
}

pub(super) fn settings() -> TenantSettings {
    TenantSettings {
        relays: vec!["relay.example:3101".into(), "[::1]:443".into()],
        relay_name: None,
        relay_ca_pem: None,
    }
}

impl<S: Store> World<S> {
    pub(super) async fn new(store: S) -> Self {
        let core = Core::new(store, Kek::new(&[1; 32]));
        let tenant: TenantId = "S12345678".parse().unwrap();
        let mut world = Self { core, tenant, now: NOW, random: Seeded(1), platform: "Linux" };
        world.make_tenant("S12345678").await.unwrap();
        world
    }

    pub(super) async fn make_tenant(&mut self, id: &str) -> Result<(), CoreError> {
        let new = NewTenant { id: id.parse().unwrap(), name: "Example".into(), settings: settings() };
        self.core.create_tenant(call!(self), new).await.map(drop)
    }

    pub(super) async fn user(&mut self, email: &str) -> User {
        let new = NewUser { email: email.parse().unwrap(), display_name: "Anna Smith".into() };
        self.core.add_user(call!(self), &self.tenant, new).await.unwrap()
    }

    pub(super) async fn password(&mut self, user: &User, password: &str) {
        let choice = PasswordChoice::Set(Secret::new(password.as_bytes().to_vec()));
        self.core
            .set_activation_password(call!(self), &self.tenant, user.id, choice, DEFAULT_LIFETIME_SECONDS)
            .await
            .unwrap();
    }

    /// Up to confirmation; the device's half of the channel comes back sealed with a request.
    pub(super) async fn confirm(
        &mut self,
        email: &str,
        password: &str,
        exporters: [[u8; 32]; 2],
    ) -> Result<(Confirmed, Sealed, DeviceHalf), ActivationError> {
        let context = Context { user: email.parse().unwrap(), tenant: self.tenant.clone(), exporter: exporters[0] };
        let (initiator, start) = Initiator::start(context, &Secret::new(password.as_bytes().to_vec())).unwrap();
        let (started, offer) = self.core.begin_activation(call!(self), &self.tenant, &start, exporters[1]).await?;
        let (waiting, proof) = initiator.respond(&offer, &mut self.random).unwrap();
        let (confirmed, confirmation) = self.core.confirm_activation(call!(self), started, &proof).await?;
        let mut channel = waiting.confirm(&confirmation).unwrap();
        let key = Key::generate(&mut self.random).unwrap();
        let request = EnrolRequest {
            csr: key.certificate_request().unwrap(),
            name: "anna's\u{1b} laptop".into(),
            platform: self.platform.into(),
        };
        let sealed = channel.seal(&serde_json::to_vec(&request).unwrap(), &mut self.random).unwrap();
        Ok((confirmed, sealed, DeviceHalf { channel }))
    }

    pub(super) async fn activate(
        &mut self,
        email: &str,
        password: &str,
    ) -> Result<(EnrolReply, Device), ActivationError> {
        let (confirmed, sealed, mut half) = self.confirm(email, password, [EXPORTER; 2]).await?;
        let (reply, device) = self.core.finish_activation(call!(self), confirmed, &sealed).await?;
        Ok((half.open(&reply), device))
    }

    pub(super) async fn refusal(&mut self, email: &str, password: &str) -> Refusal {
        refusal(self.activate(email, password).await)
    }

    pub(super) async fn state(&self, user: &User) -> Option<(PasswordState, u8)> {
        let state = self.core.activation_state(&self.tenant, user.id, self.now).await.unwrap();
        state.map(|(state, _, wrong)| (state, wrong))
    }

    pub(super) async fn ca(&self) -> TenantCa {
        self.core.tenant_ca(&self.tenant).await.unwrap()
    }

    pub(super) async fn configs(&self) -> (RelayConfig, NodeConfig, DeviceConfig) {
        let configs = self.core.configs(&self.tenant).await.unwrap();
        let ca = self.ca().await;
        let relay: RelayConfig = configs.relay.verify(&ca, None, self.now).unwrap();
        assert_eq!(relay.head().version, configs.version);
        (relay, configs.node.verify(&ca, None, self.now).unwrap(), configs.device.verify(&ca, None, self.now).unwrap())
    }

    pub(super) async fn token(&mut self, lifetime_seconds: u64) -> EnrolmentToken {
        let group = "berlin".parse().unwrap();
        let new = NewToken { name: "node one".into(), group, origins: vec![Origin::Proxy], lifetime_seconds };
        self.core.create_token(call!(self), &self.tenant, new).await.unwrap().1
    }

    pub(super) async fn enrol(&mut self, token: &EnrolmentToken) -> Result<(NodeEnrolReply, Node), EnrolError> {
        let csr = Key::generate(&mut self.random).unwrap().certificate_request().unwrap();
        let request = NodeEnrolRequest { token: token.id, secret: token.secret, csr, name: None };
        let request = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        self.core.enrol_node(call!(self), &self.tenant, &request).await
    }

    pub(super) async fn verified(&self, certificate: &[u8], role: Role) -> VerifiedCertificate {
        self.ca().await.verify(&CertificateDer::from(certificate), role, Usage::Client, self.now).unwrap()
    }
}

pub(super) struct DeviceHalf {
    pub(super) channel: hedgerow_uem_core::activation::pake::Channel,
}

impl DeviceHalf {
    pub(super) fn open(&mut self, sealed: &Sealed) -> EnrolReply {
        serde_json::from_slice(&self.channel.open(sealed).unwrap()).unwrap()
    }
}

pub(super) fn refusal<T>(result: Result<T, ActivationError>) -> Refusal {
    match result {
        Err(ActivationError::Refused(refusal)) => refusal,
        Err(ActivationError::Unlicensed(why)) => panic!("{why}"),
        Err(ActivationError::Barred(why)) => panic!("{why}"),
        Err(ActivationError::Core(error)) => panic!("the core failed: {error:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}

pub(super) fn token_refusal<T>(result: Result<T, EnrolError>) -> TokenRefusal {
    match result {
        Err(EnrolError::Refused(refusal)) => refusal,
        Err(EnrolError::Core(error)) => panic!("the core failed: {error:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}
