//! The command line as a user meets it: exit codes and messages, without a machine.

#[path = "../src/testing.rs"]
mod testing;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use assert_cmd::Command;
use smol_bundle::PrivateKey;
use smol_testing::left_out;
use testing::Sample;

/// smolrun with folders of its own.
fn smolrun(sample: &Sample) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smolrun"));
    for (name, folder) in [("CACHE", "cache"), ("RUNTIME", "run"), ("CONFIG", "config")] {
        command.env(format!("SMOL_{name}_DIR"), sample.dir.path().join(folder));
    }
    command.env("NO_COLOR", "1");
    command
}

/// The exit code and stderr of `smolrun BUNDLE args`.
fn run(sample: &Sample, args: &[&str]) -> (i32, String) {
    outcome(smolrun(sample).arg(&sample.bundle).args(args))
}

fn outcome(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Nothing was unpacked and no instance is left.
fn assert_untouched(sample: &Sample) {
    let left = |folder: &str| {
        fs::read_dir(sample.dir.path().join(folder))
            .into_iter()
            .flatten()
            .count()
    };
    assert_eq!((left("cache/bundles"), left("run/instances")), (0, 0));
}

#[test]
fn help_names_every_command_and_keeps_internals_to_itself() {
    let output = smolrun(&Sample::new()).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "BUNDLE",
        "--publish",
        "--key",
        "--insecure-unsigned",
        "--accel",
        "ps",
        "logs",
        "stop",
        "doctor",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(!help.contains("internal"), "{help}");
}

#[test]
fn an_unsigned_bundle_is_refused() {
    let sample = Sample::new();
    let (code, told) = run(&sample, &[]);
    assert_eq!(code, 4);
    let bundle = sample.bundle.display();
    assert_eq!(
        told,
        format!(
            "error: {bundle} is refused: the bundle is not signed\n  \
             hint: --insecure-unsigned runs it all the same: for bundles that you have built yourself\n"
        )
    );
    assert_untouched(&sample);
}

#[test]
fn a_bundle_signed_by_an_unknown_key_is_refused() {
    let sample = Sample::new();
    let key = testing::sign(&sample);
    let (code, told) = run(&sample, &[]);
    assert_eq!(code, 4);
    assert!(
        told.contains(&format!(
            "not by a trusted key (signed by {})",
            key.public().id()
        )),
        "{told}"
    );
    assert!(
        told.contains("config/trust as a *.pub file (0 there now)"),
        "{told}"
    );
    assert_untouched(&sample);
}

#[test]
fn a_named_key_counts_instead_of_the_trust_folder() {
    let sample = Sample::new();
    let key = testing::sign(&sample);
    let trust = sample.dir.path().join("config/trust");
    fs::create_dir_all(&trust).unwrap();
    key.public().save(&trust.join("me.pub")).unwrap();
    let other = sample.dir.path().join("other.pub");
    PrivateKey::generate()
        .unwrap()
        .public()
        .save(&other)
        .unwrap();
    let (code, told) = run(&sample, &["--key", other.to_str().unwrap()]);
    assert_eq!(code, 4);
    assert!(
        told.contains("--key names the public keys that count"),
        "{told}"
    );
    assert_untouched(&sample);
}

#[test]
fn an_altered_signature_is_found_even_if_unsigned_bundles_are_welcome() {
    let sample = Sample::new();
    let key = testing::sign(&sample);
    let layout = sample.open().layout();
    let blob = layout
        .iter()
        .find(|b| b.media_type.contains("signature.v1+json"))
        .unwrap();
    let mut bytes = fs::read(&sample.bundle).unwrap();
    let begin = blob.offset as usize;
    let text = String::from_utf8(bytes[begin..][..blob.size as usize].to_vec()).unwrap();
    let digit = begin + text.find("\"signature\":\"").unwrap() + 13;
    bytes[digit] = if bytes[digit] == b'0' { b'1' } else { b'0' };
    fs::write(&sample.bundle, bytes).unwrap();
    let public = sample.dir.path().join("me.pub");
    key.public().save(&public).unwrap();
    let (code, told) = run(
        &sample,
        &["--insecure-unsigned", "--key", public.to_str().unwrap()],
    );
    assert_eq!(code, 4, "{told}");
    assert_untouched(&sample);
}

#[test]
fn a_truncated_bundle_is_refused() {
    let sample = Sample::new();
    let bytes = fs::read(&sample.bundle).unwrap();
    for len in [bytes.len() - 1, bytes.len() / 2, 600, 100] {
        fs::write(&sample.bundle, &bytes[..len]).unwrap();
        let (code, told) = run(&sample, &["--insecure-unsigned"]);
        assert_eq!(code, 4, "{len}: {told}");
        assert!(told.starts_with("error: "), "{told}");
    }
    assert_untouched(&sample);
}

#[test]
fn something_else_than_a_bundle_is_refused() {
    let sample = Sample::new();
    for content in ["", "hello\n", "SMOLPACK and then some"] {
        fs::write(&sample.bundle, content).unwrap();
        let (code, told) = run(&sample, &["--insecure-unsigned"]);
        assert_eq!(code, 4, "{content:?}: {told}");
    }
}

#[test]
fn a_missing_file_is_a_usage_error_that_speaks_of_registries() {
    let sample = Sample::new();
    let (code, told) = outcome(smolrun(&sample).arg("registry.example/redis:1"));
    assert_eq!(code, 2);
    assert!(
        told.contains("error: there is no file registry.example/redis:1"),
        "{told}"
    );
    assert!(told.contains("registries"), "{told}");
}

#[test]
fn a_malformed_port_is_a_usage_error() {
    let sample = Sample::new();
    for port in ["80", "a:80", "80:0", "localhost:80:80"] {
        let (code, told) = run(&sample, &["--insecure-unsigned", "-p", port]);
        assert_eq!(code, 2, "{port}: {told}");
        assert!(told.contains("--publish <[IP:]HOST:GUEST>"), "{told}");
    }
    assert_untouched(&sample);
}

#[test]
fn volumes_environment_and_references_are_not_accepted_in_silence() {
    let sample = Sample::new();
    for args in [
        &["-v", "/a:/b"][..],
        &["-e", "A=B"],
        &["--volume", "/a:/b"],
        &["--env", "A=B"],
    ] {
        assert_eq!(run(&sample, args).0, 2, "{args:?}");
    }
}

#[test]
fn a_port_that_is_in_use_is_told_before_anything_starts() {
    let sample = Sample::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let publish = format!("{port}:80");
    for more in [&[][..], &["-d"]] {
        let args = [
            &["--insecure-unsigned", "--accel", "kvm", "-p", &publish],
            more,
        ]
        .concat();
        let (code, told) = run(&sample, &args);
        assert_eq!(code, 1, "{told}");
        assert!(
            told.contains(&format!(
                "error: port {port} on 127.0.0.1 is already in use"
            )),
            "{told}"
        );
        assert!(
            told.contains("hint: choose another one: -p 127.0.0.1:PORT:80"),
            "{told}"
        );
    }
}

#[test]
fn a_port_that_the_bundle_does_not_declare_is_warned_about() {
    let sample = Sample::new();
    let warning = "smolrun: warning: sample listens on 80 by its Smolfile, not on 9999\n";
    for (port, warned) in [("0:9999", true), ("0:80", false)] {
        // What becomes of it then depends on the host.
        let (_, told) = run(
            &sample,
            &["--insecure-unsigned", "--accel", "kvm", "-p", port],
        );
        assert_eq!(told.contains(warning), warned, "{told}");
    }
}

#[test]
fn a_reader_of_stdout_that_is_gone_is_no_error() {
    let sample = Sample::new();
    for args in [
        &["ps"][..],
        &["ps", "--all", "--json"],
        &["--help"],
        &["-h"],
        &["--version"],
        &["stop", "--help"],
        &["completions", "bash"],
        &["doctor"],
        &["doctor", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_smolrun"));
        command.env("SMOL_RUNTIME_DIR", sample.dir.path().join("run"));
        command.env("SMOL_CACHE_DIR", sample.dir.path().join("cache"));
        command.args(args).stdout(writer).stderr(Stdio::piped());
        let child = command.spawn().unwrap().wait_with_output().unwrap();
        let told = String::from_utf8(child.stderr).unwrap();
        let code = child.status.code();
        let may_fail = args[0] == "doctor"; // it is about this host
        assert!(
            code == Some(0) || may_fail && code == Some(5),
            "{args:?}: {told}"
        );
        assert_eq!(told, "", "{args:?}");
    }
}

#[test]
fn a_stderr_that_cannot_be_written_changes_no_exit_code() {
    let sample = Sample::new();
    let bundle = sample.bundle.to_str().unwrap();
    for (args, wanted) in [
        (&["nosuch.smolmachine"][..], 2),
        (&["nosuch.smolmachine", "--progress", "json"], 2),
        (&["--nosuch"], 2),
        (&[bundle], 4),
        (&["ps"], 0),
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_smolrun"));
        for name in ["CACHE", "RUNTIME", "CONFIG"] {
            command.env(format!("SMOL_{name}_DIR"), sample.dir.path().join(name));
        }
        command.args(args).stdout(Stdio::null()).stderr(full);
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(wanted), "{args:?}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let sample = Sample::new();
    let path = |name: &str| sample.dir.path().join(name);
    let instance = path("run/instances/x");
    for folder in [path("config/trust"), instance.clone()] {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(folder).unwrap();
    }
    for fifo in [
        path("fifo"),
        path("config/trust/a.pub"),
        instance.join("instance.json"),
    ] {
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    let fifo = path("fifo").display().to_string();
    let (code, told) = run(&sample, &["--key", &fifo]);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("fifo: it is not a regular file"), "{told}");
    // In the trust folder it is passed over.
    let (code, told) = run(&sample, &[]);
    assert_eq!(code, 4, "{told}");
    assert!(told.contains("a.pub: it is not a regular file"), "{told}");
    for other in [&*fifo, "/dev/zero", "/dev/tty"] {
        let (code, told) = outcome(smolrun(&sample).arg(other));
        assert_eq!(code, 4, "{told}");
        assert!(told.contains("it is not a regular file"), "{told}");
    }
    let mut command = smolrun(&sample);
    let listed = command.args(["ps", "-a", "-q"]).output().unwrap();
    assert!(
        listed.status.success() && listed.stdout.is_empty(),
        "{listed:?}"
    );
}

#[test]
fn a_name_that_would_leave_its_folder_is_a_usage_error() {
    let sample = Sample::new();
    let (code, told) = run(&sample, &["--insecure-unsigned", "--name", "../x"]);
    assert_eq!(code, 2);
    assert!(told.contains("begins with a letter or digit"), "{told}");
}

#[test]
fn commands_about_a_machine_that_is_not_there_say_so() {
    let sample = Sample::new();
    for args in [
        &["stop", "x"][..],
        &["logs", "x"],
        &["logs", "-f", "x"],
        &["wait", "x"],
        &["rm", "x"],
        &["rm", "--force", "x"],
    ] {
        let (code, told) = outcome(smolrun(&sample).args(args));
        assert_eq!(code, 1);
        assert_eq!(
            told,
            "error: there is no machine named x\n  hint: no machine is running, and none has ended\n"
        );
    }
}

#[test]
fn ps_of_nothing_is_a_heading_or_an_empty_array() {
    let sample = Sample::new();
    // A twin of an option is no option: it does not stand in the way of a command.
    let output = smolrun(&sample)
        .env("SMOL_ACCEL", "kvm")
        .arg("ps")
        .output()
        .unwrap();
    assert_eq!(
        output.stdout,
        b"NAME  MACHINE  STATE  ACCEL  PID  UP  PORTS\n"
    );
    let output = smolrun(&sample).args(["ps", "--json"]).output().unwrap();
    assert_eq!(output.stdout, b"[]\n");
}

#[test]
fn options_have_twins_in_the_environment() {
    let sample = Sample::new();
    let mut command = smolrun(&sample);
    command
        .env("SMOL_INSECURE_UNSIGNED", "1")
        .env("SMOL_PUBLISH", "80:80,81:none")
        .arg(&sample.bundle);
    let (code, told) = outcome(&mut command);
    assert_eq!(code, 2);
    assert!(told.contains("\"none\" is not a guest port"), "{told}");
}

#[test]
fn the_internal_commands_do_nothing_by_hand() {
    let sample = Sample::new();
    for args in [&["internal-inner", "{}"][..], &["internal-detached"]] {
        let (code, told) = outcome(smolrun(&sample).args(args).write_stdin(""));
        assert_eq!(code, 2);
        assert!(told.contains("smolrun's own"), "{told}");
    }
}

#[test]
fn doctor_speaks_json() {
    let sample = Sample::new();
    let output = smolrun(&sample)
        .args(["doctor", "--json"])
        .output()
        .unwrap();
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert!(matches!(output.status.code(), Some(0 | 5)));
}

/// The disk is a small tmpfs in a mount namespace of its own, where this user may have one.
#[test]
fn a_full_disk_is_told_and_left_as_it_was() {
    let sample = Sample::new();
    let cache = sample.dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let script = "mount -t tmpfs -o size=16k,mode=700 tmpfs \"$SMOL_CACHE_DIR\" || exit 77; \
                  \"$@\"; echo \"exit $?, left: $(ls \"$SMOL_CACHE_DIR/bundles\")\"";
    let mut command = std::process::Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    command
        .arg(env!("CARGO_BIN_EXE_smolrun"))
        .arg(&sample.bundle)
        .arg("--insecure-unsigned");
    command
        .env("SMOL_CACHE_DIR", &cache)
        .env("SMOL_RUNTIME_DIR", sample.dir.path().join("run"));
    command
        .env("SMOL_CONFIG_DIR", sample.dir.path().join("config"))
        .env("NO_COLOR", "1");
    let output = match command.output() {
        Ok(output) if output.status.success() => output,
        other => return left_out(format!("no mount namespace for this user: {other:?}")),
    };
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "exit 1, left: \n",
        "{told}"
    );
    assert!(
        told.contains("error: cannot unpack the bundle into "),
        "{told}"
    );
    assert!(told.contains(" are missing"), "{told}");
    assert!(
        told.contains("hint: free space there, or set SMOL_CACHE_DIR"),
        "{told}"
    );
}

/// A folder as that of a running machine, whose process replies to requests with `reply`.
fn fake_machine(sample: &Sample, reply: &'static [u8]) -> fs::File {
    let folder = sample.dir.path().join("run/instances/other");
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(&folder).unwrap();
    let record = r#"{"name":"other","machine":"m","bundle":"/b","digest":"","pid":4321,"pid_started":0,
        "started":0,"state":"running","accel":"kvm","ports":[]}"#;
    fs::write(folder.join("instance.json"), record).unwrap();
    let listener = UnixListener::bind(folder.join("control.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(reply).unwrap();
        }
    });
    let owned = fs::File::open(&folder).unwrap();
    owned.lock().unwrap();
    owned
}

#[test]
fn a_machine_of_another_version_is_not_stopped_and_told_so() {
    for (reply, takes) in [
        (
            &b"{\"version\":7,\"reply\":{\"later\":1}}\n"[..],
            "control requests of version 7, not 1",
        ),
        (
            b"no order: missing field\n",
            "no control requests of version 1",
        ),
    ] {
        let sample = Sample::new();
        let _owned = fake_machine(&sample, reply);
        let (code, told) = outcome(smolrun(&sample).args(["stop", "other"]));
        assert_eq!(code, 1, "{told}");
        let wanted = format!(
            "error: other is run by another version of smolrun, which takes {takes}\n  \
             hint: stop it with the smolrun that started it, or with: kill 4321\n"
        );
        assert_eq!(told, wanted);
    }
}
