use super::authority::Content;
use super::*;
use crate::sim::merge;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::Value;

const NOW: &str = "2026-11-21T20:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2036, 1, 1);
    Authority::from_pem(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem()).unwrap()
}

fn pem(change: impl Fn(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "system:node:a");
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

/// An agent's request for its client certificate, with these differences.
fn object(edit: Value) -> Arc<CertificateSigningRequest> {
    let mut made = json!({"metadata": {"name": "a", "creationTimestamp": NOW}, "spec": {
        "request": ByteString(pem(|_| {}).into_bytes()), "signerName": signers::KUBELET_CLIENT,
        "usages": ["digital signature", "client auth"], "username": "system:bootstrap:abcdef"}});
    merge(&mut made, &edit);
    Arc::new(serde_json::from_value(made).expect("a request"))
}

fn decided(type_: &str, when: &str) -> Value {
    json!({"status": {"conditions": [{"type": type_, "status": "True", "lastUpdateTime": when}]}})
}

fn actions(object: &Arc<CertificateSigningRequest>, now: &str) -> Vec<Action> {
    let seen = Seen { object: object.clone(), authority_until: Some(at("2036-01-01T00:00:00Z")) };
    plan(&seen, at(now)).actions
}

fn signed(edit: Value) -> Content {
    let mut approved = decided("Approved", NOW);
    merge(&mut approved, &edit);
    match actions(&object(approved), NOW).pop() {
        Some(Action::Sign(content)) => *content,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_agents_certificate_is_approved_by_who_asks_and_no_other_is() {
    let leaves = |edit: Value| match actions(&object(edit), NOW).as_slice() {
        [Action::Approve(leaves)] => leaves.iter().map(|leave| leave.subresource).collect::<Vec<_>>(),
        [] => Vec::new(),
        other => panic!("{other:?}"),
    };
    assert_eq!(leaves(json!({})), ["nodeclient"]);
    assert_eq!(leaves(json!({"spec": {"username": "system:node:a"}})), ["selfnodeclient", "nodeclient"]);
    for signer in [signers::CLIENT, signers::KUBELET_SERVING, signers::LEGACY_UNKNOWN, "example.com/own"] {
        assert!(leaves(json!({"spec": {"signerName": signer}})).is_empty(), "{signer}");
    }
    assert!(leaves(json!({"spec": {"usages": ["server auth"]}})).is_empty());
    for type_ in ["Denied", "Failed"] {
        assert!(actions(&object(decided(type_, NOW)), NOW).is_empty(), "{type_} is the end of it");
    }
}

#[test]
fn what_is_approved_is_signed_or_fails_with_its_reason() {
    assert!(matches!(actions(&object(decided("Approved", NOW)), NOW)[..], [Action::Sign(_)]));
    let fails = |edit: Value| {
        let mut approved = decided("Approved", NOW);
        merge(&mut approved, &edit);
        match actions(&object(approved), NOW).pop() {
            Some(Action::Fail(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    assert!(fails(json!({"spec": {"usages": ["client auth"]}})).starts_with("usages did not match"));
    let legacy = json!({"spec": {"signerName": signers::LEGACY_UNKNOWN, "usages": ["brewing"]}});
    assert_eq!(fails(legacy), "unrecognized usage values: [\"brewing\"]");
    // Signed by another key than the one inside.
    let mut forged = pem(|_| {}).into_bytes();
    let der = rustls_pemfile::csr(&mut forged.as_slice()).unwrap().unwrap();
    let mut der = der.to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(&der);
    forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n").into_bytes();
    assert!(fails(json!({"spec": {"request": ByteString(forged)}})).contains("signature"));
    let other = json!({"spec": {"signerName": "example.com/own"}});
    let mut approved = decided("Approved", NOW);
    merge(&mut approved, &other);
    assert!(actions(&object(approved), NOW).is_empty(), "other signers have other controllers");
}

#[test]
fn a_certificate_lives_as_long_as_asked_within_bounds() {
    for (asked, from, until) in [
        (json!(null), "2026-11-21T19:55:00Z", "2027-11-21T19:55:00Z"),
        (json!(600), "2026-11-21T19:55:00Z", "2026-11-21T20:10:00Z"),
        (json!(60), "2026-11-21T19:55:00Z", "2026-11-21T20:10:00Z"),
        (json!(86_400), "2026-11-21T19:55:00Z", "2026-11-22T19:55:00Z"),
        (json!(2_000_000_000), "2026-11-21T19:55:00Z", "2027-11-21T19:55:00Z"),
    ] {
        let content = signed(json!({"spec": {"expirationSeconds": asked}}));
        assert_eq!((content.not_before, content.not_after), (at(from), at(until)), "{asked}");
    }
    let seen = Seen { object: object(decided("Approved", NOW)), authority_until: Some(at("2027-01-01T00:00:00Z")) };
    let Plan { actions, .. } = plan(&seen, at(NOW));
    let [Action::Sign(content)] = actions.as_slice() else { panic!("not signed") };
    assert_eq!(content.not_after, at("2027-01-01T00:00:00Z"), "never longer than the authority");
}

#[test]
fn a_certificate_says_what_was_asked_and_what_it_is_for() {
    let asked = pem(|params| {
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 10]), "second");
        params.subject_alt_names = vec![
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
            SanType::Rfc822Name("a@b.example".try_into().unwrap()),
            SanType::URI("spiffe://x/y".try_into().unwrap()),
        ];
    });
    let edit = json!({"spec": {"signerName": signers::LEGACY_UNKNOWN, "request": ByteString(asked.clone().into_bytes()),
        "usages": ["digital signature", "key encipherment", "decipher only", "server auth", "client auth", "s/mime", "email protection"]}});
    let content = signed(edit);
    let authority = authority();
    let text = authority.sign(&content, serial()).unwrap();
    let der = rustls_pemfile::certs(&mut text.as_bytes()).next().unwrap().unwrap();
    let (rest, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(rest.is_empty());
    let organizations: Vec<_> = parsed.subject().iter_organization().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(organizations, ["system:nodes", "second"], "every organization comes along");
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && usage.decipher_only() && !usage.key_cert_sign());
    let purposes = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && purposes.email_protection && !purposes.code_signing);
    assert!(!parsed.is_ca());
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 5, "{names:?}");
    assert_eq!(parsed.validity().not_after.timestamp(), content.not_after.as_second());
    let request = rustls_pemfile::csr(&mut asked.as_bytes()).unwrap().unwrap();
    use x509_parser::prelude::FromDer;
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(&request).unwrap();
    assert_eq!(parsed.public_key().raw, request.certification_request_info.subject_pki.raw);
}

#[test]
fn what_the_authority_signs_is_trusted_by_who_trusts_it() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let authority = Authority::from_pem(&ca.pem(), &key.serialize_pem()).unwrap();
    let text = authority.sign(&signed(json!({})), serial()).unwrap();
    let der = rustls_pemfile::certs(&mut text.as_bytes()).next().unwrap().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let now = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        at(NOW).as_second().unsigned_abs(),
    ));
    verifier.verify_client_cert(&der, &[], now).expect("a good certificate");
    assert!(Authority::from_pem(&ca.pem(), &KeyPair::generate().unwrap().serialize_pem()).is_err(), "another's key");
    assert!(Authority::from_pem(&text, &key.serialize_pem()).is_err(), "no authority");
}

#[test]
fn requests_are_forgotten_when_nobody_needs_them_any_more() {
    let forgotten = |edit: Value, now: &str| actions(&object(edit), now).contains(&Action::Delete);
    for type_ in ["Approved", "Denied", "Failed"] {
        assert!(!forgotten(decided(type_, NOW), "2026-11-21T20:59:00Z"), "{type_}");
        assert!(forgotten(decided(type_, NOW), "2026-11-21T21:00:00Z"), "{type_}");
    }
    assert!(!forgotten(json!({}), "2026-11-22T19:59:00Z"));
    assert!(forgotten(json!({}), "2026-11-22T20:00:00Z"));
    let short = signed(json!({"spec": {"expirationSeconds": 600}}));
    let certificate = authority().sign(&short, serial()).unwrap();
    let mut held = decided("Approved", NOW);
    merge(&mut held, &json!({"status": {"certificate": ByteString(certificate.into_bytes())}}));
    assert!(!forgotten(held.clone(), "2026-11-21T20:09:00Z"));
    assert!(forgotten(held, "2026-11-21T20:10:00Z"), "it has run out");
}
