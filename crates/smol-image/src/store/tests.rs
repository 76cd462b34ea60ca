use serde_json::{Value, json};

use super::*;

/// An image with these layers, and the blobs that a layout has of it.
struct Made {
    config: Vec<u8>,
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

fn made(architecture: &str, layers: &[&str]) -> Made {
    let ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer.as_bytes()).to_string())
        .collect();
    let config = json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = config.to_string().into_bytes();
    let described =
        |bytes: &[u8]| json!({"digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let layers: Vec<&[u8]> = layers.iter().map(|layer| layer.as_bytes()).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "config": described(&config),
        "layers": layers.iter().map(|layer| described(layer)).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let mut blobs = vec![config.clone(), manifest.clone()];
    blobs.extend(layers.iter().map(|layer| layer.to_vec()));
    Made {
        config,
        manifest,
        blobs,
    }
}

fn put(files: &mut Tree, path: &str, bytes: &[u8]) {
    files.file(path, 0o644, bytes.to_vec()).unwrap();
}

fn put_blobs(files: &mut Tree, made: &Made) {
    for blob in &made.blobs {
        put(
            files,
            &format!("blobs/sha256/{}", Digest::of(blob).hex()),
            blob,
        );
    }
}

fn entry(document: &[u8], tag: Option<&str>, architecture: Option<&str>) -> Value {
    let mut entry = json!({"digest": Digest::of(document).to_string(), "size": document.len()});
    if let Some(tag) = tag {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    }
    if let Some(architecture) = architecture {
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
    }
    entry
}

fn index(entries: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "manifests": entries})
        .to_string()
        .into_bytes()
}

fn layout_of(images: &[(&str, &Made)]) -> Tree {
    let mut files = Tree::new();
    put(
        &mut files,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    let entries: Vec<Value> = images
        .iter()
        .map(|(tag, made)| entry(&made.manifest, Some(tag), None))
        .collect();
    put(&mut files, "index.json", &index(&entries));
    images
        .iter()
        .for_each(|(_, made)| put_blobs(&mut files, made));
    files
}

fn refused(image: Result<Image>) -> String {
    format!("{:#}", image.unwrap_err())
}

#[test]
fn the_image_of_a_layout_is_found_by_its_tag() {
    let (one, two) = (made("amd64", &["a", "b"]), made("amd64", &["c"]));
    let files = layout_of(&[("v1", &one), ("docker.io/library/x:v2", &two)]);
    let image = layout(&files, Some("v1"), 2).unwrap();
    assert_eq!(image.id, Digest::of(&one.config));
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(diff_ids, [Digest::of(b"a"), Digest::of(b"b")]);
    for tag in ["v2", "docker.io/library/x:v2"] {
        assert_eq!(
            layout(&files, Some(tag), 2).unwrap().id,
            Digest::of(&two.config)
        );
    }
    assert!(refused(layout(&files, None, 2)).contains("several images"));
    let error = refused(layout(&files, Some("v3"), 2));
    assert!(
        error.contains("no image \"v3\"; it has docker.io/library/x:v2, v1"),
        "{error}"
    );
    assert_eq!(
        layout(&layout_of(&[("v1", &one)]), None, 2).unwrap().id,
        Digest::of(&one.config)
    );
    let twice = layout_of(&[("v1", &one), ("latest", &one)]);
    assert_eq!(layout(&twice, None, 2).unwrap().id, Digest::of(&one.config));
}

#[test]
fn an_index_is_gone_through_to_the_image_for_this_machine() {
    let (arm, amd) = (made("arm64", &["a"]), made("amd64", &["b"]));
    let entries = [
        entry(&arm.manifest, None, Some("arm64")),
        entry(&amd.manifest, None, Some("amd64")),
    ];
    let several = index(&entries);
    let mut nested = Tree::new();
    put(
        &mut nested,
        "index.json",
        &index(&[entry(&several, Some("v1"), None)]),
    );
    put(
        &mut nested,
        &format!("blobs/sha256/{}", Digest::of(&several).hex()),
        &several,
    );
    let mut flat = Tree::new();
    put(&mut flat, "index.json", &several);
    for files in [&mut nested, &mut flat] {
        put_blobs(files, &amd);
        assert_eq!(layout(files, None, 2).unwrap().id, Digest::of(&amd.config));
    }
    let only_arm = layout_of(&[("v1", &arm)]);
    assert!(refused(layout(&only_arm, None, 2)).contains("is for linux/arm64"));
    let loop_free = (0..6).fold(several, |inner, _| {
        let outer = index(&[entry(&inner, None, None)]);
        put(
            &mut nested,
            &format!("blobs/sha256/{}", Digest::of(&inner).hex()),
            &inner,
        );
        outer
    });
    put(&mut nested, "index.json", &loop_free);
    assert!(refused(layout(&nested, None, 2)).contains("in each other"));
}

#[test]
fn a_blob_that_is_missing_or_damaged_is_named() {
    let one = made("amd64", &["a"]);
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    for blob in &one.blobs {
        let mut files = layout_of(&[("v1", &one)]);
        files.remove(path(blob)).unwrap();
        assert!(refused(layout(&files, None, 2)).contains(&Digest::of(blob).to_string()));
        // A layer is looked at when it is unpacked.
        put(&mut files, &path(blob), &[blob.as_slice(), b" "].concat());
        let error = refused(layout(&files, None, 2));
        assert!(error.contains("bytes"), "{error}");
    }
    let mut files = layout_of(&[("v1", &one)]);
    let wrong = json!({"rootfs": {"diff_ids": []}}).to_string().into_bytes();
    let described = json!({"digest": Digest::of(&wrong).to_string(), "size": wrong.len()});
    let layer = json!({"digest": Digest::of(b"a").to_string(), "size": 1});
    let manifest = json!({"config": described, "layers": [layer]})
        .to_string()
        .into_bytes();
    put(&mut files, &path(&wrong), &wrong);
    put(&mut files, &path(&manifest), &manifest);
    put(
        &mut files,
        "index.json",
        &index(&[entry(&manifest, None, None)]),
    );
    assert!(
        refused(layout(&files, None, 2)).contains("has 1 layers, and its configuration says 0")
    );
}

/// What `docker save` writes, with these images.
fn saved(images: &[(&[&str], &Made, &[&str])]) -> Tree {
    let mut files = Tree::new();
    let mut list = Vec::new();
    for (tags, made, layers) in images {
        let config = format!("{}.json", Digest::of(&made.config).hex());
        put(&mut files, &config, &made.config);
        for (path, content) in layers.iter().zip(&made.blobs[2..]) {
            put(&mut files, path, content);
        }
        list.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
    }
    put(
        &mut files,
        "manifest.json",
        Value::from(list).to_string().as_bytes(),
    );
    files
}

#[test]
fn the_image_of_docker_save_is_found_by_its_name_or_number() {
    let (one, two) = (made("amd64", &["a"]), made("amd64", &["b"]));
    let files = saved(&[
        (&["nginx:latest"], &one, &["1/layer.tar"]),
        (&["docker.io/me/x:2"], &two, &["2/layer.tar"]),
    ]);
    for name in ["nginx", "nginx:latest", "docker.io/library/nginx", "@0"] {
        assert_eq!(
            docker(&files, Some(name), 2).unwrap().id,
            Digest::of(&one.config),
            "{name}"
        );
    }
    for name in ["me/x:2", "@1"] {
        assert_eq!(
            docker(&files, Some(name), 2).unwrap().id,
            Digest::of(&two.config),
            "{name}"
        );
    }
    assert!(refused(docker(&files, None, 2)).contains("has 2 images"));
    for name in ["me/x", "@2", "other"] {
        assert!(
            refused(docker(&files, Some(name), 2))
                .contains("it has nginx:latest, docker.io/me/x:2")
        );
    }
    let only = saved(&[(&[], &one, &["1/layer.tar"])]);
    assert_eq!(
        docker(&only, None, 2).unwrap().layers[0].diff_id,
        Digest::of(b"a")
    );
}

#[test]
fn a_layer_of_docker_save_may_be_a_link_and_never_leads_out() {
    let one = made("amd64", &["a", "a"]);
    let mut files = saved(&[(&["x:1"], &one, &["1/layer.tar", "2/layer.tar"])]);
    files.remove("2/layer.tar").unwrap();
    files.symlink("2/layer.tar", "../1/layer.tar").unwrap();
    let image = docker(&files, None, 2).unwrap();
    assert_eq!(image.layers[1].blob.len(), 1);
    files.remove("2/layer.tar").unwrap();
    files.symlink("2/layer.tar", "../../etc/passwd").unwrap();
    assert!(refused(docker(&files, None, 2)).contains("leads out of the tree"));
    files.remove("2/layer.tar").unwrap();
    files.symlink("2/layer.tar", "layer.tar").unwrap();
    assert!(refused(docker(&files, None, 2)).contains("a loop"));
    files.remove("2/layer.tar").unwrap();
    assert!(refused(docker(&files, None, 2)).contains("was not saved completely"));
}

#[test]
fn a_configuration_under_another_digest_is_refused() {
    let one = made("amd64", &["a"]);
    for name in ["{}.json", "blobs/sha256/{}"] {
        let name = name.replace("{}", &Digest::of(&one.config).hex());
        let mut files = saved(&[(&["x:1"], &one, &["1/layer.tar"])]);
        let list = json!([{"Config": name, "RepoTags": null, "Layers": ["1/layer.tar"]}]);
        put(&mut files, "manifest.json", list.to_string().as_bytes());
        put(&mut files, &name, &one.config);
        docker(&files, None, 2).unwrap();
        put(&mut files, &name, br#"{"rootfs":{"diff_ids":[]}}"#);
        assert!(refused(docker(&files, None, 2)).contains("damaged"));
    }
}

#[test]
fn the_kind_of_an_archive_is_told_by_what_is_in_it() {
    let one = made("amd64", &["a"]);
    let (oci, docker_save) = (
        layout_of(&[("v1", &one)]),
        saved(&[(&["x:1"], &one, &["1/layer.tar"])]),
    );
    assert_eq!(any(&oci, 2).unwrap().id, any(&docker_save, 2).unwrap().id);
    assert!(refused(docker(&oci, None, 2)).contains("write oci-archive:"));
    assert!(refused(layout(&docker_save, None, 2)).contains("write docker-archive:"));
    let mut rootfs = Tree::new();
    rootfs.mkdir("etc", 0o755).unwrap();
    assert!(refused(layout(&rootfs, None, 2)).contains("[rootfs] tar"));
}
