//! Mistakes in the values of `[[copy]]`, `[service]` and `[[warm]]`.

use super::*;

mistake!(
    a_source_that_is_absolute,
    at_end(
        r#"[[copy]]
src = "/etc/passwd"
dest = "/etc/passwd""#
    ),
    r#"
error: an absolute path would make the build depend on this host
 --> Smolfile:9:7
  |
9 | src = "/etc/passwd"
  |       ^^^^^^^^^^^^^
  |
  = help: name it relative to the folder of the Smolfile, and keep it inside
"#
);

mistake!(
    a_source_that_leads_out_of_the_folder,
    at_end(
        r#"[[copy]]
src = "a/../../b"
dest = "/b""#
    ),
    r#"
error: the path leads out of the folder of the Smolfile
 --> Smolfile:9:7
  |
9 | src = "a/../../b"
  |       ^^^^^^^^^^^
  |
  = help: name it relative to the folder of the Smolfile, and keep it inside
"#
);

mistake!(
    a_copy_without_a_source_and_a_destination,
    at_end("[[copy]]"),
    r#"
error: `src` is missing in [[copy]]
 --> Smolfile:8:1
  |
8 | [[copy]]
  | ^^^^^^^^
  |
  = help: write `src = "app.conf"`

error: `dest` is missing in [[copy]]
 --> Smolfile:8:1
  |
8 | [[copy]]
  | ^^^^^^^^
  |
  = help: write `dest = "/etc/app.conf"`
"#
);

mistake!(
    a_destination_that_is_relative,
    at_end(
        r#"[[copy]]
src = "a"
dest = "etc/a""#
    ),
    r#"
error: a path in the guest must be absolute
  --> Smolfile:10:8
   |
10 | dest = "etc/a"
   |        ^^^^^^^
   |
   = help: write "/etc/a"
"#
);

mistake!(
    a_destination_that_climbs,
    at_end(
        r#"[[copy]]
src = "a"
dest = "/etc/../a""#
    ),
    r#"
error: a path in the guest must not hold `.` or `..`
  --> Smolfile:10:8
   |
10 | dest = "/etc/../a"
   |        ^^^^^^^^^^^
"#
);

mistake!(
    a_mode_in_decimal,
    at_end(
        r#"[[copy]]
src = "a"
dest = "/a"
mode = 755"#
    ),
    r#"
error: a file mode is an octal number
  --> Smolfile:11:8
   |
11 | mode = 755
   |        ^^^
   |
   = help: write `0o755` or "755"
"#
);

mistake!(
    a_mode_that_is_too_large,
    at_end(
        r#"[[copy]]
src = "a"
dest = "/a"
mode = 0o10000"#
    ),
    r#"
error: `mode` is out of range
  --> Smolfile:11:8
   |
11 | mode = 0o10000
   |        ^^^^^^^ must be 0o0 to 0o7777
"#
);

mistake!(
    a_mode_that_is_not_octal,
    at_end(
        r#"[[copy]]
src = "a"
dest = "/a"
mode = "rwx""#
    ),
    r#"
error: not a file mode
  --> Smolfile:11:8
   |
11 | mode = "rwx"
   |        ^^^^^
   |
   = help: write three or four octal digits, such as "0755"
"#
);

mistake!(
    an_owner_that_is_no_user,
    at_end(
        r#"[[copy]]
src = "a"
dest = "/a"
owner = "www data""#
    ),
    r#"
error: not a user
  --> Smolfile:11:9
   |
11 | owner = "www data"
   |         ^^^^^^^^^^
   |
   = help: write a name or number, and a group after a colon if need be: "redis", "1000", "www-data:www-data"
"#
);

mistake!(
    a_service_without_a_command,
    with(r#"cmd = ["app"]"#, r#"user = "app""#),
    r#"
error: `cmd` is missing in [service]
 --> Smolfile:4:1
  |
4 | [service]
  | ^^^^^^^^^
  |
  = help: write `cmd = ["program", "argument"]`
"#
);

mistake!(
    an_empty_command,
    with(r#"["app"]"#, "[]"),
    r#"
error: `cmd` is an empty command
 --> Smolfile:5:7
  |
5 | cmd = []
  |       ^^
  |
  = help: write the program and its arguments, such as ["program", "argument"]
"#
);

mistake!(
    an_empty_program,
    with(r#"["app"]"#, r#"["", "x"]"#),
    r#"
error: `cmd` is an empty command
 --> Smolfile:5:7
  |
5 | cmd = ["", "x"]
  |       ^^^^^^^^^
  |
  = help: write the program and its arguments, such as ["program", "argument"]
"#
);

mistake!(
    a_blank_command_line,
    with(r#"["app"]"#, r#""  ""#),
    r#"
error: `cmd` is an empty command
 --> Smolfile:5:7
  |
5 | cmd = "  "
  |       ^^^^
  |
  = help: write the program and its arguments, such as ["program", "argument"]
"#
);

mistake!(
    a_command_with_a_number,
    with(r#"["app"]"#, r#"["app", 80]"#),
    r#"
error: expected a string, found an integer
 --> Smolfile:5:15
  |
5 | cmd = ["app", 80]
  |               ^^
  |
  = help: write "80" in quotes
"#
);

mistake!(
    a_command_with_a_nul,
    with(r#"["app"]"#, r#"["app\u0000"]"#),
    r#"
error: a NUL character cannot be used here
 --> Smolfile:5:8
  |
5 | cmd = ["app\u0000"]
  |        ^^^^^^^^^^^
"#
);

mistake!(
    a_command_that_is_neither_list_nor_string,
    with(r#"["app"]"#, "true"),
    r#"
error: expected a command: a list of strings, or a string for /bin/sh, found a boolean
 --> Smolfile:5:7
  |
5 | cmd = true
  |       ^^^^
"#
);

mistake!(
    a_user_that_is_none,
    service(r#"user = "app:""#),
    r#"
error: not a user
 --> Smolfile:6:8
  |
6 | user = "app:"
  |        ^^^^^^
  |
  = help: write a name or number, and a group after a colon if need be: "redis", "1000", "www-data:www-data"
"#
);

mistake!(
    a_user_with_the_number_of_nobody_asked,
    service(r#"user = "4294967295""#),
    r#"
error: not a user
 --> Smolfile:6:8
  |
6 | user = "4294967295"
  |        ^^^^^^^^^^^^
  |
  = help: write a name or number, and a group after a colon if need be: "redis", "1000", "www-data:www-data"
"#
);

mistake!(
    an_init_that_is_to_run_as_somebody,
    service("user = \"app:app\"\ninit = true"),
    r#"
error: an init runs as root
 --> Smolfile:6:8
  |
6 | user = "app:app"
  |        ^^^^^^^^^
  |
  = help: remove `user`: the units say which user each service has
"#
);

mistake!(
    a_working_directory_that_is_relative,
    service(r#"workdir = "srv""#),
    r#"
error: a path in the guest must be absolute
 --> Smolfile:6:11
  |
6 | workdir = "srv"
  |           ^^^^^
  |
  = help: write "/srv"
"#
);

mistake!(
    a_variable_that_is_no_string,
    service("env = { PORT = 80, DEBUG = true }"),
    r#"
error: expected a string, found an integer
 --> Smolfile:6:16
  |
6 | env = { PORT = 80, DEBUG = true }
  |                ^^
  |
  = help: write "80" in quotes

error: expected a string, found a boolean
 --> Smolfile:6:28
  |
6 | env = { PORT = 80, DEBUG = true }
  |                            ^^^^
  |
  = help: write "true" in quotes
"#
);

mistake!(
    a_variable_with_a_bad_name,
    service(r#"env = { "A=B" = "c" }"#),
    r#"
error: not the name of an environment variable
 --> Smolfile:6:9
  |
6 | env = { "A=B" = "c" }
  |         ^^^^^
  |
  = help: use letters, digits and `_`
"#
);

mistake!(
    a_warm_command_without_a_command,
    at_end(
        r#"[[warm]]
timeout = "5s""#
    ),
    r#"
error: `cmd` is missing in [[warm]]
 --> Smolfile:8:1
  |
8 | [[warm]]
  | ^^^^^^^^
  |
  = help: write `cmd = ["program", "argument"]`
"#
);

mistake!(
    a_warm_timeout_of_nothing,
    at_end(
        r#"[[warm]]
cmd = ["a"]
timeout = "0s""#
    ),
    r#"
error: `timeout` is out of range
  --> Smolfile:10:11
   |
10 | timeout = "0s"
   |           ^^^^ must be 1ms to 1h
"#
);
