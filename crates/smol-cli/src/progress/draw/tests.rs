use super::super::tree::TAIL;
use super::*;

const PLAIN_LOOK: Look = Look {
    colour: false,
    unicode: true,
};

/// What indicatif would measure by the clock.
fn of_test(count: &Count) -> Option<Pace> {
    let rate = match count.unit {
        Unit::Bytes => 3 << 20,
        Unit::Steps => 1,
    };
    Some(Pace {
        rate,
        left: Duration::from_secs(count.total.saturating_sub(count.done) / rate),
    })
}

/// A tree that began so many seconds ago as a test says.
struct Scene {
    tree: Tree,
    begin: Instant,
}

impl Scene {
    fn new() -> Self {
        let begin = Instant::now();
        Self {
            tree: Tree::new(begin),
            begin,
        }
    }

    fn at(&self, tenths: u64) -> Instant {
        self.begin + Duration::from_millis(100 * tenths)
    }

    fn start(&mut self, parent: Option<Id>, name: &str, message: &str, at: u64) -> Id {
        self.tree.start(parent, name, message, self.at(at))
    }

    fn end(&mut self, id: Id, state: State, result: &str, at: u64) {
        self.tree.end(id, state, result, self.at(at)).unwrap();
    }

    fn drawing(&self, at: u64, columns: usize) -> Drawing<'_> {
        Drawing {
            tree: &self.tree,
            title: Some("Building"),
            skip: 0,
            now: self.at(at),
            columns,
            look: PLAIN_LOOK,
            pace: of_test,
        }
    }
}

fn text(lines: &[Line]) -> String {
    lines
        .iter()
        .map(|line| format!("{}\n", line.text))
        .collect()
}

/// Half of a build: something of everything.
fn build() -> Scene {
    let mut scene = Scene::new();
    let kernel = scene.start(None, "kernel", "kernel smol-6.1", 0);
    scene.end(kernel, State::Cached, "cached", 1);
    let lock = scene.start(None, "lock", "choosing packages", 1);
    scene.end(lock, State::Done, "", 13);
    let pull = scene.start(None, "pull", "downloading alpine", 20);
    for n in 0..7 {
        let layer = scene.start(Some(pull), &format!("layer{n}"), "", 20);
        match n {
            0..5 => scene.end(layer, State::Done, "1.0 MiB", 30 + n),
            _ => {
                scene.tree.count(layer, Unit::Bytes, 0, 29 << 20);
                scene.tree.count(layer, Unit::Bytes, 12 << 20, 29 << 20);
            }
        }
    }
    scene.tree.count(pull, Unit::Steps, 5, 8);
    let boot = scene.start(None, "boot", "booting the machine", 30);
    for n in 0..9 {
        scene.tree.output(boot, &format!("line {n}"), true);
    }
    scene
}

#[test]
fn a_tree_shows_states_counts_parts_and_the_last_lines() {
    assert_eq!(
        text(&build().drawing(60, 72).whole()),
        "\
[+] Building 6.0s (2/4)
 ✔ kernel       kernel smol-6.1: cached                            0.1s
 ✔ lock         choosing packages                                  1.2s
 ⠋ pull         downloading alpine        [=========>      ]  62%  4.0s
   ✔ 2 parts are done
   ✔ layer2 1.0 MiB                                                1.2s
   ✔ layer3 1.0 MiB                                                1.3s
   ✔ layer4 1.0 MiB                                                1.4s
   ⠋ layer5                        12.0 MiB / 29.0 MiB  3.0 MiB/s  4.0s
   ⠋ layer6                        12.0 MiB / 29.0 MiB  3.0 MiB/s  4.0s
 ⠋ boot         booting the machine                                3.0s
     | line 3
     | line 4
     | line 5
     | line 6
     | line 7
     | line 8
"
    );
}

#[test]
fn the_time_that_is_left_is_shown_where_there_are_columns_for_it_and_sense_in_it() {
    let mut scene = Scene::new();
    let stage = scene.start(None, "x", "", 0);
    let mut shown = |unit, done, total, columns| {
        scene.tree.count(stage, unit, done, total);
        text(&scene.drawing(40, columns).whole()[1..])
    };
    let bytes = shown(Unit::Bytes, 12 << 20, 29 << 20, 80);
    assert!(bytes.ends_with("  3.0 MiB/s  5s left  4.0s\n"), "{bytes}");
    let narrower = shown(Unit::Bytes, 12 << 20, 29 << 20, 79);
    assert!(narrower.ends_with("  3.0 MiB/s  4.0s\n"), "{narrower}");
    let steps = shown(Unit::Steps, 5, 8, 80);
    assert!(steps.ends_with("  62%  3s left  4.0s\n"), "{steps}");
    let minutes = shown(Unit::Steps, 0, 120, 80);
    assert!(minutes.ends_with("   0%  2m left  4.0s\n"), "{minutes}");
    for total in [8, 1 << 30] {
        let none = shown(Unit::Steps, 8, total, 80);
        assert!(!none.contains("left"), "{none}");
    }
}

#[test]
fn a_stage_that_failed_keeps_its_last_lines_and_those_of_its_parts() {
    let mut scene = Scene::new();
    let run = scene.start(None, "run", "2 commands", 0);
    let [good, bad] = ["one", "two"].map(|name| scene.start(Some(run), name, "", 0));
    for n in 0..50 {
        scene.tree.output(bad, &format!("line {n}"), false);
    }
    scene.tree.output(good, "fine", false);
    scene.end(good, State::Done, "", 1);
    scene.end(bad, State::Failed, "failed: exit code 2", 2);
    scene.end(run, State::Failed, "not finished", 2);
    let shown = text(&scene.drawing(5, 60).whole());
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 3 + TAIL, "{shown}");
    assert!(lines[1].starts_with(" ✘ run          2 commands: not finished  "));
    assert!(lines[2].starts_with("   ✘ two failed: exit code 2  "));
    assert_eq!(lines[3], "       | line 30");
    assert_eq!(lines[22], "       | line 49");
}

#[test]
fn no_line_is_as_wide_as_the_screen_however_narrow_that_is() {
    let mut scene = build();
    let wide = "\u{4e2d}\u{6587}\t\u{1f600}e\u{301}".repeat(30);
    let stage = scene.start(None, &wide, &wide, 40);
    scene.tree.output(stage, &wide, false);
    scene.tree.count(stage, Unit::Bytes, 1, u64::MAX);
    for unicode in [true, false] {
        for colour in [true, false] {
            for columns in 1..200 {
                let mut drawing = scene.drawing(60, columns);
                drawing.look = Look { colour, unicode };
                for line in drawing.whole() {
                    let width = measure_text_width(&line.text);
                    assert_eq!(width, line.width, "{columns}: {line:?}");
                    // A mark and its indent are never cut.
                    assert!(width < columns.max(7), "{columns}: {line:?}");
                    assert!(!line.text.contains('\t'));
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_folded_oldest_first_and_windows_are_closed_last() {
    let mut scene = Scene::new();
    for n in 0..30 {
        let done = scene.start(None, &format!("old{n}"), "", n);
        scene.end(done, State::Done, "", n + 1);
    }
    let boot = scene.start(None, "boot", "", 31);
    for n in 0..6 {
        scene.tree.output(boot, &format!("line {n}"), true);
    }
    let shown = text(&scene.drawing(40, 40).fitting(12));
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 12, "{shown}");
    assert_eq!(lines[0], "[+] Building 4.0s (30/31)");
    assert_eq!(lines[1], " … 27 stages before");
    assert!(lines[2].starts_with(" ✔ old27 "), "{shown}");
    assert!(lines[5].starts_with(" ⠋ boot "), "{shown}");
    assert_eq!(lines[11], "     | line 5");
    // The window gives way before the stage does, and the heading is the last to go.
    let shown = text(&scene.drawing(40, 40).fitting(4));
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 4, "{shown}");
    assert_eq!(lines[1], " … 30 stages before");
    assert!(lines[2].starts_with(" ⠋ boot "), "{shown}");
    assert_eq!(lines[3], "     | line 5");
    for rows in 1..50 {
        let lines = scene.drawing(40, 40).fitting(rows);
        assert!((1..=rows).contains(&lines.len()), "{rows}: {lines:?}");
        assert!(rows < 2 || text(&lines).contains(" ⠋ boot "), "{rows}");
    }
}

#[test]
fn more_running_stages_than_rows_are_cut_to_the_newest() {
    let mut scene = Scene::new();
    for n in 0..30 {
        scene.start(None, &format!("stage{n}"), "", n);
    }
    let shown = text(&scene.drawing(40, 40).fitting(3));
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[0].starts_with("[+] "));
    assert!(lines[2].contains("stage29"), "{shown}");
}

#[test]
fn colours_are_only_there_where_they_are_wanted() {
    let mut scene = build();
    let failed = scene.start(None, "x", "", 50);
    scene.end(failed, State::Failed, "", 51);
    let plain = text(&scene.drawing(60, 72).whole());
    assert!(!plain.contains('\x1b'));
    let mut drawing = scene.drawing(60, 72);
    drawing.look.colour = true;
    let coloured = text(&drawing.whole());
    for colour in [RED, GREEN, BLUE, CYAN, DIM] {
        assert!(coloured.contains(colour), "{colour:?}");
    }
    assert_eq!(console::strip_ansi_codes(&coloured), plain);
}

#[test]
fn without_unicode_everything_is_ascii() {
    let mut scene = build();
    let failed = scene.start(None, &"x".repeat(100), "", 50);
    scene.end(failed, State::Failed, "", 51);
    let mut drawing = scene.drawing(60, 72);
    drawing.look.unicode = false;
    let lines = [drawing.whole(), drawing.fitting(12)].concat();
    assert!(lines.iter().all(|line| line.text.is_ascii()), "{lines:?}");
}

#[test]
fn times_grow_in_a_few_characters() {
    let shown = |millis| seconds(Duration::from_millis(millis));
    assert_eq!(shown(0), "0.0s");
    assert_eq!(shown(12_399), "12.3s");
    assert_eq!(shown(59_999), "59.9s");
    assert_eq!(shown(242_000), "4m02s");
    assert_eq!(shown(3_720_000), "1h02m");
}
