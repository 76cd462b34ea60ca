//! Container images: how they are named, their documents, and archives of them.

use smol_image::manifest::Document;
use smol_image::{ImageConfig, ImageRef, MAX_LAYERS, index, store};
use smol_rootfs::Tree;

use crate::input::{join, parts};

/// Words of references and documents.
pub const WORDS: &[&str] = &[
    "oci:",
    "oci-archive:",
    "docker-archive:",
    "docker://",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "@0",
    "\"manifests\":[",
    "\"config\":{",
    "\"layers\":[",
    "\"digest\":",
    "\"size\":",
    "\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\",\"variant\":\"v",
    "\"diff_ids\":",
    "\"Healthcheck\":{\"Test\":[\"CMD",
    "\"ExposedPorts\":{\"",
    "\"Config\":",
    "\"RepoTags\":",
    "\"Layers\":",
    "null",
    "9223372036854775808",
];

/// The name of an image.
///
/// Holds: what is read is shown as what is read as the same.
pub fn reference(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let Ok(read) = ImageRef::parse(&text) else {
        return false;
    };
    let shown = read.to_string();
    assert_eq!(ImageRef::parse(&shown).as_ref(), Ok(&read), "{shown}");
    assert!(!shown.contains(char::is_whitespace));
    true
}

/// An index, a manifest or a configuration.
///
/// Holds: what is chosen is one of what there is, and layers are not more than they may be.
pub fn document(data: &[u8]) -> bool {
    let config = ImageConfig::parse(data);
    if let Ok(config) = &config {
        assert!(config.diff_ids.len() <= MAX_LAYERS);
        assert!(!config.run.tcp_ports().contains(&0));
    }
    match Document::parse(data) {
        Ok(Document::Index(entries)) => {
            let [old, new] = [2, 3].map(|level| index::choose(&entries, level));
            // What an old CPU runs, a new one does.
            assert!(old.is_err() || new.is_ok());
            assert!(
                old.is_ok_and(|entry| entries.contains(entry)) || entries.len() <= MAX_LAYERS * 100
            );
        }
        Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() <= MAX_LAYERS),
        Err(_) => return config.is_ok(),
    }
    true
}

/// An archive of an image: its list of images, and five blobs; with the names that digests give them, and
/// others.
///
/// Holds: an image that is found has as many layers as its configuration says, all of which are there.
pub fn archive(data: &[u8]) -> bool {
    let files = parts(data, 6);
    let (list, blobs) = files.split_first().expect("there is one");
    let mut tree = Tree::new();
    let mut put = |path: &str, bytes: &[u8]| tree.file(path, 0o644, bytes.to_vec()).is_ok();
    let mut is_put = put("index.json", list) && put("manifest.json", list);
    for (number, blob) in blobs.iter().enumerate() {
        let digest = smol_bundle::Digest::of(blob).hex();
        is_put &= put(&format!("blobs/sha256/{digest}"), blob) && put(&number.to_string(), blob);
    }
    assert!(is_put);
    let found = [store::layout(&tree, None, 2), store::docker(&tree, None, 2)];
    let mut any = false;
    for image in found.into_iter().flatten() {
        assert_eq!(image.config.diff_ids.len(), image.layers.len());
        any = true;
    }
    any
}

/// One of each transport.
pub fn reference_seeds() -> Vec<Vec<u8>> {
    let digest = WORDS[4];
    [
        "-",
        "oci:a/layout:v1",
        "oci-archive:x.tar",
        "docker-archive:x.tar:x:1",
        "docker-archive:x.tar:@1",
        "localhost:5000/a/b_c:x",
        digest,
        &format!("docker.io/library/nginx:1.27@{digest}"),
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn documents() -> [String; 3] {
    let layer = smol_bundle::Digest::of(b"layer");
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{layer}"]}},"config":{{"Entrypoint":["/e"],"Cmd":"a b","Env":["A=b"],"ExposedPorts":{{"80/tcp":{{}}}},"Healthcheck":{{"Test":["CMD-SHELL","x"],"StartPeriod":5000000000}}}}}}"#
    );
    let described = |bytes: &str| {
        format!(
            r#""digest":"{}","size":{}"#,
            smol_bundle::Digest::of(bytes.as_bytes()),
            bytes.len()
        )
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{}}}]}}"#,
        described(&config),
        described("layer")
    );
    let index = format!(
        r#"{{"manifests":[{{{},"platform":{{"os":"linux","architecture":"amd64","variant":"v2"}},"annotations":{{"org.opencontainers.image.ref.name":"v1"}}}}]}}"#,
        described(&manifest)
    );
    [index, manifest, config]
}

/// One of each kind.
pub fn document_seeds() -> Vec<Vec<u8>> {
    documents().map(String::into_bytes).to_vec()
}

/// A layout; and what `docker save` writes.
pub fn archive_seeds() -> Vec<Vec<u8>> {
    let [index, manifest, config] = documents();
    let list = r#"[{"Config":"1","RepoTags":["x:1"],"Layers":["2"]}]"#;
    let blobs = [manifest.as_bytes(), config.as_bytes(), b"layer", b"", b""];
    [index.as_str(), list]
        .map(|first| join(&[&[first.as_bytes()][..], &blobs[..]].concat()))
        .to_vec()
}
