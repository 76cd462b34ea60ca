//! What is wrong with a Smolfile, where, and what to write instead.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use smol_cli::error::Mistake;
use smol_cli::human::{masked, one_line};

/// Bytes of the source, from the start of the file.
pub type Span = Range<usize>;

/// One mistake. Drawn as rustc draws its errors, by [`render`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where the mistake is.
    pub span: Span,
    /// What is wrong, in one line.
    pub title: String,
    /// A few words after the caret; may be empty.
    pub label: String,
    /// Another place that explains this one; boxed, for it is rare and errors should be small.
    pub context: Option<Box<(Span, String)>>,
    /// What to do about it.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// A mistake at a place.
    pub fn new(span: Span, title: impl Into<String>) -> Self {
        Self {
            span,
            title: title.into(),
            label: String::new(),
            context: None,
            help: Vec::new(),
        }
    }

    /// Adds words after the caret.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Points at another place as well.
    pub fn context(mut self, span: Span, label: impl Into<String>) -> Self {
        self.context = Some(Box::new((span, label.into())));
        self
    }

    /// Adds what to do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// The same for programs that read it; `path` is the name of the file.
    pub fn mistake(&self, path: &str, source: &str) -> Mistake {
        let before = &source[..within(&self.span, source).start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Mistake {
            message: self.title.clone(),
            cause: non_empty(&self.label).map(str::to_owned),
            hints: self.help.clone(),
            file: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// The text of all diagnostics, in the order given, with an empty line between two.
///
/// `path` is the name shown; `colour` adds ANSI escape codes.
pub fn render(diagnostics: &[Diagnostic], path: &str, source: &str, colour: bool) -> String {
    let renderer = match colour {
        true => Renderer::styled(),
        false => Renderer::plain(),
    };
    // The spans are those of the source, byte by byte.
    let source = masked(source);
    let texts: Vec<String> = diagnostics
        .iter()
        .map(|diagnostic| draw(&renderer, diagnostic, path, &source))
        .collect();
    texts.join("\n\n") + "\n"
}

fn draw(renderer: &Renderer, diagnostic: &Diagnostic, path: &str, source: &str) -> String {
    let label = |text: &str| non_empty(text).map(one_line);
    let primary = AnnotationKind::Primary
        .span(within(&diagnostic.span, source))
        .label(label(&diagnostic.label));
    let context = diagnostic.context.as_deref().map(|(span, text)| {
        AnnotationKind::Context
            .span(within(span, source))
            .label(label(text))
    });
    let snippet = Snippet::source(source)
        .path(one_line(path))
        .annotation(primary)
        .annotations(context);
    let helps = diagnostic
        .help
        .iter()
        .map(|help| Level::HELP.message(one_line(help)));
    let report: Vec<Group> = vec![
        Level::ERROR
            .primary_title(one_line(&diagnostic.title))
            .element(snippet)
            .elements(helps),
    ];
    renderer.render(&report)
}

fn non_empty(label: &str) -> Option<&str> {
    (!label.is_empty()).then_some(label)
}

/// The span cut to the source and to whole characters, and to its first line: a multi-line value
/// is pointed at where it begins.
fn within(span: &Span, source: &str) -> Span {
    let floor = |mut at: usize| {
        at = at.min(source.len());
        while !source.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(span.start);
    let end = floor(span.end).max(start);
    let line = source[start..end]
        .find('\n')
        .map_or(end, |newline| start + newline);
    start..line
}
