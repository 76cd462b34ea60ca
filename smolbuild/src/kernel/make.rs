//! From a source tarball to a vmlinux: unpack, patch, configure, make, strip.
//!
//! The build is in-tree, so that no name of a folder is in any argument of the compiler, and its
//! environment is made afresh: the bytes depend on the inputs alone (Linux,
//! Documentation/kbuild/reproducible-builds.rst).

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, anyhow, ensure};
use smol_cli::progress::Stage;
use smol_cli::{ExitKind, Failure, Interrupt};

use super::inputs::{
    MAKE_ARGUMENTS, RELOCATIONS_ARGUMENT, RELOCATIONS_SCRIPT, RELOCATIONS_TOOL, STRIP_ARGUMENTS,
};
use super::recipe::Recipe;
use crate::subprocess;

/// Variables of the caller that the tools need; all others could change what they do.
const INHERITED: &[&str] = &["PATH", "TMPDIR"];
/// Lines of output that an error shows.
const LAST_LINES: usize = 30;

/// The folder of a build, its progress and its interrupt.
#[derive(Clone, Copy)]
pub struct BuildDir<'a> {
    /// An empty folder.
    pub folder: &'a Path,
    /// File to write everything into that the tools say.
    pub log: &'a Path,
    /// The stage that it is a part of.
    pub stage: &'a Stage,
    /// Set when the user wants to stop.
    pub interrupt: &'a Interrupt,
}

/// Builds the kernel and returns the stripped vmlinux in the dir's folder, on disk for good.
///
/// # Errors
/// If a step fails: with the last lines of what its program said.
pub fn build(recipe: &Recipe, tarball: &Path, dir: BuildDir) -> Result<PathBuf> {
    require_plain(dir.folder)?;
    let log =
        File::create(dir.log).with_context(|| format!("cannot write {}", dir.log.display()))?;
    let mut build = SourceBuild {
        recipe,
        tree: dir.folder.join("linux"),
        dir,
        log,
        last: VecDeque::new(),
    };
    build.unpack(tarball)?;
    build.patch()?;
    build.configure()?;
    build.make()?;
    build.strip()
}

/// Linux's Makefile refuses folders whose names it would take for more than one.
fn require_plain(folder: &Path) -> Result<(), Failure> {
    if folder
        .to_str()
        .is_some_and(|path| !path.contains([':', ' ', '\t', '\n']))
    {
        return Ok(());
    }
    let what = format!(
        "a kernel cannot be built in {}: make takes no folder with a space or a colon",
        folder.display()
    );
    Err(Failure::new(ExitKind::Host, what)
        .hint("set XDG_CACHE_HOME to a folder with a plainer name"))
}

/// A build under way.
struct SourceBuild<'a> {
    recipe: &'a Recipe,
    /// The source tree.
    tree: PathBuf,
    dir: BuildDir<'a>,
    log: File,
    /// The last lines of the program that runs.
    last: VecDeque<String>,
}

impl SourceBuild<'_> {
    fn unpack(&mut self, tarball: &Path) -> Result<()> {
        let wanted = &self.recipe.metadata.version;
        self.dir.stage.note(&format!("unpacking Linux {wanted}"));
        fs::create_dir(&self.tree)
            .with_context(|| format!("cannot create {}", self.tree.display()))?;
        let mut tar = self.command("tar");
        // The one folder at the top has another name in every tarball. Owners are of no use here.
        tar.args([
            "--extract",
            "--strip-components=1",
            "--no-same-owner",
            "--file",
        ])
        .arg(tarball);
        self.run(tar)
            .with_context(|| format!("cannot unpack {}", tarball.display()))?;
        let makefile = fs::read_to_string(self.tree.join("Makefile"));
        let makefile = makefile.with_context(|| {
            format!(
                "{} is not a source of Linux: its Makefile",
                tarball.display()
            )
        })?;
        let found = source_version(&makefile);
        if found != *wanted {
            self.dir.stage.note(&format!(
                "this is Linux {found}; the recipe was made for {wanted}"
            ));
        }
        Ok(())
    }

    fn patch(&mut self) -> Result<()> {
        for (name, diff) in &self.recipe.patches {
            let file = self.write(name, diff)?;
            let mut patch = self.command("patch");
            patch
                .args([
                    "-p1",
                    "--fuzz=0",
                    "--batch",
                    "--forward",
                    "--no-backup-if-mismatch",
                    "-i",
                ])
                .arg(&file);
            self.run(patch)
                .with_context(|| format!("the patch {name} does not apply"))?;
        }
        Ok(())
    }

    /// Everything off, then the fragment on top. What Kconfig drops for a dependency is an error.
    fn configure(&mut self) -> Result<()> {
        let fragment = self.write("fragment", self.recipe.fragment.as_bytes())?;
        let mut make = self.make_command();
        make.env("KCONFIG_ALLCONFIG", &fragment).arg("allnoconfig");
        self.run(make).context("cannot configure the kernel")?;
        let config = fs::read_to_string(self.tree.join(".config"))
            .context("make allnoconfig left no .config")?;
        let lost = lost_lines(self.recipe.fragment, &config);
        ensure!(
            lost.is_empty(),
            "the kernel's Kconfig does not accept (unknown here, or a dependency is off):\n{}",
            lost.join("\n")
        );
        Ok(())
    }

    fn make(&mut self) -> Result<()> {
        let jobs = available_parallelism().map_or(1, usize::from);
        self.dir.stage.note(&format!("compiling, {jobs} at a time"));
        let mut make = self.make_command();
        make.arg(format!("-j{jobs}")).arg("vmlinux");
        let (stage, total) = (self.dir.stage, self.recipe.metadata.steps);
        let mut done = 0;
        let counted = self.run_watched(make, &mut |line| {
            done += u64::from(is_step(line));
            // The total is an estimate.
            stage.set(done.min(total), total);
        });
        counted.context("cannot compile the kernel")
    }

    fn strip(&mut self) -> Result<PathBuf> {
        let stripped = self.dir.folder.join("vmlinux");
        let mut strip = self.command("objcopy");
        strip.args(STRIP_ARGUMENTS);
        if self.tree.join(RELOCATIONS_TOOL).exists() {
            let mut list = self.command("/bin/sh");
            list.args(["-c", RELOCATIONS_SCRIPT]);
            self.run(list)
                .context("cannot list the relocations of the kernel")?;
            strip.arg(RELOCATIONS_ARGUMENT);
        }
        strip.arg("vmlinux").arg(&stripped);
        self.run(strip).context("cannot strip the kernel")?;
        let synced = File::open(&stripped).and_then(|file| file.sync_all());
        synced.with_context(|| format!("cannot store {}", stripped.display()))?;
        Ok(stripped)
    }

    /// Writes a file next to the source tree.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.dir.folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn make_command(&self) -> Command {
        let mut make = self.command("make");
        make.args(MAKE_ARGUMENTS);
        make
    }

    /// A command in the source tree.
    fn command(&self, program: &str) -> Command {
        let mut command = subprocess::command(program);
        command
            .current_dir(&self.tree)
            .env_clear()
            .envs(environment(&self.recipe.metadata.timestamp));
        command
    }

    fn run(&mut self, command: Command) -> Result<()> {
        self.run_watched(command, &mut |_| {})
    }

    fn run_watched(&mut self, command: Command, watch: &mut dyn FnMut(&str)) -> Result<()> {
        self.last.clear();
        let mut logged = Ok(());
        let interrupt = self.dir.interrupt;
        let stage = self.dir.stage;
        let status = subprocess::run(command, interrupt, &mut |line| {
            stage.window(line);
            watch(line);
            let written = self.note(line);
            if logged.is_ok() {
                logged = written;
            }
        })?;
        if !status.success() {
            let last = Vec::from(std::mem::take(&mut self.last)).join("\n");
            return Err(if last.is_empty() {
                anyhow!("{status}")
            } else {
                anyhow!("{last}")
            });
        }
        logged.with_context(|| format!("cannot write {}", self.dir.log.display()))
    }

    fn note(&mut self, line: &str) -> io::Result<()> {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        self.log.write_all(format!("{line}\n").as_bytes())
    }
}

/// The whole environment of the tools.
fn environment(timestamp: &str) -> Vec<(String, String)> {
    let fixed = [
        ("KBUILD_BUILD_TIMESTAMP", timestamp),
        ("KBUILD_BUILD_USER", "smol"),
        ("KBUILD_BUILD_HOST", "smol"),
        ("KBUILD_BUILD_VERSION", "1"),
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
    ];
    let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let inherited = INHERITED
        .iter()
        .filter_map(|name| Some((name.to_string(), std::env::var(name).ok()?)));
    fixed.into_iter().chain(inherited).collect()
}

/// The lines of a fragment that a configuration does not honour. For the line that something is
/// not set it is enough that it is not there.
fn lost_lines<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let set = |name: &str| {
        config
            .lines()
            .any(|line| line.split_once('=').is_some_and(|(set, _)| set == name))
    };
    let kept = |line: &str| match line
        .strip_prefix("# ")
        .and_then(|rest| rest.strip_suffix(" is not set"))
    {
        Some(name) => !set(name),
        None => config.lines().any(|other| other == line),
    };
    let says = |line: &&str| line.starts_with("CONFIG_") || line.starts_with("# CONFIG_");
    fragment
        .lines()
        .map(str::trim_end)
        .filter(says)
        .filter(|line| !kept(line))
        .collect()
}

/// The version that a Makefile of Linux states at its top.
fn source_version(makefile: &str) -> String {
    let value = |name: &str| {
        let value = |line: &str| {
            Some(
                line.strip_prefix(name)?
                    .trim_start()
                    .strip_prefix('=')?
                    .trim()
                    .to_owned(),
            )
        };
        makefile
            .lines()
            .take(20)
            .find_map(value)
            .unwrap_or_default()
    };
    format!(
        "{}.{}.{}{}",
        value("VERSION"),
        value("PATCHLEVEL"),
        value("SUBLEVEL"),
        value("EXTRAVERSION")
    )
}

/// Whether make says with this line that a command is started: `  CC      init/main.o`.
fn is_step(line: &str) -> bool {
    let word = line
        .strip_prefix("  ")
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or_default();
    word.len() > 1
        && word
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use smol_cli::{Mode, Progress};

    use super::super::recipe::tests::{KERNEL_TOML, recipe};
    use super::*;

    #[test]
    fn lines_that_a_configuration_dropped_or_turned_on_are_named() {
        let fragment = "# A comment.\nCONFIG_64BIT=y\nCONFIG_NR_CPUS=8\nCONFIG_SMOL_GUEST=y\n\n# CONFIG_MICROCODE is not set\n# CONFIG_X86 is not set\n";
        let config = "CONFIG_64BIT=y\nCONFIG_NR_CPUS=64\n# CONFIG_SMOL_GUEST is not set\nCONFIG_MICROCODE_LATE=y\nCONFIG_X86=y\n";
        let lost = [
            "CONFIG_NR_CPUS=8",
            "CONFIG_SMOL_GUEST=y",
            "# CONFIG_X86 is not set",
        ];
        assert_eq!(lost_lines(fragment, config), lost);
        assert!(lost_lines(fragment, fragment).is_empty());
    }

    #[test]
    fn commands_that_make_starts_count_as_steps_and_other_lines_do_not() {
        for line in [
            "  CC      init/main.o",
            "  AR      built-in.a",
            "  LD      vmlinux",
            "  VDSO2C  vdso.c",
        ] {
            assert!(is_step(line), "{line}");
        }
        for line in [
            "",
            "  ",
            "make[1]: Entering",
            "init/main.c: In function",
            "   CC  x",
            "  error: x",
            "CC x",
            "  I am",
        ] {
            assert!(!is_step(line), "{line}");
        }
    }

    #[test]
    fn the_version_of_a_source_is_read_from_its_makefile() {
        let text = "# SPDX-License-Identifier: GPL-2.0\nVERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 192\nEXTRAVERSION =\nNAME = Curry Ramen\n";
        assert_eq!(source_version(text), "6.1.192");
        assert_eq!(
            source_version(&text.replace("EXTRAVERSION =", "EXTRAVERSION = -rc1")),
            "6.1.192-rc1"
        );
    }

    #[test]
    fn a_folder_that_make_would_misread_is_refused() {
        assert!(require_plain(Path::new("/home/a/.cache/smol")).is_ok());
        for folder in ["/home/my cache", "/a:b"] {
            let error = require_plain(Path::new(folder)).unwrap_err().into();
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Host);
        }
    }

    #[test]
    fn the_environment_of_the_caller_does_not_reach_the_build() {
        let names: Vec<_> = environment("2026-01-01")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(names.contains(&"PATH".to_owned()));
        assert!(
            !names
                .iter()
                .any(|name| name.starts_with("CARGO") || name == "HOME"),
            "{names:?}"
        );
    }

    /// Builds from a tarball with this Makefile, this patch and this fragment; returns the error, and the log.
    fn failing(makefile: &str, patch: &'static str, fragment: &'static str) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let tarball = folder.path().join("linux.tar");
        let mut archive = tar::Builder::new(File::create(&tarball).unwrap());
        let mut header = tar::Header::new_ustar();
        header.set_size(makefile.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, "linux-6.1.2/Makefile", makefile.as_bytes())
            .unwrap();
        archive.into_inner().unwrap().sync_all().unwrap();
        let mut recipe = recipe(KERNEL_TOML, &["0001-a.patch", "0002-b.patch"]).unwrap();
        recipe.patches = vec![("0001-a.patch".into(), patch.as_bytes())];
        recipe.fragment = fragment;
        let stage = Progress::new(Mode::Plain).stage("kernel", "");
        let (log, interrupt) = (folder.path().join("log"), Interrupt::detached().unwrap());
        let dir = BuildDir {
            folder: folder.path(),
            log: &log,
            stage: &stage,
            interrupt: &interrupt,
        };
        let error = build(&recipe, &tarball, dir).unwrap_err();
        (format!("{error:#}"), fs::read_to_string(log).unwrap())
    }

    const MAKEFILE: &str = "VERSION = 6\nallnoconfig:\n\t@cp $(KCONFIG_ALLCONFIG) .config\nvmlinux:\n\t@for i in $$(seq 100); do echo \"  CC      $$i.o\"; done; false\n";
    const PATCH: &str = "--- a/Makefile\n+++ b/Makefile\n@@ -1 +1 @@\n-VERSION = 6\n+VERSION = 7\n";

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let (error, _) = failing(&MAKEFILE.replace('6', "5"), PATCH, "");
        assert!(
            error.contains("the patch 0001-a.patch does not apply") && error.contains("FAILED"),
            "{error}"
        );
    }

    #[test]
    fn a_lost_line_of_the_fragment_stops_the_build_before_it_compiles() {
        let (error, log) = failing(
            &MAKEFILE.replace("@cp $(KCONFIG_ALLCONFIG) ", "@touch "),
            PATCH,
            "CONFIG_64BIT=y\n",
        );
        assert!(
            error.contains("CONFIG_64BIT=y") && !log.contains("CC"),
            "{error}\n{log}"
        );
    }

    #[test]
    fn a_failing_compilation_shows_its_last_lines_and_the_log_has_all() {
        let (error, log) = failing(MAKEFILE, PATCH, "CONFIG_64BIT=y\n");
        assert!(
            error.contains("cannot compile the kernel") && error.contains("100.o"),
            "{error}"
        );
        assert!(
            !error.contains(" 50.o")
                && log.contains(" 50.o")
                && log.contains("patching file Makefile"),
            "{log}"
        );
    }
}
