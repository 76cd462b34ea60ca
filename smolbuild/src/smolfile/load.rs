//! The Smolfile on disk.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use smol_cli::{ErrorExt, ExitKind, Failure};
use toml::Spanned;

use super::{Diagnostic, KernelSource, MAX_SIZE, Rootfs, Smolfile, Workload, parse, render};

/// A Smolfile with the place it came from.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub smolfile: Smolfile,
    /// Its folder, to which its paths are relative.
    pub base_dir: PathBuf,
}

/// Reads a Smolfile, given its path or its folder's, and checks that the files it names exist.
///
/// Errors are of kind [`ExitKind::Usage`]; mistakes in the file are drawn, all of them at once.
pub fn load(path: &Path) -> anyhow::Result<Loaded> {
    let path = match path.is_dir() {
        true => path.join("Smolfile"),
        false => path.to_owned(),
    };
    let shown = path.display().to_string();
    let source = read(&path)
        .with_context(|| format!("cannot read {shown}"))
        .kind(ExitKind::Usage)
        .hint("name a Smolfile, or a folder that holds one")?;
    // A bare file name has the empty path as its parent.
    let base_dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
        .to_owned();
    let failure = |diagnostics: Vec<Diagnostic>| {
        let text = render(&diagnostics, &shown, &source, smol_cli::colour_on_stderr());
        Failure::rendered(ExitKind::Usage, text)
    };
    let smolfile = parse(&source).map_err(failure)?;
    let missing = missing_files(&smolfile, &base_dir);
    if !missing.is_empty() {
        return Err(failure(missing).into());
    }
    Ok(Loaded { smolfile, base_dir })
}

fn read(path: &Path) -> anyhow::Result<String> {
    // The limit holds for what is no regular file, too; parse() words the message.
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_SIZE as u64 + 1)
        .read_to_end(&mut bytes)?;
    match String::from_utf8(bytes) {
        Ok(source) => Ok(source),
        // The cut may fall into a character.
        Err(error) if error.as_bytes().len() > MAX_SIZE => {
            Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
        }
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
            anyhow::bail!("line {line} is not UTF-8 text")
        }
    }
}

/// A diagnostic for each file that the Smolfile names and that is not there, or is of the wrong
/// kind.
fn missing_files(smolfile: &Smolfile, base_dir: &Path) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut look = |path: &Spanned<String>, wanted: &str, right: fn(&std::fs::Metadata) -> bool| {
        let title = match std::fs::metadata(base_dir.join(path.get_ref())) {
            Ok(meta) if right(&meta) => return,
            Ok(_) => format!("this is not {wanted}"),
            Err(error) => format!("cannot use this path: {error}"),
        };
        let found = base_dir.join(path.get_ref());
        diagnostics.push(Diagnostic::new(path.span(), title).label(found.display().to_string()));
    };
    if let KernelSource::Path(path) = &smolfile.kernel.source {
        look(path, "a file", |meta| meta.is_file());
    }
    if let Workload::Service { rootfs, copies, .. } = &smolfile.workload {
        match rootfs {
            Rootfs::Debian { .. } => {}
            Rootfs::Tar(path) => look(path, "a file", |meta| meta.is_file()),
            Rootfs::Dir(path) => look(path, "a folder", |meta| meta.is_dir()),
        }
        for copy in copies {
            look(&copy.src, "a file or folder", |meta| {
                meta.is_file() || meta.is_dir()
            });
        }
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    diagnostics
}
