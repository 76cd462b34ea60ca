//! Every target over its corpus, its regressions and some thousand mutations of them, without a
//! fuzzer: one after the other, for what is on the heap is counted.

#![allow(clippy::print_stdout, reason = "figures of each target")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use smol_fuzz::mutate::{Dice, mutate};
use smol_fuzz::targets::{TARGETS, Target, find};
use smol_fuzz::{folder, run};

/// Most bytes of all corpora together.
const MOST: u64 = 2 << 20;
/// Set to 1 to write the seeds into the corpora.
const WRITE_SEEDS: &str = "FUZZ_SEED";

/// Set to the name of a target in the process that runs it: what takes too much memory ends it.
const CHILD: &str = "FUZZ_CHILD";

fn main() {
    if let Some(target) = std::env::var(CHILD).ok().and_then(|name| find(&name)) {
        let outcome = stands(target);
        if let Err(why) = &outcome {
            println!("{}", why.message().unwrap_or_default());
        }
        std::process::exit(outcome.is_err().into());
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut trials = vec![
        Trial::test("every_seed_is_in_its_corpus", seeds),
        Trial::test("corpora_belong_to_targets_and_are_small", corpora),
        Trial::test(
            "an_input_that_takes_more_than_its_limit_is_found",
            amplification,
        ),
    ];
    trials.extend(TARGETS.iter().map(|target| {
        let name = format!("{}_stands_its_corpus_and_mutations_of_it", target.name);
        Trial::test(name.replace('-', "_"), move || in_a_child(target))
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

/// The files of a folder by name, with their contents; none if there is no folder.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let content = fs::read(&path).expect("a file of the checkout");
        (path, content)
    };
    paths.into_iter().map(read).collect()
}

fn in_a_child(target: &Target) -> Result<(), Failed> {
    let mut child = Command::new(std::env::current_exe()?);
    let status = child.env(CHILD, target.name).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{status}; the input is {}", kept(target).display()).into()),
    }
}

/// Where the input at hand is: it stays if the process dies of it.
fn kept(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.input", target.name))
}

fn stands(target: &Target) -> Result<(), Failed> {
    let corpus = files(&folder("corpus", target));
    let regressions = files(&folder("regressions", target));
    let contents = |files: &[(PathBuf, Vec<u8>)]| -> Vec<Vec<u8>> {
        files.iter().map(|(_, content)| content.clone()).collect()
    };
    let (corpus, regressions) = (contents(&corpus), contents(&regressions));
    let file = File::create(kept(target))?;
    let (mut peak, mut accepted) = (0, 0);
    let mut try_one = |input: &[u8]| -> Result<bool, Failed> {
        file.write_all_at(input, 0)?;
        file.set_len(input.len() as u64)?;
        let outcome = std::panic::catch_unwind(|| run(target, input));
        let (good, bytes) = outcome.map_err(|panic| {
            let why = panic.downcast_ref::<String>().cloned();
            why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()))
                .unwrap_or_default()
        })?;
        peak = peak.max(bytes);
        accepted += usize::from(good);
        Ok(good)
    };
    let seeds = (target.seeds)();
    let first = seeds.first().ok_or("it has no seed")?;
    if !try_one(first)? {
        return Err("its first seed is refused: nothing is tested behind the first check".into());
    }
    for input in corpus.iter().chain(&regressions) {
        try_one(input)?;
    }
    let mut dice = Dice::new(1, target.name);
    for _ in 0..target.mutations {
        try_one(&mutate(&corpus, target.words, target.max_len, &mut dice))?;
    }
    let inputs = 1 + corpus.len() + regressions.len() + target.mutations;
    let (name, kib) = (target.name, peak >> 10);
    println!("  {name}: {inputs} inputs, {accepted} accepted, at most {kib} KiB of heap");
    fs::remove_file(kept(target))?;
    Ok(())
}

/// Seeds are made of valid samples by code: when the code or a format changes, so must they.
fn seeds() -> Result<(), Failed> {
    let write = std::env::var_os(WRITE_SEEDS).is_some_and(|value| value == "1");
    for target in TARGETS {
        let folder = folder("corpus", target);
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let path = folder.join(format!("seed-{number}"));
            if write {
                fs::create_dir_all(&folder)?;
                fs::write(&path, &seed)?;
            }
            if fs::read(&path).ok().as_ref() != Some(&seed) {
                let path = path.display();
                return Err(
                    format!("{path} is not what its code makes: cargo xtask fuzz --seed").into(),
                );
            }
        }
    }
    Ok(())
}

fn corpora() -> Result<(), Failed> {
    let mut bytes = 0;
    for kind in ["corpus", "regressions"] {
        let known: BTreeSet<PathBuf> = TARGETS.iter().map(|t| folder(kind, t)).collect();
        let root = known
            .first()
            .and_then(|folder| folder.parent())
            .expect("a folder of folders");
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let path = entry.path();
            if !known.contains(&path) {
                return Err(format!("{} is of no target", path.display()).into());
            }
            bytes += files(&path)
                .iter()
                .map(|(_, content)| content.len() as u64)
                .sum::<u64>();
        }
    }
    match bytes <= MOST {
        true => Ok(()),
        false => Err(format!(
            "corpora of {bytes} bytes, at most {MOST}: cargo xtask fuzz --minimize"
        )
        .into()),
    }
}

fn amplification() -> Result<(), Failed> {
    let greedy = |data: &[u8]| std::hint::black_box(vec![1u8; data.len() << 20]).is_empty();
    let target = Target {
        run: greedy,
        heap: 10 << 20,
        ..find("frame").expect("a target").clone()
    };
    let (_, peak) = run(&target, &[0; 9]);
    if !(9 << 20..10 << 20).contains(&peak) {
        return Err(format!("{peak} bytes were counted").into());
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {})); // it is wanted here
    let outcome = std::panic::catch_unwind(|| run(&target, &[0; 11]));
    std::panic::set_hook(hook);
    match outcome {
        Err(_) => Ok(()),
        Ok((_, peak)) => Err(format!("{peak} bytes were accepted").into()),
    }
}
