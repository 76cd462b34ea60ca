//! Mistakes in TOML itself, in what there is, and in how it fits together.

use super::*;

mistake!(
    toml_that_does_not_parse,
    r#"name = app
"#,
    r#"
error: invalid TOML: string values must be quoted, expected literal string
 --> Smolfile:1:8
  |
1 | name = app
  |        ^^^
"#
);

mistake!(
    an_unclosed_bracket_is_one_mistake,
    r#"name = "app"
ports = [80
[service]
cmd = ["app"]
"#,
    r#"
error: invalid TOML: missing comma between array elements, expected `,`
 --> Smolfile:3:1
  |
3 | [service]
  | ^
"#
);

mistake!(
    a_duplicate_key_does_not_hide_other_mistakes,
    r#"name = "app"
name = "b"
cpus = 99
[rootfs]
tar = "root.tar"
[service]
cmd = ["app"]
[ready]
tcp = 80
"#,
    r#"
error: invalid TOML: duplicate key
 --> Smolfile:2:1
  |
2 | name = "b"
  | ^^^^

error: `cpus` is out of range
 --> Smolfile:3:8
  |
3 | cpus = 99
  |        ^^ must be 1 to 8
"#
);

mistake!(
    an_empty_file,
    "",
    r#"
error: `name` is missing
 --> Smolfile:1:1
  |
1 |
  | ^
  |
  = help: write `name = "my-machine"`

error: [ready] is missing: it decides when the snapshot is taken
 --> Smolfile:1:1
  |
1 |
  | ^
  |
  = help: add [ready], for example with `tcp = 8080`

error: neither [rootfs] nor a `path` in [kernel]: the machine has nothing to run
 --> Smolfile:1:1
  |
1 |
  | ^
  |
  = help: add [rootfs] and [service]; or, for a machine that is just a kernel, `path` in [kernel]
"#
);

mistake!(
    a_missing_name,
    with(
        r#"name = "app"
"#,
        ""
    ),
    r#"
error: `name` is missing
 --> Smolfile:1:1
  |
1 | [rootfs]
  | ^
  |
  = help: write `name = "my-machine"`
"#
);

mistake!(
    a_table_where_an_array_of_tables_is_wanted,
    at_end(
        r#"[warm]
cmd = ["a"]"#
    ),
    r#"
error: expected an array of tables: [[warm]], found a table
 --> Smolfile:8:1
  |
8 | [warm]
  | ^^^^^^
  |
  = help: write `[[warm]]` with two pairs of brackets
"#
);

mistake!(
    a_string_where_a_table_is_wanted,
    top(r#"kernel = "smol-6.1""#),
    r#"
error: expected a table: [kernel], found a string
 --> Smolfile:2:10
  |
2 | kernel = "smol-6.1"
  |          ^^^^^^^^^^
"#
);

mistake!(
    a_root_file_system_without_a_service,
    r#"name = "app"
[rootfs]
tar = "root.tar"
[ready]
tcp = 80
"#,
    r#"
error: [rootfs] without a [service]: nothing would run
 --> Smolfile:2:2
  |
2 | [rootfs]
  |  ^^^^^^
  |
  = help: add [service] with the `cmd` to run

error: [ready] without a [service]: nothing would get ready
 --> Smolfile:4:2
  |
4 | [ready]
  |  ^^^^^
"#
);

mistake!(
    a_service_without_a_root_file_system,
    r#"name = "app"
[service]
cmd = ["app"]
[ready]
tcp = 80
"#,
    r#"
error: [service] without a [rootfs]: there are no files to run it from
 --> Smolfile:2:2
  |
2 | [service]
  |  ^^^^^^^
  |
  = help: add [rootfs] with `debian`, `image`, `tar` or `dir`, or [base] with `bundle`
"#
);

mistake!(
    a_root_file_system_and_a_base,
    at_end(
        r#"[base]
bundle = "base.smolmachine""#
    ),
    r#"
error: [rootfs] and [base] both say where the root file system comes from
 --> Smolfile:8:2
  |
2 | [rootfs]
  |  ------ the other one
...
8 | [base]
  |  ^^^^
  |
  = help: keep [base] to build on another bundle, or [rootfs] to begin anew; [[copy]] puts files over either
"#
);

mistake!(
    a_base_without_a_service,
    r#"name = "app"
[base]
bundle = "base.smolmachine"
[[copy]]
src = "a"
dest = "/a"
[ready]
tcp = 80
"#,
    r#"
error: [base] without a [service]: nothing would run
 --> Smolfile:2:2
  |
2 | [base]
  |  ^^^^
  |
  = help: add [service] with the `cmd` to run

error: [ready] without a [service]: nothing would get ready
 --> Smolfile:7:2
  |
7 | [ready]
  |  ^^^^^
"#
);

mistake!(
    a_base_that_names_no_bundle,
    base("image = \"redis:7\""),
    r#"
error: `bundle` is missing in [base]
 --> Smolfile:2:1
  |
2 | [base]
  | ^^^^^^
  |
  = help: write `bundle = "base.smolmachine"`

error: unknown key `image`
 --> Smolfile:3:1
  |
3 | image = "redis:7"
  | ^^^^^ not a key of [base]
  |
  = help: `image` stands in [rootfs]
"#
);

mistake!(
    a_base_outside_of_the_folder,
    base("bundle = \"../base.smolmachine\""),
    r#"
error: the path leads out of the folder of the Smolfile
 --> Smolfile:3:10
  |
3 | bundle = "../base.smolmachine"
  |          ^^^^^^^^^^^^^^^^^^^^^
  |
  = help: name it relative to the folder of the Smolfile, and keep it inside
"#
);

mistake!(
    a_bundle_among_the_root_file_systems,
    rootfs("bundle = \"base.smolmachine\"\ntar = \"root.tar\""),
    r#"
error: unknown key `bundle`
 --> Smolfile:3:1
  |
3 | bundle = "base.smolmachine"
  | ^^^^^^ not a key of [rootfs]
  |
  = help: `bundle` stands in [base]
"#
);

mistake!(
    warm_without_a_service,
    r#"name = "k"
[kernel]
path = "vmlinux"
[ready]
log = "up"
[[warm]]
cmd = ["a"]
"#,
    r#"
error: [[warm]] without a [service]: there is nothing to warm up
 --> Smolfile:6:3
  |
6 | [[warm]]
  |   ^^^^
"#
);

mistake!(
    restore_without_a_service,
    r#"name = "k"
[kernel]
path = "vmlinux"
[ready]
log = "up"
[[restore]]
cmd = ["a"]
"#,
    r#"
error: [[restore]] without a [service]: there is nothing to renew
 --> Smolfile:6:3
  |
6 | [[restore]]
  |   ^^^^^^^
"#
);

mistake!(
    warm_restore_without_a_service,
    r#"name = "k"
[kernel]
path = "vmlinux"
[ready]
log = "up"
[[warm_restore]]
tcp = 80
"#,
    r#"
error: [[warm_restore]] without a [service]: there is no service to ask
 --> Smolfile:6:3
  |
6 | [[warm_restore]]
  |   ^^^^^^^^^^^^
"#
);

mistake!(
    ports_without_a_service,
    r#"name = "k"
ports = [80]
[kernel]
path = "vmlinux"
[ready]
log = "up"
"#,
    r#"
error: `ports` without a [service]: nothing would answer
 --> Smolfile:2:1
  |
2 | ports = [80]
  | ^^^^^
"#
);

mistake!(
    copy_without_a_root_file_system,
    r#"name = "k"
[kernel]
path = "vmlinux"
[ready]
log = "up"
[[copy]]
src = "a"
dest = "/a"
"#,
    r#"
error: [[copy]] without a [rootfs]: there is nowhere to copy to
 --> Smolfile:6:3
  |
6 | [[copy]]
  |   ^^^^
"#
);

mistake!(
    nothing_to_run,
    r#"name = "k"
[ready]
log = "up"
"#,
    r#"
error: neither [rootfs] nor a `path` in [kernel]: the machine has nothing to run
 --> Smolfile:1:1
  |
1 | name = "k"
  | ^
  |
  = help: add [rootfs] and [service]; or, for a machine that is just a kernel, `path` in [kernel]
"#
);

mistake!(
    a_recipe_kernel_with_nothing_to_run,
    r#"name = "k"
[kernel]
recipe = "smol-6.1"
[ready]
log = "up"
"#,
    r#"
error: neither [rootfs] nor a `path` in [kernel]: the machine has nothing to run
 --> Smolfile:2:1
  |
2 | [kernel]
  | ^^^^^^^^
  |
  = help: add [rootfs] and [service]; or, for a machine that is just a kernel, `path` in [kernel]
"#
);

mistake!(
    just_a_kernel_with_a_probe_that_needs_a_service,
    r#"name = "k"
[kernel]
path = "vmlinux"
[ready]
tcp = 80
"#,
    r#"
error: `tcp` needs a [rootfs] and a [service]
 --> Smolfile:5:1
  |
5 | tcp = 80
  | ^^^
  |
  = help: a machine that is just a kernel is ready by `log`: a pattern for a line on the console
"#
);

mistake!(
    no_ready,
    with(
        "[ready]
tcp = 80
",
        ""
    ),
    r#"
error: [ready] is missing: it decides when the snapshot is taken
 --> Smolfile:1:1
  |
1 | name = "app"
  | ^
  |
  = help: add [ready], for example with `tcp = 8080`
"#
);

mistake!(
    just_a_kernel_without_ready,
    r#"name = "k"
[kernel]
path = "vmlinux"
"#,
    r#"
error: [ready] is missing: it decides when the snapshot is taken
 --> Smolfile:1:1
  |
1 | name = "k"
  | ^
  |
  = help: add [ready] with `log`, a pattern for a line on the console
"#
);

mistake!(
    a_recipe_and_a_path,
    at_end(
        r#"[kernel]
recipe = "smol-6.1"
path = "vmlinux""#
    ),
    r#"
error: `recipe` and `path` both name the kernel
  --> Smolfile:10:1
   |
 9 | recipe = "smol-6.1"
   | ------ named here as well
10 | path = "vmlinux"
   | ^^^^
   |
   = help: remove one of the two
"#
);

mistake!(
    two_root_file_systems,
    rootfs(
        r#"tar = "root.tar"
dir = "root""#
    ),
    r#"
error: `dir` and `tar` cannot both be there
 --> Smolfile:4:1
  |
3 | tar = "root.tar"
  | --- the other one
4 | dir = "root"
  | ^^^
  |
  = help: write exactly one of debian, image, tar, dir
"#
);

mistake!(
    an_empty_rootfs,
    rootfs(""),
    r#"
error: [rootfs] does not say where the files come from
 --> Smolfile:2:1
  |
2 | [rootfs]
  | ^^^^^^^^
  |
  = help: write exactly one of debian, image, tar, dir
"#
);

mistake!(
    an_empty_ready,
    ready(""),
    r#"
error: [ready] does not say what to wait for
 --> Smolfile:6:1
  |
6 | [ready]
  | ^^^^^^^
  |
  = help: write exactly one of exec, tcp, http, log, file, notify
"#
);

mistake!(
    two_probes,
    ready(
        r#"tcp = 80
log = "up""#
    ),
    r#"
error: `log` and `tcp` cannot both be there
 --> Smolfile:8:1
  |
7 | tcp = 80
  | --- the other one
8 | log = "up"
  | ^^^
  |
  = help: write exactly one of exec, tcp, http, log, file, notify
"#
);
