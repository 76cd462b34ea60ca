//! The Smolfile on disk.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use smol_cli::{ErrorExt, ExitKind, Failure};
use toml::Spanned;

use crate::folder;
use crate::input::{DirInput, Rootfs};
use crate::lock::Lock;
use crate::source_dir::{Hidden, IGNORE_FILE, NoPlace, SourceDir};

use super::{Diagnostic, KernelSource, MAX_SIZE, Smolfile, Span, Workload, expand, parse, render};

/// Mistakes that are shown; of more, the number.
const MOST_SHOWN: usize = 10;

/// A Smolfile with the place it came from.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub smolfile: Smolfile,
    /// Its text, as it was read.
    pub source: String,
    /// Its folder, to which its paths are relative.
    pub base_dir: SourceDir,
    /// The file itself.
    pub path: PathBuf,
}

impl Loaded {
    /// The lock file that belongs to it: `Smolfile.lock`, `redis.toml.lock`.
    pub fn lock_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        path.into()
    }

    /// Where the lock file is read from and written to: where its name leads, if that is a symbolic
    /// link.
    ///
    /// # Errors
    /// A link that leads nowhere or out of the build context (of kind Usage): a project from elsewhere
    /// must not decide that another file is replaced.
    pub fn lock_place(&self) -> anyhow::Result<PathBuf> {
        let path = self.lock_path();
        if !path.is_symlink() {
            return Ok(path);
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.context("the name of the lock file is not UTF-8");
        self.base_dir.require(name.kind(ExitKind::Usage)?)
    }

    /// Its text as a bundle has it, with what `lock` pins: there, an image has its digest as its name,
    /// so that the bundle does not depend on where the image was taken from.
    pub fn bundled_source(&self, lock: &Lock) -> String {
        let mut source = self.source.clone();
        if let (Some(Rootfs::Image(input)), Some(image)) = (self.smolfile.rootfs(), &lock.image) {
            source.replace_range(input.reference().span(), &format!("\"{}\"", image.id));
        }
        source
    }

    /// Where this piece of its text is, for people: `Smolfile:9:7`.
    pub fn place(&self, span: &Span) -> String {
        let shown = self.path.display().to_string();
        let place = Diagnostic::new(span.clone(), "").mistake(&shown, &self.source);
        format!("{}:{}:{}", place.file, place.line, place.column)
    }

    /// The failure for a mistake that is found out when its files are read.
    pub fn mistake(&self, mistake: Diagnostic) -> Failure {
        failure(&[mistake], &self.path.display().to_string(), &self.source)
    }

    /// What names it on a command line, with its build context, after a space; nothing in the current
    /// folder.
    pub fn argument(&self) -> String {
        let folder = folder::of(&self.path);
        let is_default = self.path.file_name().is_some_and(|name| name == "Smolfile");
        let smolfile = match (is_default, folder == Path::new(".")) {
            (true, true) => String::new(),
            (true, false) => format!(" {}", folder.display()),
            (false, _) => format!(" {}", self.path.display()),
        };
        match self.base_dir.context() {
            Some(context) => format!("{smolfile} --context {}", context.display()),
            None => smolfile,
        }
    }
}

/// Reads a Smolfile, given its path or its folder's, and checks that the files it names exist and are
/// in its folder, or in the folder `context`.
///
/// Errors are of kind [`ExitKind::Usage`]; mistakes in the file are drawn, all of them at once.
pub fn load(path: &Path, context: Option<&Path>) -> anyhow::Result<Loaded> {
    let path = match path.is_dir() {
        true => path.join("Smolfile"),
        false => path.to_owned(),
    };
    let shown = path.display().to_string();
    let source = read(&path)
        .with_context(|| format!("cannot read {shown}"))
        .kind(ExitKind::Usage)
        .hint("name a Smolfile, or a folder that holds one")?;
    let base_dir = folder::of(&path).to_owned();
    check(source, &path, base_dir, context)
}

/// A Smolfile from its text, as if it were the file `path` whose paths are relative to the folder
/// `base_dir`.
///
/// # Errors
/// As for [`load`].
pub fn check(
    source: String,
    path: &Path,
    base_dir: PathBuf,
    context: Option<&Path>,
) -> anyhow::Result<Loaded> {
    let shown = path.display().to_string();
    let failure = |diagnostics: Vec<Diagnostic>| failure(&diagnostics, &shown, &source);
    let mut smolfile = parse(&source).map_err(failure)?;
    let lock = format!("{}.lock", path.file_name().unwrap_or_default().display());
    let base_dir = SourceDir::open(base_dir, &lock, context)?;
    if let Workload::Service { steps, .. } = &mut smolfile.workload {
        let unmatched = expand::on_host(steps, &base_dir)?;
        if !unmatched.is_empty() {
            return Err(failure(unmatched).into());
        }
    }
    let missing = missing_files(&smolfile, &base_dir);
    if !missing.is_empty() {
        return Err(failure(missing).into());
    }
    let hidden = hidden_files(&smolfile, &base_dir)?;
    if !hidden.is_empty() {
        return Err(failure(hidden).into());
    }
    Ok(Loaded {
        smolfile,
        source,
        base_dir,
        path: path.to_owned(),
    })
}

/// The failure that draws the first mistakes over the text `source` of the file `shown`.
fn failure(diagnostics: &[Diagnostic], shown: &str, source: &str) -> Failure {
    let (first, more) = diagnostics.split_at(diagnostics.len().min(MOST_SHOWN));
    let mut text = render(first, shown, source, smol_cli::colour_on_stderr());
    let mistakes = first.iter().map(|one| one.mistake(shown, source));
    let mut mistakes: Vec<_> = mistakes.collect();
    if let Some(next) = more.first() {
        let s = if more.len() == 1 { "" } else { "s" };
        let and = format!("and {} more mistake{s}", more.len());
        text += &format!("\n{and}\n");
        mistakes.push(Diagnostic::new(next.span.clone(), and).mistake(shown, source));
    }
    Failure::mistakes(ExitKind::Usage, text, mistakes)
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

/// A diagnostic for each file that the Smolfile names and that is not there, is of the wrong kind, or is
/// somewhere else.
fn missing_files(smolfile: &Smolfile, base_dir: &SourceDir) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut look = |path: &Spanned<String>, wanted: &str, right: fn(&std::fs::Metadata) -> bool| {
        let found = base_dir.place(path.get_ref());
        let found = found.and_then(|place| place.symlink_metadata().map_err(NoPlace::Io));
        let shown = base_dir.join(path.get_ref()).display().to_string();
        let (title, label) = match &found {
            Ok(meta) if right(meta) => return,
            Ok(_) => (format!("this is not {wanted}"), shown),
            Err(NoPlace::Io(error)) => (format!("cannot use this path: {error}"), shown),
            Err(outside) => {
                let folder = match base_dir.context() {
                    Some(context) => format!("build context {}", context.display()),
                    None => "folder of the Smolfile".to_owned(),
                };
                (
                    format!("this leads out of the {folder}"),
                    outside.to_string(),
                )
            }
        };
        let wrong = Diagnostic::new(path.span(), title).label(label);
        diagnostics.push(match found.err().and_then(|error| error.hint()) {
            Some(hint) => wrong.help(hint),
            None => wrong,
        });
    };
    if let KernelSource::Path(path) = &smolfile.kernel.source {
        look(path, "a file", |meta| meta.is_file());
    }
    if let Some(rootfs) = smolfile.rootfs() {
        match rootfs.input().host_path() {
            Some(host) if host.is_folder => look(host.path, "a folder", |meta| meta.is_dir()),
            Some(host) => look(host.path, "a file", |meta| meta.is_file()),
            None => {}
        }
        for copy in smolfile.copies() {
            look(&copy.src, "a file or folder", |meta| {
                meta.is_file() || meta.is_dir()
            });
        }
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    diagnostics
}

/// A diagnostic for each file or folder that the Smolfile names and of which nothing would be taken,
/// and for `exclude` where there is no folder.
fn hidden_files(smolfile: &Smolfile, base_dir: &SourceDir) -> anyhow::Result<Vec<Diagnostic>> {
    let Some(rootfs) = smolfile.rootfs() else {
        return Ok(Vec::new());
    };
    let mut diagnostics = Vec::new();
    // Archives and layouts are not copied, and are what they are whatever is ignored.
    let folder = match rootfs {
        Rootfs::Dir(DirInput(path)) => Some((path, &[][..])),
        _ => None,
    };
    let copied = smolfile.copies();
    let copied = copied.map(|copy| (&copy.src, &copy.exclude[..]));
    for (src, exclude) in folder.into_iter().chain(copied) {
        let name = src.get_ref();
        if let Some(first) = exclude.first()
            && !base_dir.require(name)?.is_dir()
        {
            let wrong = Diagnostic::new(first.span(), "`exclude` is for a folder");
            diagnostics.push(wrong.context(src.span(), "this is a file"));
            continue;
        }
        let wrong = Diagnostic::new(
            src.span(),
            "nothing of this is copied: all of it is ignored",
        );
        diagnostics.extend(match base_dir.hidden(name, exclude)? {
            Some(Hidden::Line(line, pattern)) => Some(
                wrong
                    .label(format!("by line {line} of {IGNORE_FILE}: {pattern}"))
                    .help(format!("remove that line, or write `!{name}` after it")),
            ),
            Some(Hidden::Excluded(number)) => {
                Some(wrong.context(exclude[number].span(), "by this pattern"))
            }
            Some(Hidden::Always) | None => None,
        });
    }
    Ok(diagnostics)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLFILE: &str = r#"name = "app"
[rootfs]
dir = "root"
[[copy]]
src = "conf"
dest = "/etc/conf"
[service]
cmd = ["app"]
[ready]
tcp = 80
"#;

    fn text(path: &Path) -> String {
        let error = load(path, None).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        smol_cli::error::render(&error, false)
    }

    #[test]
    fn a_folder_stands_for_the_smolfile_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("Smolfile"), SMOLFILE).unwrap();
        std::fs::write(dir.path().join("conf"), "").unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        for path in [dir.path(), &dir.path().join("Smolfile")] {
            let loaded = load(path, None).unwrap();
            assert_eq!(
                (loaded.smolfile.name.as_str(), loaded.base_dir.path()),
                ("app", dir.path())
            );
        }
    }

    #[test]
    fn files_that_are_not_there_are_shown_where_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Smolfile");
        std::fs::write(&path, SMOLFILE).unwrap();
        std::fs::write(dir.path().join("root"), "a file").unwrap();
        let here = dir.path().display();
        let expected = format!(
            r#"error: this is not a folder
 --> {here}/Smolfile:3:7
  |
3 | dir = "root"
  |       ^^^^^^ {here}/root

error: cannot use this path: No such file or directory (os error 2)
 --> {here}/Smolfile:5:7
  |
5 | src = "conf"
  |       ^^^^^^ {here}/conf
"#
        );
        assert_eq!(text(&path), expected);
    }

    /// A project that names `conf`, which is a link in one of three ways to a file that is elsewhere.
    fn linked(way: usize) -> (tempfile::TempDir, PathBuf) {
        use std::os::unix::fs::symlink;
        let scratch = tempfile::tempdir().unwrap();
        let project = scratch.path().join("project");
        std::fs::create_dir_all(project.join("root")).unwrap();
        std::fs::create_dir(scratch.path().join("secret")).unwrap();
        std::fs::write(scratch.path().join("secret/key"), "secret").unwrap();
        let src = ["conf", "link/key", "link/key"][way];
        match way {
            0 => symlink("../secret/key", project.join("conf")).unwrap(),
            1 => symlink(scratch.path().join("secret"), project.join("link")).unwrap(),
            _ => {
                symlink("also", project.join("link")).unwrap();
                symlink("../secret", project.join("also")).unwrap();
            }
        }
        let text = SMOLFILE.replace("src = \"conf\"", &format!("src = {src:?}"));
        std::fs::write(project.join("Smolfile"), text).unwrap();
        (scratch, project)
    }

    #[test]
    fn a_link_out_of_the_folder_is_named_with_where_it_leads_and_read_only_in_a_wider_context() {
        for (way, link) in ["conf", "link", "link"].into_iter().enumerate() {
            let (scratch, project) = linked(way);
            let message = text(&project);
            let leads = format!(
                "{link} is a symbolic link, and leads to {}/secret/key",
                scratch.path().canonicalize().unwrap().display()
            );
            assert!(
                message.contains("error: this leads out of the folder"),
                "{message}"
            );
            assert!(message.contains("/Smolfile:5:7\n"), "{message}");
            assert!(message.contains(&leads), "{message}");
            assert!(message.contains("build with `--context DIR`"), "{message}");
            assert!(load(&project, Some(&project)).is_err());
            load(&project, Some(scratch.path())).unwrap();
            let elsewhere = load(&project, Some(&scratch.path().join("secret"))).unwrap_err();
            assert!(elsewhere.to_string().contains("not in the build context"));
        }
    }

    #[test]
    fn links_within_the_folder_are_followed_also_absolute_ones() {
        use std::os::unix::fs::symlink;
        let (_scratch, project) = linked(0);
        std::fs::write(project.join("real"), "").unwrap();
        for target in [PathBuf::from("real"), project.join("real")] {
            std::fs::remove_file(project.join("conf")).unwrap();
            symlink(target, project.join("conf")).unwrap();
            load(&project, None).unwrap();
        }
    }

    #[test]
    fn a_lock_file_that_is_a_link_is_where_it_leads_and_not_outside_of_the_folder() {
        use std::os::unix::fs::symlink;
        let (scratch, project) = linked(0);
        std::fs::write(project.join("locked"), "").unwrap();
        let lock = project.join("Smolfile.lock");
        let place = |target: &str| {
            let _ = std::fs::remove_file(&lock);
            symlink(target, &lock).unwrap();
            load(&project, Some(scratch.path())).unwrap().lock_place()
        };
        assert_eq!(
            place("locked").unwrap(),
            project.canonicalize().unwrap().join("locked")
        );
        assert!(place("nowhere").is_err());
        place("../secret/key").unwrap();
        std::fs::remove_file(project.join("conf")).unwrap();
        std::fs::write(project.join("conf"), "").unwrap();
        let error = load(&project, None).unwrap().lock_place().unwrap_err();
        assert!(error.to_string().contains("and leads to"), "{error}");
    }

    #[test]
    fn an_ignore_file_that_leads_out_of_the_folder_is_refused() {
        let (_scratch, project) = linked(0);
        std::fs::remove_file(project.join("conf")).unwrap();
        std::fs::write(project.join("conf"), "").unwrap();
        std::os::unix::fs::symlink("../secret/key", project.join(IGNORE_FILE)).unwrap();
        let message = text(&project);
        assert!(message.contains("symbolic link, and leads to"), "{message}");
    }

    #[test]
    fn a_smolfile_that_is_not_there_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display();
        assert_eq!(
            text(dir.path()),
            format!(
                "error: cannot read {here}/Smolfile\n  because: No such file or directory (os error 2)\n  hint: name a Smolfile, or a folder that holds one\n"
            )
        );
    }

    #[test]
    fn a_smolfile_that_is_no_text_is_refused_with_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Smolfile");
        std::fs::write(&path, b"name = \"app\"\n# \xff\n").unwrap();
        assert!(text(&path).contains("  because: line 2 is not UTF-8 text\n"));
    }

    #[test]
    fn of_many_mistakes_the_first_are_shown_and_the_others_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Smolfile");
        let unknown: String = (0..20_000).map(|n| format!("x{n}=1\n")).collect();
        std::fs::write(&path, unknown).unwrap();
        let error = load(&path, None).unwrap_err();
        let text = smol_cli::error::render(&error, false);
        assert_eq!(text.matches("error: ").count(), MOST_SHOWN);
        assert!(
            text.ends_with("\nand 19993 more mistakes\n"),
            "{}",
            &text[text.len() - 200..]
        );
        let mistakes = smol_cli::error::json::lines(&error);
        assert_eq!(mistakes.lines().count(), MOST_SHOWN + 1);
    }

    #[test]
    fn a_smolfile_that_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Smolfile");
        std::fs::write(&path, "#".repeat(MAX_SIZE - 1) + "ä and more").unwrap();
        assert!(text(&path).starts_with("error: the file is larger than 256 KiB\n"));
    }
}
