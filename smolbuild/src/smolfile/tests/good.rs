//! What is right, and all that may be left out.

use super::*;
use crate::input::debian::Slim;
use crate::input::{BundleInput, DebianInput, Rootfs};

fn good(source: &str) -> Smolfile {
    match parse(source) {
        Ok(smolfile) => smolfile,
        Err(diagnostics) => panic!("{}", render(&diagnostics, "Smolfile", source, false)),
    }
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let smolfile = good(BASE);
    assert_eq!(smolfile.name, "app");
    assert_eq!(
        (smolfile.version, smolfile.cpus, smolfile.memory),
        (None, 1, 256 << 20)
    );
    assert_eq!(
        smolfile.kernel.source,
        KernelSource::Recipe("smol-6.1".into())
    );
    assert!(smolfile.ports.is_none() && smolfile.drop_caches);
    let Ready {
        probe,
        timeout,
        interval,
        successes,
    } = smolfile.ready.unwrap();
    assert_eq!(probe, Probe::Tcp(80));
    assert_eq!(
        (timeout.as_secs(), interval.as_millis(), successes),
        (60, 100, 1)
    );
    let Workload::Service {
        steps,
        service,
        warm,
        restore,
        warm_restore,
        ..
    } = smolfile.workload
    else {
        panic!("a service")
    };
    assert!(steps.is_empty() && service.env.is_empty());
    assert!(warm.is_empty() && restore.is_empty() && warm_restore.is_empty());
    assert_eq!((service.user, service.workdir), (None, None));
}

#[test]
fn every_key_is_taken_over() {
    let source = r#"
        name = "web.1"
        version = "1.2.3"
        cpus = 8
        memory = "1GiB"
        ports = [80, 0x1bb]
        kernel = { recipe = "other", cmdline = " quiet  debug " }
        [rootfs]
        debian = { suite = "trixie", packages = ["libstdc++6", "git"] }
        slim = true
        without = ["perl", "apt"]
        [[copy]]
        src = "./etc//app/../app.conf"
        dest = "//etc/app.conf"
        mode = 0o640
        owner = "root:www-data"
        [[copy]]
        src = "."
        dest = "/srv//"
        mode = "4755"
        [service]
        cmd = "exec app"
        env = { HOME = "/srv", EMPTY = "" }
        user = "1000:1000"
        workdir = "/srv/"
        [[warm]]
        cmd = ["warm", ""]
        timeout = "1h"
        [[warm]]
        cmd = "second"
        [[restore]]
        cmd = ["ssh-keygen", "-A"]
        timeout = "5s"
        [[warm_restore]]
        http = { port = 80, path = "/first", status = 302, body = "^to" }
        timeout = "2s"
        [[warm_restore]]
        tcp = 443
        [[warm_restore]]
        exec = "ask"
        [ready]
        http = { port = 80, path = "/a?b=%20", status = [200, 204], body = "^ok" }
        timeout = "5min"
        interval = "20ms"
        successes = 3
        [snapshot]
        drop_caches = false
    "#;
    let smolfile = good(source);
    assert_eq!(
        (smolfile.name.as_str(), smolfile.version.as_deref()),
        ("web.1", Some("1.2.3"))
    );
    assert_eq!(
        (smolfile.cpus, smolfile.memory, smolfile.drop_caches),
        (8, 1 << 30, false)
    );
    assert_eq!(smolfile.ports, Some(vec![80, 443]));
    assert_eq!(smolfile.kernel.source, KernelSource::Recipe("other".into()));
    assert_eq!(smolfile.kernel.cmdline, "quiet  debug");
    let http = Http {
        port: 80,
        path: "/a?b=%20".into(),
        status: vec![200, 204],
        body: Some("^ok".into()),
    };
    assert_eq!(smolfile.ready.as_ref().unwrap().probe, Probe::Http(http));
    let Ready {
        timeout,
        interval,
        successes,
        ..
    } = smolfile.ready.unwrap();
    assert_eq!(
        (timeout.as_secs(), interval.as_millis(), successes),
        (300, 20, 3)
    );
    let Workload::Service {
        rootfs,
        steps,
        service,
        warm,
        restore,
        warm_restore,
    } = smolfile.workload
    else {
        panic!("a service")
    };
    let packages = vec!["git".to_owned(), "libstdc++6".to_owned()];
    assert_eq!(
        rootfs,
        Rootfs::Debian(DebianInput {
            suite: "trixie".into(),
            packages,
            slim: Some(Slim {
                without: vec!["apt".into(), "perl".into()]
            }),
        })
    );
    let copies: Vec<_> = steps
        .iter()
        .filter_map(Step::copy)
        .map(|c| {
            (
                c.src.get_ref().as_str(),
                c.dest.as_str(),
                c.mode,
                c.owner.as_ref().map(|owner| owner.get_ref().as_str()),
            )
        })
        .collect();
    assert_eq!(
        copies,
        [
            (
                "etc/app.conf",
                "/etc/app.conf",
                Some(0o640),
                Some("root:www-data")
            ),
            (".", "/srv/", Some(0o4755), None)
        ]
    );
    assert_eq!(
        service.cmd.unwrap().get_ref()[..],
        ["/bin/sh", "-c", "exec app"]
    );
    assert_eq!(
        service.env.into_iter().collect::<Vec<_>>(),
        [("EMPTY".into(), "".into()), ("HOME".into(), "/srv".into())]
    );
    assert_eq!(
        (
            service.user.as_ref().map(|user| user.get_ref().as_str()),
            service.workdir.as_deref()
        ),
        (Some("1000:1000"), Some("/srv"))
    );
    assert_eq!(
        restore,
        [Warm {
            cmd: vec!["ssh-keygen".into(), "-A".into()],
            timeout: Duration::from_secs(5)
        }]
    );
    let redirect = Http {
        port: 80,
        path: "/first".into(),
        status: vec![302],
        body: Some("^to".into()),
    };
    let ask = vec!["/bin/sh".into(), "-c".into(), "ask".into()];
    let requests: Vec<_> = warm_restore
        .into_iter()
        .map(|request| (request.probe, request.timeout.as_secs()))
        .collect();
    assert_eq!(
        requests,
        [
            (Probe::Http(redirect), 2),
            (Probe::Tcp(443), 60),
            (Probe::Exec(ask), 60),
        ]
    );
    assert_eq!(
        warm[0],
        Warm {
            cmd: vec!["warm".into(), String::new()],
            timeout: Duration::from_secs(3600)
        }
    );
    assert_eq!(
        warm[1],
        Warm {
            cmd: vec!["/bin/sh".into(), "-c".into(), "second".into()],
            timeout: Duration::from_secs(60)
        }
    );
}

#[test]
fn every_probe_is_understood() {
    for (line, probe) in [
        ("exec = [\"true\"]", Probe::Exec(vec!["true".into()])),
        (
            "exec = \"test -e /a\"",
            Probe::Exec(vec!["/bin/sh".into(), "-c".into(), "test -e /a".into()]),
        ),
        ("tcp = 6379", Probe::Tcp(6379)),
        (
            "http = { port = 80 }",
            Probe::Http(Http {
                port: 80,
                path: "/".into(),
                status: vec![200],
                body: None,
            }),
        ),
        (
            "http = { port = 80, status = 204 }",
            Probe::Http(Http {
                port: 80,
                path: "/".into(),
                status: vec![204],
                body: None,
            }),
        ),
        (
            "log = '^ready in \\d+'",
            Probe::Log("^ready in \\d+".into()),
        ),
        ("file = \"/run/up\"", Probe::File("/run/up".into())),
        ("notify = true", Probe::Notify),
    ] {
        assert_eq!(good(&ready(line)).ready.unwrap().probe, probe);
    }
}

#[test]
fn a_machine_can_be_just_a_kernel() {
    let smolfile = good(
        "name = \"k\"\n[kernel]\npath = \"k.elf\"\ncmdline = \"init=mine\"\n[ready]\nlog = \"up\"\n",
    );
    assert_eq!(smolfile.workload, Workload::Kernel);
    assert_eq!(smolfile.kernel.cmdline, "init=mine");
    assert!(
        matches!(smolfile.kernel.source, KernelSource::Path(path) if path.get_ref() == "k.elf" && path.span() == (27..34))
    );
}

#[test]
fn memory_is_a_size_or_a_number_of_mebibytes() {
    for (value, mib) in [
        ("\"64MiB\"", 64),
        ("\"2 GiB\"", 2048),
        ("\"131072KiB\"", 128),
        ("4096", 4096),
        ("\"64GiB\"", 65536),
    ] {
        assert_eq!(good(&top(&format!("memory = {value}"))).memory, mib << 20);
    }
}

#[test]
fn the_cpu_is_a_level_of_the_architecture() {
    assert_eq!(good(&top("")).cpu, Level::V3);
    for level in Level::ALL {
        let smolfile = good(&top(&format!("cpu = {:?}", level.name())));
        assert_eq!(smolfile.cpu, level);
    }
}

#[test]
fn a_file_that_is_too_large_is_refused_before_it_is_parsed() {
    let source = "#".repeat(MAX_SIZE + 1);
    assert_eq!(
        parse(&source).unwrap_err()[0].title,
        "the file is larger than 256 KiB"
    );
}

#[test]
fn all_mistakes_are_found_at_once_and_in_order() {
    let source = r#"name = "App"
cpus = 9
memory = "1MiB"
ports = [0, 1, 1]
[kernel]
path = "/vmlinux"
[rootfs]
tar = "../root.tar"
[service]
cmd = []
[ready]
log = "("
timeout = "1y"
[[warm]]
cdm = "x"
"#;
    let diagnostics = parse(source).unwrap_err();
    let lines: Vec<usize> = diagnostics
        .iter()
        .map(|d| source[..d.span.start].matches('\n').count() + 1)
        .collect();
    // That `cmd` is missing in line 14 is told by the key that is probably meant to be it.
    assert_eq!(lines, [1, 2, 3, 4, 4, 6, 8, 10, 12, 13, 15]);
}

#[test]
fn what_a_smolfile_may_ask_for_is_what_a_machine_can_have() {
    use smol_machine::{config, layout};
    assert_eq!(MAX_CPUS, u64::from(config::MAX_VCPUS));
    assert!(*MEMORY.start() >= layout::MIN_RAM);
    assert_eq!(*MEMORY.end(), layout::MAX_RAM);
}

#[test]
fn a_base_stands_in_place_of_a_root_file_system() {
    let smolfile = good(&base("bundle = \"./bases/../redis.smolmachine\""));
    let Workload::Service { rootfs, .. } = smolfile.workload else {
        panic!("a service")
    };
    let Rootfs::Bundle(BundleInput(path)) = rootfs else {
        panic!("a bundle")
    };
    assert_eq!(path.get_ref(), "redis.smolmachine");
}

#[test]
fn a_size_may_be_written_as_in_docker() {
    for (text, mib) in [
        ("512m", 512),
        ("512M", 512),
        ("512MB", 512),
        ("512MiB", 512),
        ("512 mib", 512),
        ("1G", 1024),
        ("2gb", 2048),
        ("65536k", 64),
    ] {
        let smolfile = good(&top(&format!("memory = {text:?}")));
        assert_eq!(smolfile.memory, mib << 20, "{text}");
    }
}

#[test]
fn an_http_probe_may_be_a_url() {
    for (url, port, path) in [
        ("http://:8080/health", 8080, "/health"),
        ("http://localhost:8080", 8080, "/"),
        ("http://127.0.0.1/a?b=%20", 80, "/a?b=%20"),
        ("http://[::1]:65535/", 65535, "/"),
        ("http://[::1]/x:1", 80, "/x:1"),
        ("http://?ready", 80, "/?ready"),
    ] {
        let http = Http {
            port,
            path: path.into(),
            status: vec![200],
            body: None,
        };
        let smolfile = good(&ready(&format!("http = {url:?}")));
        assert_eq!(
            smolfile.ready.as_ref().unwrap().probe,
            Probe::Http(http),
            "{url}"
        );
    }
}

#[test]
fn a_system_that_is_not_slim_is_whole() {
    for lines in ["", "slim = false"] {
        let smolfile = good(&rootfs(&format!("debian.suite = \"bookworm\"\n{lines}")));
        let Some(Rootfs::Debian(debian)) = smolfile.rootfs() else {
            panic!("Debian: {lines}")
        };
        assert_eq!(debian.slim, None, "{lines}");
    }
}

#[test]
fn words_that_only_look_like_those_of_a_shell_are_arguments() {
    for cmd in [
        r#"["sh", "-c", "echo $HOME && exec app"]"#,
        r#"["/bin/bash", "-c", "$APP", "&&"]"#,
        r#"["su", "app", "-c", "$HOME/run"]"#,
        r#"["timeout", "5", "sh", "-c", "$HOME/run"]"#,
        r#"["awk", "{ print $NF }"]"#,
        r#"["find", "/x", "-exec", "rm", "{}", ";"]"#,
        r#"["app", "--price", "$5", "--pattern", "^a$", "--shell", "a $HOME b"]"#,
        r#"["app", "a&&b"]"#,
        r#""app --port $PORT && sleep 1""#,
        r#""app 2>&1 | tee /tmp/log""#,
        r#""app >&""#,
        r#"["/service", "--exit", "3"]"#,
        r#""service --port 80""#,
    ] {
        let source = with("[\"app\"]", cmd);
        if let Err(diagnostics) = parse(&source) {
            panic!(
                "{cmd}: {}",
                render(&diagnostics, "Smolfile", &source, false)
            );
        }
    }
}
