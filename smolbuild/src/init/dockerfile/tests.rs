mod steps;

use super::*;
use crate::smolfile::{self, Probe, Smolfile, Workload};

fn draft(text: &str) -> Draft {
    smolfile("app", "Dockerfile", text).unwrap()
}

fn parsed(draft: &Draft) -> Smolfile {
    let text = &draft.text;
    crate::smolfile::parse(text).unwrap_or_else(|mistakes| {
        panic!("{}\n{text}", smolfile::render(&mistakes, "x", text, false))
    })
}

fn service(smolfile: &Smolfile) -> &smolfile::Service {
    match &smolfile.workload {
        Workload::Service { service, .. } => service,
        Workload::Kernel => panic!("a service"),
    }
}

/// Sources and destination of each copy.
fn copies(smolfile: &Smolfile) -> Vec<(String, String)> {
    let copy = |step: &smolfile::CopyStep| (step.src.get_ref().clone(), step.dest.clone());
    smolfile.copies().map(copy).collect()
}

fn noted(draft: &Draft, what: &str) -> bool {
    draft.notes.iter().any(|note| note.contains(what))
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(owned).collect()
}

/// What is said of EXPOSE.
const PORTS: &str = "`ports` has those of EXPOSE alone: add those that the image has itself";

/// The `[[run]]`s.
fn runs(smolfile: &Smolfile) -> Vec<&smolfile::RunStep> {
    let steps = smolfile.steps().iter();
    let runs = steps.filter_map(|step| match step {
        smolfile::Step::Run(run) => Some(run),
        _ => None,
    });
    runs.collect()
}

/// The line that a `[[run]]` has for /bin/sh.
fn line(run: &smolfile::RunStep) -> &str {
    assert_eq!(run.cmd.get_ref()[..2], ["/bin/sh", "-c"]);
    &run.cmd.get_ref()[2]
}

const FLASK: &str = r#"# syntax=docker/dockerfile:1
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ENV PYTHONUNBUFFERED=1 \
    # A comment between the lines.
    APP_NAME="my app"
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir \

    -r requirements.txt
COPY --chown=1000:1000 . .
EXPOSE 5000
USER 1000
HEALTHCHECK --interval=30s CMD curl -f http://localhost:5000/health || exit 1
CMD ["flask", "run", "--host=0.0.0.0"]
"#;

#[test]
fn a_service_in_python() {
    let draft = draft(FLASK);
    assert_eq!(
        draft.text,
        r#"# Taken over from Dockerfile; all keys: docs/smolfile.md
name = "app"
#memory = "256MiB"
# They take the place of the image's: add those that it has itself.
ports = [5000]

[rootfs]
image = "python:3.12-slim"

[[copy]]
src = "requirements.txt"
dest = "/app/"

[[run]]
# Line 9: it may reach all of the internet; better than true is a list: network = ["packages.example.org:443"]
cmd = "pip install --no-cache-dir     -r requirements.txt"
env = { PYTHONUNBUFFERED = "1", APP_NAME = "my app" }
workdir = "/app"
network = true

[[copy]]
src = "."
dest = "/app"
owner = "1000:1000"

[service]
cmd = ["flask", "run", "--host=0.0.0.0"]
user = "1000"
workdir = "/app"

[service.env]
PYTHONUNBUFFERED = "1"
APP_NAME = "my app"

[ready]
exec = "curl -f http://localhost:5000/health || exit 1"
# As long as docker would try: start-period + retries x (interval + timeout).
interval = "30s"
timeout = "3min"
"#
    );
    assert_eq!(draft.notes, [PORTS]);
    let smolfile = parsed(&draft);
    assert_eq!(service(&smolfile).env["APP_NAME"], "my app");
}

#[test]
fn a_service_in_node_of_several_stages() {
    let draft = draft(
        r#"FROM node:22-alpine AS base
ENV NODE_ENV=production
WORKDIR /usr/src/app
FROM base AS build
COPY . .
RUN npm ci && npm run build
FROM base
COPY package*.json ./
COPY --from=build /usr/src/app/dist ./dist
USER node
EXPOSE 3000/tcp
ENTRYPOINT ["docker-entrypoint.sh"]
CMD [ "node", "dist/index.js" ]
STOPSIGNAL SIGINT
"#,
    );
    let smolfile = parsed(&draft);
    assert!(draft.text.contains("image = \"node:22-alpine\""));
    assert_eq!(
        copies(&smolfile),
        pairs(&[("package*.json", "/usr/src/app/")])
    );
    let service = service(&smolfile);
    assert_eq!(
        service.entrypoint.as_ref().unwrap().get_ref()[0],
        "docker-entrypoint.sh"
    );
    assert_eq!(service.cmd.as_ref().unwrap().get_ref()[1], "dist/index.js");
    assert_eq!(
        (
            service.stop_signal,
            service.user.as_ref().map(|user| user.get_ref().as_str())
        ),
        (Some(2), Some("node"))
    );
    assert_eq!(service.env["NODE_ENV"], "production");
    assert_eq!(smolfile.ready.unwrap().probe, Probe::Tcp(3000));
    assert!(noted(
        &draft,
        "Dockerfile:9: not taken over (the files of another stage"
    ));
    assert!(!noted(&draft, "npm"), "{:?}", draft.notes);
}

#[test]
fn a_web_server_with_files_alone_is_taken_over_as_it_is() {
    let draft = draft(
        "FROM nginx:1.27\nCOPY --chmod=644 nginx.conf /etc/nginx/nginx.conf\n\
         COPY [\"static html\", \"more\", \"/usr/share/nginx/html/\"]\nEXPOSE 80 443\n",
    );
    assert_eq!(draft.notes, [PORTS]);
    let smolfile = parsed(&draft);
    let html = "/usr/share/nginx/html/";
    let wanted = [
        ("nginx.conf", "/etc/nginx/nginx.conf"),
        ("static html", html),
        ("more", html),
    ];
    assert_eq!(copies(&smolfile), pairs(&wanted));
    assert_eq!(smolfile.ports, Some(vec![80, 443]));
    assert_eq!(*service(&smolfile), smolfile::Service::default());
}

#[test]
fn a_database_with_an_entrypoint() {
    let draft = draft(
        r#"FROM debian:bookworm-slim
ENV PG_MAJOR 15
ENV PATH $PATH:/usr/lib/postgresql/$PG_MAJOR/bin
ENV PGDATA=/var/lib/postgresql/data
RUN <<EOF
apt-get update
FROM here it is not read
CMD neither
EOF
VOLUME /var/lib/postgresql/data
COPY docker-entrypoint.sh /usr/local/bin/
ENTRYPOINT ["docker-entrypoint.sh"]
STOPSIGNAL SIGINT
EXPOSE 5432
CMD ["postgres"]
"#,
    );
    let smolfile = parsed(&draft);
    assert_eq!(
        copies(&smolfile),
        pairs(&[("docker-entrypoint.sh", "/usr/local/bin/")])
    );
    let service = service(&smolfile);
    assert_eq!(service.env.len(), 2);
    assert_eq!(service.env["PG_MAJOR"], "15");
    assert_eq!(service.cmd.as_ref().unwrap().get_ref()[..], ["postgres"]);
    assert!(
        noted(&draft, "Dockerfile:3: not taken over (`PATH` has no value"),
        "{:?}",
        draft.notes
    );
    let script = "apt-get update\nFROM here it is not read\nCMD neither\n";
    assert_eq!(line(runs(&smolfile)[0]), script);
    assert!(draft.text.contains(&format!("cmd = '''\n{script}'''\n")));
    assert!(noted(
        &draft,
        "Dockerfile:10: not needed (what is written stays"
    ));
    assert!(draft.text.contains("# Line 10, not needed"));
}

#[test]
fn a_program_in_an_image_without_files() {
    let draft = draft(
        "FROM golang:1.23 AS build\nWORKDIR /src\nCOPY . .\nRUN go build -o /app\n\
         FROM scratch\nCOPY --from=build /app /app\nUSER nobody\nENTRYPOINT [\"/app\"]\n",
    );
    let smolfile = parsed(&draft);
    assert!(
        draft
            .text
            .contains("\nimage = \"docker-archive:app.tar\"\n"),
        "{}",
        draft.text
    );
    assert!(
        draft
            .text
            .contains("# Line 5, not taken over (`scratch` is an image without files)")
    );
    assert!(copies(&smolfile).is_empty());
    assert!(noted(&draft, "Dockerfile:6:") && noted(&draft, "docker save"));
}

#[test]
fn variables_are_replaced_where_docker_replaces_them() {
    let draft = draft(
        "ARG BASE=debian\nARG TAG\nFROM ${BASE}:${TAG:-12}\nARG BASE\nARG DIR=/srv/$BASE\nENV A=1\nENV A=2 B=$A C=\\$A D='$A' E=${A:+yes}${NONE:+no}\n\
         ARG A=3\nWORKDIR $DIR/../x\nCOPY \"$BASE.conf\" a/./b\nCOPY $UNKNOWN /x\nCMD echo $A\n",
    );
    let smolfile = parsed(&draft);
    assert!(
        draft.text.contains("image = \"debian:12\""),
        "{}",
        draft.text
    );
    let service = service(&smolfile);
    let env: Vec<&str> = service.env.values().map(String::as_str).collect();
    assert_eq!(env, ["2", "1", "$A", "$A", "yes"]);
    assert_eq!(service.workdir.as_deref(), Some("/srv/x"));
    assert_eq!(copies(&smolfile), pairs(&[("debian.conf", "/srv/x/a/b")]));
    assert_eq!(service.cmd.as_ref().unwrap().get_ref()[2], "echo $A");
    assert!(
        noted(&draft, ":11: not taken over (`UNKNOWN` has no value"),
        "{:?}",
        draft.notes
    );
}

#[test]
fn the_escape_character_and_odd_lines_are_read() {
    let draft = draft(
        "\u{feff}# escape=`\r\n\r\nfrom oci:1\r\ncopy a`\r\n  b.txt C:/x/\r\ncmd [\"a\",`\r\n\"b\"]\r\nnonsense here\r\nCOPY <<-E /x\r\n\tCMD c\r\n\tE\r\nexpose 1-3 0 x 9/udp\r\n",
    );
    let smolfile = parsed(&draft);
    assert!(
        draft.text.contains("image = \"docker://oci:1\""),
        "{}",
        draft.text
    );
    // Relative, and what WORKDIR the image has is not known.
    assert_eq!(
        copies(&smolfile),
        pairs(&[("a", "/C:/x/"), ("b.txt", "/C:/x/")])
    );
    assert!(noted(&draft, "may have another WORKDIR"));
    assert_eq!(service(&smolfile).cmd.as_ref().unwrap().get_ref().len(), 2);
    assert!(
        noted(&draft, ": not taken over: nonsense here"),
        "{:?}",
        draft.notes
    );
    assert!(noted(&draft, "put the text into a file"));
    assert_eq!(smolfile.ports, Some(vec![1, 2, 3]));
    assert!(noted(&draft, "not all taken over"));
}

#[test]
fn what_a_smolfile_would_refuse_is_told_and_left_out() {
    let draft = draft(
        "FROM x\nCOPY target/*.jar /app.jar\nCOPY ../a /a\nCOPY --chown=A,B --chmod=u+x b /b\nADD https://x/y /y\nADD z.tar.gz /z\nCOPY c\n\
         USER $NOBODY\nSTOPSIGNAL SIGNONE\nCMD [\"run\", \"$PORT\"]\nENTRYPOINT []\nENV a.b=c\nONBUILD RUN x\nSHELL bash\nHEALTHCHECK x\nEXPOSE $P\n",
    );
    let smolfile = parsed(&draft);
    assert_eq!(copies(&smolfile), pairs(&[("b", "/b")]));
    assert_eq!(*service(&smolfile), smolfile::Service::default());
    for told in [
        ":2: not taken over (several files need a folder",
        ":3: not taken over (the path leads out",
        ":4: --chmod left out (not a file mode",
        ":4: --chown left out (not a user",
        ":5: not taken over (a download is known by its digest: add --checksum",
        ":6: not taken over (unpack the archive",
        ":7: not taken over (a source or a destination",
        ":8: not taken over (`NOBODY` has no value",
        ":9: not taken over (not a signal",
        ":10: not taken over (no shell reads this list",
        ":11: not taken over (`entrypoint` is an empty",
        ":12: not taken over (it has a name",
        ":13: not taken over",
        ":14: not taken over (it is no list of words",
        ":15: not taken over (CMD or NONE",
        ":16: not taken over (`P` has no value",
    ] {
        assert!(noted(&draft, told), "{told}: {:#?}", draft.notes);
    }
}

#[test]
fn nothing_of_a_hostile_dockerfile_leaves_its_line() {
    let draft = draft(
        "FROM x\nENV A=\"a\u{1b}[2J\" B='\u{202e}' C=a\u{0}\nRUN \u{1b}[2J\u{7} \u{2028}[kernel]\nWORKDIR /a\"\\\"\u{85}b\"\nCMD [\"a\\n[kernel]\\npath = 1\"]\nCOPY x\u{7}y\u{7f} /z\n",
    );
    assert_eq!(smol_cli::human::printable(&draft.text), draft.text);
    let smolfile = parsed(&draft);
    assert_eq!(service(&smolfile).env["A"], "a\u{1b}[2J");
    assert!(noted(&draft, "NUL"));
    let tables = draft.text.lines().filter(|line| line.starts_with('['));
    let tables: Vec<&str> = tables.collect();
    assert_eq!(
        tables,
        [
            "[rootfs]",
            "[[run]]",
            "[[copy]]",
            "[[run]]",
            "[service]",
            "[service.env]"
        ]
    );
}

#[test]
fn the_name_of_the_file_stays_in_its_line() {
    let draft = smolfile("app", "a\n[kernel]\u{1b}", "FROM x\n").unwrap();
    let wanted = "# Taken over from a\\n[kernel]\\u{1b}; all keys";
    assert!(draft.text.starts_with(wanted), "{}", draft.text);
}

#[test]
fn what_is_too_much_or_no_dockerfile_is_refused() {
    for text in ["", "# nothing\n", "name = \"x\"\n", "ARG A=1\n"] {
        let error = smolfile("app", "x", text).unwrap_err().to_string();
        assert!(error.contains("no FROM"), "{error}");
    }
    let long = format!("FROM x\n# {}", "x".repeat(MAX_SIZE));
    let many = "FROM x\n".repeat(1001);
    let large = format!("FROM x\nENV A=\"{}\"", "\u{1b}".repeat(100_000));
    for text in [long, many, large] {
        let error = smolfile("app", "x", &text).unwrap_err().to_string();
        assert!(error.contains("KiB") || error.contains("1000"), "{error}");
    }
    // Each variable ten times the one before: a terabyte, if it were written out.
    let mut bomb = "FROM x\nENV A0=aaaaaaaaaa\n".to_owned();
    for n in 0..12 {
        bomb += &format!("ENV A{}={}\n", n + 1, format!("$A{n}").repeat(10));
    }
    let bomb = draft(&bomb);
    assert!(parsed(&bomb).rootfs().is_some() && bomb.text.len() < smolfile::MAX_SIZE);
    assert!(noted(&bomb, "the values of its variables are too long"));
    let sources = format!(
        "FROM x\nCOPY {} /x/\nCOPY {} /y/\n",
        "*a ".repeat(600),
        "*b ".repeat(600)
    );
    let draft = draft(&sources);
    parsed(&draft);
    assert!(noted(&draft, "more than 1000 sources"));
}
