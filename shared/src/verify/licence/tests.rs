use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use proptest::prelude::*;

use super::*;

struct Operator {
    pair: EcdsaKeyPair,
    key: LicenceKey,
}

impl Operator {
    fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let key = LicenceKey::from_der(&[P256_INFO, pair.public_key().as_ref()].concat()).unwrap();
        Self { pair, key }
    }

    fn sign_bytes(&self, context: &[u8], payload: &[u8]) -> SignedLicence {
        let signature = self.pair.sign(&SystemRandom::new(), &[context, payload].concat()).unwrap();
        SignedLicence { payload: payload.to_vec(), signature: signature.as_ref().to_vec() }
    }

    fn sign(&self, licence: &Licence) -> SignedLicence {
        self.sign_bytes(CONTEXT, &licence.payload().unwrap())
    }
}

fn licence() -> Licence {
    Licence {
        id: "L-0001".into(),
        tenant: "S12345678".parse().unwrap(),
        licensee: "Example GmbH".into(),
        issued: UnixTime(900),
        not_before: UnixTime(1000),
        expires: UnixTime(2000),
        grace_seconds: 500,
        seats: Some(3),
        features: ["proxy", "tunnel"].map(String::from).into(),
    }
}

#[test]
fn p04_a_licence_is_signed_mailed_and_read_again() {
    let (operator, other) = (Operator::new(), Operator::new());
    let signed = operator.sign(&licence());
    let mail = format!("Dear customer,\r\n\r\n{}\r\nYours\r\n", signed.to_pem().replace('\n', "\r\n  "));
    let read = SignedLicence::from_pem(&mail).unwrap();
    assert_eq!(read, signed);
    let keys = [other.key.clone(), LicenceKey::from_pem(&operator.key.to_pem()).unwrap()];
    assert_eq!(read.verify(&keys).unwrap(), (licence(), operator.key.id()));
    assert_eq!(read.verify(&keys[..1]), Err(LicenceError::Signature));
    assert_eq!(read.verify(&[]), Err(LicenceError::NoKeys));
    assert_eq!(read.unverified().unwrap(), licence());
}

#[test]
fn p04_a_signature_made_for_something_else_is_refused() {
    let operator = Operator::new();
    let payload = licence().payload().unwrap();
    for context in [&b""[..], crate::verify::config::CONTEXT] {
        let signed = operator.sign_bytes(context, &payload);
        assert_eq!(signed.verify(std::slice::from_ref(&operator.key)), Err(LicenceError::Signature));
    }
}

#[test]
fn p04_unknown_fields_are_tolerated_and_unknown_features_grant_nothing() {
    let operator = Operator::new();
    let json = r#"{"id":"x","tenant":"S12345678","licensee":"","issued":1,"not_before":1,"expires":9,
        "features":["mdm","teleport"],"colour":"green"}"#;
    let signed = operator.sign_bytes(CONTEXT, json.as_bytes());
    let (read, _) = signed.verify(&[operator.key]).unwrap();
    assert_eq!((read.seats, read.grace_seconds), (None, 0));
    assert!(read.features.contains("teleport"), "kept");
    let granted: Vec<_> = Feature::ALL.iter().copied().filter(|f| read.grants(*f)).collect();
    assert_eq!(granted, [Feature::Mdm]);
}

#[test]
fn p04_a_licence_begins_ends_and_has_its_grace() {
    let licence = licence();
    for (now, standing) in [
        (999, Standing::NotYet { from: UnixTime(1000) }),
        (1000, Standing::Valid { expires_in: 1000 }),
        (1999, Standing::Valid { expires_in: 1 }),
        (2000, Standing::Grace { until: UnixTime(2500) }),
        (2499, Standing::Grace { until: UnixTime(2500) }),
        (2500, Standing::Expired),
        (u64::MAX, Standing::Expired),
    ] {
        assert_eq!(licence.standing(UnixTime(now)), standing, "{now}");
    }
    let for_ever = Licence { expires: UnixTime(u64::MAX - 1), grace_seconds: u64::MAX, ..licence };
    assert!(for_ever.standing(UnixTime(u64::MAX - 1)).works());
}

#[test]
fn p04_people_are_told_thirty_days_before() {
    const DAY: u64 = 24 * 3600;
    let licence = Licence { expires: UnixTime(1000 + 100 * DAY), grace_seconds: 2 * DAY, ..licence() };
    let told = |day: u64| licence.warning(UnixTime(1000 + day * DAY));
    assert_eq!(told(70), None);
    assert_eq!(told(71).as_deref(), Some("licence L-0001 ends in 29 days"));
    assert_eq!(told(99).as_deref(), Some("licence L-0001 ends in 1 day"));
    assert!(told(100).unwrap().contains("has ended; everything goes on for 2 days more"));
    assert!(told(102).unwrap().contains("and its grace too"));
}

#[test]
fn p04_what_is_out_of_bounds_is_refused() {
    type Break = fn(&mut Licence);
    let cases: &[Break] = &[
        |l| l.id = String::new(),
        |l| l.id = "two words".into(),
        |l| l.id = "x".repeat(65),
        |l| l.licensee = "x".repeat(201),
        |l| l.licensee = "a\u{1b}[2J".into(),
        |l| l.expires = l.not_before,
        |l| l.features = (0..65).map(|n| format!("f{n}")).collect(),
        |l| _ = l.features.insert("Proxy".into()),
        |l| _ = l.features.insert("x".repeat(33)),
        |l| _ = l.features.insert(String::new()),
    ];
    for (n, damage) in cases.iter().enumerate() {
        let mut bad = licence();
        damage(&mut bad);
        assert!(matches!(bad.payload(), Err(LicenceError::Malformed(_))), "{n}");
    }
    let operator = Operator::new();
    let large = operator.sign_bytes(CONTEXT, &vec![b' '; MAX_PAYLOAD + 1]);
    assert!(matches!(large.verify(&[operator.key]), Err(LicenceError::Malformed(_))));
    let text = licence();
    let long = format!("{}{}", "x".repeat(MAX_TEXT), Operator::new().sign(&text).to_pem());
    assert!(SignedLicence::from_pem(&long).is_err());
    for bad in ["", "-----BEGIN HEDGEROW LICENCE-----\n", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"] {
        assert!(SignedLicence::from_pem(bad).is_err() && LicenceKey::from_pem(bad).is_err());
    }
}

/// The largest licence there is still is one frame.
#[test]
fn p04_the_largest_licence_fits_a_control_frame() {
    let signed = SignedLicence { payload: vec![b'x'; MAX_PAYLOAD], signature: vec![0; MAX_SIGNATURE] };
    assert!(minicbor::to_vec(&signed).unwrap().len() + 64 < crate::wire::frame::MAX_PAYLOAD);
    assert!(signed.to_pem().len() < MAX_TEXT);
    assert_eq!(SignedLicence::from_pem(&signed.to_pem()).unwrap(), signed);
}

proptest! {
    /// Whatever bit of what is mailed changes, the licence is refused, or reads as the very same.
    #[test]
    fn p04_any_flipped_bit_is_refused(place in any::<prop::sample::Index>(), bit in 0u8..8, seats in any::<Option<u32>>()) {
        let operator = Operator::new();
        let signed = operator.sign(&Licence { seats, ..licence() });
        let keys = std::slice::from_ref(&operator.key);

        let mut wire = minicbor::to_vec(&signed).unwrap();
        let at = place.index(wire.len());
        wire[at] ^= 1 << bit;
        if let Ok(changed) = minicbor::decode::<SignedLicence>(&wire) {
            prop_assert!(changed.verify(keys).is_err(), "byte {at} of the wire");
        }

        let mut text = signed.to_pem().into_bytes();
        let at = place.index(text.len());
        text[at] ^= 1 << bit;
        if let Ok(changed) = String::from_utf8(text).map_err(drop).and_then(|t| SignedLicence::from_pem(&t).map_err(drop)) {
            prop_assert!(changed == signed || changed.verify(keys).is_err(), "byte {at} of the text");
        }
    }
}
