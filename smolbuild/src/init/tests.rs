use smol_image::{Healthcheck, RunConfig};

use super::*;
use crate::smolfile::{Probe, Smolfile, Workload};

fn parsed(text: &str) -> Smolfile {
    smolfile::parse(text)
        .unwrap_or_else(|mistakes| panic!("{}", smolfile::render(&mistakes, "x", text, false)))
}

/// The text with each key that is only offered taken in.
fn taken_in(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key.to_owned() + "\n",
        _ => line.to_owned() + "\n",
    };
    text.lines().map(line).collect()
}

fn titles(draft: &Draft) -> Vec<String> {
    let missing = draft.missing().into_iter();
    missing.map(|mistake| mistake.title).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn web() -> RunConfig {
    RunConfig {
        entrypoint: words(&["/entry.sh"]),
        cmd: words(&["web", "-g", "daemon off;"]),
        env: words(&["PATH=/bin", "SECRET=x=y"]),
        user: Some("web".into()),
        workdir: Some("/srv".into()),
        ports: words(&["443/tcp", "80/tcp", "53/udp"]),
        stop_signal: Some("SIGQUIT".into()),
        volumes: words(&["/data"]),
        healthcheck: None,
    }
}

#[test]
fn the_example_has_no_mistakes_with_and_without_what_it_offers() {
    let draft = example("x").unwrap();
    assert_eq!(parsed(&draft.text).ports, Some(vec![8080]));
    let more = parsed(&taken_in(&draft.text));
    let copies = more.copies().count();
    let Workload::Service { warm, .. } = more.workload else {
        panic!("a service")
    };
    assert_eq!((copies, warm.len()), (1, 1));
}

#[test]
fn names_are_made_to_fit() {
    let long = "a".repeat(80);
    for (text, name) in [
        ("redis-server", "redis-server"),
        ("My App", "my-app"),
        ("-.x.", "x"),
        ("été", "t"),
        ("___", "machine"),
        ("", "machine"),
        (long.as_str(), &long[..63]),
    ] {
        let fitted = fit_name(text);
        assert_eq!(fitted, name, "{text}");
        require_name(&fitted).unwrap();
    }
    let error = require_name("My App").unwrap_err().to_string();
    assert!(error.contains("not a valid name"), "{error}");
}

#[test]
fn strings_are_read_as_they_were_and_stay_in_their_line() {
    let hostile = "a\"b'c\\d\n[ready]\r\t\u{0}\u{7f}\u{202e}\u{1b}]0;x\u{7}é '''\"\"\"";
    for text in [hostile, "plain", "it's", "a\"b'c", "\\", "'''\"\"\"", ""] {
        let line = format!("key = {}", page::quoted(text));
        assert_eq!(human::one_line(&line), line);
        let table: toml::Table = toml::from_str(&line).unwrap();
        assert_eq!(table["key"].as_str(), Some(text), "{line}");
    }
}

#[test]
fn what_an_image_says_is_told_and_can_be_taken_in() {
    let draft = image::smolfile("web", "oci:layout:v1", &web()).unwrap();
    assert_eq!(
        draft.text,
        r#"# What is left out here is as in the image; all keys: docs/smolfile.md
name = "web"
#memory = "256MiB"
#ports = [80, 443]

[rootfs]
image = "oci:layout:v1"

# What the image says. To have it otherwise, remove the # of [service] and of the line.
#[service]
#entrypoint = ["/entry.sh"]
#cmd = ["web", "-g", "daemon off;"]
#user = "web"
#workdir = "/srv"
#stop_signal = "SIGQUIT"
#env = { NAME = "value" }
# Variables that are set: PATH, SECRET
# Volumes, which are folders of the machine: /data

# The image has several ports and no health check. The first is taken here.
[ready]
tcp = 80
"#
    );
    let plain = parsed(&draft.text);
    assert_eq!(plain.ports, None);
    let more = parsed(&taken_in(&draft.text));
    let Workload::Service { service, .. } = more.workload else {
        panic!("a service")
    };
    assert_eq!(service.entrypoint.unwrap().into_inner(), web().entrypoint);
    assert_eq!(service.cmd.unwrap().into_inner(), web().cmd);
    assert_eq!(service.stop_signal, Some(3));
}

#[test]
fn when_it_is_ready_is_left_to_the_image_if_that_says_it() {
    let ready = |config: RunConfig| {
        let draft = image::smolfile("web", "web", &config).unwrap();
        let missing = titles(&draft);
        let probe = smolfile::parse(&taken_in(&draft.text)).map(|it| it.ready.map(|it| it.probe));
        let written = draft.text.contains("\n[ready]\n");
        (written, missing, probe.expect("no mistakes"))
    };
    let check = Healthcheck {
        cmd: words(&["curl", "-f", "localhost"]),
        start_period_ms: 0,
    };
    let one = |ports: &[&str]| RunConfig {
        ports: words(ports),
        ..web()
    };
    let (written, missing, probe) = ready(RunConfig {
        healthcheck: Some(check.clone()),
        ..web()
    });
    assert!(!written && missing.is_empty());
    assert_eq!(probe, Some(Probe::Exec(check.cmd)));
    let (written, missing, probe) = ready(one(&["80/tcp", "53/udp"]));
    assert!(!written && missing.is_empty());
    assert_eq!(probe, Some(Probe::Tcp(80)));
    let (written, missing, probe) = ready(one(&["53/udp"]));
    assert!(written);
    assert_eq!(missing, ["[ready] does not say what to wait for"]);
    assert_eq!(probe, Some(Probe::Log("listening".into())));
    let silent = RunConfig::default();
    let draft = image::smolfile("web", "web", &silent).unwrap();
    assert!(draft.text.contains("\n[service]\n#cmd ="), "{}", draft.text);
}

#[test]
fn no_value_of_a_hostile_image_leaves_its_line() {
    let evil = "x\n[kernel]\npath = \"evil\"\r\u{0}\u{1b}[2J\u{202e}#";
    let long = "y".repeat(5000);
    let all = vec![evil.to_owned(), long.clone()];
    let config = RunConfig {
        entrypoint: all.clone(),
        cmd: all.clone(),
        env: vec![evil.replace('\n', "\n="), evil.to_owned(), long.clone()],
        user: Some(evil.into()),
        workdir: Some(long),
        ports: vec!["80/tcp\n[kernel]".into(), "81".into(), "82".into()],
        stop_signal: Some(evil.into()),
        volumes: vec![evil.to_owned(); 1000],
        healthcheck: Some(Healthcheck {
            cmd: all,
            start_period_ms: 1,
        }),
    };
    let draft = image::smolfile("web", "web", &config).unwrap();
    assert!(draft.text.len() < 20_000, "{}", draft.text.len());
    assert_eq!(human::printable(&draft.text), draft.text);
    let keys: Vec<&str> = draft
        .text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect();
    assert_eq!(keys, ["name = \"web\"", "[rootfs]", "image = \"web\""]);
    parsed(&draft.text);
}

#[test]
fn well_known_packages_run_as_they_should() {
    for (packages, cmd, port, probe) in [
        (
            &["redis-server"][..],
            "redis-server",
            6379,
            Probe::Exec(words(&["redis-cli", "ping"])),
        ),
        (
            &["curl", "nginx-light", "curl"],
            "nginx",
            80,
            Probe::Tcp(80),
        ),
        (&["memcached"], "memcached", 11211, Probe::Tcp(11211)),
        (&["python3"], "python3", 8000, Probe::Tcp(8000)),
        (&["nodejs"], "node", 8080, Probe::Tcp(8080)),
        (&["busybox"], "busybox", 8080, Probe::Tcp(8080)),
    ] {
        let draft = debian::smolfile("x", "bookworm", &words(packages)).unwrap();
        let smolfile = parsed(&draft.text);
        assert_eq!(smolfile.ports, Some(vec![port]));
        assert_eq!(smolfile.ready.map(|ready| ready.probe), Some(probe));
        let Workload::Service { service, .. } = smolfile.workload else {
            panic!("a service")
        };
        assert_eq!(service.cmd.unwrap().get_ref()[0], cmd);
        parsed(&taken_in(&draft.text));
    }
}

#[test]
fn of_other_packages_the_command_is_missing_and_nothing_else() {
    let draft = debian::smolfile("x", "trixie", &words(&["postgresql-17"])).unwrap();
    let mut missing = titles(&draft);
    missing.sort();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing[0].contains("[ready] does not say"), "{missing:?}");
    assert!(missing[1].contains("`cmd`"), "{missing:?}");
    assert!(draft.text.contains("recipes/postgresql"), "{}", draft.text);
    let more = parsed(&taken_in(&draft.text));
    assert_eq!(more.ports, Some(vec![8080]));
    for bad in ["Redis", "a b", "x\"", ""] {
        let error = debian::smolfile("x", "bookworm", &words(&[bad])).unwrap_err();
        assert!(error.to_string().contains("Debian package"), "{error}");
    }
}

#[test]
fn the_release_is_that_of_a_debian_host() {
    for (text, suite) in [
        ("ID=debian\nVERSION_CODENAME=trixie\n", "trixie"),
        ("VERSION_CODENAME=\"forky\"\nID=\"debian\"\n", "forky"),
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", "bookworm"),
        ("ID=debian\nVERSION_CODENAME=\"a b\"\n", "bookworm"),
        ("ID=debian\n", "bookworm"),
        ("", "bookworm"),
    ] {
        assert_eq!(debian::suite(text), suite, "{text}");
    }
}
