//! RUN, ADD of a URL, and what they find in force.

use std::time::Duration;

use super::*;
use crate::smolfile::{Network, Step};

/// What each step is and does, in the order of the Smolfile.
fn steps(smolfile: &Smolfile) -> Vec<String> {
    let step = |step: &Step| match step {
        Step::Copy(copy) => format!("copy {} {}", copy.src.get_ref(), copy.dest),
        Step::Fetch(fetch) => format!("fetch {} {}", fetch.url.get_ref(), fetch.dest),
        Step::Run(run) => format!("run {}", run.cmd.get_ref().join(" ")),
    };
    smolfile.steps().iter().map(step).collect()
}

#[test]
fn steps_are_in_the_order_of_the_dockerfile_with_what_is_in_force_there() {
    let draft = draft(
        r#"FROM debian:12
ARG VERSION=7
ARG NEVER
ARG TARGETARCH
ENV A=1
RUN make first
USER app:app
WORKDIR /srv
WORKDIR app
COPY x ./
RUN --network=none ["make", "second"]
ENV A=2 VERSION=8
USER root
WORKDIR /new
RUN make third \
    # a comment
    && true
"#,
    );
    let smolfile = parsed(&draft);
    assert_eq!(
        steps(&smolfile),
        [
            "run /bin/sh -c make first",
            "copy x /srv/app/",
            "run make second",
            "run mkdir -p /new",
            "run /bin/sh -c make third     && true",
        ]
    );
    let runs = runs(&smolfile);
    let env = |at: usize| -> Vec<(&str, &str)> {
        let env = runs[at].env.iter();
        env.map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    };
    assert_eq!(
        env(0),
        [("A", "1"), ("TARGETARCH", "amd64"), ("VERSION", "7")]
    );
    assert_eq!(env(1), env(0));
    assert_eq!(
        env(3),
        [("A", "2"), ("TARGETARCH", "amd64"), ("VERSION", "8")]
    );
    let user = |at: usize| {
        (
            runs[at].user.as_ref().map(|user| user.get_ref().as_str()),
            runs[at].workdir.as_deref(),
        )
    };
    assert_eq!(user(0), (None, None));
    assert_eq!(user(1), (Some("app:app"), Some("/srv/app")));
    assert_eq!(user(3), (Some("root"), Some("/new")));
    assert!(runs.iter().all(|run| run.network == Network::None));
    assert_eq!(draft.notes.len(), 1, "{:?}", draft.notes);
    assert!(noted(
        &draft,
        "Dockerfile:3: not taken over (it has no value"
    ));
}

#[test]
fn what_loads_from_the_network_has_one_and_a_comment_that_a_list_is_better() {
    let draft = draft(
        "FROM x\nRUN apt-get update && apt-get install -y y\nRUN [\"npm\", \"ci\"]\nRUN make\n\
         RUN --network=none curl x\nRUN --network=host make\nRUN --network=odd true\n",
    );
    let smolfile = parsed(&draft);
    let networks: Vec<bool> = runs(&smolfile)
        .iter()
        .map(|it| it.network == Network::All)
        .collect();
    assert_eq!(networks, [true, true, false, false, true, false]);
    assert_eq!(draft.text.matches("better than true is a list").count(), 3);
    assert!(noted(&draft, ":6: --network=host is the internet here"));
    assert!(noted(&draft, ":7: --network left out"));
}

#[test]
fn mounts_are_left_out_or_refuse_the_command() {
    let draft = draft(
        "FROM x\nRUN --mount=type=cache,target=/root/.cache --mount=type=tmpfs,target=/t make a\n\
         RUN --mount=type=secret,id=k make b\nRUN --mount=target=.,source=. make c\n\
         RUN --security=insecure make d\nRUN --device=x make e\n",
    );
    let smolfile = parsed(&draft);
    let commands = ["a", "d", "e"].map(|it| format!("run /bin/sh -c make {it}"));
    assert_eq!(steps(&smolfile), commands);
    for told in [
        ":2: --mount=type=cache left out",
        ":2: --mount=type=tmpfs left out",
        ":3: not taken over (secrets are not possible",
        ":4: not taken over (--mount=type=bind",
        ":5: --security left out",
        ":6: an option left out",
        "docker save app",
    ] {
        assert!(noted(&draft, told), "{told}: {:#?}", draft.notes);
    }
    assert!(draft.text.contains("# Line 3, not taken over (secrets"));
}

#[test]
fn the_shell_of_the_dockerfile_runs_its_lines() {
    let draft = draft(
        "FROM x\nRUN a\nSHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]\nRUN b | c\nRUN [\"d\"]\nRUN <<E\nx\ny\nE\n\
         HEALTHCHECK CMD e\nCMD f\n",
    );
    let smolfile = parsed(&draft);
    let shell = "run /bin/bash -o pipefail -c b | c";
    assert_eq!(
        steps(&smolfile),
        [
            "run /bin/sh -c a",
            shell,
            "run d",
            "run /bin/bash -o pipefail -c x\ny\n"
        ]
    );
    assert!(draft.text.contains("\"-c\", '''\nx\ny\n''']\n"));
    let words = ["/bin/bash", "-o", "pipefail", "-c", "f"].map(str::to_owned);
    assert_eq!(service(&smolfile).cmd.as_ref().unwrap().get_ref(), &words);
    let Probe::Exec(check) = smolfile.ready.unwrap().probe else {
        panic!("a command");
    };
    assert_eq!(check.last().unwrap(), "e");
    assert_eq!(draft.notes, Vec::<String>::new());
}

#[test]
fn here_documents_are_scripts_of_a_shell_or_of_the_program_that_they_name() {
    let draft = draft(
        "FROM x\nRUN <<EOF\nset -e\n\n# kept\nmake '$A'\nEOF\nRUN <<-'END'\n\t\tmake\n\tEND\n\
         RUN python3 <<A > /x && cat <<B\nprint(1)\nA\n[kernel]\nB\n\
         RUN <<EOF\n#!/usr/bin/env python3\nprint(\"'''\")\nEOF\nRUN <<EOF\nno end\n",
    );
    let smolfile = parsed(&draft);
    let runs = runs(&smolfile);
    let lines: Vec<&str> = runs.iter().map(|run| line(run)).collect();
    assert_eq!(
        lines,
        [
            "set -e\n\n# kept\nmake '$A'\n",
            "make\n",
            "python3 <<A > /x && cat <<B\nprint(1)\nA\n[kernel]\nB",
            "cat > /tmp/script <<'EOF'\n#!/usr/bin/env python3\nprint(\"'''\")\nEOF\nchmod +x /tmp/script && exec /tmp/script\n",
        ]
    );
    assert!(draft.text.contains("cmd = '''\nset -e\n\n# kept\n"));
    // What could be taken for a table is not in a line of its own.
    assert!(!draft.text.lines().any(|line| line == "[kernel]"));
    assert!(noted(
        &draft,
        ":20: not taken over (the end of its here-document"
    ));
}

#[test]
fn a_url_with_a_digest_is_a_fetch() {
    let sum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let draft = draft(&format!(
        "FROM x\nARG V=1\nWORKDIR /srv\nADD --checksum=sha256:{sum} --chmod=755 --chown=app https://example.org/$V/a.tar.gz b\n\
         ADD --checksum=sha256:{sum} https://example.org/c /d/\nADD --checksum=md5:1 https://example.org/e /e\n\
         ADD https://example.org/f /f\nADD git@example.org:a/b.git /g\nADD --checksum=sha256:{sum} --unpack=true https://example.org/h /h\n\
         ADD https://example.org/i j /i/\nADD --checksum=sha256:{sum} ftp://example.org/k /k\n"
    ));
    let smolfile = parsed(&draft);
    let fetches = [
        "fetch https://example.org/1/a.tar.gz /srv/b",
        "fetch https://example.org/c /d/",
    ];
    assert_eq!(steps(&smolfile), fetches);
    let [Step::Fetch(first), Step::Fetch(second)] = smolfile.steps() else {
        panic!("two files");
    };
    assert_eq!(first.sha256, sum);
    assert_eq!((first.mode, second.mode), (Some(0o755), Some(0o600)));
    assert_eq!(
        first.owner.as_ref().map(|owner| owner.get_ref().as_str()),
        Some("app")
    );
    for told in [
        ":6: not taken over (not a SHA-256",
        ":7: not taken over (a download is known by its digest: add --checksum=sha256:",
        ":8: not taken over (clone it",
        ":9: not taken over (unpack",
        ":10: not taken over (write a [[fetch]] for each",
        ":11: not taken over (not the URL",
    ] {
        assert!(noted(&draft, told), "{told}: {:#?}", draft.notes);
    }
}

#[test]
fn what_no_step_can_do_is_told() {
    let draft = draft(
        "FROM --platform=linux/arm64 x\nLABEL a=b\nMAINTAINER me\nCOPY r.txt /tmp/r.txt\nRUN [\"x\", \"$HOME\"]\nRUN\n\
         WORKDIR /tmp/build\nRUN make\nWORKDIR $NOWHERE\nRUN make\n",
    );
    let smolfile = parsed(&draft);
    assert_eq!(steps(&smolfile), ["copy r.txt /tmp/r.txt"]);
    for told in [
        ":1: --platform left out",
        ":2: not taken over (a machine has no labels",
        ":3: not taken over (a machine has no labels",
        ":4: not there for [[run]]",
        ":5: not taken over (no shell reads this list",
        ":6: not taken over (`cmd` is an empty",
        ":8: not taken over (nothing stays in /tmp/build",
        ":10: not taken over (WORKDIR is not known",
    ] {
        assert!(noted(&draft, told), "{told}: {:#?}", draft.notes);
    }
    // Docker has done them in the image that takes the place of `scratch`.
    let scratch = super::draft("FROM scratch\nRUN make\n");
    assert!(steps(&parsed(&scratch)).is_empty());
    assert!(noted(&scratch, "docker has run it in the image above"));
}

#[test]
fn too_many_commands_or_variables_are_told_and_left_out() {
    let many = draft(&format!("FROM x\n{}", "RUN make\n".repeat(102)));
    assert_eq!(runs(&parsed(&many)).len(), 100);
    assert!(noted(&many, ":102: not taken over (more than 100 commands"));
    let large = "x".repeat(20_000);
    let heavy = draft(&format!(
        "FROM x\nENV A={large}\n{}",
        "RUN make\n".repeat(50)
    ));
    assert_eq!(runs(&parsed(&heavy)).len(), 6);
    assert!(noted(&heavy, "the variables of all steps are too long"));
}

#[test]
fn the_options_of_a_health_check_say_how_often_and_how_long_it_is_tried() {
    let ready = |options: &str| {
        let draft = draft(&format!("FROM x\nHEALTHCHECK {options} CMD [\"check\"]\n"));
        let ready = parsed(&draft).ready.unwrap();
        (ready.interval, ready.timeout, draft.notes)
    };
    let seconds = Duration::from_secs;
    let none = Vec::<String>::new();
    let plain = ready("");
    assert_eq!(
        plain,
        (
            smolfile::DEFAULT_INTERVAL,
            smolfile::DEFAULT_TIMEOUT,
            none.clone()
        )
    );
    let all = ready("--interval=5s --timeout=1.5s --start-period=1m30s --retries=4");
    assert_eq!(all, (seconds(5), seconds(116), none.clone()));
    let start = ready("--interval=1m --start-interval=500ms");
    assert_eq!(start, (Duration::from_millis(500), seconds(270), none));
    let (interval, timeout, notes) = ready("--interval=2m --retries=60");
    assert_eq!((interval, timeout), (plain.0, plain.1));
    assert!(
        notes[0].contains("options not all taken over (`interval` is out of range"),
        "{notes:?}"
    );
    assert!(notes[1].contains("`timeout` is out of range"), "{notes:?}");
    for odd in [
        "--interval=5",
        "--interval=1e9h",
        "--timeout=9999999999h",
        "--retries=x",
        "--interval=$A",
    ] {
        let (.., notes) = ready(odd);
        assert!(notes[0].contains("options left out ("), "{odd}: {notes:?}");
    }
}
