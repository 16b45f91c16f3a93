//! What of the store is ciphertext, by raw requests in process and a look at what is stored.

mod common;

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{World, open_with};
use serde_json::{Value, json};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// An `EncryptionConfiguration` of Secrets with these keys, each a provider, a name and the byte its key is made of.
fn keys(keys: &[(&str, &str, u8)], last: &str) -> String {
    let provider = |(provider, name, byte): &(&str, &str, u8)| {
        let secret = STANDARD.encode([*byte; 32]);
        format!("    - {provider}: {{keys: [{{name: {name}, secret: {secret}}}]}}\n")
    };
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers:\n{}{last}",
        keys.iter().map(provider).collect::<String>()
    )
}

const IDENTITY: &str = "    - identity: {}\n";

fn write(dir: &Path, text: &str) {
    // As whoever exchanges such a file does it: in one step.
    std::fs::write(dir.join("keys.new"), text).unwrap();
    std::fs::rename(dir.join("keys.new"), dir.join("keys.yaml")).unwrap();
}

async fn started(dir: std::sync::Arc<tempfile::TempDir>) -> World {
    let file = dir.path().join("keys.yaml");
    open_with(dir, |config| config.encryption = Some(file)).await.unwrap()
}

async fn stored(world: &World, name: &str) -> Vec<u8> {
    let (entry, _) = world.log.get(&format!("/registry/secrets/default/{name}")).await.unwrap();
    entry.expect("it is stored").bytes.to_vec()
}

fn secret(name: &str) -> Value {
    json!({"metadata": {"name": name}, "stringData": {"password": "correct horse"}})
}

#[tokio::test]
async fn a_secret_is_ciphertext_in_the_store_and_plain_to_everybody_who_may_read_it() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), &keys(&[("aescbc", "key1", 1)], IDENTITY));
    let world = started(dir).await;
    let mut events = world.watch(&format!("{SECRETS}?watch=true&resourceVersion=0")).await;
    let made = world.ok("POST", SECRETS, &secret("a")).await;
    assert_eq!(made["data"]["password"], STANDARD.encode("correct horse"));
    let bytes = stored(&world, "a").await;
    assert!(bytes.starts_with(b"k8s:enc:aescbc:v1:key1:"), "{}", String::from_utf8_lossy(&bytes));
    assert!(!bytes.windows(8).any(|part| part == b"password"));
    let read = world.get(&format!("{SECRETS}/a")).await;
    assert_eq!(read, made, "the resource version too");
    let seen = loop {
        let event = events.next().await.expect("an event");
        if event["object"]["metadata"]["name"] == "a" {
            break event["object"].clone();
        }
    };
    assert_eq!(seen, made);
    let patched = world.ok("PATCH", &format!("{SECRETS}/a"), &json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(world.get(&format!("{SECRETS}/a")).await, patched);
    world.ok("POST", "/api/v1/namespaces/default/configmaps", &json!({"metadata": {"name": "m"}})).await;
    let (map, _) = world.log.get("/registry/configmaps/default/m").await.unwrap();
    assert!(map.unwrap().bytes.starts_with(b"{"), "nothing else is encrypted");
    // The history is: a list at an older revision goes to the store.
    let older = made["metadata"]["resourceVersion"].as_str().unwrap();
    let then = world.get(&format!("{SECRETS}?resourceVersion={older}&resourceVersionMatch=Exact&limit=5")).await;
    assert_eq!(then["items"][0]["metadata"]["labels"], Value::Null);
    assert_eq!(then["items"][0]["metadata"]["resourceVersion"], older);
    world.ok("DELETE", &format!("{SECRETS}/a"), &Value::Null).await;
    loop {
        let event = events.next().await.expect("an event");
        if event["type"] == "DELETED" {
            assert_eq!(event["object"]["data"], made["data"]);
            break;
        }
    }
}

#[tokio::test]
async fn keys_are_rotated_without_a_stop_and_a_write_that_changes_nothing_takes_the_new_one() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), &keys(&[("aesgcm", "old", 1)], IDENTITY));
    let world = started(std::sync::Arc::clone(&dir)).await;
    let made = world.ok("POST", SECRETS, &secret("a")).await;
    assert!(stored(&world, "a").await.starts_with(b"k8s:enc:aesgcm:v1:old:"));
    let same = world.ok("PATCH", &format!("{SECRETS}/a"), &json!({})).await;
    assert_eq!(same, made, "what is written as it would be now is not written again");

    write(dir.path(), &keys(&[("secretbox", "new", 2), ("aesgcm", "old", 1)], IDENTITY));
    let mut tries = 0;
    while !stored(&world, "a").await.starts_with(b"k8s:enc:secretbox:v1:new:") {
        tries += 1;
        assert!(tries < 500, "the file was not read again");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        // `kubectl get secrets -o json | kubectl replace -f -`, as Kubernetes' documentation has it.
        let read = world.get(&format!("{SECRETS}/a")).await;
        world.ok("PUT", &format!("{SECRETS}/a"), &read).await;
    }
    // The old key goes; what was read with it is still there after a restart.
    let dir = world.closed().await;
    write(dir.path(), &keys(&[("secretbox", "new", 2)], ""));
    let world = started(dir).await;
    assert_eq!(world.get(&format!("{SECRETS}/a")).await["data"], made["data"]);
}

#[tokio::test]
async fn a_server_without_the_key_does_not_start_and_says_which_object_it_cannot_read() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    write(dir.path(), &keys(&[("aesgcm", "key1", 1)], ""));
    let world = started(std::sync::Arc::clone(&dir)).await;
    world.ok("POST", SECRETS, &secret("a")).await;
    let dir = world.closed().await;
    write(dir.path(), &keys(&[("aesgcm", "key1", 2)], ""));
    for file in [Some(dir.path().join("keys.yaml")), None] {
        let expected = if file.is_some() { "message authentication failed" } else { "--encryption-provider-config" };
        let opened = open_with(std::sync::Arc::clone(&dir), |config| config.encryption = file).await;
        let Err(error) = opened else { panic!("it started") };
        let error = error.to_string();
        assert!(error.contains("/registry/secrets/default/a") && error.contains(expected), "{error}");
    }
    write(dir.path(), "kind: Nonsense");
    let file = dir.path().join("keys.yaml");
    let opened = open_with(std::sync::Arc::clone(&dir), |config| config.encryption = Some(file)).await;
    assert!(opened.is_err_and(|error| error.to_string().contains("keys.yaml")));
}
