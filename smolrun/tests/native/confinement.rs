//! Machines whose process the kernel does not confine, although it can.

use super::*;

/// Which call of seccomp(2) installs a filter; the first one asks what the kernel can.
const FILTERS: [(u32, &str); 2] = [(2, "of the start"), (3, "of the machine")];

#[test]
fn a_machine_does_not_run_without_a_filter_that_the_kernel_refuses() {
    if let Some(missing) = smol_sandbox::missing() {
        return left_out(missing);
    }
    let mut can_trace = Command::new("strace");
    can_trace.args(["-qq", "-o", "/dev/null", "true"]);
    if !can_trace.status().is_ok_and(|status| status.success()) {
        return left_out("strace cannot be used");
    }
    let printed = kernel(&["booted\n", "ran\n"], true);
    let Some(scene) = Scene::new(&printed, true, |_| {}) else {
        return;
    };
    // Out of the bundle, and from the cache.
    for _ in 0..2 {
        for (number, filter) in FILTERS {
            let output = run_without(number, &scene.run());
            let told = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(5), "{filter}: {told}");
            assert!(told.contains("cannot confine this process"), "{told}");
            assert!(!told.contains("restored"), "{filter}: {told}");
            assert!(output.stdout.is_empty(), "{filter}: {:?}", output.stdout);
        }
        assert_eq!(succeed(&scene.run().output().unwrap()), "ran\n");
    }
}

/// Runs the command, whose call of seccomp(2) with this number fails.
fn run_without(number: u32, command: &Command) -> Output {
    let fault = format!("inject=seccomp:error=EINVAL:when={number}");
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=seccomp", "-e"])
        .arg(fault)
        .arg(command.get_program())
        .args(command.get_args());
    let set = command.get_envs();
    traced.envs(set.filter_map(|(name, value)| Some((name, value?))));
    traced.output().unwrap()
}
