//! `smolbuild init`: a first Smolfile.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, Session, human, paths};
use smol_image::{ImageRef, RunConfig};
use smol_machine::cpu::Level;
use toml::Spanned;

use crate::cli::Init;
use crate::context::BuildContext;
use crate::environment::EnvironmentInputs;
use crate::fetch::Net;
use crate::init::{self, Draft, debian, dockerfile, image};
use crate::input::ImageInput;
use crate::smolfile;
use crate::source_dir::SourceDir;

/// The file that says which system the host is (os-release(5)).
const OS_RELEASE: &str = "/etc/os-release";

/// Writes a Smolfile, and says what comes next.
///
/// # Errors
/// Of kind Usage: the file is there already, or what it should be made from cannot be used. The image
/// cannot be read; the file cannot be written.
pub fn run(args: &Init, interrupt: &Interrupt) -> Result<()> {
    let out = args.output.clone().unwrap_or_else(|| "Smolfile".into());
    if fs::symlink_metadata(&out).is_ok() {
        return Err(exists(&out).into());
    }
    let session = Session::new(args.shown.progress, interrupt.clone());
    let folder = folder(&out);
    let draft = draft(args, &folder, &session)?;
    for note in &draft.notes {
        session.note(note);
    }
    session.check()?;
    write_new(&out, &draft.text)?;
    Ok(smol_cli::print(&next(&out, &draft))?)
}

/// The folder of a file.
fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn draft(args: &Init, folder: &Path, session: &Session) -> Result<Draft> {
    let name = name(args, folder)?;
    Ok(match (&args.image, &args.debian[..], &args.from) {
        (Some(reference), ..) => {
            let config = image_config(reference, args, folder, session)?;
            image::smolfile(&name, reference, &config)?
        }
        (None, [_, ..], _) => {
            let os_release = fs::read_to_string(OS_RELEASE).unwrap_or_default();
            debian::smolfile(&name, &debian::suite(&os_release), &args.debian)?
        }
        (None, [], Some(file)) => {
            let text = read(file)?;
            let shown = human::one_line(&file.to_string_lossy());
            let mut draft = dockerfile::smolfile(&name, &shown, &text)?;
            draft.notes.extend(beside(file, folder));
            draft
        }
        (None, [], None) => init::example(&name)?,
    })
}

/// The name of the machine: as given, or that of what it is made from.
fn name(args: &Init, folder: &Path) -> Result<String> {
    if let Some(name) = &args.name {
        init::require_name(name)?;
        return Ok(name.clone());
    }
    let of_image = args.image.as_deref().and_then(image_name);
    if let Some(name) = of_image.or_else(|| args.debian.first().cloned()) {
        return Ok(init::fit_name(&name));
    }
    let folder = fs::canonicalize(folder).unwrap_or_default();
    let last = folder.file_name().unwrap_or_default();
    Ok(init::fit_name(&last.to_string_lossy()))
}

/// The last part of the name of an image, without tag, digest and ending.
fn image_name(reference: &str) -> Option<String> {
    let last = match ImageRef::parse(reference).ok()? {
        ImageRef::Stdin | ImageRef::Id(_) => return None,
        ImageRef::Registry(name) => {
            let path = name.split('@').next().unwrap_or_default().to_owned();
            let last = path.rsplit('/').next().unwrap_or_default();
            last.split(':').next().unwrap_or_default().to_owned()
        }
        local => {
            let last = Path::new(local.path()?).file_name()?.to_string_lossy();
            let end = last.find(".tar").unwrap_or(last.len());
            last[..end].to_owned()
        }
    };
    Some(last)
}

/// What the configuration of an image says of its service.
fn image_config(
    reference: &str,
    args: &Init,
    folder: &Path,
    session: &Session,
) -> Result<RunConfig> {
    let parsed = smolfile::image(reference).map_err(|mistake| {
        let failure = Failure::new(ExitKind::Usage, format!("{reference:?}: {}", mistake.title));
        mistake.help.into_iter().fold(failure, Failure::hint)
    })?;
    if args.downloads.offline && matches!(parsed, ImageRef::Registry(_)) {
        let what = format!("offline, and the image {reference} is in a registry");
        return Err(Failure::new(ExitKind::Usage, what)
            .hint("leave out --offline, or name a file: docker-archive:FILE, oci-archive:FILE")
            .into());
    }
    let input = ImageInput::new(Spanned::new(0..0, parsed), Level::default());
    let context = BuildContext {
        downloads: &paths::cache_dir()?.join(smol_host::cache::DOWNLOADS),
        net: Net::allowed(args.downloads.offline),
        environment: &EnvironmentInputs {
            insecure_registries: args.downloads.insecure_registry.clone(),
            ..EnvironmentInputs::default()
        },
        session,
    };
    Ok(input.look_up(&SourceDir::bare(folder), context)?.config)
}

/// Reads a Dockerfile, as far as it can be one.
fn read(file: &Path) -> Result<String> {
    let cannot = || format!("cannot read {}", file.display());
    let mut text = Vec::new();
    File::open(file)
        .and_then(|file| {
            file.take(dockerfile::MAX_SIZE as u64 + 1)
                .read_to_end(&mut text)
        })
        .with_context(cannot)
        .kind(ExitKind::Usage)?;
    // What is no text is told as what it is: no Dockerfile.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What to know of the files around a Dockerfile.
fn beside(file: &Path, out: &Path) -> Vec<String> {
    let context = folder(file);
    let mut notes = Vec::new();
    if context.join(".dockerignore").is_file() {
        notes.push("what .dockerignore leaves out, .smolignore does: copy the file".to_owned());
    }
    if fs::canonicalize(&context).ok() != fs::canonicalize(out).ok() {
        notes.push(
            "the sources of COPY are looked for in the folder of the Smolfile: move it to the build context"
                .to_owned(),
        );
    }
    notes
}

/// Writes a file that is not there yet, whole or not at all.
fn write_new(out: &Path, text: &str) -> Result<()> {
    let folder = folder(out);
    let write = || -> Result<(), io::Error> {
        let mut builder = tempfile::Builder::new();
        let permissions = fs::Permissions::from_mode(0o666); // less the umask
        let mut file = builder.permissions(permissions).tempfile_in(&folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist_noclobber(out)?;
        File::open(&folder)?.sync_all()
    };
    match write() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(out).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot write {}", out.display()))
            .kind(ExitKind::Usage)
            .hint("make its folder first"),
        other => other.with_context(|| format!("cannot write {}", out.display())),
    }
}

fn exists(out: &Path) -> Failure {
    let what = format!("{} is there already, and is not overwritten", out.display());
    Failure::new(ExitKind::Usage, what).hint("name another file: -o FILE")
}

/// What was written, what is missing in it, and how it is built.
fn next(out: &Path, draft: &Draft) -> String {
    let path = human::one_line(&out.to_string_lossy());
    let argument = match out == Path::new("Smolfile") {
        true => String::new(),
        false => format!(" {path}"),
    };
    let missing = draft.missing();
    let mut text = format!("wrote {path}\n");
    for mistake in &missing {
        text += &format!("to be written: {}\n", human::one_line(&mistake.title));
    }
    let then = match missing.is_empty() {
        true => "build it:",
        false => "then build it:",
    };
    text + &format!("{then}  smolbuild{argument}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_the_name_of_what_it_is_made_from() {
        for (reference, name) in [
            ("docker.io/library/nginx:1.27", Some("nginx")),
            ("localhost:5000/a/b_c", Some("b_c")),
            ("docker://nginx", Some("nginx")),
            ("oci:some/layout:v1", Some("layout")),
            ("docker-archive:app.tar.gz:x:1", Some("app")),
            ("-", None),
            ("No Name", None),
        ] {
            assert_eq!(image_name(reference).as_deref(), name, "{reference}");
        }
    }

    #[test]
    fn a_file_that_appears_meanwhile_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("Smolfile");
        write_new(&out, "new").unwrap();
        let error = write_new(&out, "newer").unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        assert_eq!(fs::read_to_string(&out).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_new(&folder.path().join("gone/Smolfile"), "").unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
    }
}
