//! What to do about a service that ended, or did not get ready, before the machine was frozen.

use smol_protocol::{ExitStatus, GuestFailure, Stage};

use super::Service;

/// Programs that go into the background unless they are told not to, and what tells them.
const FOREGROUND: &[(&[&str], &str)] = &[
    (&["nginx"], "nginx -g \"daemon off;\""),
    (&["redis-server", "valkey-server"], "--daemonize no"),
    (&["sshd"], "sshd -D"),
    (&["dropbear"], "dropbear -F"),
    (
        &["apache2", "apache2ctl", "apachectl", "httpd"],
        "apachectl -D FOREGROUND",
    ),
    (&["memcached"], "memcached without -d"),
    (
        &["haproxy"],
        "haproxy -db, and no `daemon` in its configuration",
    ),
    (&["lighttpd"], "lighttpd -D"),
    (
        &["php-fpm", "php-fpm8.2", "php-fpm8.4"],
        "php-fpm --nodaemonize",
    ),
    (
        &["mysqld_safe", "mariadbd-safe"],
        "mariadbd or mysqld itself",
    ),
    (&["mysqld", "mariadbd"], "without --daemonize"),
    (
        &["pg_ctl", "pg_ctlcluster"],
        "postgres itself, with -D and its data directory",
    ),
    (&["named"], "named -f"),
    (&["unbound"], "unbound -d"),
    (&["dnsmasq"], "dnsmasq --keep-in-foreground"),
    (
        &["cron", "crond", "atd", "smbd", "nmbd"],
        "the option -f or --foreground",
    ),
    (&["postfix"], "postfix start-fg"),
    (&["exim4", "exim"], "exim4 -bdf"),
    (&["squid"], "squid --foreground"),
    (&["vsftpd"], "vsftpd -obackground=NO"),
    (&["proftpd"], "proftpd --nodaemon"),
    (&["slapd"], "slapd -d 0"),
    (
        &["rsyslogd", "supervisord", "chronyd", "ntpd"],
        "the option -n",
    ),
    (&["mosquitto"], "mosquitto without -d"),
    (&["mongod"], "mongod without --fork"),
    (&["gunicorn"], "gunicorn without --daemon"),
    (&["uwsgi"], "uwsgi without --daemonize"),
    (&["caddy"], "caddy run"),
];

/// Returns what to do about a failure that the guest reports, where it is the service's.
pub fn of_service(failure: &GuestFailure, service: &Service) -> Option<String> {
    match (failure.stage, failure.status) {
        (Stage::Service | Stage::Ready | Stage::Serve, Some(status)) => {
            of_end(status, &service.cmd)
        }
        (Stage::Ready, None) if service.warms_up => Some(
            "the [[warm]] commands run after [ready] holds: a probe must not need what they make"
                .into(),
        ),
        _ => None,
    }
}

/// Returns what to do about a service, started by `cmd`, that ended with `status`.
fn of_end(status: ExitStatus, cmd: &[String]) -> Option<String> {
    match status {
        ExitStatus::Exited(0) => Some(stay(cmd)),
        ExitStatus::Exited(126) => Some(
            "exit code 126: a program is there and cannot be executed; a file of a [[copy]] gets \
             mode = \"0755\""
                .into(),
        ),
        ExitStatus::Exited(127) => Some(
            "exit code 127: a program is not there; name its package in `packages` of [rootfs] \
             debian, or copy it by [[copy]]"
                .into(),
        ),
        ExitStatus::Exited(_) | ExitStatus::Signaled(_) => None,
    }
}

/// Advice for a service that has ended without a complaint.
fn stay(cmd: &[String]) -> String {
    let general = "the service must stay in the foreground: the machine ends with the command that \
                   starts it";
    let words = cmd.iter().flat_map(|word| word.split_whitespace());
    let names = words.map(|word| word.rsplit('/').next().unwrap_or(word));
    let mut known = names.filter_map(|name| {
        let mut all = FOREGROUND.iter();
        all.find(|(programs, _)| programs.contains(&name))
    });
    match known.next() {
        Some((_, how)) => format!("{general}; write {how}"),
        None => {
            format!("{general}; look for its option (--foreground, --no-daemon, -D, -F, -f, -n)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(code: i32, cmd: &[&str]) -> Option<String> {
        let cmd: Vec<String> = cmd.iter().map(|word| word.to_string()).collect();
        of_end(ExitStatus::Exited(code), &cmd)
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
    fn a_probe_that_may_need_what_warm_commands_make_is_told_their_order() {
        let failed = |stage| GuestFailure::at(stage, "not ready within 1 min".into());
        let service = |warms_up| Service {
            cmd: Vec::new(),
            warms_up,
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
        assert_eq!(of_end(ExitStatus::Signaled(11), &[]), None);
    }
}
