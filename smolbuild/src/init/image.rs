//! From the configuration of an image: what it says is told, so that one sees what can be overridden.

use smol_cli::{Failure, human};
use smol_image::RunConfig;

use super::Draft;
use super::page::{Page, list, ports, quoted};

/// Most names, or folders, that are told of an image.
const SHOWN: usize = 20;
/// Most characters of one of them.
const LONGEST: usize = 100;

/// The Smolfile of an image. `reference` is its name, as `[rootfs] image` takes it.
///
/// # Errors
/// The image says more than a Smolfile can hold.
pub fn smolfile(name: &str, reference: &str, image: &RunConfig) -> Result<Draft, Failure> {
    let mut page =
        Page::new("What is left out here is as in the image; all keys: docs/smolfile.md");
    let tcp = tcp_ports(image);
    page.value("name", &quoted(name));
    page.hint("memory", "\"256MiB\"");
    if !tcp.is_empty() {
        page.hint("ports", &ports(&tcp));
    }
    page.table("[rootfs]");
    page.value("image", &quoted(reference));
    service(&mut page, image);
    ready(&mut page, image, &tcp);
    Draft::new(page, Vec::new())
}

/// The TCP ports, by number.
fn tcp_ports(image: &RunConfig) -> Vec<u16> {
    let mut ports = image.tcp_ports();
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(SHOWN);
    ports
}

fn service(page: &mut Page, image: &RunConfig) {
    page.blank();
    if image.entrypoint.is_empty() && image.cmd.is_empty() {
        page.comment("The image does not say what it runs: write the program and its arguments.");
        page.heading("[service]");
        page.hint("cmd", "[\"program\", \"argument\"]");
    } else {
        page.comment(
            "What the image says. To have it otherwise, remove the # of [service] and of the line.",
        );
        page.hint_table("[service]");
    }
    if !image.entrypoint.is_empty() {
        page.hint("entrypoint", &list(&image.entrypoint));
    }
    if !image.cmd.is_empty() {
        page.hint("cmd", &list(&image.cmd));
    }
    let values = [
        ("user", &image.user),
        ("workdir", &image.workdir),
        ("stop_signal", &image.stop_signal),
    ];
    for (key, value) in values {
        if let Some(value) = value {
            page.hint(key, &quoted(value));
        }
    }
    if !image.env.is_empty() {
        page.hint("env", "{ NAME = \"value\" }");
        let name = |pair: &String| pair.split('=').next().unwrap_or_default().to_owned();
        let names: Vec<String> = image.env.iter().map(name).collect();
        page.comment(&format!("Variables that are set: {}", some(&names)));
    }
    if !image.volumes.is_empty() {
        let volumes = some(&image.volumes);
        page.comment(&format!(
            "Volumes, which are folders of the machine: {volumes}"
        ));
    }
}

/// The first ones, by commas.
fn some(texts: &[String]) -> String {
    let shown = texts.iter().take(SHOWN);
    let mut shown: Vec<String> = shown.map(|text| human::excerpt(text, LONGEST)).collect();
    if texts.len() > SHOWN {
        shown.push(format!("and {} more", texts.len() - SHOWN));
    }
    shown.join(", ")
}

/// When the machine is ready: as a build would take it, else for the user to say.
fn ready(page: &mut Page, image: &RunConfig, tcp: &[u16]) {
    page.blank();
    match (&image.healthcheck, tcp) {
        (Some(check), _) => {
            page.comment("The machine is ready when the health check of the image passes.");
            page.hint_table("[ready]");
            page.hint("exec", &list(&check.cmd));
        }
        (None, [port]) => {
            page.comment("The machine is ready when the port of the image accepts a connection.");
            page.hint_table("[ready]");
            page.hint("tcp", &port.to_string());
        }
        (None, [first, ..]) => {
            page.comment(
                "The image has several ports and no health check. The first is taken here.",
            );
            page.heading("[ready]");
            page.value("tcp", &first.to_string());
        }
        (None, []) => {
            page.comment("The image has no health check and no port: say when the machine is ready, in one line.");
            page.heading("[ready]");
            page.hint("log", "\"listening\"");
            page.comment(
                "tcp = 8080, http = \"http://:8080/\" or exec = [\"program\"] do as well.",
            );
        }
    }
}
