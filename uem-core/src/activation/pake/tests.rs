//! RFC 9380 vectors, a recorded run, and everything that must not work.

use data_encoding::HEXLOWER;
use hedgerow_shared::secret::Secret;
use hedgerow_shared::{SessionId, TenantId};
use p521::elliptic_curve::sec1::ToSec1Point;
use proptest::prelude::*;

use super::*;

/// A source of random numbers that repeats itself in every test run.
struct Seeded(u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

fn context() -> Context {
    Context { user: "anna@example.com".parse().unwrap(), tenant: "S12345678".parse().unwrap(), exporter: [9; 32] }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

fn session() -> SessionId {
    SessionId::from_random([3; 16])
}

/// What travels, for whoever sits in between.
enum Message<'a> {
    Offer(&'a mut Offer),
    Proof(&'a mut Proof, &'a Offer),
    Confirmation(&'a mut Confirmation),
}

/// One run in which each end has its own idea of password and context, and `meddle` changes what travels.
fn run(
    (device_password, device): (&str, Context),
    (core_password, core): (&str, Context),
    meddle: impl Fn(Message<'_>),
) -> Result<(Channel, Channel), PakeError> {
    let mut random = Seeded(1);
    let (initiator, start) = Initiator::start(device, &secret(device_password))?;
    assert_eq!(start.user.as_str(), "anna@example.com");
    let (responder, mut offer) = Responder::offer(core, &secret(core_password), session(), &mut random)?;
    meddle(Message::Offer(&mut offer));
    let (waiting, mut proof) = initiator.respond(&offer, &mut random)?;
    meddle(Message::Proof(&mut proof, &offer));
    let (core, mut confirmation) = responder.confirm(&proof)?;
    meddle(Message::Confirmation(&mut confirmation));
    Ok((waiting.confirm(&confirmation)?, core))
}

fn honest() -> (Channel, Channel) {
    run(("open sesame", context()), ("open sesame", context()), |_| {}).unwrap()
}

fn failure(result: Result<(Channel, Channel), PakeError>) -> PakeError {
    result.err().expect("the run must fail")
}

/// RFC 9380, appendix J.5.1: message, x and y of the point.
const VECTORS: &[(&str, &str, &str)] = &[
    (
        "",
        "00fd767cebb2452030358d0e9cf907f525f50920c8f607889a6a35680727f64f4d66b161fafeb2654bea0d35086bec0a10b30b14adef3556ed9f7f1bc23cecc9c088",
        "0169ba78d8d851e930680322596e39c78f4fe31b97e57629ef6460ddd68f8763fd7bd767a4e94a80d3d21a3c2ee98347e024fc73ee1c27166dc3fe5eeef782be411d",
    ),
    (
        "abc",
        "002f89a1677b28054b50d15e1f81ed6669b5a2158211118ebdef8a6efc77f8ccaa528f698214e4340155abc1fa08f8f613ef14a043717503d57e267d57155cf784a4",
        "010e0be5dc8e753da8ce51091908b72396d3deed14ae166f66d8ebf0a4e7059ead169ea4bead0232e9b700dd380b316e9361cfdba55a08c73545563a80966ecbb86d",
    ),
    (
        "abcdef0123456789",
        "006e200e276a4a81760099677814d7f8794a4a5f3658442de63c18d2244dcc957c645e94cb0754f95fcf103b2aeaf94411847c24187b89fb7462ad3679066337cbc4",
        "001dd8dfa9775b60b1614f6f169089d8140d4b3e4012949b52f98db2deff3e1d97bf73a1fa4d437d1dcdf39b6360cc518d8ebcc0f899018206fded7617b654f6b168",
    ),
    (
        "q128_qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq",
        "01b264a630bd6555be537b000b99a06761a9325c53322b65bdc41bf196711f9708d58d34b3b90faf12640c27b91c70a507998e55940648caa8e71098bf2bc8d24664",
        "01ea9f445bee198b3ee4c812dcf7b0f91e0881f0251aab272a12201fd89b1a95733fd2a699c162b639e9acdcc54fdc2f6536129b6beb0432be01aa8da02df5e59aaa",
    ),
    (
        "a512_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "00c12bc3e28db07b6b4d2a2b1167ab9e26fc2fa85c7b0498a17b0347edf52392856d7e28b8fa7a2dd004611159505835b687ecf1a764857e27e9745848c436ef3925",
        "01cd287df9a50c22a9231beb452346720bb163344a41c5f5a24e8335b6ccc595fd436aea89737b1281aecb411eb835f0b939073fdd1dd4d5a2492e91ef4a3c55bcbd",
    ),
];

#[test]
fn hashing_to_the_curve_matches_rfc_9380() {
    for (message, x, y) in VECTORS {
        let point = group::hash(message.as_bytes(), b"QUUX-V01-CS02-with-P521_XMD:SHA-512_SSWU_RO_").unwrap();
        let encoded = point.to_affine().to_sec1_point(false);
        assert_eq!(HEXLOWER.encode(encoded.as_bytes()), format!("04{x}{y}"), "{message:?}");
    }
}

#[test]
fn both_ends_reach_a_channel_and_each_message_is_sealed_once() {
    let mut random = Seeded(7);
    let (mut device, mut core) = honest();
    let request = device.seal(b"the request", &mut random).unwrap();
    assert_eq!(core.open(&request).unwrap().as_slice(), b"the request");
    let reply = core.seal(b"", &mut random).unwrap();
    assert_eq!(device.open(&reply).unwrap().as_slice(), b"");
    assert_eq!(core.open(&request).unwrap_err(), PakeError::Unexpected);
    assert_eq!(device.seal(b"another", &mut random).unwrap_err(), PakeError::Unexpected);
}

#[test]
fn the_messages_of_a_seeded_run_are_those_recorded() {
    let mut random = Seeded(42);
    let (initiator, start) = Initiator::start(context(), &secret("open sesame")).unwrap();
    let (responder, offer) = Responder::offer(context(), &secret("open sesame"), session(), &mut random).unwrap();
    let (waiting, proof) = initiator.respond(&offer, &mut random).unwrap();
    let (mut core, confirmation) = responder.confirm(&proof).unwrap();
    let mut device = waiting.confirm(&confirmation).unwrap();
    let request = device.seal(b"request", &mut random).unwrap();
    assert_eq!(core.open(&request).unwrap().as_slice(), b"request");
    let reply = core.seal(b"reply", &mut random).unwrap();
    let lines = [
        serde_json::to_string(&start).unwrap(),
        serde_json::to_string(&offer).unwrap(),
        serde_json::to_string(&proof).unwrap(),
        serde_json::to_string(&confirmation).unwrap(),
        serde_json::to_string(&request).unwrap(),
        serde_json::to_string(&reply).unwrap(),
    ];
    let recorded = include_str!("recorded_run.jsonl");
    assert_eq!(lines.join("\n"), recorded.trim_end(), "the wire form of activation changed");
    let mut read = recorded.lines();
    assert_eq!(serde_json::from_str::<Start>(read.next().unwrap()).unwrap(), start);
    assert_eq!(serde_json::from_str::<Offer>(read.next().unwrap()).unwrap(), offer);
    assert_eq!(serde_json::from_str::<Proof>(read.next().unwrap()).unwrap(), proof);
}

#[test]
fn a_wrong_password_fails_at_confirmation_and_not_before() {
    let result = run(("open sesame", context()), ("open sesamf", context()), |_| {});
    assert_eq!(failure(result), PakeError::Confirmation);
}

#[test]
fn white_space_around_the_typed_password_does_not_matter() {
    assert!(run((" open sesame\n", context()), ("open sesame", context()), |_| {}).is_ok());
}

#[test]
fn a_relay_that_ends_tls_itself_is_found_by_the_exporter() {
    let other = Context { exporter: [8; 32], ..context() };
    assert_eq!(failure(run(("open sesame", context()), ("open sesame", other), |_| {})), PakeError::Confirmation);
}

#[test]
fn another_tenant_fails_at_confirmation() {
    let other = Context { tenant: "S12345679".parse::<TenantId>().unwrap(), ..context() };
    assert_eq!(failure(run(("open sesame", context()), ("open sesame", other), |_| {})), PakeError::Confirmation);
}

#[test]
fn another_user_with_the_same_password_fails_at_confirmation() {
    let other = Context { user: "bert@example.com".parse().unwrap(), ..context() };
    assert_eq!(failure(run(("open sesame", context()), ("open sesame", other), |_| {})), PakeError::Confirmation);
}

#[test]
fn a_share_sent_back_is_refused_by_both_ends() {
    let result = run(("open sesame", context()), ("open sesame", context()), |m| {
        if let Message::Proof(proof, offer) = m {
            proof.share = offer.share;
        }
    });
    assert_eq!(failure(result), PakeError::Share);

    let own =
        |random: &mut Seeded| group::Ephemeral::new(&secret("open sesame"), &context(), session(), random).unwrap();
    let share = *own(&mut Seeded(5)).share();
    assert_eq!(own(&mut Seeded(5)).agree(&share).unwrap_err(), PakeError::Share);
    assert!(own(&mut Seeded(6)).agree(&share).is_ok());
}

#[test]
fn shares_that_are_no_points_of_the_curve_are_refused() {
    let own = || group::Ephemeral::new(&secret("open sesame"), &context(), session(), &mut Seeded(5)).unwrap();
    let good = *own().share();
    let with = |change: fn(&mut [u8; SHARE])| {
        let mut share = good;
        change(&mut share);
        own().agree(&share).unwrap_err()
    };
    assert_eq!(with(|s| s[132] ^= 1), PakeError::Share); // off the curve
    assert_eq!(with(|s| s.fill(0)), PakeError::Share); // infinity, padded
    assert_eq!(with(|s| s[0] = 2), PakeError::Share); // compressed tag at the wrong length
    assert_eq!(with(|s| s[0] = 6), PakeError::Share); // hybrid form
    assert_eq!(with(|s| s[1..67].fill(0xff)), PakeError::Share); // coordinate above the field's prime
    assert_eq!(with(|s| s[1..].fill(0)), PakeError::Share); // (0, 0)
}

#[test]
fn messages_of_another_session_are_refused() {
    let other = SessionId::from_random([4; 16]);
    let result = run(("open sesame", context()), ("open sesame", context()), |m| {
        if let Message::Proof(proof, _) = m {
            proof.session = other;
        }
    });
    assert_eq!(failure(result), PakeError::Unexpected);
    // A changed session in the offer gives the device another generator.
    let result = run(("open sesame", context()), ("open sesame", context()), |m| match m {
        Message::Offer(offer) => offer.session = other,
        Message::Proof(proof, _) => proof.session = session(),
        Message::Confirmation(_) => {}
    });
    assert_eq!(failure(result), PakeError::Confirmation);
}

#[test]
fn the_core_too_must_show_that_it_knows_the_password() {
    let result = run(("open sesame", context()), ("open sesame", context()), |m| {
        if let Message::Confirmation(confirmation) = m {
            confirmation.confirm[0] ^= 1;
        }
    });
    assert_eq!(failure(result), PakeError::Confirmation);
    // The device's own confirmation does not serve as the core's.
    let seen = std::cell::Cell::new([0; 32]);
    let result = run(("open sesame", context()), ("open sesame", context()), |m| match m {
        Message::Proof(proof, _) => seen.set(proof.confirm),
        Message::Confirmation(confirmation) => confirmation.confirm = seen.get(),
        Message::Offer(_) => {}
    });
    assert_eq!(failure(result), PakeError::Confirmation);
}

#[test]
fn a_sealed_message_damaged_at_any_byte_does_not_open() {
    let (mut device, mut core) = honest();
    let sealed = device.seal(b"the request, long enough for two blocks", &mut Seeded(7)).unwrap();
    for i in 0..sealed.envelope.len() {
        let mut bad = sealed.clone();
        bad.envelope[i] ^= 0x80;
        assert_eq!(core.open(&bad).unwrap_err(), PakeError::Sealed, "byte {i}");
        bad.envelope.truncate(i);
        assert_eq!(core.open(&bad).unwrap_err(), PakeError::Sealed, "cut at {i}");
    }
    // Nor does one's own message, sent back.
    assert_eq!(device.open(&sealed).unwrap_err(), PakeError::Sealed);
    // The true one still opens: forgeries did not close the channel.
    assert!(core.open(&sealed).is_ok());
}

#[test]
fn a_broken_random_source_is_noticed() {
    let mut zeros = |bytes: &mut [u8]| bytes.fill(0);
    let result = Responder::offer(context(), &secret("open sesame"), session(), &mut zeros);
    assert_eq!(result.err(), Some(PakeError::Randomness));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_share_or_confirmation_changed_on_the_way_never_confirms(byte in 0..SHARE + 32, bit in 0..8u32, to_core: bool) {
        let result = run(("open sesame", context()), ("open sesame", context()), |m| match m {
            Message::Offer(offer) if !to_core => offer.share[byte % SHARE] ^= 1 << bit,
            Message::Proof(proof, _) if to_core && byte < SHARE => proof.share[byte] ^= 1 << bit,
            Message::Proof(proof, _) if to_core => proof.confirm[byte - SHARE] ^= 1 << bit,
            Message::Offer(_) | Message::Proof(..) | Message::Confirmation(_) => {}
        });
        prop_assert!(matches!(failure(result), PakeError::Share | PakeError::Confirmation));
    }

    #[test]
    fn different_passwords_never_confirm(device in "[a-z]{6,12}", core in "[a-z]{6,12}") {
        let result = run((&device, context()), (&core, context()), |_| {});
        prop_assert_eq!(result.is_ok(), device == core);
    }

    #[test]
    fn what_is_sealed_opens(plaintext in proptest::collection::vec(any::<u8>(), 0..300), seed: u64) {
        let (mut device, mut core) = honest();
        let sealed = device.seal(&plaintext, &mut Seeded(seed)).unwrap();
        prop_assert!(sealed.envelope.len() >= plaintext.len() + 1 + 16 + 1 + 32);
        prop_assert_eq!(core.open(&sealed).unwrap().to_vec(), plaintext);
    }
}
