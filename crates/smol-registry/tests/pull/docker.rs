//! Against docker-registry: open, with a password, with TLS.

use std::fs;

use smol_registry::{Kind, Wanted};
use smol_testing::docker::{DockerRegistry, Setup, USER};
use smol_testing::left_out;

use crate::support::*;

/// A registry with an image in it; says why if there is none.
fn start(setup: Setup, image: &Image, name: &str) -> Option<DockerRegistry> {
    let Some(registry) = DockerRegistry::start(setup) else {
        left_out("docker-registry is not installed");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    registry.push(&image.write(folder.path()), name);
    Some(registry)
}

#[test]
fn an_image_is_pulled_from_an_open_registry() {
    let image = Image::new(vec![
        noise(3 << 20, 1),
        noise(1, 2),
        noise(100_000, 3),
        noise(7, 4),
    ]);
    let Some(registry) = start(Setup::default(), &image, "a/b:1") else {
        return;
    };
    let (home, name) = (Home::new(), format!("{}/a/b:1", registry.host()));
    let client = home.client();
    let manifest = client.manifest(&reference(&name)).unwrap();
    assert_eq!(manifest.bytes, image.manifest);
    assert_eq!(manifest.digest, digest(&image.manifest));
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(manifest.media_type.as_deref(), Some(media_type));
    let pinned = reference(&name).with_digest(&manifest.digest);
    assert_eq!(client.manifest(&pinned).unwrap(), manifest);

    let (layer, mut to, mut told) = (&image.layers[0], file(b""), 0);
    let mut progress = |bytes| told = bytes;
    client
        .blob(
            &pinned,
            &digest(layer),
            layer.len() as u64,
            &mut to,
            &mut progress,
        )
        .unwrap();
    assert_eq!(told, layer.len() as u64);
    assert_eq!(&content(&mut to), layer);

    let parts = image.layers.iter().chain([&image.config]);
    let mut wanted: Vec<_> = parts
        .clone()
        .map(|bytes| Wanted {
            digest: digest(bytes),
            size: bytes.len() as u64,
            file: file(b""),
        })
        .collect();
    let mut told = vec![0; wanted.len()];
    client
        .blobs(&pinned, &mut wanted, &mut |at, bytes| told[at] = bytes)
        .unwrap();
    let sizes = parts.clone().map(|bytes| bytes.len() as u64);
    assert_eq!(told, sizes.collect::<Vec<_>>());
    for (wanted, bytes) in wanted.iter_mut().zip(parts) {
        assert_eq!(&content(&mut wanted.file), bytes);
    }
}

#[test]
fn a_download_goes_on_where_an_earlier_one_stopped() {
    let layer = noise(300_000, 5);
    let image = Image::new(vec![layer.clone()]);
    let Some(registry) = start(Setup::default(), &image, "a:1") else {
        return;
    };
    let (home, name) = (Home::new(), format!("{}/a:1", registry.host()));
    let (client, digest, size) = (home.client(), digest(&layer), layer.len() as u64);
    let first_told = |from: &[u8]| {
        let (mut to, mut told) = (file(from), Vec::new());
        let mut progress = |bytes| told.push(bytes);
        client
            .blob(&reference(&name), &digest, size, &mut to, &mut progress)
            .unwrap();
        assert_eq!(content(&mut to), layer);
        told.first().copied()
    };
    assert_eq!(first_told(&layer[..200_000]), Some(200_000));
    assert_eq!(first_told(&layer), Some(size));
    // What was there is wrong, or too long: from the beginning.
    let mut wrong = layer[..200_000].to_vec();
    wrong[0] ^= 1;
    first_told(&wrong);
    first_told(&[&layer[..], b"x"].concat());
}

#[test]
fn what_is_not_there_is_not_found() {
    let image = Image::new(vec![noise(10, 1)]);
    let Some(registry) = start(Setup::default(), &image, "a:1") else {
        return;
    };
    let (home, host) = (Home::new(), registry.host());
    let client = home.client();
    let missing = digest(b"missing");
    for name in [
        format!("{host}/a:2"),
        format!("{host}/b:1"),
        format!("{host}/a@{missing}"),
    ] {
        let error = client.manifest(&reference(&name)).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let text = error.to_string();
        assert!(text.contains(&name) && text.contains("404"), "{text}");
    }
    let a = reference(&format!("{host}/a:1"));
    let error = client
        .blob(&a, &missing, 10, &mut file(b""), &mut |_| {})
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn a_password_is_found_in_the_files_of_docker_and_podman() {
    let image = Image::new(vec![noise(1000, 1)]);
    let setup = Setup {
        password: true,
        ..Setup::default()
    };
    let Some(registry) = start(setup, &image, "a/b:1") else {
        return;
    };
    let host = registry.host();
    let name = reference(&format!("{host}/a/b:1"));
    let home = Home::new();
    let error = home.client().manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    let text = error.to_string();
    assert!(
        text.contains("no credentials are known") && text.contains("auth.json"),
        "{text}"
    );
    let hint = error.hint().unwrap();
    assert!(hint.contains(&format!("docker login {host}")), "{hint}");

    let auths = |key: &str, (user, password): (&str, &str)| {
        format!(r#"{{"auths":{{"{key}":{{"username":"{user}","password":"{password}"}}}}}}"#)
    };
    home.write("config.json", &auths(&host, USER));
    let client = home.client();
    assert_eq!(client.manifest(&name).unwrap().bytes, image.manifest);
    let layer = &image.layers[0];
    let mut to = file(b"");
    client
        .blob(&name, &digest(layer), 1000, &mut to, &mut |_| {})
        .unwrap();

    // The first file that has some counts, and podman's is read before docker's.
    home.write("auth.json", &auths(&format!("{host}/a"), ("user", "wrong")));
    let error = home.client().manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert!(error.to_string().contains("are refused"), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
    home.write("auth.json", "{");
    let error = home.client().manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("auth.json"), "{error}");
}

#[test]
fn a_certificate_is_checked_by_the_ca_of_the_registry() {
    let image = Image::new(vec![noise(1000, 1)]);
    let setup = Setup {
        tls: true,
        ..Setup::default()
    };
    let Some(registry) = start(setup, &image, "a:1") else {
        return;
    };
    let (home, host) = (Home::new(), registry.host());
    let name = reference(&format!("{host}/a:1"));
    let error = home.client().manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    let text = error.to_string();
    assert!(
        text.contains("certificate") && text.contains(&host),
        "{text}"
    );
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("certs.d/{host}/ca.crt"))
    );

    let insecure = smol_registry::Options {
        insecure: vec![host.clone()],
        ..home.options()
    };
    assert_eq!(
        client(insecure).manifest(&name).unwrap().bytes,
        image.manifest
    );

    let folder = home.path("certs.d").join(&host);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(registry.ca(), folder.join("ca.crt")).unwrap();
    assert_eq!(home.client().manifest(&name).unwrap().bytes, image.manifest);
    // A certificate for another name.
    let other = format!("x.localhost:{}", registry.port());
    let others = home.path("certs.d").join(&other);
    fs::create_dir_all(&others).unwrap();
    fs::copy(registry.ca(), others.join("ca.crt")).unwrap();
    let error = home
        .client()
        .manifest(&reference(&format!("{other}/a:1")))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("certificate"), "{error}");

    fs::write(folder.join("more.crt"), "nothing").unwrap();
    let error = home.client().manifest(&name).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("more.crt"), "{error}");
}
