//! The Smolfile of what was taken over.

use super::taken::{BUILD, BUILT, Place, Step, Taken, Workdir};
use crate::init::page::{Page, ports, quoted};

/// Writes it. What is not taken over is told at its place.
pub(super) fn page(name: &str, file: &str, taken: &Taken) -> Page {
    let mut page = Page::new(&format!(
        "Taken over from {file}; all keys: docs/smolfile.md"
    ));
    page.value("name", &quoted(name));
    page.hint("memory", "\"256MiB\"");
    match taken.ports.is_empty() {
        true => page.hint("ports", "[8080]"),
        false => {
            page.comment("They take the place of the image's: add those that it has itself.");
            page.value("ports", &ports(&taken.ports));
        }
    }
    lost(&mut page, taken, Place::Ports);
    rootfs(&mut page, taken);
    files(&mut page, taken);
    service(&mut page, taken);
    ready(&mut page, taken);
    page
}

fn lost(page: &mut Page, taken: &Taken, place: Place) {
    for lost in taken.lost.iter().filter(|lost| lost.place == place) {
        page.comment(&lost.comment());
    }
}

fn rootfs(page: &mut Page, taken: &Taken) {
    page.table("[rootfs]");
    lost(page, taken, Place::Rootfs);
    if taken.needs_build {
        page.comment(
            "What other stages make, and commands that are not taken over, is in an image that is",
        );
        page.comment("built with docker:");
        page.comment(&format!("  {BUILD}"));
    }
    match &taken.image {
        Some(image) => {
            if taken.needs_build {
                page.comment("It takes the place of this one, and has what the steps below make:");
                page.comment(&format!("  image = \"{BUILT}\""));
            }
            page.value("image", &quoted(image));
        }
        None => page.value("image", &quoted(BUILT)),
    }
}

fn files(page: &mut Page, taken: &Taken) {
    let mut after_comment = false;
    for step in &taken.steps {
        match step {
            Step::Lost(lost) => {
                if !after_comment {
                    page.blank();
                }
                page.comment(&lost.comment());
                after_comment = true;
            }
            Step::Table(step) => {
                page.table(step.heading);
                for comment in &step.comments {
                    page.comment(comment);
                }
                for (key, value) in &step.keys {
                    page.value(key, value);
                }
                after_comment = false;
            }
        }
    }
}

fn service(page: &mut Page, taken: &Taken) {
    let workdir = match &taken.workdir {
        Workdir::Known(path) => Some(quoted(path)),
        _ => None,
    };
    let keys = [
        ("entrypoint", taken.entrypoint.as_ref().map(|it| it.toml())),
        ("cmd", taken.cmd.as_ref().map(|it| it.toml())),
        ("user", taken.user.as_deref().map(quoted)),
        ("workdir", workdir),
        ("stop_signal", taken.stop_signal.as_deref().map(quoted)),
    ];
    page.blank();
    lost(page, taken, Place::Service);
    if keys.iter().all(|(_, value)| value.is_none()) {
        page.comment("The command is that of the image.");
        page.hint_table("[service]");
        page.hint("cmd", "[\"program\", \"argument\"]");
    } else {
        page.heading("[service]");
    }
    for (key, value) in keys {
        if let Some(value) = value {
            page.value(key, &value);
        }
    }
    environment(page, &taken.env);
}

/// Variables: in a table of their own, for there may be many.
fn environment(page: &mut Page, env: &[(String, String)]) {
    if !env.is_empty() {
        page.table("[service.env]");
    }
    for (name, value) in env {
        page.value(name, &quoted(value));
    }
}

fn ready(page: &mut Page, taken: &Taken) {
    page.blank();
    lost(page, taken, Place::Ready);
    match (&taken.health, &taken.ports[..]) {
        (Some(check), _) => {
            page.heading("[ready]");
            page.value("exec", &check.command.toml());
            if !check.times.is_empty() {
                page.comment(
                    "As long as docker would try: start-period + retries x (interval + timeout).",
                );
            }
            for (key, value) in &check.times {
                page.value(key, value);
            }
        }
        (None, [first, ..]) => {
            page.heading("[ready]");
            page.value("tcp", &first.to_string());
        }
        (None, []) => {
            page.comment(
                "When it is ready is as the image says: its health check, or its one port. Else:",
            );
            page.hint_table("[ready]");
            page.hint("tcp", "8080");
        }
    }
}
