//! What is done to the root file system, and the keys of the build steps among it.

use std::ops::Range;

use serde::Serialize;
use smol_image::RunConfig;
use smol_protocol::Service;
use toml::Spanned;

use super::guest::{image_environment, image_workdir, named_user};
use super::{Plan, canonical_json};
use crate::lock::{CopySource, Lock, LockedRun};
use crate::smolfile::{CopyStep, FetchStep, Network, RunStep, Step};

/// Something that is done to the root file system.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedStep {
    /// Files of the host are put over it.
    Copy(CopyStep),
    /// A file is downloaded into it.
    Fetch(FetchStep),
    /// A command changes it.
    Run(PlannedRun),
}

/// A `[[run]]`: a command in a machine of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedRun {
    /// Its place among the `[[run]]`s, from 1.
    pub number: u32,
    /// The command and its world.
    pub command: Service,
    /// Memory of its machine, in bytes.
    pub memory: u64,
    /// The network that it has; none when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<PlannedNetwork>,
    /// Longest time that it may take, in milliseconds of its machine's clock. What it makes does not
    /// depend on it.
    #[serde(skip)]
    pub timeout_ms: u64,
    /// Where its command is in the text of the Smolfile.
    #[serde(skip)]
    pub span: Range<usize>,
    /// Likewise, its user, if it says one.
    #[serde(skip)]
    pub user_span: Option<Range<usize>>,
}

/// Which network a command has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedNetwork {
    /// All that is not of the host and its neighbours.
    All,
    /// These names and addresses, sorted.
    Listed(Vec<String>),
}

impl PlannedNetwork {
    /// What a step of the Smolfile may reach, if anything.
    pub fn of(network: &Network) -> Option<Self> {
        match network {
            Network::None => None,
            Network::All => Some(Self::All),
            Network::Listed(rules) => {
                let mut rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
                rules.sort();
                rules.dedup();
                Some(Self::Listed(rules))
            }
        }
    }

    /// The same as the manual says it: `*` for all.
    pub fn into_list(self) -> Vec<String> {
        match self {
            Self::All => vec!["*".to_owned()],
            Self::Listed(rules) => rules,
        }
    }
}

impl PlannedStep {
    /// Whether it is a command that has a network.
    pub fn has_network(&self) -> bool {
        matches!(self, Self::Run(run) if run.network.is_some())
    }

    /// A step of the Smolfile, with what an image says.
    pub(super) fn of(step: &Step, image: Option<&RunConfig>, epoch: u32) -> Self {
        match step {
            Step::Copy(copy) => Self::Copy(copy.clone()),
            Step::Fetch(fetch) => Self::Fetch(fetch.clone()),
            Step::Run(run) => Self::Run(planned_run(run, image, epoch)),
        }
    }
}

fn planned_run(run: &RunStep, image: Option<&RunConfig>, epoch: u32) -> PlannedRun {
    // Many tools date what they make by it, instead of by the clock
    // (reproducible-builds.org, "SOURCE_DATE_EPOCH").
    let mut env = image.map(image_environment).unwrap_or_default();
    env.insert("SOURCE_DATE_EPOCH".to_owned(), epoch.to_string());
    env.extend(run.env.clone());
    PlannedRun {
        number: run.number,
        command: Service {
            cmd: run.cmd.get_ref().clone(),
            env,
            user: named_user(run.user.as_ref()),
            workdir: run
                .workdir
                .clone()
                .or_else(|| image.and_then(image_workdir)),
            stop_signal: None,
            init: Some(false),
        },
        memory: run.memory,
        network: PlannedNetwork::of(&run.network),
        timeout_ms: u64::try_from(run.timeout.as_millis()).unwrap_or(u64::MAX),
        span: run.cmd.span(),
        user_span: run.user.as_ref().map(Spanned::span),
    }
}

/// What the key of a build step is made of, besides the steps before it: the machine that it runs in.
#[derive(Serialize)]
struct Machine<'a> {
    builder: &'a str,
    arch: &'a str,
    hostname: &'a str,
    cpu: smol_machine::cpu::Level,
    cmdline: &'a str,
    guest: &'a str,
    epoch: u32,
    kernel: Option<&'a crate::lock::Kernel>,
    kernel_file: Option<&'a str>,
}

/// The root file system before any step.
#[derive(Serialize)]
struct Base<'a> {
    rootfs: Option<&'a crate::input::Rootfs>,
    debian: Option<&'a crate::lock::Debian>,
    /// Layers of an image; its configuration reaches the tree by its folders alone.
    layers: Option<&'a [smol_bundle::Digest]>,
    folders: Vec<&'a str>,
    files: Vec<&'a crate::lock::InputFile>,
    epoch: u32,
}

/// The keys of build steps, found in the order of the steps.
///
/// A key is of everything that a step's output is a function of, but for the monitor of this program:
/// what the lock pins for the root file system, each step before it, the command and its machine. So
/// changing a copied file changes the keys of the steps after the copy, and no others. What a step with a
/// network makes is no function of its key; the keys after it are known when its layer is.
pub struct StepChain<'p> {
    plan: &'p Plan,
    hash: blake3::Hash,
    copies: std::slice::Iter<'p, CopySource>,
}

impl<'p> StepChain<'p> {
    /// The chain before the first step.
    pub fn new(plan: &'p Plan) -> Self {
        Self {
            plan,
            hash: digest("base", &plan.base()),
            copies: plan.lock.copies.iter(),
        }
    }

    /// Goes past the next step of the Plan. Returns its key, if it is a `[[run]]`.
    pub fn pass(&mut self, step: &PlannedStep) -> Option<blake3::Hash> {
        let before = hex(self.hash);
        let (hash, is_run) = match step {
            PlannedStep::Copy(copy) => (digest("copy", &(before, copy, self.copies.next())), false),
            PlannedStep::Fetch(fetch) => {
                (digest("fetch", &(before, fetch, fetch.file_name())), false)
            }
            PlannedStep::Run(run) => (digest("run", &(before, self.plan.machine(), run)), true),
        };
        self.hash = hash;
        is_run.then_some(hash)
    }

    /// The step that was just passed, which has a network, has made this layer.
    pub fn made(&mut self, layer: &smol_bundle::Digest) {
        self.hash = digest("layer", &(hex(self.hash), layer));
    }
}

impl Plan {
    /// The runs with a network that the lock `kept` has, and that this Plan makes: up to the first that
    /// it makes otherwise, for what comes after that is not known yet.
    pub fn kept_runs(&self, kept: &[LockedRun]) -> Vec<LockedRun> {
        let mut chain = StepChain::new(self);
        let mut runs = Vec::new();
        for step in &self.steps {
            let key = chain.pass(step).map(hex);
            if !step.has_network() {
                continue;
            }
            let Some(run) = kept.iter().find(|run| Some(&run.key) == key.as_ref()) else {
                break;
            };
            chain.made(&run.layer);
            runs.push(run.clone());
        }
        runs
    }

    fn machine(&self) -> Machine<'_> {
        let kernel_file = self.lock.files.iter();
        let mut kernel_file = kernel_file.filter(|file| file.role == crate::lock::Role::Kernel);
        Machine {
            builder: self.builder,
            arch: self.arch,
            hostname: self.guest.as_ref().map_or("", |guest| &guest.hostname),
            cpu: self.cpu,
            cmdline: &self.kernel.build_cmdline,
            guest: &self.lock.builder.guest_sha256,
            epoch: self.lock.builder.epoch,
            kernel: self.lock.kernel.as_ref(),
            kernel_file: kernel_file.next().map(|file| file.sha256.as_str()),
        }
    }

    fn base(&self) -> Base<'_> {
        let Lock {
            image,
            debian,
            files,
            builder,
            ..
        } = &self.lock;
        let of_rootfs = files
            .iter()
            .filter(|file| file.role != crate::lock::Role::Kernel);
        Base {
            rootfs: self.rootfs.as_ref(),
            debian: debian.as_ref(),
            layers: image.as_ref().map(|image| &image.diff_ids[..]),
            folders: self.image_folders(),
            files: of_rootfs.collect(),
            epoch: builder.epoch,
        }
    }
}

fn digest(what: &str, of: &impl Serialize) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("smol 2026-12-01 build step v1");
    hasher.update(what.as_bytes());
    hasher.update(&[0]);
    hasher.update(canonical_json(of).as_bytes());
    hasher.finalize()
}

fn hex(hash: blake3::Hash) -> String {
    hash.to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::CopySource;
    use crate::plan::DEFAULT_EPOCH;
    use crate::smolfile;
    use crate::source_dir::SourceDir;

    const SMOLFILE: &str = r#"
        name = "app"
        rootfs.tar = "root.tar"
        service.cmd = ["app"]
        ready.tcp = 80
        [[copy]]
        src = "a"
        dest = "/a"
        [[run]]
        cmd = "first"
        [[copy]]
        src = "b"
        dest = "/b"
        [[fetch]]
        url = "https://example.org/x/model.bin"
        sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
        dest = "/srv/"
        [[run]]
        cmd = "second"
        timeout = "5min"
        [[run]]
        cmd = ["third"]
    "#;

    fn plan(source: &str, change: impl FnOnce(&mut Lock)) -> Plan {
        let mut lock = Lock::of_epoch(DEFAULT_EPOCH);
        for src in ["a", "b"] {
            lock.copies.push(CopySource {
                src: src.into(),
                contents: Vec::new(),
            });
        }
        change(&mut lock);
        let smolfile = smolfile::parse(source).unwrap();
        Plan::resolve(&smolfile, &SourceDir::bare("/base"), lock).unwrap()
    }

    /// Which keys change, by their numbers.
    fn changed(from: &str, to: &str) -> Vec<usize> {
        let other = SMOLFILE.replace(from, to);
        assert_ne!(other, SMOLFILE, "{from}");
        differing(&plan(&other, |_| {}))
    }

    fn keys(plan: &Plan) -> Vec<blake3::Hash> {
        let mut chain = StepChain::new(plan);
        plan.steps
            .iter()
            .filter_map(|step| chain.pass(step))
            .collect()
    }

    fn differing(other: &Plan) -> Vec<usize> {
        let keys_before = keys(&plan(SMOLFILE, |_| {}));
        let pairs = keys_before.iter().zip(keys(other)).enumerate();
        let changed = pairs.filter(|(_, (a, b))| **a != *b);
        changed.map(|(number, _)| number + 1).collect()
    }

    #[test]
    fn a_key_changes_with_what_the_step_depends_on_and_with_nothing_else() {
        let all = vec![1, 2, 3];
        for (from, to, expected) in [
            ("root.tar", "other.tar", &all[..]),
            (
                "\"a\"\n        dest = \"/a\"",
                "\"a\"\n        dest = \"/c\"",
                &all,
            ),
            ("\"first\"", "\"First\"", &all),
            (
                "dest = \"/b\"",
                "dest = \"/b\"\n        mode = 0o600",
                &all[1..],
            ),
            ("sha256 = \"0", "sha256 = \"1", &all[1..]),
            ("model.bin", "other.bin", &all[1..]),
            (
                "cmd = \"second\"",
                "cmd = \"second\"\n        user = \"app\"",
                &all[1..],
            ),
            (
                "cmd = \"second\"",
                "cmd = \"second\"\n        env = { A = \"b\" }",
                &all[1..],
            ),
            (
                "cmd = \"second\"",
                "cmd = \"second\"\n        memory = 4096",
                &all[1..],
            ),
            ("[\"third\"]", "[\"third\", \"-v\"]", &all[2..]),
            // What is not of the step, or only of the machine that is frozen in the end.
            ("example.org/x", "example.com/y", &[]),
            ("5min", "6min", &[]),
            ("[\"app\"]", "[\"app\", \"-v\"]", &[]),
            ("tcp = 80", "tcp = 81", &[]),
            (
                "name = \"app\"",
                "name = \"app\"\n        memory = 512",
                &[],
            ),
        ] {
            assert_eq!(changed(from, to), expected, "{from} -> {to}");
        }
    }

    #[test]
    fn a_key_changes_with_the_lock() {
        let all = [1, 2, 3];
        let with = |change: fn(&mut Lock)| differing(&plan(SMOLFILE, change));
        assert_eq!(with(|lock| lock.builder.epoch += 1), all);
        assert_eq!(with(|lock| lock.builder.guest_sha256 = "1".repeat(64)), all);
        let entry = || crate::lock::CopiedEntry {
            path: ".".into(),
            node: crate::lock::CopiedNode::Directory,
        };
        assert_eq!(
            differing(&plan(SMOLFILE, |l| l.copies[0].contents.push(entry()))),
            all
        );
        assert_eq!(
            differing(&plan(SMOLFILE, |l| l.copies[1].contents.push(entry()))),
            [2, 3]
        );
    }

    #[test]
    fn what_a_step_with_a_network_has_made_is_kept_as_long_as_it_is_asked_for() {
        let smolfile = SMOLFILE
            .replace(
                "cmd = \"first\"",
                "cmd = \"first\"\nnetwork = [\"b.org:443\", \"a.org\"]",
            )
            .replace("[\"third\"]", "[\"third\"]\nnetwork = true");
        let made = |plan: &Plan, layers: &[&str]| {
            let mut chain = StepChain::new(plan);
            let mut layers = layers.iter();
            let mut runs = Vec::new();
            for step in &plan.steps {
                let key = chain.pass(step);
                if step.has_network() {
                    let layer = smol_bundle::Digest::of(layers.next().unwrap().as_bytes());
                    chain.made(&layer);
                    runs.push(LockedRun {
                        key: hex(key.unwrap()),
                        layer,
                    });
                }
            }
            runs
        };
        let first = plan(&smolfile, |_| {});
        let PlannedStep::Run(run) = &first.steps[1] else {
            panic!()
        };
        let rules = vec!["a.org".to_owned(), "b.org:443".to_owned()];
        assert_eq!(run.network, Some(PlannedNetwork::Listed(rules)));
        let runs = made(&first, &["x", "y"]);
        assert_eq!(first.kept_runs(&runs), runs);
        // The second key depends on what the first step has made.
        let others = made(&first, &["z", "y"]);
        assert_eq!(
            (others[0].key == runs[0].key, others[1].key == runs[1].key),
            (true, false)
        );
        assert_eq!(
            first.kept_runs(&[others[0].clone(), runs[1].clone()]),
            others[..1]
        );
        let later = plan(&smolfile.replace("\"second\"", "\"other\""), |_| {});
        assert_eq!(later.kept_runs(&runs), runs[..1]);
        let sooner = plan(&smolfile.replace("\"first\"", "\"other\""), |_| {});
        assert_eq!(sooner.kept_runs(&runs), []);
    }

    #[test]
    fn steps_are_in_the_order_of_the_file_and_know_the_image() {
        let plan = plan(SMOLFILE, |_| {});
        let kinds: String = plan
            .steps
            .iter()
            .map(|step| match step {
                PlannedStep::Copy(_) => 'c',
                PlannedStep::Fetch(_) => 'f',
                PlannedStep::Run(_) => 'r',
            })
            .collect();
        assert_eq!(kinds, "crcfrr");
        let image = RunConfig {
            env: vec!["A=image".into(), "B=image".into()],
            workdir: Some("srv".into()),
            ..RunConfig::default()
        };
        let smolfile =
            smolfile::parse(&SMOLFILE.replace("\"first\"", "\"first\"\nenv.A = \"own\""));
        let smolfile = smolfile.unwrap();
        let PlannedStep::Run(run) = PlannedStep::of(&smolfile.steps()[1], Some(&image), 7) else {
            panic!("{:?}", smolfile.steps())
        };
        let env: Vec<(&str, &str)> = run.command.env.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            env,
            [("A", "own"), ("B", "image"), ("SOURCE_DATE_EPOCH", "7")]
        );
        assert_eq!(run.command.workdir.as_deref(), Some("/srv"));
    }
}
