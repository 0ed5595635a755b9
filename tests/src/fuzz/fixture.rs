//! A tenant whose keys are the same in every run, so that stored inputs can carry its signatures. For tests only.

use std::sync::OnceLock;

use hedgerow_shared::secret::Secret;
use hedgerow_shared::verify::{Identity, TenantCa};
use hedgerow_shared::{EntityId, Origin, Role, SessionId, TenantId, UnixTime};
use hedgerow_uem_core::activation::pake::{
    AwaitConfirmation, Channel, Confirmation, Context, Initiator, Offer, Proof, Responder,
};
use hedgerow_uem_core::ca::{Authority, ConfigKey, Key};
use sha2::{Digest, Sha256};

/// The time at which everything is looked at.
pub(super) const NOW: UnixTime = UnixTime(1_800_000_000);
pub(super) const PASSWORD: &str = "correct horse";

pub(super) struct Fixture {
    pub(super) tenant: TenantId,
    pub(super) authority: Authority,
    pub(super) ca: TenantCa,
    pub(super) config_key: ConfigKey,
    pub(super) node_key: Key,
    /// Core, node, device.
    pub(super) leaves: Vec<(Identity, Vec<u8>)>,
}

pub(super) fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| make().expect("a tenant can be made"))
}

fn make() -> Result<Fixture, hedgerow_uem_core::ca::CaError> {
    let mut random = random("tenant");
    let tenant: TenantId = "S12345678".parse().expect("it has the form of a tenant id");
    let authority = Authority::create(tenant.clone(), NOW, &mut random)?;
    let key = Key::generate(&mut random)?;
    let certificate = authority.issue_config_key(&key, NOW, &mut random)?;
    let config_key = ConfigKey::from_parts(key, certificate);
    let node_key = Key::generate(&mut random)?;
    let mut leaves = Vec::new();
    for role in Role::ALL {
        let identity = identity(&tenant, *role);
        let issued = authority.issue_for_key(&node_key, &identity, NOW, &mut random)?;
        leaves.push((identity, issued.certificate));
    }
    let ca = TenantCa::from_der(authority.certificate()).expect("the authority makes a CA that verifiers take");
    Ok(Fixture { tenant, authority, ca, config_key, node_key, leaves })
}

pub(super) fn identity(tenant: &TenantId, role: Role) -> Identity {
    let (group, origins) = match role {
        Role::Core => (None, vec![Origin::Core, Origin::Bws]),
        Role::Node => ("berlin".parse().ok(), vec![Origin::Proxy]),
        Role::Device => (None, Vec::new()),
    };
    Identity { tenant: tenant.clone(), role, id: EntityId::from_random([role as u8 + 1; 16]), group, origins }
}

/// One run of the PAKE, the same every time.
pub(super) struct Run {
    pub(super) responder: Responder,
    pub(super) offer: Offer,
}

pub(super) fn initiator() -> Initiator {
    Initiator::start(context(), &Secret::from_text(PASSWORD.into())).expect("the password has the right length").0
}

pub(super) fn run() -> Run {
    let session = SessionId::from_random([7; 16]);
    let password = Secret::from_text(PASSWORD.into());
    let (responder, offer) = Responder::offer(context(), &password, session, &mut random("core")).expect("an offer");
    Run { responder, offer }
}

/// The device's answer to that run's offer.
pub(super) fn proof() -> (AwaitConfirmation, Proof) {
    initiator().respond(&run().offer, &mut random("device")).expect("an answer to an honest offer")
}

/// Both ends of the channel that follows: core's, device's, and the confirmation between them.
pub(super) fn channels() -> (Channel, Channel, Confirmation) {
    let (waiting, proof) = proof();
    let (core, confirmation) = run().responder.confirm(&proof).expect("an honest proof");
    (core, waiting.confirm(&confirmation).expect("an honest confirmation"), confirmation)
}

fn context() -> Context {
    Context {
        user: "anna@example.com".parse().expect("it is an address"),
        tenant: fixture().tenant.clone(),
        exporter: [9; 32],
    }
}

/// Random bytes that only look so: SHA-256 of the seed and a counter.
pub(super) fn random(seed: &'static str) -> impl FnMut(&mut [u8]) + Send {
    let mut counter = 0u64;
    move |out: &mut [u8]| {
        for chunk in out.chunks_mut(32) {
            counter += 1;
            let block = Sha256::new().chain_update(seed).chain_update(counter.to_be_bytes()).finalize();
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
    }
}
