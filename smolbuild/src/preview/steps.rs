//! What a build would do to the root file system, step by step.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use smol_bundle::Digest;

use super::{Action, Outcome};
use crate::context::BuildContext;
use crate::fetch::Net;
use crate::fetched;
use crate::lock::{CopiedNode, CopySource, Lock};
use crate::plan::{Plan, PlannedNetwork, PlannedStep, StepChain};
use crate::resolve::Outlook;
use crate::smolfile::{CopyStep, FetchStep, Loaded, Network, RunStep, Step};
use crate::steps::{StepCache, why_not};

/// What the keys depend on as long as the root file system is not known.
pub(super) const ON_CHOICE: &str = "what is chosen for the root file system";

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum StepPreview {
    /// `[[copy]]`
    Copy(CopyPreview),
    /// `[[fetch]]`
    Fetch(FetchPreview),
    /// `[[run]]`
    Run(RunPreview),
}

impl StepPreview {
    /// What a build does.
    pub fn outcome(&self) -> &Outcome {
        match self {
            Self::Copy(copy) => &copy.outcome,
            Self::Fetch(fetch) => &fetch.outcome,
            Self::Run(run) => &run.outcome,
        }
    }
}

/// A source of a `[[copy]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyPreview {
    /// Path on the host, as in the Smolfile.
    pub src: String,
    /// Path in the guest.
    pub dest: String,
    /// Number of files in it, or one.
    pub files: usize,
    /// SHA-256 of the file, if it is one; the lock has those of a folder's.
    pub sha256: Option<String>,
    /// What a build does: it reads them.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A `[[fetch]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchPreview {
    /// Where the file is.
    pub url: String,
    /// Path in the guest.
    pub dest: String,
    /// Its SHA-256.
    pub sha256: String,
    /// What a build does.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A `[[run]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunPreview {
    /// Its place among the `[[run]]`s, from 1.
    pub number: u32,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Its key, in hexadecimal, if it is known.
    pub key: Option<String>,
    /// The files that it changed before, if that is known.
    pub layer: Option<Digest>,
    /// What it may reach: nothing (`null`), `["*"]`, or names and addresses.
    pub network: Option<Vec<String>>,
    /// What a build does.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The steps of a Smolfile. Without a Plan, because something is to be chosen, their keys are not known.
///
/// # Errors
/// Entries of the cache are not this user's; this program cannot read itself.
pub(super) fn look(
    loaded: &Loaded,
    plan: Option<&Plan>,
    outlook: &Outlook,
    cache: &Path,
    context: BuildContext,
) -> Result<Vec<StepPreview>> {
    let steps = loaded.smolfile.steps();
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let mut runs = Runs {
        cache: StepCache::in_place(cache)?,
        chain: plan.map(StepChain::new),
        unknown: plan.is_none().then(|| ON_CHOICE.to_owned()),
        lock: &outlook.lock,
        net: outlook.net,
    };
    let mut copied = outlook.lock.copies.iter();
    let mut previews = Vec::with_capacity(steps.len());
    for (number, step) in steps.iter().enumerate() {
        let planned = plan.and_then(|plan| plan.steps.get(number));
        let key = runs.pass(planned);
        previews.push(match step {
            Step::Copy(copy) => StepPreview::Copy(of_copy(copy, copied.next())),
            Step::Fetch(fetch) => {
                let is_there = fetched::is_there(fetch, context.downloads)?;
                StepPreview::Fetch(of_fetch(fetch, is_there, outlook.net))
            }
            Step::Run(run) => StepPreview::Run(runs.look(run, key)?),
        });
    }
    Ok(previews)
}

fn of_copy(copy: &CopyStep, source: Option<&CopySource>) -> CopyPreview {
    let contents = source.map_or(&[][..], |source| &source.contents);
    let digest = match contents {
        [entry] => match &entry.node {
            CopiedNode::File { sha256, .. } => Some(sha256.clone()),
            _ => None,
        },
        _ => None,
    };
    let is_file = |node: &CopiedNode| !matches!(node, CopiedNode::Directory);
    CopyPreview {
        src: copy.src.get_ref().clone(),
        dest: copy.dest.clone(),
        files: contents.iter().filter(|entry| is_file(&entry.node)).count(),
        sha256: digest,
        outcome: Action::Read.into(),
    }
}

fn of_fetch(fetch: &FetchStep, is_there: bool, net: Net) -> FetchPreview {
    FetchPreview {
        url: fetch.url.get_ref().to_string(),
        dest: fetch.dest.clone(),
        sha256: fetch.sha256.clone(),
        outcome: match is_there {
            true => Action::Cached.into(),
            false => Outcome::download(Action::Download, net),
        },
    }
}

/// The `[[run]]`s, in their order.
struct Runs<'a> {
    cache: StepCache,
    chain: Option<StepChain<'a>>,
    /// What the keys depend on that is not known before a build.
    unknown: Option<String>,
    lock: &'a Lock,
    net: Net,
}

impl Runs<'_> {
    /// Goes past the next step. Returns its key, if it is a `[[run]]` and the key is known.
    fn pass(&mut self, planned: Option<&PlannedStep>) -> Option<blake3::Hash> {
        let key = self.chain.as_mut()?.pass(planned?);
        key.filter(|_| self.unknown.is_none())
    }

    fn look(&mut self, run: &RunStep, key: Option<blake3::Hash>) -> Result<RunPreview> {
        let (layer, outcome) = match (key, &run.network) {
            (None, _) => {
                let why = self.unknown.clone().unwrap_or_default();
                (None, Outcome::because(Action::Depends, why))
            }
            (Some(key), Network::None) => match self.cache.look(&key)? {
                Some(layer) => (Some(layer), Action::Cached.into()),
                None => (None, Action::Run.into()),
            },
            (Some(key), _) => self.networked(run, &key),
        };
        Ok(RunPreview {
            number: run.number,
            cmd: run.cmd.get_ref().clone(),
            key: key.map(|key| key.to_hex().to_string()),
            layer,
            network: PlannedNetwork::of(&run.network).map(PlannedNetwork::into_list),
            outcome,
        })
    }

    /// A step whose layer the lock pins, or does not yet. What follows is known only if the layer is.
    fn networked(&mut self, run: &RunStep, key: &blake3::Hash) -> (Option<Digest>, Outcome) {
        let key = key.to_hex();
        let pinned = self.lock.runs.iter().find(|pin| pin.key == key.as_str());
        let pinned = pinned.map(|pin| pin.layer);
        let is_there = pinned.is_some_and(|layer| self.cache.layers().is_there(&layer));
        // By a lock that must fit it makes this, or the build fails.
        let made = pinned.filter(|_| is_there || self.net == Net::Pinned);
        match (made, &mut self.chain) {
            (Some(layer), Some(chain)) => chain.made(&layer),
            _ => self.unknown = Some(format!("what [[run]] {} makes", run.number)),
        }
        let outcome = match why_not(self.net, pinned.is_some(), "it") {
            _ if is_there => Action::Cached.into(),
            Some(why) => Outcome::because(Action::Fail, why),
            None => Action::Run.into(),
        };
        (pinned, outcome)
    }
}
