//! docs/bundle-format.md states the numbers and names that the library has.

use smol_bundle::{ImageKind, limits, oci};

const DOCUMENT: &str = include_str!("../../../docs/bundle-format.md");

#[test]
fn the_limits_table_is_the_librarys() {
    let library = [
        ("MAX_ENTRIES", limits::MAX_ENTRIES as u64),
        ("MAX_BLOB_SIZE", limits::MAX_BLOB_SIZE),
        ("MAX_JSON_SIZE", limits::MAX_JSON_SIZE),
        ("MAX_INDEX_SIZE", limits::MAX_INDEX_SIZE),
        ("MAX_STATE_SIZE", limits::MAX_STATE_SIZE),
        ("MAX_TEXT_SIZE", limits::MAX_TEXT_SIZE),
        ("MAX_LOCK_SIZE", limits::MAX_LOCK_SIZE),
        ("MAX_IMAGE_SIZE", limits::MAX_IMAGE_SIZE),
        ("MAX_FRAME_PAGES", limits::MAX_FRAME_PAGES.into()),
        ("MAX_FRAME_OVERHEAD", limits::MAX_FRAME_OVERHEAD.into()),
        ("MAX_SIGNATURES", limits::MAX_SIGNATURES as u64),
        ("MAX_CPUS", limits::MAX_CPUS.into()),
        ("MAX_NAME_LEN", limits::MAX_NAME_LEN as u64),
        ("MAX_CMDLINE_LEN", limits::MAX_CMDLINE_LEN as u64),
        ("MAX_PORTS", limits::MAX_PORTS as u64),
        ("MAX_FEATURES", limits::MAX_FEATURES as u64),
        ("MAX_FEATURE_LEN", limits::MAX_FEATURE_LEN as u64),
        ("MAX_REASON_LEN", limits::MAX_REASON_LEN as u64),
    ];
    let rows = DOCUMENT.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let name = cells.get(3)?.strip_prefix("`MAX_")?.strip_suffix('`')?;
        Some((format!("MAX_{name}"), cells[2].parse::<u64>().ok()?))
    });
    let documented: Vec<_> = rows.collect();
    let library: Vec<_> = library
        .iter()
        .map(|(name, value)| (name.to_string(), *value))
        .collect();
    assert_eq!(documented, library);
}

#[test]
fn every_media_type_is_in_the_document() {
    let own = [
        oci::MACHINE,
        oci::CONFIG,
        oci::INDEX,
        oci::STATE,
        oci::SMOLFILE,
        oci::LOCK,
        oci::SIGNATURE,
        oci::SIGNATURE_JSON,
        oci::OCI_MANIFEST,
        oci::OCI_INDEX,
        oci::OCI_EMPTY,
    ];
    for media_type in own
        .into_iter()
        .chain(ImageKind::ALL.map(ImageKind::media_type))
    {
        assert!(
            DOCUMENT.contains(&format!("`{media_type}`")),
            "{media_type}"
        );
    }
}
