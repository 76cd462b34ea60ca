//! What a terminal shows, by one in memory. Times are cut from its lines.

use super::super::{Display, Mode, Progress};
use super::*;

const LOOK: Look = Look {
    colour: true,
    unicode: true,
};

/// A terminal in memory.
#[derive(Clone)]
struct Memory(Arc<Mutex<vt100::Parser>>);

impl Memory {
    fn new(rows: u16, columns: u16) -> Self {
        Self(Arc::new(Mutex::new(vt100::Parser::new(
            rows, columns, 1000,
        ))))
    }

    /// The lines with something on them, without a time at their end.
    fn lines(&self) -> Vec<String> {
        let text = lock(&self.0).screen().contents();
        let lines = text.lines().map(|line| {
            let (before, last) = line.rsplit_once(' ').unwrap_or(("", line));
            match last.strip_suffix('s').map(str::parse::<f64>) {
                Some(Ok(_)) => before.trim_end().to_owned(),
                _ => line.to_owned(),
            }
        });
        let lines = lines.map(|line| match line.strip_prefix("[+] Building ") {
            Some(rest) => format!("[+] Building {}", rest.split_once(' ').unwrap().1),
            None => line,
        });
        lines.collect()
    }

    /// The same with those that have scrolled away.
    fn all_lines(&self) -> Vec<String> {
        let scroll = |rows| lock(&self.0).screen_mut().set_scrollback(rows);
        scroll(usize::MAX);
        let away = lock(&self.0).screen().scrollback();
        let mut lines = Vec::new();
        for rows in (1..=away).rev() {
            scroll(rows);
            lines.extend(self.lines().into_iter().next());
        }
        scroll(0);
        lines.extend(self.lines());
        lines
    }

    fn write_raw(&self, text: &str) {
        lock(&self.0).process(text.as_bytes());
    }
}

impl Terminal for Memory {
    fn size(&self) -> Option<(u16, u16)> {
        Some(lock(&self.0).screen().size())
    }

    fn write(&self, text: &str) -> io::Result<()> {
        self.write_raw(text);
        Ok(())
    }
}

fn progress(memory: &Memory, title: Option<&'static str>) -> Progress {
    Progress::on_terminal(Box::new(memory.clone()), LOOK, title)
}

fn screen(progress: &Progress) -> Arc<Screen> {
    match &progress.0.display {
        Display::Tree(screen) => screen.clone(),
        Display::Lines(_) => panic!("it is on no terminal"),
    }
}

/// Draws, as the thread does it again and again.
fn draw(progress: &Progress) {
    screen(progress).draw();
}

/// The lines with `*` for what the spinner shows.
fn still(lines: Vec<String>) -> Vec<String> {
    let is_spinner = |c| ('\u{2800}'..='\u{28ff}').contains(&c);
    let lines = lines.into_iter();
    lines.map(|line| line.replace(is_spinner, "*")).collect()
}

#[test]
fn a_tree_is_drawn_in_place_and_its_summary_stays() {
    let memory = Memory::new(24, 80);
    memory.write_raw("$ smolbuild\r\n");
    let progress = progress(&memory, Some("Building"));
    progress.stage("kernel", "kernel smol-6.1").cached("");
    let boot = progress.stage("boot", "booting the machine");
    for n in 0..20 {
        boot.window(&format!("line {n}\x1b[2J\n\u{202e}"));
        draw(&progress);
    }
    let mut expected: Vec<String> = [
        "$ smolbuild",
        "[+] Building (1/2)",
        " ✔ kernel       kernel smol-6.1: cached",
        " * boot         booting the machine",
    ]
    .map(str::to_owned)
    .into();
    let window = (14..20).map(|n| format!("     | line {n}\\u{{1b}}[2J\\n\\u{{202e}}"));
    expected.extend(window);
    assert_eq!(still(memory.lines()), expected);
    boot.finish("up");
    drop(progress);
    memory.write_raw("error: something else\r\n");
    assert_eq!(
        memory.lines(),
        [
            "$ smolbuild",
            "[+] Building (2/2)",
            " ✔ kernel       kernel smol-6.1: cached",
            " ✔ boot         booting the machine: up",
            "error: something else",
        ]
    );
}

#[test]
fn notes_are_above_the_tree_and_one_that_is_long_is_whole() {
    let memory = Memory::new(12, 40);
    let progress = progress(&memory, Some("Building"));
    let stage = progress.stage("rootfs", "assembling");
    progress.note("warning: not signed\x1b[A");
    stage.note(&"long ".repeat(12));
    draw(&progress);
    let lines = still(memory.lines());
    assert_eq!(lines[0], "warning: not signed\\u{1b}[A");
    let long = format!("rootfs       {}", "long ".repeat(12));
    assert_eq!(lines[1], long.trim_end(), "it is wrapped");
    assert_eq!(
        lines[2..],
        ["[+] Building (0/1)", " * rootfs       assembling"]
    );
}

#[test]
fn what_failed_is_shown_with_its_output_and_an_error_below_it() {
    let memory = Memory::new(12, 40);
    let progress = progress(&memory, Some("Building"));
    let run = progress.stage("run", "make");
    run.output("cc: no such file");
    run.window("a line that the error repeats");
    run.fail("exit code 1");
    // Not yet at its end: what else is printed comes below, and the next stage below that.
    aside_of(&[screen(&progress)], || {
        memory.write_raw("error: make failed\r\n")
    });
    progress.stage("pack", "").finish("");
    drop(progress);
    assert_eq!(
        memory.lines(),
        [
            "[+] Building (1/1)",
            " ✘ run          make: failed: exi…",
            "     | cc: no such file",
            "error: make failed",
            "[+] Building (2/2)",
            " ✔ pack",
        ]
    );
}

#[test]
fn what_else_is_printed_while_a_stage_runs_is_above_it() {
    let memory = Memory::new(12, 40);
    let progress = progress(&memory, Some("Building"));
    let stage = progress.stage("boot", "booting");
    aside_of(&[screen(&progress)], || memory.write_raw("a result\r\n"));
    assert_eq!(
        still(memory.lines()),
        ["a result", "[+] Building (0/1)", " * boot         booting"]
    );
    stage.finish("");
}

#[test]
fn without_a_heading_nothing_is_drawn_over_once_no_stage_runs() {
    let memory = Memory::new(12, 40);
    let progress = progress(&memory, None);
    progress.stage("verify", "verifying x").finish("1.0 MiB");
    memory.write_raw("the machine's own output\r\nand more");
    progress.note("smolrun: stopped");
    let again = progress.stage("unpack", "unpacking x");
    draw(&progress);
    again.finish("");
    assert_eq!(
        memory.lines(),
        [
            " ✔ verify       verifying x: 1.0 …",
            "the machine's own output",
            "and moresmolrun: stopped",
            " ✔ unpack       unpacking x",
        ]
    );
}

#[test]
fn more_stages_than_rows_are_folded_and_all_there_once_at_the_end() {
    let memory = Memory::new(8, 40);
    let progress = progress(&memory, Some("Building"));
    memory.write_raw("before\r\n");
    let last = progress.stage("last", "");
    for n in 0..30 {
        progress.stage(&format!("stage{n}"), "").finish("");
        draw(&progress);
    }
    let lines = still(memory.lines());
    assert_eq!(lines[..2], ["[+] Building (30/31)", " … 26 stages before"]);
    last.finish("");
    drop(progress);
    let mut expected = vec![
        "before".to_owned(),
        "[+] Building (31/31)".into(),
        " ✔ last".into(),
    ];
    expected.extend((0..30).map(|n| format!(" ✔ stage{n}")));
    assert_eq!(memory.all_lines(), expected);
}

#[test]
fn a_narrower_window_leaves_no_fragments() {
    // As most terminals do: each line that has become too long for the window is broken into several.
    assert_eq!(back(&[79, 10, 0], (24, 80)), "\x1b[3A");
    assert_eq!(back(&[79, 10, 0], (24, 40)), "\x1b[4A");
    assert_eq!(back(&[79, 10, 0], (24, 9)), "\x1b[12A");
    assert_eq!(back(&[79, 10, 0], (3, 9)), "\x1b[2A");
    assert_eq!(back(&[], (24, 80)), "");
    let memory = Memory::new(10, 60);
    let progress = progress(&memory, Some("Building"));
    let stage = progress.stage("boot", &"booting ".repeat(10));
    memory.0.lock().unwrap().screen_mut().set_size(10, 30);
    // What such a terminal does, this one does not: the two lines are three now.
    memory.write_raw("\x1b[2J\x1b[H[+] Building 0.0s (0/1)\r\n * boot         booting bootin\r\ng booting 0.0s\r\n");
    draw(&progress);
    assert_eq!(
        still(memory.lines()),
        ["[+] Building (0/1)", " * boot         booting…"]
    );
    stage.finish("");
}

#[test]
fn each_frame_is_one_write_that_clears_nothing_before_it_is_overwritten() {
    struct Recorder(Mutex<Vec<String>>);
    impl Terminal for Arc<Recorder> {
        fn size(&self) -> Option<(u16, u16)> {
            None
        }
        fn write(&self, text: &str) -> io::Result<()> {
            lock(&self.0).push(text.to_owned());
            Err(io::Error::other("the terminal is gone"))
        }
    }
    let recorder = Arc::new(Recorder(Mutex::default()));
    let progress = Progress::on_terminal(Box::new(recorder.clone()), LOOK, Some("Building"));
    let stage = progress.stage("boot", "booting");
    lock(&recorder.0).clear();
    draw(&progress);
    draw(&progress);
    for frame in lock(&recorder.0).iter() {
        assert!(
            frame.starts_with("\r\x1b[?7l\x1b[2A[+] Building"),
            "{frame:?}"
        );
        assert!(frame.ends_with("\x1b[K\r\n\x1b[J\x1b[?7h"), "{frame:?}");
    }
    stage.finish("");
}

#[test]
fn the_thread_that_draws_ends_with_the_last_stage() {
    let memory = Memory::new(12, 40);
    let progress = progress(&memory, Some("Building"));
    let screen = screen(&progress);
    let [one, two] = ["one", "two"].map(|name| progress.stage(name, ""));
    one.finish("");
    assert!(lock(&screen.ticker).is_some());
    drop(two);
    assert!(lock(&screen.ticker).is_none());
    assert_eq!(Arc::strong_count(&screen), 2, "no thread has it");
}

#[test]
fn a_panic_while_a_tree_is_drawn_is_reported_below_it_and_waits_for_nothing() {
    let memory = Memory::new(12, 40);
    let progress = progress(&memory, Some("Building"));
    let stage = progress.stage("boot", "booting");
    struct Reports<'a>(&'a Memory, Arc<Screen>);
    impl Drop for Reports<'_> {
        fn drop(&mut self) {
            let report = || self.0.write_raw("error: internal failure\r\n");
            aside_of(std::slice::from_ref(&self.1), report);
        }
    }
    let screen = screen(&progress);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (_tree, _painted) = (lock(&screen.tree), lock(&screen.painted));
        // Dropped before the locks are.
        let _report = Reports(&memory, screen.clone());
        panic!("while it is drawn");
    }));
    assert!(outcome.is_err());
    assert_eq!(memory.lines().last().unwrap(), "error: internal failure");
    stage.finish("");
}

#[test]
fn a_mode_for_terminals_is_plain_where_there_is_none() {
    // Tests have no terminal on stderr, or one that says so.
    if !super::super::can_move_its_cursor() {
        let progress = Progress::new(Mode::Tty);
        assert!(matches!(progress.0.display, Display::Lines(_)));
    }
}
