//! What the sections of a Smolfile ask of each other. Looks at which keys are there, before they
//! are taken, so that a mistake inside a section does not hide one between sections.

use super::diagnostic::{Diagnostic, Span};
use super::parse::PROBES;
use super::table::{Errors, Table};

/// The table that says where the root file system comes from, and where it stands.
pub(super) fn files(top: &Table<'_>) -> Option<(&'static str, Span)> {
    let mut tables = ["rootfs", "base"].into_iter();
    tables.find_map(|name| Some((name, top.key_span(name)?)))
}

/// Whether the root file system is an image, which may say what it runs and when that is ready.
pub(super) fn of_image(top: &Table<'_>) -> bool {
    top.holds("rootfs", "image")
}

/// A root file system comes from one place.
fn one_source(top: &Table<'_>, errors: &mut Errors) {
    let (Some(rootfs), Some(base)) = (top.key_span("rootfs"), top.key_span("base")) else {
        return;
    };
    let (first, second) = match rootfs.start < base.start {
        true => (rootfs, base),
        false => (base, rootfs),
    };
    let title = "[rootfs] and [base] both say where the root file system comes from";
    errors.push(
        Diagnostic::new(second, title)
            .context(first, "the other one")
            .help("keep [base] to build on another bundle, or [rootfs] to begin anew; [[copy]] puts files over either"),
    );
}

/// A root file system and a service belong together; everything else that happens inside the
/// guest needs them.
pub(super) fn workload(top: &Table<'_>, errors: &mut Errors) {
    one_source(top, errors);
    files_and_service(top, errors);
    if !top.has("service") && !of_image(top) {
        without_service(top, errors);
    }
    let steps = [
        (
            "copy",
            "[[copy]] without a [rootfs]: there is nowhere to copy to",
        ),
        (
            "fetch",
            "[[fetch]] without a [rootfs]: there is nowhere to put the file",
        ),
        (
            "run",
            "[[run]] without a [rootfs]: there is nothing to run it on",
        ),
    ];
    for (key, title) in steps {
        if files(top).is_none()
            && let Some(span) = top.key_span(key)
        {
            errors.push(Diagnostic::new(span, title));
        }
    }
    if !top.has("ready") && !of_image(top) {
        let just_a_kernel = top.has("kernel") && files(top).is_none() && !top.has("service");
        let help = match just_a_kernel {
            true => "add [ready] with `log`, a pattern for a line on the console",
            false => "add [ready], for example with `tcp = 8080`",
        };
        let title = "[ready] is missing: it decides when the snapshot is taken";
        errors.push(Diagnostic::new(top.span.clone(), title).help(help));
    }
}

/// A root file system needs a service, and a service a root file system.
fn files_and_service(top: &Table<'_>, errors: &mut Errors) {
    match (files(top), top.key_span("service")) {
        (Some((name, span)), None) if !of_image(top) => errors.push(
            Diagnostic::new(
                span,
                format!("[{name}] without a [service]: nothing would run"),
            )
            .help("add [service] with the `cmd` to run"),
        ),
        (None, Some(service)) => errors.push(
            Diagnostic::new(
                service,
                "[service] without a [rootfs]: there are no files to run it from",
            )
            .help("add [rootfs] with `debian`, `image`, `tar` or `dir`, or [base] with `bundle`"),
        ),
        _ => {}
    }
}

/// What needs a service.
fn without_service(top: &Table<'_>, errors: &mut Errors) {
    let without = [
        (
            "warm",
            "[[warm]] without a [service]: there is nothing to warm up",
        ),
        (
            "restore",
            "[[restore]] without a [service]: there is nothing to renew",
        ),
        (
            "warm_restore",
            "[[warm_restore]] without a [service]: there is no service to ask",
        ),
        ("ports", "`ports` without a [service]: nothing would answer"),
    ];
    for (key, title) in without {
        if let Some(span) = top.key_span(key) {
            errors.push(Diagnostic::new(span, title));
        }
    }
    if files(top).is_some()
        && let Some(ready) = top.key_span("ready")
    {
        errors.push(Diagnostic::new(
            ready,
            "[ready] without a [service]: nothing would get ready",
        ));
    }
}

/// A machine without a root file system is just a kernel, and that kernel has to be named.
pub(super) fn kernel(kernel: Option<&Table<'_>>, top: &Table<'_>, errors: &mut Errors) {
    if kernel.is_some_and(|kernel| kernel.has("path")) {
        return;
    }
    let span = kernel.map_or(top.span.clone(), |kernel| kernel.span.clone());
    let title = "neither [rootfs] nor a `path` in [kernel]: the machine has nothing to run";
    let help =
        "add [rootfs] and [service]; or, for a machine that is just a kernel, `path` in [kernel]";
    errors.push(Diagnostic::new(span, title).help(help));
}

/// A machine that is just a kernel can be probed by its console alone.
pub(super) fn console_only(ready: &Table<'_>, errors: &mut Errors) {
    for probe in PROBES.into_iter().filter(|probe| *probe != "log") {
        if let Some(span) = ready.key_span(probe) {
            let title = format!("`{probe}` needs a [rootfs] and a [service]");
            let help = "a machine that is just a kernel is ready by `log`: a pattern for a line on the console";
            errors.push(Diagnostic::new(span, title).help(help));
        }
    }
}
