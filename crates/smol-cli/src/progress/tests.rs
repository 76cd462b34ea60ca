//! What stages look like: as lines, as JSON, and on a terminal in memory.

use std::io::Write;

use serde_json::{Value, json};

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(lock(&self.0).clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn plain() -> (Progress, Sink) {
    let sink = Sink::default();
    (Progress::in_lines(Lines::plain(sink.clone())), sink)
}

/// The events of what `work` does, without their times, which are numbers.
fn events(work: impl FnOnce(&Progress)) -> Vec<Value> {
    let sink = Sink::default();
    let progress = Progress::in_lines(Lines::json(sink.clone()));
    work(&progress);
    let text = sink.text();
    let events = text.lines().map(|line| {
        let mut event: Value = serde_json::from_str(line).unwrap();
        if let Some(seconds) = event.as_object_mut().unwrap().remove("seconds") {
            assert!(seconds.is_f64(), "{line}");
        }
        event
    });
    events.collect()
}

#[test]
fn plain_progress_is_one_line_an_event() {
    let (progress, sink) = plain();
    let stage = progress.stage("kernel", "building kernel smol-6.1");
    stage.set(1, 2);
    stage.note("compiling\x1b[2J\nerror: forged");
    stage.window("CC init/main.o");
    stage.finish("14.0 MiB");
    progress.note("no /dev/kvm: using the emulated host");
    let text = sink.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "kernel       building kernel smol-6.1");
    assert_eq!(lines[1], "kernel       compiling\\u{1b}[2J\\nerror: forged");
    assert!(lines[2].starts_with("kernel       14.0 MiB ("), "{text}");
    assert_eq!(lines[3], "no /dev/kvm: using the emulated host");
    assert_eq!(lines.len(), 4, "{text}");
}

#[test]
fn plain_lines_tell_output_parts_and_how_they_ended() {
    let (progress, sink) = plain();
    let run = progress.stage("run", "running 2 commands");
    let first = run.child("1", "apt-get update");
    first.output("Get:1 \x1b[31m\u{4e2d}\nerror: forged");
    first.cached("");
    run.child("2", "make").fail("exit code 2");
    drop(run);
    progress.stage("pull", "").finish("");
    let text = sink.text();
    // Times are numbers: what is after them counts.
    let times = regex(&text);
    assert_eq!(
        times,
        "run          running 2 commands\n\
         run          1: apt-get update\n\
         run          1: # Get:1 \\u{1b}[31m\u{4e2d}\\nerror: forged\n\
         run          1: cached (#)\n\
         run          2: make\n\
         run          2: failed: exit code 2\n\
         run          not finished\n\
         pull         \n\
         pull         done in #\n"
    );
}

#[test]
fn lines_that_an_error_may_repeat_are_printed_once_for_people_and_always_for_programs() {
    let (lines, sink) = plain();
    let stage = lines.stage("run", "make");
    stage.output_of_error("x.c:1: error");
    assert!(stage.prints_output());
    stage.fail("");
    assert_eq!(sink.text().matches("x.c:1: error").count(), 1);
    let events = events(|progress| {
        let stage = progress.stage("run", "make");
        stage.output_of_error("x.c:1: error");
        assert!(!stage.prints_output());
    });
    assert_eq!(events[1]["event"], "output");
    assert!(!Progress::silent().stage("run", "").prints_output());
}

/// The text with `#` for times.
fn regex(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let line = match (line.rsplit_once('('), line.split_once("done in ")) {
            (Some((before, _)), _) => format!("{before}(#)"),
            (_, Some((before, _))) => format!("{before}done in #"),
            _ => match line.split_once("1: 0.") {
                Some((before, after)) => {
                    let (millis, text) = after.split_once(' ').unwrap();
                    assert!(millis.len() == 3 && millis.parse::<u16>().is_ok(), "{line}");
                    format!("{before}1: # {text}")
                }
                None => line.to_owned(),
            },
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

#[test]
fn json_progress_has_ids_parents_and_states() {
    let hostile = "a\x1b[2J\u{202e}\n";
    let events = events(|progress| {
        let pull = progress.stage("pull", "downloading alpine");
        let layer = pull.child("9824c27679d3", "");
        layer.output(hostile);
        layer.window("not for programs");
        layer.finish("29.0 MiB");
        pull.note("a mirror is gone");
        pull.cached("unchanged");
        progress.stage("boot", "booting").fail("no memory");
        drop(progress.stage("pack", "packing"));
        progress.note("warning");
    });
    assert_eq!(
        events,
        [
            json!({"event": "start", "stage": "pull", "id": 1, "message": "downloading alpine"}),
            json!({"event": "start", "stage": "9824c27679d3", "id": 2, "parent": 1, "message": ""}),
            json!({"event": "output", "stage": "9824c27679d3", "id": 2, "parent": 1, "message": hostile}),
            json!({"event": "finish", "stage": "9824c27679d3", "id": 2, "parent": 1, "message": "29.0 MiB", "state": "done"}),
            json!({"event": "note", "stage": "pull", "id": 1, "message": "a mirror is gone"}),
            json!({"event": "finish", "stage": "pull", "id": 1, "message": "cached: unchanged", "state": "cached"}),
            json!({"event": "start", "stage": "boot", "id": 3, "message": "booting"}),
            json!({"event": "abandon", "stage": "boot", "id": 3, "message": "no memory", "state": "failed"}),
            json!({"event": "start", "stage": "pack", "id": 4, "message": "packing"}),
            json!({"event": "abandon", "stage": "pack", "id": 4, "message": "", "state": "failed"}),
            json!({"event": "note", "message": "warning"}),
        ]
    );
}

#[test]
fn counts_have_their_unit_and_come_seldom() {
    let sink = Sink::default();
    let tree = Mutex::new(Tree::new(Instant::now()));
    let now = Instant::now();
    let id = lock(&tree).start(None, "pull", "", now);
    let [json, text] = [Lines::json(sink.clone()), Lines::plain(sink.clone())];
    for unit in [tree::Unit::Bytes, tree::Unit::Steps] {
        let count = lock(&tree).count(id, unit, 1 << 20, 4 << 20).unwrap();
        json.event(&tree, id, &lines::Event::Count(count.clone()));
        text.event(&tree, id, &lines::Event::Count(count));
    }
    let text = sink.text();
    let lines: Vec<_> = text.lines().collect();
    let first: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(
        first,
        json!({"event": "count", "stage": "pull", "id": 1, "message": "25%", "done": 1 << 20, "total": 4 << 20, "unit": "bytes"})
    );
    assert_eq!(lines[1], "pull         1.0 MiB of 4.0 MiB");
    assert!(lines[2].contains("\"unit\":\"steps\""), "{text}");
    assert_eq!(lines[3], "pull         25%");
    // The interval begins with the stage.
    let (progress, sink) = plain();
    let stage = progress.stage("kernel", "");
    (0..10_000).for_each(|n| stage.set(n, 10_000));
    assert_eq!(sink.text().lines().count(), 1);
}

#[test]
fn the_waterfall_records_stages_in_order_and_tells_the_unfinished_ones() {
    let progress = Progress::silent();
    let outer = progress.stage("a", "");
    drop(progress.stage("b", ""));
    outer.child("c", "").cached("");
    outer.finish("");
    let laps = progress.waterfall();
    let ends = laps.iter().map(|lap| (&*lap.name, lap.finished));
    assert_eq!(ends.collect::<Vec<_>>(), [("a", true), ("b", false)]);
    assert!(laps[0].start <= laps[1].start && laps[0].duration >= laps[1].duration);
    assert_eq!(laps[0].children[0].name, "c");
    let object = serde_json::to_value(&laps).unwrap();
    assert_eq!(object[0]["children"][0]["cached"], true);
    let keys: Vec<_> = object[1].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["duration", "finished", "name", "start"]);
}

#[test]
fn a_mode_that_does_not_exist_is_refused() {
    assert_eq!("plain".parse(), Ok(Mode::Plain));
    assert_eq!(
        "fancy".parse::<Mode>(),
        Err("expected auto, tty, plain or json".to_owned())
    );
}
