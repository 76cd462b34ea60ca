//! What to do about a service that ended, or did not get ready, before the machine was frozen.

use smol_protocol::{ExitStatus, GuestFailure, Stage};

use super::Service;

/// Programs that go into the background, at least as their packages set them up, and what to write so that
/// they do not. The options are those of their manual pages.
#[rustfmt::skip] // one line a program
const FOREGROUND: &[(&[&str], &str)] = &[
    (&["nginx", "openresty", "angie"], "nginx -g \"daemon off;\""),
    (&["apache2", "apache2ctl", "apachectl"], "apachectl -D FOREGROUND"),
    (&["httpd"], "httpd -D FOREGROUND"),
    (&["lighttpd"], "lighttpd -D"),
    (&["thttpd", "mini_httpd"], "thttpd -D"),
    (&["caddy"], "caddy run"),
    (&["haproxy"], "haproxy -db, and no `daemon` in its configuration"),
    (&["varnishd"], "varnishd -F"),
    (&["squid", "squid3"], "squid --foreground"),
    (&["privoxy"], "privoxy --no-daemon"),
    (&["tinyproxy"], "tinyproxy -d"),
    (&["keepalived"], "keepalived --dont-fork"),
    (&["php-fpm"], "php-fpm --nodaemonize"),
    (&["spawn-fcgi"], "spawn-fcgi -n"),
    (&["gunicorn"], "gunicorn without --daemon and -D"),
    (&["uwsgi"], "uwsgi without --daemonize"),
    (&["unicorn", "puma", "thin"], "the program without -D, -d and --daemonize"),
    (&["pm2"], "pm2-runtime in place of pm2"),
    (&["catalina.sh", "startup.sh"], "catalina.sh run"),
    (&["redis-server", "valkey-server", "redis-sentinel"], "--daemonize no"),
    (&["memcached"], "memcached without -d"),
    (&["mysqld_safe", "mariadbd-safe"], "mariadbd or mysqld itself"),
    (&["mysqld", "mariadbd"], "mariadbd or mysqld without --daemonize"),
    (&["pg_ctl", "pg_ctlcluster", "postgres"], "postgres itself, with -D and its data directory"),
    (&["pgbouncer"], "pgbouncer without -d"),
    (&["pgpool"], "pgpool -n"),
    (&["mongod"], "mongod without --fork"),
    (&["rabbitmq-server"], "rabbitmq-server without -detached"),
    (&["mosquitto"], "mosquitto without -d"),
    (&["zkServer.sh"], "zkServer.sh start-foreground"),
    (&["kafka-server-start.sh"], "kafka-server-start.sh without -daemon"),
    (&["elasticsearch", "opensearch"], "the program without -d"),
    (&["solr"], "solr start -f"),
    (&["sshd"], "sshd -D"),
    (&["dropbear"], "dropbear -F"),
    (&["named"], "named -f"),
    (&["unbound"], "unbound -d"),
    (&["nsd"], "nsd -d"),
    (&["knotd"], "knotd without -d"),
    (&["pdns_server"], "pdns_server --daemon=no"),
    (&["dnsmasq"], "dnsmasq --keep-in-foreground"),
    (&["dhcpd"], "dhcpd -f"),
    (&["radvd"], "radvd --nodaemon"),
    (&["bird"], "bird -f"),
    (&["openvpn"], "openvpn without --daemon"),
    (&["freeradius", "radiusd"], "freeradius -f"),
    (&["cron", "anacron"], "cron -f"),
    (&["crond"], "crond -f, or -n where it is that of cronie"),
    (&["atd"], "atd -f"),
    (&["smbd", "nmbd", "winbindd"], "smbd --foreground --no-process-group"),
    (&["vsftpd"], "vsftpd -obackground=NO"),
    (&["proftpd"], "proftpd --nodaemon"),
    (&["pure-ftpd"], "pure-ftpd without -B"),
    (&["in.tftpd"], "in.tftpd --foreground"),
    (&["postfix"], "postfix start-fg"),
    (&["exim4", "exim"], "exim4 -bdf"),
    (&["dovecot"], "dovecot -F"),
    (&["opendkim"], "opendkim -f"),
    (&["clamd"], "clamd --foreground"),
    (&["slapd"], "slapd -d 0"),
    (&["nslcd"], "nslcd --nofork"),
    (&["sssd"], "sssd -i"),
    (&["snmpd"], "snmpd -f"),
    (&["rsyslogd"], "rsyslogd -n"),
    (&["syslog-ng"], "syslog-ng --foreground"),
    (&["supervisord"], "supervisord --nodaemon"),
    (&["monit"], "monit -I"),
    (&["chronyd"], "chronyd -n"),
    (&["ntpd"], "ntpd -n"),
    (&["dbus-daemon"], "dbus-daemon --nofork"),
    (&["avahi-daemon"], "avahi-daemon without -D"),
    (&["cupsd"], "cupsd -f"),
    (&["xinetd"], "xinetd -dontfork"),
    (&["stunnel", "stunnel4"], "foreground = yes into its configuration"),
    (&["tor"], "tor --RunAsDaemon 0"),
    (&["asterisk"], "asterisk -f"),
    (&["transmission-daemon"], "transmission-daemon --foreground"),
    (&["ngircd"], "ngircd --nodaemon"),
    (&["inspircd"], "inspircd --nofork"),
    (&["znc"], "znc --foreground"),
    (&["busybox"], "-f after httpd, crond, inetd or udhcpd; -F after telnetd; -n after ntpd or syslogd"),
];

/// What starts others and ends, as long as it is not known which.
const STARTERS: &[(&str, &str)] = &[
    (
        "systemctl",
        "it asks a systemd that does not run: write the command of the unit's ExecStart, or \
         [\"/sbin/init\"] for a machine with systemd",
    ),
    (
        "service",
        "the init script starts a program and ends: write that program itself",
    ),
    (
        "init.d",
        "the init script starts a program and ends: write that program itself",
    ),
    (
        "start-stop-daemon",
        "write the program itself, or no --background",
    ),
    ("daemonize", "write the program itself"),
    (
        "nohup",
        "write the program itself, without nohup and without & behind it",
    ),
    (
        "setsid",
        "write the program itself, or setsid --wait in front of it",
    ),
];

/// Returns what to do about a failure that the guest reports, where it is the service's.
pub fn of_service(failure: &GuestFailure, service: &Service) -> Option<String> {
    match (failure.stage, failure.status) {
        (Stage::Service | Stage::Ready | Stage::Serve, Some(status)) => {
            of_end(status, service)
        }
        (Stage::Ready, None) if service.is_init => Some(
            "the log tells which units have failed, if they did; a unit starts if its package or a \
             [[copy]] has enabled it"
                .into(),
        ),
        (Stage::Ready, None) if service.warms_up => Some(
            "the [[warm]] commands run after [ready] holds: a probe must not need what they make"
                .into(),
        ),
        _ => None,
    }
}

/// Returns what to do about a service that ended with `status`.
fn of_end(status: ExitStatus, service: &Service) -> Option<String> {
    match status {
        ExitStatus::Exited(0) if service.is_init => {
            Some("the init has shut the machine down: the log tells who asked for it".into())
        }
        ExitStatus::Exited(0) => Some(stay(&service.cmd)),
        ExitStatus::Exited(126) => Some(
            "exit code 126: a program is there and cannot be executed; a file of a [[copy]] gets \
             mode = \"0755\""
                .into(),
        ),
        ExitStatus::Exited(127) => Some(
            "exit code 127: a program is not there; name its package in `packages` of [rootfs] \
             debian, install it by [[run]], or copy it by [[copy]]"
                .into(),
        ),
        ExitStatus::Exited(_) | ExitStatus::Signaled(_) => None,
    }
}

/// Advice for a service that has ended without a complaint.
fn stay(cmd: &[String]) -> String {
    let general = "the service must stay in the foreground: the machine ends with the command that \
                   starts it";
    let text = cmd.join(" ");
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || ";&|()'\"`".contains(c))
        .filter(|word| !word.is_empty())
        .collect();
    let starter = STARTERS.iter().find(|(name, _)| starts(&words, name));
    match (foreground(&words), starter) {
        (Some(how), _) if is_written(&text, how) => {
            format!("{general}; it has {how} already: its own log may say why it ends")
        }
        (Some(how), _) => format!("{general}; write {how}"),
        (None, Some((_, how))) => format!("{general}; {how}"),
        (None, None) if text.trim_end().ends_with('&') => {
            format!("{general}; remove the & at its end")
        }
        (None, None) => {
            format!("{general}; look for its option (--foreground, --no-daemon, -D, -F, -f, -n)")
        }
    }
}

/// What keeps the first program in the foreground that is known.
fn foreground(words: &[&str]) -> Option<&'static str> {
    let names = words
        .iter()
        .map(|word| word.rsplit('/').next().unwrap_or(word));
    let known = |name: &str| {
        // php-fpm8.2
        let name = match name.strip_prefix("php-fpm") {
            Some(version) if version.starts_with(|c: char| c.is_ascii_digit()) => "php-fpm",
            _ => name,
        };
        let mut all = FOREGROUND.iter();
        all.find(|(programs, _)| programs.contains(&name))
    };
    names.filter_map(known).next().map(|(_, how)| *how)
}

/// Whether a command is run by this program, or by a script in a folder of this name. A program of one's
/// own may be called `service`, too.
fn starts(words: &[&str], name: &str) -> bool {
    let is_order = |word: Option<&&str>| matches!(word, Some(&"start" | &"restart"));
    words.iter().enumerate().any(|(at, word)| {
        word.split('/').any(|part| part == name)
            && (name != "service" || is_order(words.get(at + 2)))
    })
}

/// Whether the command has the options of `how`, a program with options.
fn is_written(text: &str, how: &str) -> bool {
    let plain = |text: &str| text.replace(['"', '\''], "");
    let options = how.find(" -").map(|at| &how[at..]);
    let is_exact = !how.contains([',', ';', '`']) && !how.contains(" without ");
    let exact = options.filter(|_| is_exact || how.contains("daemon off"));
    exact.is_some_and(|options| {
        format!("{} ", plain(text)).contains(&format!("{} ", plain(options)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(cmd: Vec<String>) -> Service {
        Service {
            cmd,
            warms_up: false,
            is_init: false,
        }
    }

    fn hint(code: i32, cmd: &[&str]) -> Option<String> {
        let cmd: Vec<String> = cmd.iter().map(|word| word.to_string()).collect();
        of_end(ExitStatus::Exited(code), &service(cmd))
    }

    #[test]
    fn a_service_that_goes_into_the_background_is_told_its_option() {
        for (cmd, how) in [
            (&["nginx"][..], "; write nginx -g \"daemon off;\""),
            (&["/usr/sbin/sshd", "-e"], "; write sshd -D"),
            (
                &["/bin/sh", "-c", "mkdir -p /run/x && exec redis-server"],
                "; write --daemonize no",
            ),
            (
                &["service", "nginx", "start"],
                "; write nginx -g \"daemon off;\"",
            ),
            (&["php-fpm8.3", "-R"], "; write php-fpm --nodaemonize"),
            (
                &["/bin/sh", "-c", "nginx; redis-server"],
                "; write nginx -g \"daemon off;\"",
            ),
            (
                &["/usr/sbin/apachectl", "start"],
                "; write apachectl -D FOREGROUND",
            ),
            (&["caddy", "start"], "; write caddy run"),
            (
                &["pg_ctl", "start"],
                "; write postgres itself, with -D and its data directory",
            ),
            (
                &["busybox", "httpd", "-p", "80"],
                "; write -f after httpd, crond, inetd or udhcpd; -F after telnetd; -n after ntpd or syslogd",
            ),
            (
                &["/etc/init.d/thing", "start"],
                "; the init script starts a program and ends: write that program itself",
            ),
            (
                &["service", "thing", "start"],
                "; the init script starts a program and ends: write that program itself",
            ),
            (
                &["/service", "--daemon"],
                "; look for its option (--foreground, --no-daemon, -D, -F, -f, -n)",
            ),
            (
                &["systemctl", "start", "thing"],
                "; it asks a systemd that does not run: write the command of the unit's ExecStart, \
                 or [\"/sbin/init\"] for a machine with systemd",
            ),
            (
                &["/bin/sh", "-c", "./app --port 80 &"],
                "; remove the & at its end",
            ),
            (
                &["nginx", "-g", "daemon off;"],
                "; it has nginx -g \"daemon off;\" already: its own log may say why it ends",
            ),
            (
                &["/bin/sh", "-c", "exec sshd -D -e"],
                "; it has sshd -D already: its own log may say why it ends",
            ),
            (&["sshd", "-De"], "; write sshd -D"),
            (
                &["my-service"],
                "; look for its option (--foreground, --no-daemon, -D, -F, -f, -n)",
            ),
        ] {
            let hint = hint(0, cmd).unwrap();
            assert!(
                hint.starts_with("the service must stay in the foreground"),
                "{hint}"
            );
            assert!(hint.ends_with(how), "{hint}");
        }
    }

    #[test]
    fn a_program_is_in_the_table_once_and_its_line_says_what_to_write() {
        let mut names: Vec<_> = FOREGROUND.iter().flat_map(|(names, _)| *names).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        for (names, how) in FOREGROUND {
            let alone = hint(0, names).unwrap();
            assert!(alone.ends_with(&format!("; write {how}")), "{alone}");
        }
    }

    #[test]
    fn a_probe_that_may_need_what_warm_commands_make_is_told_their_order() {
        let failed = |stage| GuestFailure::at(stage, "not ready within 1 min".into());
        let service = |warms_up| Service {
            warms_up,
            ..service(Vec::new())
        };
        assert_eq!(
            of_service(&failed(Stage::Ready), &service(true)).as_deref(),
            Some(
                "the [[warm]] commands run after [ready] holds: a probe must not need what they make"
            )
        );
        assert_eq!(of_service(&failed(Stage::Ready), &service(false)), None);
        assert_eq!(of_service(&failed(Stage::Warm), &service(true)), None);
    }

    #[test]
    fn what_the_shell_says_of_a_program_is_explained_and_other_codes_are_the_services_own() {
        assert!(hint(126, &["x"]).unwrap().contains("mode = \"0755\""));
        assert!(hint(127, &["x"]).unwrap().contains("`packages`"));
        assert_eq!(hint(1, &["nginx"]), None);
        assert_eq!(of_end(ExitStatus::Signaled(11), &service(Vec::new())), None);
    }

    #[test]
    fn an_init_is_not_told_to_stay_in_the_foreground() {
        let init = Service {
            is_init: true,
            warms_up: true,
            ..service(vec!["/sbin/init".to_owned()])
        };
        let hint = |status| {
            let reason = "not ready".into();
            let failure = GuestFailure {
                status,
                ..GuestFailure::at(Stage::Ready, reason)
            };
            of_service(&failure, &init).unwrap()
        };
        let ended = hint(Some(ExitStatus::Exited(0)));
        assert!(
            ended.starts_with("the init has shut the machine down"),
            "{ended}"
        );
        assert!(hint(None).contains("which units have failed"));
    }
}
