//! Values that are written as strings: sizes, durations, paths, users, patterns.
//!
//! Each function takes the text and returns the value, or a diagnostic whose span the caller sets.

use std::time::Duration;

use smol_cli::human;
use smol_image::ImageRef;
use smol_machine::cpu::Level;
use smol_registry::FileUrl;

use super::diagnostic::Diagnostic;

/// 1 MiB in bytes.
pub(super) const MIB: u64 = 1 << 20;

fn wrong(title: impl Into<String>) -> Diagnostic {
    Diagnostic::new(0..0, title)
}

/// The number and the unit of `30s` or `256 MiB`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

/// A size in bytes: `256MiB`, and as people write it: `256M`, `256m`, `1g`. The units are powers of
/// 1024 in every spelling, as those of memory are in docker and podman.
pub(super) fn size(text: &str) -> Result<u64, Diagnostic> {
    const HELP: &str = "write a whole number with KiB, MiB or GiB, such as \"256MiB\"";
    human::parse_bytes(text).map_err(|what| match what {
        human::NOT_A_SIZE => wrong(what).help(HELP),
        _ => wrong(what),
    })
}

/// A duration: `500ms`, `30s`, `5min`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, Diagnostic> {
    let syntax = || {
        wrong("not a duration").help("write a whole number with ms, s, min or h, such as \"30s\"")
    };
    let (number, unit) = number_and_unit(text).ok_or_else(syntax)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "m" => {
            return Err(
                wrong("not a duration").help(format!("write \"{number}min\" or \"{number}ms\""))
            );
        }
        _ => return Err(syntax()),
    };
    match number.checked_mul(milliseconds) {
        Some(total) => Ok(Duration::from_millis(total)),
        None => Err(wrong("the duration is too long")),
    }
}

/// The name of a machine or a recipe.
pub(super) fn name(text: &str) -> Result<String, Diagnostic> {
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ok = text.bytes().next().is_some_and(lower)
        && text
            .bytes()
            .all(|b| lower(b) || matches!(b, b'.' | b'_' | b'-'));
    if !ok {
        let help = "use lower-case letters, digits, `.`, `_` and `-`; begin with a letter or digit";
        return Err(wrong("not a valid name").help(help));
    }
    if text.len() > 63 {
        return Err(wrong("the name is longer than 63 characters"));
    }
    Ok(text.to_owned())
}

/// Free text without white space.
pub(super) fn version(text: &str) -> Result<String, Diagnostic> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong("a version is one word without white space"));
    }
    if text.len() > 128 {
        return Err(wrong("the version is longer than 128 bytes"));
    }
    Ok(text.to_owned())
}

/// A path next to the Smolfile, in its shortest form: relative, and not out of its folder.
///
/// The Plan's digest holds it as written, so it must mean the same wherever the folder lies.
pub(super) fn host_path(text: &str) -> Result<String, Diagnostic> {
    let help = "name it relative to the folder of the Smolfile, and keep it inside";
    if text.is_empty() {
        return Err(wrong("the path is empty"));
    }
    if text.starts_with('/') {
        return Err(wrong("an absolute path would make the build depend on this host").help(help));
    }
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => {
                return Err(wrong("the path leads out of the folder of the Smolfile").help(help));
            }
            ".." => {}
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Ok(".".to_owned());
    }
    Ok(parts.join("/"))
}

/// A path in the guest: absolute, without `.` and `..`.
pub(super) fn guest_path(text: &str) -> Result<String, Diagnostic> {
    if !text.starts_with('/') {
        return Err(wrong("a path in the guest must be absolute")
            .help(format!("write \"/{}\"", text.escape_debug())));
    }
    if text.split('/').any(|part| part == ".." || part == ".") {
        return Err(wrong("a path in the guest must not hold `.` or `..`"));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    Ok(format!("/{}", parts.join("/")))
}

/// Where a copy goes; a slash at the end stays, for it says that this is a folder.
pub(super) fn destination(text: &str) -> Result<String, Diagnostic> {
    let mut path = guest_path(text)?;
    if text.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    Ok(path)
}

/// `name`, `uid`, `name:group` or `uid:gid`.
pub(super) fn user(text: &str) -> Result<String, Diagnostic> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if account(user) && group.is_none_or(account) {
        return Ok(text.to_owned());
    }
    let help = "write a name or number, and a group after a colon if need be: \"redis\", \"1000\", \"www-data:www-data\"";
    Err(wrong("not a user").help(help))
}

/// A name as useradd(8) takes it, or a number below the one that means "nobody asked" (2^32 - 1).
fn account(text: &str) -> bool {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse::<u32>().is_ok_and(|id| id != u32::MAX);
    }
    let first = |b: u8| b.is_ascii_lowercase() || b == b'_';
    text.len() <= 32
        && text.bytes().next().is_some_and(first)
        && text
            .bytes()
            .all(|b| first(b) || b.is_ascii_digit() || b == b'-' || b == b'.')
}

/// A regular expression that the guest's engine takes.
pub(super) fn pattern(text: &str) -> Result<String, Diagnostic> {
    match regex_lite::Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(wrong("not a valid regular expression").label(error.to_string())),
    }
}

/// The path of a GET request, as the guest sends it.
pub(super) fn http_path(text: &str) -> Result<String, Diagnostic> {
    if !text.starts_with('/') || text.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        let help = "begin with `/`; write spaces and other special characters percent-encoded";
        return Err(wrong("not the path of an HTTP request").help(help));
    }
    Ok(text.to_owned())
}

/// Port and path of `http://:8080/health`. The guest is asked about itself, so a host other than
/// its loopback address has no meaning.
pub(super) fn http_url(text: &str) -> Result<(u16, String), Diagnostic> {
    let help = "write `http://:PORT/PATH`, such as \"http://:8080/health\"";
    let Some(rest) = text.strip_prefix("http://") else {
        return Err(wrong("not an http URL").help(match text.starts_with("https://") {
            true => "the guest asks without TLS: name a port that answers plain HTTP, or use `tcp` or `exec`",
            false => help,
        }));
    };
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) if rest[at..].starts_with('/') => (&rest[..at], rest[at..].to_owned()),
        Some(at) => (&rest[..at], format!("/{}", &rest[at..])),
        None => (rest, "/".to_owned()),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "80"),
    };
    if !matches!(host, "" | "localhost" | "127.0.0.1" | "[::1]") {
        return Err(wrong("the request goes to the machine itself").help(help));
    }
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(port) if digits && port > 0 => Ok((port, http_path(&path)?)),
        _ => Err(wrong("the port is out of range").label("must be 1 to 65535")),
    }
}

/// The URL of a file that anybody may download.
pub(super) fn url(text: &str) -> Result<FileUrl, Diagnostic> {
    text.parse::<FileUrl>().map_err(|error| {
        let diagnostic = wrong("not the URL of a file to download").label(error.to_string());
        match error.hint() {
            Some(hint) => diagnostic.help(hint),
            None => diagnostic,
        }
    })
}

/// The file name at the end of a URL.
pub(super) fn file_name(url: &FileUrl) -> Option<String> {
    let url = url.to_string();
    let path = url.split('?').next()?;
    let (_, path) = path.split_once("://")?.1.split_once('/')?;
    let name = path.rsplit('/').next()?;
    (!name.is_empty() && name != "." && name != "..").then(|| name.to_owned())
}

/// A SHA-256 in hexadecimal, also as sha256sum and OCI write it.
pub(super) fn sha256(text: &str) -> Result<String, Diagnostic> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match (digits.len(), is_hex) {
        (64, true) => Ok(digits.to_ascii_lowercase()),
        _ => Err(wrong("not a SHA-256").label("64 hexadecimal digits")),
    }
}

/// The name of an image, with its transport. A path in it is one next to the Smolfile.
///
/// # Errors
/// It is none.
pub fn image(text: &str) -> Result<ImageRef, Diagnostic> {
    let reference = ImageRef::parse(text).map_err(|error| wrong(error.what).help(error.help))?;
    let path = reference.path().map(host_path).transpose()?;
    Ok(match path {
        Some(path) => reference.with_path(path),
        None => reference,
    })
}

/// The number of a signal: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
///
/// # Errors
/// It is none.
pub fn signal(text: &str) -> Result<u8, Diagnostic> {
    let help = "write the name of a signal, such as \"SIGINT\" or \"SIGRTMIN+3\", or its number";
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let (first, rest) = name.split_at(name.find(['+', '-']).unwrap_or(name.len()));
    let offset = match rest {
        "" => Some(0),
        rest => rest.strip_prefix('+').unwrap_or(rest).parse::<i16>().ok(),
    };
    let base = SIGNALS.iter().find(|(name, _)| *name == first);
    let base = base
        .map(|(_, number)| *number)
        .or_else(|| text.parse().ok());
    let number = match (base, offset) {
        (Some(base @ (34 | 64)), Some(offset)) => u8::try_from(base + offset).ok(),
        (Some(base), _) if rest.is_empty() => u8::try_from(base).ok(),
        _ => None,
    };
    let number = number.filter(|number| smol_protocol::is_signal(*number));
    number.ok_or_else(|| wrong("not a signal").help(help))
}

/// Numbers of signals on x86-64 and arm64 (signal(7)); RTMIN as the C library has it.
const SIGNALS: &[(&str, i16)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", 34),
    ("RTMAX", 64),
];

/// A Debian release: `bookworm`.
pub(super) fn suite(text: &str) -> Result<String, Diagnostic> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match !text.is_empty() && !text.starts_with('-') && text.bytes().all(ok) {
        true => Ok(text.to_owned()),
        false => Err(wrong("not the name of a Debian release")
            .help("write its code name, such as \"bookworm\"")),
    }
}

/// A package name (Debian Policy 5.6.1).
pub(super) fn package(text: &str) -> Result<String, Diagnostic> {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ok = text.len() >= 2
        && text.bytes().next().is_some_and(first)
        && text
            .bytes()
            .all(|b| first(b) || matches!(b, b'+' | b'-' | b'.'));
    match ok {
        true => Ok(text.to_owned()),
        false => Err(wrong("not the name of a Debian package")
            .help("write one package to a string: lower-case letters, digits, `+`, `-` and `.`")),
    }
}

/// Octal permissions: `0755`.
pub(super) fn mode(text: &str) -> Result<u32, Diagnostic> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if plain && mode <= 0o7777 => Ok(mode),
        _ => {
            Err(wrong("not a file mode").help("write three or four octal digits, such as \"0755\""))
        }
    }
}

/// A level of the CPU.
pub(super) fn cpu(text: &str) -> Result<Level, Diagnostic> {
    text.parse().map_err(|()| {
        let names = Level::ALL.map(|level| format!("{:?}", level.name()));
        let error =
            wrong("not a level of the CPU").label(format!("must be {}", names.join(" or ")));
        match text {
            "x86-64-v4" => {
                error.help("AVX-512 is on few laptops: a bundle with it would boot cold on most")
            }
            _ => error,
        }
    })
}

/// Parameters that are the machine's own business.
const OWNED: &[&str] = &[
    "init",
    "rdinit",
    "root",
    "mem",
    "memmap",
    "maxcpus",
    "nr_cpus",
    "possible_cpus",
    "initrd",
];

/// Additions to the kernel command line. `any` lets everything pass that can be passed at all.
pub(super) fn cmdline(text: &str, any: bool) -> Result<String, Diagnostic> {
    if text.bytes().any(|b| !(b' '..=b'~').contains(&b)) {
        return Err(wrong(
            "a kernel command line is printable ASCII on one line",
        ));
    }
    if text.len() > 1024 {
        return Err(wrong("the command line is longer than 1024 bytes"));
    }
    for word in text.split(' ') {
        let name = word.split('=').next().unwrap_or(word);
        if !any
            && (OWNED.contains(&name)
                || name.starts_with("smol.")
                || name.starts_with("virtio_mmio."))
        {
            return Err(wrong(format!("`{name}` is set by smol")).help(format!("remove `{word}`")));
        }
    }
    Ok(text.trim().to_owned())
}
