//! The figures: `cargo xtask bench`, or `cargo bench --bench figures [-- native|emulated|sizes] [--json FILE]`.
//!
//! | module | figure |
//! |---|---|
//! | [`native`] | restoring the native guest on this host's own KVM, against the floor program |
//! | [`emulated`] | in one emulated host: redis restored against redis booted, to the first answer |
//! | [`sizes`] | what of a machine's memory is in its bundle, and where the time of a build goes |
//!
//! A time is only worth something beside another one from the same run.

mod crowd;
mod emulated;
#[path = "../e2e/host.rs"]
#[allow(dead_code)]
mod host;
mod native;
mod sizes;
#[path = "../e2e/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "../e2e/tools.rs"]
#[allow(dead_code)]
mod tools;

use std::process::ExitCode;

use serde_json::json;

fn main() -> ExitCode {
    smol_host::emulated::init::main_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if smol_host::emulated::is_inside() {
        emulated::inside();
        return ExitCode::SUCCESS;
    }
    let json = arguments.iter().position(|argument| argument == "--json");
    let json = json.map(|at| arguments.get(at + 1).expect("--json names a file"));
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let all = !["native", "emulated", "sizes"].into_iter().any(named);
    let wanted = |name| all || named(name);

    let host = host::prepare("bench");
    let mut figures = json!({});
    if wanted("sizes") || wanted("emulated") {
        sizes::build(&host);
    }
    if wanted("sizes") {
        figures["machines"] = sizes::measure(&host);
    }
    if wanted("native") {
        figures["native"] = native::measure(&host);
    }
    if wanted("emulated") {
        figures["emulated"] = emulated::measure(&host);
    }
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&figures).expect("plain data");
        std::fs::write(file, text + "\n").unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    ExitCode::SUCCESS
}

/// Median and least of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Times {
    /// ms.
    median: f64,
    /// ms.
    least: f64,
}

impl Times {
    /// Of at least one time.
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self {
            median: times[times.len() / 2],
            least: times[0],
        }
    }

    fn show(&self) -> String {
        format!("{:9.1} ms  (least {:.1})", self.median, self.least)
    }
}
