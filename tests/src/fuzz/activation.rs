//! What devices and nodes ask of their core: JSON bodies, the PAKE's messages, certificate requests.

use std::sync::Mutex;

use hedgerow_shared::Role;
use hedgerow_shared::verify::certificate::read_leaf;
use hedgerow_shared::wire::core_api::{Activated, EnrolNode, NodeEnrolled, Refused, read_have, relay_name};
use hedgerow_uem_core::account::Email;
use hedgerow_uem_core::activation::pake::{Channel, Confirmation, Offer, Proof, Sealed, Start};
use hedgerow_uem_core::activation::{EnrolReply, EnrolRequest};
use hedgerow_uem_core::ca::CertificateRequest;

use super::fixture::{NOW, channels, fixture, identity, initiator, proof, random, run};
use super::{Input, json_round_trip, text_round_trip};

/// What the core seals for the device in the fixture's run.
pub(super) const SEALED: &[u8] = b"for the device alone";

/// `wire::core_api`: first byte modulo 6: the four bodies, `have`, addresses of relays in lines.
pub fn core_api(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 6 {
        0 => {
            if let Some(request) = json_round_trip::<EnrolNode>(input.0) {
                let shown = format!("{request:?}");
                assert_eq!(shown, format!("EnrolNode(token {})", request.token));
            }
        }
        1 => drop(json_round_trip::<NodeEnrolled>(input.0)),
        2 => drop(json_round_trip::<Activated<Sealed>>(input.0)),
        3 => drop(json_round_trip::<Refused>(input.0)),
        4 => {
            if let Some(version) = input.text().and_then(read_have) {
                assert_eq!(read_have(&version.to_string()), Some(version));
            }
        }
        _ => {
            let Some(text) = input.text() else { return };
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if let Some(name) = relay_name(None, &lines) {
                assert!(lines[0].contains(&name));
            }
        }
    }
}

/// `uem_core::activation`: first byte modulo 8: the five messages of the PAKE, each given to the end that waits for
/// it; the sealed request and reply; an e-mail address. Only the honest end's own bytes are believed.
pub fn activation(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 8 {
        0 => drop(json_round_trip::<Start>(input.0)),
        1 => {
            if let Some(offer) = json_round_trip::<Offer>(input.0)
                && let Ok((_, proof)) = initiator().respond(&offer, &mut random("device"))
            {
                assert_eq!(proof.session, offer.session);
            }
        }
        2 => {
            let Some(message) = json_round_trip::<Proof>(input.0) else { return };
            let believed = run().responder.confirm(&message).is_ok();
            assert_eq!(believed, message == proof().1, "a proof was believed or refused wrongly");
        }
        3 => {
            let Some(message) = json_round_trip::<Confirmation>(input.0) else { return };
            let (waiting, _) = proof();
            let (_, _, honest) = channels();
            assert_eq!(waiting.confirm(&message).is_ok(), message == honest);
        }
        4 => {
            if let Some(sealed) = json_round_trip::<Sealed>(input.0) {
                open(&sealed);
            }
        }
        5 => drop(json_round_trip::<EnrolRequest>(input.0)),
        6 => drop(json_round_trip::<EnrolReply>(input.0)),
        _ => {
            if let Some(email) = input.text().and_then(text_round_trip::<Email>) {
                assert!(email.as_str().ends_with(email.domain()) && !email.domain().is_empty());
            }
        }
    }
}

/// The device's end of the fixture's channel opens nothing but what the core's end sealed.
fn open(sealed: &Sealed) {
    static CHANNEL: Mutex<Option<(Channel, Sealed)>> = Mutex::new(None);
    // A panic of an earlier input says nothing about the channel.
    let mut guard = CHANNEL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (channel, honest) = guard.get_or_insert_with(|| {
        let (mut core, device, _) = channels();
        let honest = core.seal(SEALED, &mut random("seal")).expect("the first message can be sealed");
        (device, honest)
    });
    match channel.open(sealed) {
        Ok(plaintext) => {
            assert_eq!((plaintext.as_slice(), sealed), (SEALED, &*honest));
            // It opens one message; the next input gets a new one.
            *guard = None;
        }
        Err(_) => assert_ne!(sealed, &*honest),
    }
}

/// `uem_core::ca`: a certificate request; what is taken gets a certificate that verifies.
pub fn csr(data: &[u8]) {
    let Ok(request) = CertificateRequest::from_der(data) else { return };
    let fixture = fixture();
    let identity = identity(&fixture.tenant, Role::Device);
    let issued = fixture.authority.issue(&request, &identity, NOW, &mut random("serial")).expect("a sound request");
    let read = read_leaf(&issued.certificate.as_slice().into()).expect("the authority makes leaves that can be read");
    assert_eq!(read.identity, identity);
    assert_eq!(read.serial, issued.record.serial);
}
