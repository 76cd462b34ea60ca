//! `smolbuild init`: the text of a first Smolfile. Pure: what is known of an image, of packages or of a
//! Dockerfile goes in, text and notes come out.
//!
//! | module | what a Smolfile is made from |
//! |---|---|
//! | [`image`] | the configuration of a container image |
//! | [`debian`] | Debian packages |
//! | [`dockerfile`] | a Dockerfile |
//! | `page.rs` | the text while it is written |
//!
//! In what is written, `# ` begins an explanation, and `#` without a space a key that has a meaning when
//! the `#` is removed. No value of an input leaves its string or its comment.

pub mod debian;
pub mod dockerfile;
pub mod image;
mod page;

use smol_cli::{ExitKind, Failure, human};

use self::page::Page;
use crate::smolfile::{self, Diagnostic};

/// A Smolfile that was written for somebody, who goes on from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Its text.
    pub text: String,
    /// What could not be taken over, a line each.
    pub notes: Vec<String>,
}

impl Draft {
    /// The text of a page, if it can be a Smolfile.
    fn new(page: Page, notes: Vec<String>) -> Result<Self, Failure> {
        let text = page.finish();
        if text.len() > smolfile::MAX_SIZE {
            let most = smolfile::MAX_SIZE / 1024;
            let what = format!("the Smolfile would be larger than {most} KiB");
            return Err(Failure::new(ExitKind::Usage, what).hint("write it by hand"));
        }
        Ok(Self { text, notes })
    }

    /// What is missing in it still: the mistakes that `smolbuild check` would tell of its text.
    pub fn missing(&self) -> Vec<Diagnostic> {
        smolfile::parse(&self.text).err().unwrap_or_default()
    }
}

/// A short example: a web server that can be built as it is.
///
/// # Errors
/// The name is too long for a Smolfile.
pub fn example(name: &str) -> Result<Draft, Failure> {
    let mut page = Page::new("All keys and more examples: docs/smolfile.md");
    page.value("name", &page::quoted(name));
    page.value("memory", "\"256MiB\"");
    page.value("ports", "[8080]");
    page.table("[rootfs]");
    page.comment("Debian packages; or a container image: image = \"docker.io/library/nginx:1.27\"");
    page.value(
        "debian",
        "{ suite = \"bookworm\", packages = [\"busybox\"] }",
    );
    page.blank();
    page.comment("Files beside this one, put over the root file system.");
    page.hint_table("[[copy]]");
    page.hint("src", "\"www\"");
    page.hint("dest", "\"/srv\"");
    page.table("[service]");
    page.comment("The program stays in the foreground.");
    page.value(
        "cmd",
        "[\"busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/srv\"]",
    );
    page.table("[ready]");
    page.comment("When the machine is frozen: here, when the port accepts a connection.");
    page.value("tcp", "8080");
    page.blank();
    page.comment("Run once before that, so that each machine begins with what it has done.");
    page.hint_table("[[warm]]");
    page.hint("cmd", "[\"busybox\", \"true\"]");
    Draft::new(page, Vec::new())
}

/// Returns the name of a machine that is most like `text`: that of a package, an image or a folder.
pub fn fit_name(text: &str) -> String {
    const LONGEST: usize = 63;
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fit = |c: char| match c.to_ascii_lowercase() {
        c if is_word(c) || matches!(c, '.' | '_' | '-') => c,
        _ => '-',
    };
    let fitted: String = text.chars().map(fit).collect();
    let fitted = fitted.trim_start_matches(|c| !is_word(c));
    let fitted = fitted.get(..LONGEST).unwrap_or(fitted);
    match fitted.trim_end_matches(['-', '.']) {
        "" => "machine".to_owned(),
        name => name.to_owned(),
    }
}

/// Whether these lines can stand in a Smolfile with an image.
///
/// # Errors
/// What is wrong with them, in one line.
fn accepted(lines: &str) -> Result<(), String> {
    let frame = format!("name = \"a\"\nrootfs.image = \"a\"\n{lines}\n");
    let Err(mistakes) = smolfile::parse(&frame) else {
        return Ok(());
    };
    let told = mistakes.first().map(|mistake| match &mistake.label[..] {
        "" => mistake.title.clone(),
        label => format!("{}: {label}", mistake.title),
    });
    Err(human::excerpt(&told.unwrap_or_default(), 200))
}

/// Requires that a name can be that of a machine.
///
/// # Errors
/// Of kind Usage: it cannot.
pub fn require_name(name: &str) -> Result<(), Failure> {
    let frame = format!("name = {}\nrootfs.image = \"a\"\n", page::quoted(name));
    let Err(mistakes) = smolfile::parse(&frame) else {
        return Ok(());
    };
    let mistake = mistakes.into_iter().next();
    let (title, help) = mistake.map_or_else(Default::default, |it| (it.title, it.help));
    let failure = Failure::new(ExitKind::Usage, format!("--name {name:?}: {title}"));
    Err(help.into_iter().fold(failure, Failure::hint))
}

#[cfg(test)]
mod tests;
