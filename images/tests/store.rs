//! Stories of the store: archives in, layers out, names given and taken.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proa_images::{BuildFile, ImageConfig, ImageError, ImageStore, Options};
use support::{Made, gzip, tar};

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images"), Options::default()).unwrap();
    (dir, store)
}

fn nobody() -> BTreeSet<proa_images::Digest> {
    BTreeSet::new()
}

/// Files and directories of a store, without its names.
fn kept(dir: &Path) -> usize {
    ["blobs/sha256", "layers", "staging"]
        .iter()
        .map(|d| fs::read_dir(dir.join("images").join(d)).unwrap().count())
        .sum()
}

#[test]
fn nobody_but_the_owner_may_look_into_a_store() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, _store) = store();
    let mode = fs::metadata(dir.path().join("images")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "a layer may hold programs with the set-uid bit");
}

#[test]
fn a_layer_the_machine_went_down_too_early_for_is_unpacked_again() {
    let (dir, store) = store();
    store.load(Made::new(&[tar(&[("etc/a", b"whole")])]).layout(Some("example/app:v1")).as_slice()).unwrap();
    let image = store.get("example/app:v1").unwrap();
    let layer = store.layers(&image).unwrap().remove(0);
    // What a power cut may leave of a file that was never written through, and another boot.
    let goes_down = |store: ImageStore| {
        drop(store);
        fs::write(layer.join("etc/a"), "").unwrap();
        fs::write(dir.path().join("images/settled/boot"), "another").unwrap();
        ImageStore::open(&dir.path().join("images"), Options::default()).unwrap()
    };
    let store = goes_down(store);
    assert_eq!(store.layers(&image).unwrap(), std::slice::from_ref(&layer));
    assert_eq!(fs::read_to_string(layer.join("etc/a")).unwrap(), "whole");
    store.settle().unwrap();
    let store = goes_down(store);
    assert_eq!(store.layers(&image).unwrap(), std::slice::from_ref(&layer));
    assert_eq!(fs::read_to_string(layer.join("etc/a")).unwrap(), "", "it was on the disk: it is as it was left");
}

#[test]
fn an_oci_layout_is_loaded_listed_and_unpacked() {
    let (_dir, store) = store();
    let made = Made::new(&[tar(&[("etc/a", b"lower")]), tar(&[("etc/b", b"upper")])]);
    for packed in [made.layout(Some("docker.io/example/app:v1")), gzip(&made.layout(Some("example/app:v2")))] {
        store.load(packed.as_slice()).unwrap();
    }
    let image = store.get("example/app:v1").unwrap();
    assert_eq!(image.references, ["docker.io/example/app:v1", "docker.io/example/app:v2"]);
    assert_eq!((&image.id, &image.manifest), (&made.config, &made.manifest));
    assert_eq!(
        (image.config.entrypoint.as_slice(), image.config.user.as_str()),
        (["/run".to_owned()].as_slice(), "web")
    );
    assert!(image.size > 0 && image.created.is_some());
    for name in [
        "docker.io/example/app:v2",
        image.id.as_str(),
        &image.id.hex()[..12],
        &format!("example/app@{}", image.manifest),
    ] {
        assert_eq!(store.get(name).as_ref(), Some(&image), "{name}");
    }
    assert!(store.get("example/app").is_none() && store.get("other/app:v1").is_none());
    let layers = store.layers(&image).unwrap();
    assert_eq!(fs::read_to_string(layers[0].join("etc/b")).unwrap(), "upper", "top first");
    assert_eq!(fs::read_to_string(layers[1].join("etc/a")).unwrap(), "lower");
    assert_eq!(store.layers(&image).unwrap(), layers);
    assert_eq!(store.list(), [image]);
}

#[test]
fn a_docker_archive_with_linked_layers_is_loaded_and_a_layer_is_never_listed_twice() {
    let (_dir, store) = store();
    let empty = tar(&[("marker", b"")]);
    let layers = [empty.clone(), tar(&[("x", b"1")]), empty];
    let made = Made::new(&layers);
    let names = store.load(made.docker(&["app:latest", "reg.example:5000/app:1"], &layers).as_slice()).unwrap();
    assert_eq!(names, ["docker.io/library/app:latest", "reg.example:5000/app:1"]);
    let image = store.get("app").unwrap();
    assert_eq!(image.id, made.config);
    let unpacked = store.layers(&image).unwrap();
    assert_eq!(unpacked.len(), 2, "overlayfs takes no directory twice");
    assert!(unpacked[0].join("marker").exists() && unpacked[1].join("x").exists());
}

#[test]
fn damaged_archives_are_refused_and_nothing_is_kept() {
    let (dir, store) = store();
    let layers = [tar(&[("a", b"1")])];
    let good = Made::new(&layers);
    let tampered = |which: fn(&Made) -> proa_images::Digest| {
        let mut made = Made::new(&layers);
        let digest = which(&made);
        let mut bytes = made.blob(&digest);
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        made.tamper(&digest, bytes);
        made.layout(None)
    };
    let whole = good.layout(None);
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("text", b"this is no archive".repeat(100)),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("cut gzip", gzip(&whole)[..200].to_vec()),
        ("no image", tar(&[("hello", b"x")])),
        ("empty index", tar(&[("index.json", br#"{"manifests":[]}"#)])),
        ("index of nonsense", tar(&[("index.json", br#"{"manifests":[{"digest":"sha256:../../x"}]}"#)])),
        ("layer digest", tampered(|made| made.layers[0].clone())),
        ("config digest", tampered(|made| made.config.clone())),
        ("manifest digest", tampered(|made| made.manifest.clone())),
        ("missing layer", tar(&[("manifest.json", br#"[{"Config":"c.json","Layers":["l"]}]"#), ("c.json", b"{}")])),
        ("climbing layer", tar(&[("manifest.json", br#"[{"Config":"../../../etc/passwd","Layers":[]}]"#)])),
        ("fewer layers than promised", good.docker(&["a"], &[])),
    ];
    for (what, bytes) in table {
        let error = store.load(bytes.as_slice()).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt(_)), "{what}: {error}");
        assert_eq!(kept(dir.path()), 0, "{what} left something");
    }
    assert!(store.list().is_empty());
}

#[test]
fn a_layer_that_is_not_what_its_configuration_says_is_refused_when_unpacked() {
    let (dir, store) = store();
    let layers = [tar(&[("a", b"1")])];
    let lie = [tar(&[("a", b"2")])];
    store.load(Made::new(&layers).docker(&["a"], &lie).as_slice()).unwrap();
    let error = store.layers(&store.get("a").unwrap()).unwrap_err();
    assert!(matches!(error, ImageError::Corrupt(_)), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("images/layers")).unwrap().count(), 0);
}

#[test]
fn removing_names_removes_images_but_shared_layers_stay() {
    let (dir, store) = store();
    let (shared, own) = (tar(&[("shared", b"1")]), tar(&[("own", b"1")]));
    store.load(Made::new(&[shared.clone(), own]).layout(Some("a:1")).as_slice()).unwrap();
    store.load(Made::new(&[shared]).layout(Some("b:1")).as_slice()).unwrap();
    for name in ["a:1", "b:1"] {
        store.layers(&store.get(name).unwrap()).unwrap();
    }
    let id = store.get("a:1").unwrap().id;
    assert!(matches!(store.remove("a:1", &[id.clone()].into()), Err(ImageError::InUse(_))));
    assert!(store.get("a:1").is_some());
    store.remove("a:1", &nobody()).unwrap();
    assert!(store.get(id.as_str()).is_none());
    assert_eq!(store.layers(&store.get("b:1").unwrap()).unwrap().len(), 1);
    assert_eq!(kept(dir.path()), 3 + 1, "b: manifest, configuration, layer; unpacked");
    store.remove("b:1", &nobody()).unwrap();
    assert_eq!(kept(dir.path()), 0);
    assert!(matches!(store.remove("b:1", &nobody()), Err(ImageError::NotFound(_))));
}

#[test]
fn what_one_process_loads_or_removes_the_others_see() {
    let (dir, agent) = store();
    let other = ImageStore::open(&dir.path().join("images"), Options::default()).unwrap();
    other.load(Made::new(&[tar(&[("v", b"1")])]).layout(Some("a:1")).as_slice()).unwrap();
    let image = agent.get("a:1").expect("loaded by the other");
    assert_eq!(agent.layers(&image).unwrap(), agent.layer_paths(&image));
    agent.load(Made::new(&[tar(&[("v", b"2")])]).layout(Some("b:1")).as_slice()).unwrap();
    other.remove("a:1", &nobody()).unwrap();
    assert!(agent.get("a:1").is_none());
    assert!(other.get("b:1").is_some(), "neither overwrites what the other wrote");
}

#[test]
fn a_name_that_moves_leaves_its_old_image_to_those_who_use_it() {
    let (_dir, store) = store();
    store.load(Made::new(&[tar(&[("v", b"1")])]).layout(Some("a:1")).as_slice()).unwrap();
    let old = store.get("a:1").unwrap();
    store.load(Made::new(&[tar(&[("v", b"2")])]).layout(Some("a:1")).as_slice()).unwrap();
    store.collect_garbage(&[old.id.clone()].into()).unwrap();
    assert!(store.get(old.id.as_str()).is_some());
    assert!(store.layers(&old).is_ok());
    store.collect_garbage(&nobody()).unwrap();
    assert!(store.get(old.id.as_str()).is_none());
    assert!(store.get("a:1").is_some());
}

#[test]
fn a_store_is_found_again_and_unfinished_work_is_cleared_away() {
    let (dir, store) = store();
    store.load(Made::new(&[tar(&[("v", b"1")])]).layout(Some("a:1")).as_slice()).unwrap();
    let before = store.list();
    drop(store);
    fs::create_dir_all(dir.path().join("images/staging/99-1/layer")).unwrap();
    let store = ImageStore::open(&dir.path().join("images"), Options::default()).unwrap();
    assert_eq!(store.list(), before);
    assert_eq!(fs::read_dir(dir.path().join("images/staging")).unwrap().count(), 0);
}

#[test]
fn an_image_of_files_shares_their_bytes_and_is_the_same_when_made_again() {
    let (dir, store) = store();
    let program = dir.path().join("program");
    fs::write(&program, vec![7; 5 << 20]).unwrap();
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let files = [BuildFile { path: "/usr/bin/program".into(), source: program.clone(), mode: 0o755 }];
    let config = |version: &str| ImageConfig {
        entrypoint: vec!["/usr/bin/program".into()],
        env: vec![("VERSION".into(), version.into())],
        ..ImageConfig::default()
    };
    let v1 = store.build_from_files("example/echo:v1", &files, config("v1")).unwrap();
    let v2 = store.build_from_files("example/echo:v2", &files, config("v2")).unwrap();
    assert_ne!(v1.id, v2.id);
    assert_eq!(store.layers(&v1).unwrap(), store.layers(&v2).unwrap());
    let inside = store.layers(&v1).unwrap()[0].join("usr/bin/program");
    assert_eq!(fs::metadata(inside).unwrap().ino(), fs::metadata(&program).unwrap().ino());
    assert_eq!(store.build_from_files("example/echo:v1", &files, config("v1")).unwrap(), v1);
    assert_eq!(store.get("docker.io/example/echo:v2"), Some(v2));
    store.collect_garbage(&nobody()).unwrap();
    assert!(store.layers(&v1).is_ok());
}

#[test]
fn threads_that_want_the_same_layers_unpack_them_once() {
    let (_dir, store) = store();
    let body = vec![1; 1 << 20];
    store.load(Made::new(&[tar(&[("big", &body)]), tar(&[("x", b"1")])]).layout(Some("a:1")).as_slice()).unwrap();
    let image = store.get("a:1").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(store.layers(&image).unwrap().len(), 2));
        }
    });
}
