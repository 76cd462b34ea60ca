//! What is tried: commands, and what must hold of them however they end.

use std::fs;
use std::path::Path;

use smol_tests::support::{Outcome, run};

use crate::scene::{BOOTED, Listing, RESTORED, Scene, are_keys, is_bundle, listing};

/// A command.
pub struct Operation {
    /// What it does, for people.
    pub name: &'static str,
    /// `smolbuild` or `smolrun`.
    pub program: &'static str,
    /// See [`Scene::command`].
    pub arguments: &'static [&'static str],
    /// Whether it runs a machine.
    pub machine: bool,
    /// What comes before it in a fresh scene.
    before: fn(&Scene),
    /// Exit codes that are no failure.
    pub codes: &'static [i32],
    /// Whether this is the right stdout.
    printed: fn(&str) -> bool,
    /// The files in `out` that it writes.
    outputs: &'static [(&'static str, Kind)],
}

/// A kind of output.
#[derive(Clone, Copy)]
enum Kind {
    Bundle {
        signed: bool,
    },
    /// One of a pair.
    Key,
    /// That of the machine in this folder.
    Lock(&'static str),
    Json,
}

const OLD: &[u8] = b"what was there before";

/// The build of a machine with a container image and a download, up to its images.
pub const IMAGE: &str = "images of a container image";

/// With this a build ends whose machine would boot in an emulated host, when its images are made.
const NO_EMULATED_KERNEL: &str = "the kernel of the emulated host is not in the cache";

fn nothing(_: &Scene) {}

fn something(said: &str) -> bool {
    !said.is_empty()
}

const fn reads(
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
) -> Operation {
    Operation {
        name,
        program,
        arguments,
        machine: true,
        before: nothing,
        codes: &[0],
        printed: something,
        outputs: &[],
    }
}

const RUN: &[&str] = &["in/signed.smolmachine", "--key", "in/me.pub"];

/// All of them.
pub const ALL: &[Operation] = &[
    Operation {
        machine: false,
        outputs: &[("my.key", Kind::Key), ("my.pub", Kind::Key)],
        ..reads("keygen", "smolbuild", &["keygen", "-o", "out/my.key"])
    },
    Operation {
        before: |scene| {
            let copied = fs::copy(scene.path("in/unsigned.smolmachine"), scene.path("out/b"));
            copied.map(drop).expect("the folder is our own");
        },
        outputs: &[("b", Kind::Bundle { signed: true })],
        ..reads(
            "sign",
            "smolbuild",
            &["sign", "out/b", "--key", "in/me.key"],
        )
    },
    reads(
        "verify",
        "smolbuild",
        &["verify", "in/signed.smolmachine", "--key", "in/me.pub"],
    ),
    reads(
        "inspect",
        "smolbuild",
        &["inspect", "in/signed.smolmachine", "--json"],
    ),
    Operation {
        codes: &[1],
        ..reads(
            "diff",
            "smolbuild",
            &["diff", "in/signed.smolmachine", "in/unsigned.smolmachine"],
        )
    },
    Operation {
        machine: false,
        before: |scene| copy_machine(scene, "files"),
        outputs: &[("files/Smolfile.lock", Kind::Lock("files"))],
        ..reads("lock", "smolbuild", &["lock", "out/files", "--offline"])
    },
    Operation {
        machine: false,
        before: |scene| copy_machine(scene, "files"),
        codes: &[1],
        printed: str::is_empty,
        outputs: &[("files/Smolfile.lock", Kind::Lock("files"))],
        ..reads(
            "images",
            "smolbuild",
            &[
                "out/files",
                "--accel",
                "emulated",
                "--offline",
                "-o",
                "out/x",
            ],
        )
    },
    Operation {
        machine: false,
        before: |scene| {
            copy_machine(scene, "image");
            scene.download();
        },
        codes: &[1],
        printed: str::is_empty,
        outputs: &[("image/Smolfile.lock", Kind::Lock("image"))],
        ..reads(
            IMAGE,
            "smolbuild",
            &[
                "out/image",
                "--accel",
                "emulated",
                "--offline",
                "-o",
                "out/x",
            ],
        )
    },
    BUILD,
    FIRST_START,
    Operation {
        before: |scene| run_before(scene, RUN),
        printed: |said| said.trim_start() == RESTORED,
        ..reads("later start", "smolrun", RUN)
    },
    Operation {
        printed: |said| said == [BOOTED, RESTORED].concat(),
        ..reads(
            "cold start",
            "smolrun",
            &["in/signed.smolmachine", "--key", "in/me.pub", "--cold"],
        )
    },
    DETACHED,
    Operation {
        before: |scene| run_before(scene, DETACHED.arguments),
        ..reads("ps", "smolrun", &["ps", "-a", "--json"])
    },
    Operation {
        before: |scene| run_before(scene, DETACHED.arguments),
        printed: |said| said.trim_start() == RESTORED,
        ..reads("logs", "smolrun", &["logs", "n"])
    },
    Operation {
        before: |scene| run_before(scene, DETACHED.arguments),
        ..reads("rm", "smolrun", &["rm", "n", "-f"])
    },
];

/// A build of a machine that is just a kernel, over an older bundle.
pub const BUILD: Operation = Operation {
    before: |scene| fs::write(scene.path("out/b"), OLD).expect("the folder is our own"),
    outputs: &[
        ("b", Kind::Bundle { signed: true }),
        ("facts.json", Kind::Json),
    ],
    ..reads(
        "build",
        "smolbuild",
        &[
            "in/tiny",
            "-o",
            "out/b",
            "--sign",
            "in/me.key",
            "--metadata-file",
            "out/facts.json",
        ],
    )
};

/// A start with nothing in the cache.
pub const FIRST_START: Operation = Operation {
    printed: |said| said.trim_start() == RESTORED,
    ..reads(
        "first start",
        "smolrun",
        &["in/signed.smolmachine", "--key", "in/me.pub", "--name", "n"],
    )
};

/// The same, in the background.
pub const DETACHED: Operation = Operation {
    printed: |said| said == "n\n",
    ..reads(
        "first start in the background",
        "smolrun",
        &[
            "in/signed.smolmachine",
            "--key",
            "in/me.pub",
            "-d",
            "--name",
            "n",
        ],
    )
};

fn copy_machine(scene: &Scene, name: &str) {
    let to = scene.path("out").join(name);
    fs::create_dir(&to).expect("the folder is our own");
    crate::scene::copy(&scene.path("in").join(name), &to);
}

fn run_before(scene: &Scene, arguments: &[&str]) {
    run(&mut scene.command("smolrun", arguments)).succeed();
    scene.await_ends();
}

/// How an operation ended, and what must not be held against it.
pub struct Ended<'a> {
    /// Its exit code and what it printed.
    pub outcome: &'a Outcome,
    /// Whether stdout was out of order.
    pub mute: bool,
    /// Whether stderr was.
    pub silent: bool,
    /// Whether the kernel or we killed it.
    pub killed: bool,
}

impl<'a> From<&'a Outcome> for Ended<'a> {
    fn from(outcome: &'a Outcome) -> Self {
        Self {
            outcome,
            mute: false,
            silent: false,
            killed: false,
        }
    }
}

impl Operation {
    /// Makes a scene what it is before the operation; returns what is in `out` then.
    pub fn set_up(&self, scene: &Scene) -> Listing {
        scene.set_up();
        (self.before)(scene);
        listing(&scene.path("out"))
    }

    /// Checks everything that must hold when the operation has ended.
    ///
    /// # Errors
    /// With what does not.
    pub fn check(&self, scene: &Scene, before: &Listing, ended: &Ended) -> Result<(), String> {
        let done = self.exit(ended)?;
        if self.name.contains("start") {
            self.machine_output(scene, ended)?;
        }
        self.files(scene, before, done)
    }

    /// Looks at exit code and words; returns whether it has succeeded.
    fn exit(&self, ended: &Ended) -> Result<bool, String> {
        let Outcome {
            code,
            stdout,
            stderr,
        } = ended.outcome;
        if ended.killed {
            return Ok(false);
        }
        if stderr.contains("panicked") {
            return Err("it panicked".into());
        }
        let Some(code) = code else {
            return Err("a signal ended it".into());
        };
        let told = stderr.lines().any(|line| line.starts_with("error:"));
        let makes_images = ["images", IMAGE].contains(&self.name);
        let expected = makes_images && stderr.contains(NO_EMULATED_KERNEL);
        // Where it cannot be restored, it may have been booted, and says so.
        let cold = stderr.contains("booting cold") && *stdout == [BOOTED, RESTORED].concat();
        let right = (self.printed)(stdout) || cold || ended.mute;
        if self.codes.contains(code) && (!told || expected) && right {
            return Ok(true);
        }
        match code {
            1 | 2 | 4 | 5 if told || ended.silent => Ok(false),
            1 | 2 | 4 | 5 => Err(format!("exit code {code} without an error")),
            0 => Err("it claims to have succeeded".into()),
            _ => Err(format!("exit code {code}")),
        }
    }

    /// No machine may have printed what it would not print.
    fn machine_output(&self, scene: &Scene, ended: &Ended) -> Result<(), String> {
        let log = match self.name == DETACHED.name {
            true => run(&mut scene.command("smolrun", &["logs", "n"])).stdout,
            false => String::new(),
        };
        let whole = [BOOTED, RESTORED].concat();
        for said in [&ended.outcome.stdout, &log] {
            // The line on which it was frozen may have been cut before its end.
            let said = said
                .trim_start()
                .strip_suffix("\n")
                .unwrap_or(said.trim_start());
            // smolrun's own words are in the log, too.
            let own = ["error: ", "smolrun: "].map(|own| said.find(own).unwrap_or(said.len()));
            let said = said[..own[0].min(own[1])].trim_end_matches('\n');
            if said != "n" && !RESTORED.starts_with(said) && !whole.starts_with(said) {
                return Err(format!("the machine printed {said:?}"));
            }
        }
        Ok(())
    }

    /// Outputs are the old ones or whole new ones, and nothing else is there.
    fn files(&self, scene: &Scene, before: &Listing, done: bool) -> Result<(), String> {
        let after = listing(&scene.path("out"));
        for (path, content) in before {
            if !after.contains_key(path) {
                return Err(format!("{} is gone", path.display()));
            }
            if content.is_none() != after[path].is_none() {
                return Err(format!("{} is something else now", path.display()));
            }
        }
        for (path, content) in &after {
            let output = self
                .outputs
                .iter()
                .find(|(name, _)| path == Path::new(name));
            match (output, before.get(path)) {
                (_, Some(old)) if old == content && !(done && output.is_some()) => {}
                (Some((name, kind)), _) => kind.check(scene, name)?,
                (None, Some(_)) => return Err(format!("{} was changed", path.display())),
                (None, None) => return Err(format!("{} was left", path.display())),
            }
        }
        match self
            .outputs
            .iter()
            .find(|(name, _)| !after.contains_key(Path::new(name)))
        {
            Some((name, _)) if done => Err(format!("{name} is missing")),
            _ => Ok(()),
        }
    }

    /// Runs the operation once more, without a fault: it succeeds, and nothing is left behind.
    ///
    /// # Errors
    /// If not.
    pub fn check_again(&self, scene: &Scene) -> Result<(), String> {
        let before = listing(&scene.path("out"));
        match self.name {
            "keygen" if !before.is_empty() => return Ok(()),
            // What it had to do with may have been removed.
            "ps" | "logs" | "rm" => (self.before)(scene),
            _ => {}
        }
        let mut command = scene.command(self.program, self.arguments);
        let outcome = scene.run(&mut command);
        self.succeeds(scene, &before, &outcome)
    }

    /// Checks an operation that nothing has disturbed: it succeeds, and nothing is left behind.
    ///
    /// # Errors
    /// If not.
    pub fn succeeds(
        &self,
        scene: &Scene,
        before: &Listing,
        outcome: &Outcome,
    ) -> Result<(), String> {
        let context = |why: String| format!("undisturbed: {why}\n{}", outcome.stderr);
        if !self.exit(&Ended::from(outcome)).map_err(context)? {
            return Err(context("it failed".into()));
        }
        self.check(scene, before, &Ended::from(outcome))
            .map_err(context)?;
        self.remove_instances(scene);
        match scene.left().map_err(context)?.as_slice() {
            [] => Ok(()),
            left => Err(context(format!("{left:?} were left"))),
        }
    }

    /// Removes the machines that stay listed when they have ended.
    pub fn remove_instances(&self, scene: &Scene) {
        if self.program == "smolrun" {
            run(&mut scene.command("smolrun", &["rm", "--all"]));
        }
    }
}

impl Kind {
    fn check(self, scene: &Scene, name: &str) -> Result<(), String> {
        let path = scene.path("out").join(name);
        match self {
            Kind::Bundle { signed } => is_bundle(&path, signed),
            Kind::Key => are_keys(&path.with_extension("key"), &path.with_extension("pub")),
            Kind::Lock(machine) => {
                let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
                match text == crate::FIXTURE.lock(machine) {
                    true => Ok(()),
                    false => Err(format!("not the lock file that belongs there: {text}")),
                }
            }
            Kind::Json => {
                let bytes = fs::read(&path).map_err(|e| e.to_string())?;
                let parsed = serde_json::from_slice::<serde_json::Value>(&bytes);
                parsed.map(drop).map_err(|e| format!("{name}: {e}"))
            }
        }
    }
}
