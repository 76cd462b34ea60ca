//! From Debian packages: of well-known ones it is known how they run in the foreground.

use smol_cli::{ExitKind, Failure};

use super::Draft;
use super::page::{Page, list, quoted};

/// The release that is taken where the host is not Debian.
const DEFAULT_SUITE: &str = "bookworm";

/// How the service of a package runs.
struct Known {
    /// Names of packages.
    packages: &'static [&'static str],
    /// Explanation of the command; may be empty.
    about: &'static str,
    /// Lines of `[service]`.
    service: &'static [(&'static str, &'static str)],
    port: u16,
    /// The one line of `[ready]`.
    ready: (&'static str, &'static str),
    /// A file of the user's to copy, and where to.
    copy: Option<(&'static str, &'static str)>,
}

const TABLE: &[Known] = &[
    Known {
        packages: &["redis-server", "redis"],
        about: "Nothing is saved: its data is in the memory that is frozen.",
        service: &[
            (
                "cmd",
                r#"["redis-server", "--save", "", "--appendonly", "no", "--dir", "/tmp"]"#,
            ),
            ("user", "\"redis\""),
        ],
        port: 6379,
        ready: ("exec", r#"["redis-cli", "ping"]"#),
        copy: None,
    },
    Known {
        packages: &[
            "nginx",
            "nginx-light",
            "nginx-full",
            "nginx-extras",
            "nginx-core",
        ],
        about: "",
        service: &[("cmd", r#"["nginx", "-g", "daemon off;"]"#)],
        port: 80,
        ready: ("tcp", "80"),
        copy: None,
    },
    Known {
        packages: &["memcached"],
        about: "",
        service: &[("cmd", r#"["memcached", "-v"]"#), ("user", "\"memcache\"")],
        port: 11211,
        ready: ("tcp", "11211"),
        copy: None,
    },
    Known {
        packages: &["python3", "python3-minimal"],
        about: "",
        service: &[
            ("cmd", r#"["python3", "-u", "/srv/app.py"]"#),
            ("user", "\"nobody\""),
            ("env", "{ PYTHONDONTWRITEBYTECODE = \"1\" }"),
        ],
        port: 8000,
        ready: ("tcp", "8000"),
        copy: Some(("app.py", "/srv/app.py")),
    },
    Known {
        packages: &["nodejs"],
        about: "",
        service: &[
            ("cmd", r#"["node", "/srv/app.js"]"#),
            ("user", "\"nobody\""),
        ],
        port: 8080,
        ready: ("tcp", "8080"),
        copy: Some(("app.js", "/srv/app.js")),
    },
    Known {
        packages: &["busybox", "busybox-static"],
        about: "",
        service: &[(
            "cmd",
            r#"["busybox", "httpd", "-f", "-p", "8080", "-h", "/srv"]"#,
        )],
        port: 8080,
        ready: ("tcp", "8080"),
        copy: None,
    },
];

/// The Smolfile of a Debian system with these packages.
///
/// # Errors
/// Of kind Usage: one of them, or the release, has no name of Debian's.
pub fn smolfile(name: &str, suite: &str, packages: &[String]) -> Result<Draft, Failure> {
    let mut once: Vec<&str> = Vec::new();
    for package in packages {
        if !once.contains(&package.as_str()) {
            require(suite, package)?;
            once.push(package);
        }
    }
    let known = once.iter().find_map(|package| known(package));
    let mut page = Page::new("All keys and more examples: docs/smolfile.md");
    page.value("name", &quoted(name));
    page.hint("memory", "\"256MiB\"");
    match known {
        Some(known) => page.value("ports", &format!("[{}]", known.port)),
        None => page.hint("ports", "[8080]"),
    }
    page.table("[rootfs]");
    let packages = list(&once);
    let debian = format!("{{ suite = {}, packages = {packages} }}", quoted(suite));
    page.value("debian", &debian);
    match known {
        Some(known) => service(&mut page, known),
        None => unknown(&mut page, &once),
    }
    Draft::new(page, Vec::new())
}

fn known(package: &str) -> Option<&'static Known> {
    TABLE.iter().find(|known| known.packages.contains(&package))
}

fn service(page: &mut Page, known: &Known) {
    if let Some((src, dest)) = known.copy {
        page.blank();
        page.comment("Your program, beside this file.");
        page.heading("[[copy]]");
        page.value("src", &quoted(src));
        page.value("dest", &quoted(dest));
    }
    page.table("[service]");
    if !known.about.is_empty() {
        page.comment(known.about);
    }
    for (key, value) in known.service {
        page.value(key, value);
    }
    page.table("[ready]");
    page.value(known.ready.0, known.ready.1);
}

/// Services whose set-up is longer, and the recipe that has it.
const RECIPES: &[(&str, &str)] = &[
    ("postgresql", "recipes/postgresql"),
    ("openssh-server", "recipes/ssh"),
];

fn unknown(page: &mut Page, packages: &[&str]) {
    page.table("[service]");
    for (prefix, recipe) in RECIPES {
        if packages.iter().any(|package| package.starts_with(prefix)) {
            page.comment(&format!("{recipe} of smol is a machine with this package."));
        }
    }
    page.comment("The program and its arguments; it stays in the foreground.");
    page.hint("cmd", "[\"program\", \"argument\"]");
    page.hint("user", "\"nobody\"");
    page.table("[ready]");
    page.comment("When the machine is frozen: one line of tcp, http, log, exec, file or notify.");
    page.hint("tcp", "8080");
}

fn require(suite: &str, package: &str) -> Result<(), Failure> {
    let table = format!(
        "debian = {{ suite = {}, packages = [{}] }}",
        quoted(suite),
        quoted(package)
    );
    // With what a Debian system needs besides.
    let frame = format!("name = \"a\"\nservice.cmd = [\"a\"]\nready.tcp = 1\n[rootfs]\n{table}\n");
    let Err(mistakes) = crate::smolfile::parse(&frame) else {
        return Ok(());
    };
    let mistake = mistakes.into_iter().next();
    let (title, help) = mistake.map_or_else(Default::default, |it| (it.title, it.help));
    let failure = Failure::new(ExitKind::Usage, format!("--debian {package:?}: {title}"));
    Err(help.into_iter().fold(failure, Failure::hint))
}

/// The code name of the release, from the text of os-release(5): the host's, if it is Debian.
pub fn suite(os_release: &str) -> String {
    let field = |key: &str| {
        let mut lines = os_release.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim_matches(['"', '\'']))
    };
    let codename = field("VERSION_CODENAME").filter(|_| field("ID") == Some("debian"));
    match codename {
        Some(suite) if require(suite, "bash").is_ok() => suite.to_owned(),
        _ => DEFAULT_SUITE.to_owned(),
    }
}
