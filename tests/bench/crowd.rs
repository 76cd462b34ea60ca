//! Machines of one bundle side by side: what does one more take?

use std::fs;
use std::process::Child;

use serde_json::{Value, json};

/// Memory of a process, that which it shares counted in part, MiB: proc_pid_smaps(5).
pub fn pss_mib(child: &Child) -> f64 {
    let path = format!("/proc/{}/smaps_rollup", child.id());
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.expect("Pss in KiB") / 1024.0
}

/// Prints what so many machines take, MiB, and returns the figures.
pub fn report(crowds: &[usize], totals: &[f64]) -> Value {
    let mut table = Vec::new();
    for (&crowd, &total) in crowds.iter().zip(totals) {
        let extra = (crowd > 1).then(|| (total - totals[0]) / (crowd - 1) as f64);
        let shown = extra.map(|mib| format!("{mib:.2} MiB for each more (goal: at most 4)"));
        println!(
            "  {crowd:>3}   {total:8.1} MiB   {}",
            shown.unwrap_or_default()
        );
        table.push(json!({ "machines": crowd, "totalMiB": total, "perExtraMiB": extra }));
    }
    Value::Array(table)
}
