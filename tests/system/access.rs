//! Certificates by request and kubectl's words for it; the flags that guard a server.

use std::path::Path;

use crate::harness::{Cluster, eventually, text};

/// A key and a certificate request for this subject, made as a user makes them.
fn request(dir: &Path, subject: &str) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "team");
    params.distinguished_name.push(rcgen::DnType::CommonName, subject);
    let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
    std::fs::write(dir.join(format!("{subject}.key")), key.serialize_pem()).expect("a file");
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(pem)
}

fn manifest(name: &str, request: &str, usage: &str) -> String {
    format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  \
         signerName: kubernetes.io/kube-apiserver-client\n  expirationSeconds: 3600\n  usages: [{usage}]\n  request: {request}\n"
    )
}

#[test]
fn a_certificate_somebody_approved_lets_in_and_one_denied_is_never_made() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (policy, audit, keys) =
        (scratch.path().join("policy.yaml"), scratch.path().join("audit.log"), scratch.path().join("keys.yaml"));
    let rules = "[{level: Metadata, resources: [{group: certificates.k8s.io}]}]";
    std::fs::write(&policy, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: {rules}\n")).expect("a file");
    let secret = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let providers = format!("[{{aescbc: {{keys: [{{name: one, secret: {secret}}}]}}}}, {{identity: {{}}}}]");
    let file = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: [secrets], providers: {providers}}}]\n"
    );
    std::fs::write(&keys, file).expect("a file");
    let path = |path: &Path| path.display().to_string();
    let (policy, audit_path, keys) = (path(&policy), path(&audit), path(&keys));
    let flags: [&str; 6] =
        ["--audit-policy-file", &policy, "--audit-log-path", &audit_path, "--encryption-provider-config", &keys];
    let cluster = Cluster::up_with(&flags);

    cluster.apply(&manifest("jane", &request(scratch.path(), "jane"), "client auth"));
    assert!(cluster.kubectl(&["get", "csr", "jane", "--no-headers"]).contains("Pending"));
    cluster.kubectl(&["certificate", "approve", "jane"]);
    let certificate = eventually("the certificate is signed", || {
        let text = cluster.kubectl(&["get", "csr", "jane", "-o", "jsonpath={.status.certificate}"]);
        (!text.is_empty()).then_some(text)
    });
    use base64::Engine;
    let pem = base64::engine::general_purpose::STANDARD.decode(certificate.trim()).expect("base64");
    let file = scratch.path().join("jane.crt");
    std::fs::write(&file, pem).expect("a file");
    let (certificate, key) = (path(&file), path(&scratch.path().join("jane.key")));
    cluster.kubectl(&["config", "set-credentials", "jane", "--client-certificate", &certificate, "--client-key", &key]);
    let me = cluster.kubectl(&[
        "--user",
        "jane",
        "auth",
        "whoami",
        "-o",
        "jsonpath={.status.userInfo.username} {.status.userInfo.groups[0]}",
    ]);
    assert_eq!(me, "jane team");

    cluster.apply(&manifest("eve", &request(scratch.path(), "eve"), "client auth"));
    cluster.kubectl(&["certificate", "deny", "eve"]);
    cluster.apply(&manifest("odd", &request(scratch.path(), "odd"), "client auth, server auth"));
    cluster.kubectl(&["certificate", "approve", "odd"]);
    cluster.wait_for("csr/odd", ".status.conditions[?(@.type==\"Failed\")].reason", "SignerValidationFailure");
    assert!(cluster.kubectl(&["get", "csr", "eve", "--no-headers"]).contains("Denied"));
    assert_eq!(cluster.kubectl(&["get", "csr", "eve", "-o", "jsonpath={.status.certificate}"]), "");

    let told = std::fs::read_to_string(&audit).expect("an audit log");
    assert!(told.contains("\"subresource\":\"approval\"") && told.contains("kubernetes-admin"), "{told}");
    cluster.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=password=correct-horse"]);
    let found = std::process::Command::new("grep")
        .args(["-rlF", "hidden"])
        .arg(cluster.data().join("store"))
        .output()
        .expect("grep");
    assert!(found.status.success(), "{}", text(&found));
    let plain = std::process::Command::new("grep")
        .args(["-rlF", "Y29ycmVjdC1ob3JzZQ"])
        .arg(cluster.data().join("store"))
        .output();
    assert!(!plain.expect("grep").status.success(), "the Secret is in the store as it is");
}
