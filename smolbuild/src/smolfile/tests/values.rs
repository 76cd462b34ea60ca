//! Mistakes in the values at the top and of `[kernel]` and `[rootfs]`.

use super::*;

mistake!(
    a_name_with_capitals,
    with(
        r#""app"
[rootfs]"#,
        r#""App"
[rootfs]"#
    ),
    r#"
error: not a valid name
 --> Smolfile:1:8
  |
1 | name = "App"
  |        ^^^^^
  |
  = help: use lower-case letters, digits, `.`, `_` and `-`; begin with a letter or digit
"#
);

mistake!(
    a_level_of_the_cpu_that_no_machine_has,
    with(
        r#"[rootfs]"#,
        r#"cpu = "haswell"
[rootfs]"#
    ),
    r#"
error: not a level of the CPU
 --> Smolfile:2:7
  |
2 | cpu = "haswell"
  |       ^^^^^^^^^ must be "x86-64-v2" or "x86-64-v3"
"#
);

mistake!(
    avx_512_is_told_why_it_is_missing,
    with(
        r#"[rootfs]"#,
        r#"cpu = "x86-64-v4"
[rootfs]"#
    ),
    r#"
error: not a level of the CPU
 --> Smolfile:2:7
  |
2 | cpu = "x86-64-v4"
  |       ^^^^^^^^^^^ must be "x86-64-v2" or "x86-64-v3"
  |
  = help: AVX-512 is on few laptops: a bundle with it would boot cold on most
"#
);

mistake!(
    a_name_that_is_too_long,
    with(
        r#""app"
[rootfs]"#,
        r#""aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[rootfs]"#
    ),
    r#"
error: the name is longer than 63 characters
 --> Smolfile:1:8
  |
1 | name = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"#
);

mistake!(
    a_name_that_is_no_string,
    with(
        r#""app"
[rootfs]"#,
        "7
[rootfs]"
    ),
    r#"
error: expected a string, found an integer
 --> Smolfile:1:8
  |
1 | name = 7
  |        ^
  |
  = help: write "7" in quotes
"#
);

mistake!(
    a_version_with_white_space,
    top(r#"version = "1.0 beta""#),
    r#"
error: a version is one word without white space
 --> Smolfile:2:11
  |
2 | version = "1.0 beta"
  |           ^^^^^^^^^^
"#
);

mistake!(
    no_cpus,
    top("cpus = 0"),
    r#"
error: `cpus` is out of range
 --> Smolfile:2:8
  |
2 | cpus = 0
  |        ^ must be 1 to 8
"#
);

mistake!(
    too_many_cpus,
    top("cpus = 9"),
    r#"
error: `cpus` is out of range
 --> Smolfile:2:8
  |
2 | cpus = 9
  |        ^ must be 1 to 8
"#
);

mistake!(
    cpus_in_quotes,
    top(r#"cpus = "2""#),
    r#"
error: expected an integer, found a string
 --> Smolfile:2:8
  |
2 | cpus = "2"
  |        ^^^
  |
  = help: write 2 without quotes
"#
);

mistake!(
    cpus_with_a_fraction,
    top("cpus = 1.5"),
    r#"
error: expected an integer, found a float
 --> Smolfile:2:8
  |
2 | cpus = 1.5
  |        ^^^
"#
);

mistake!(
    too_little_memory,
    top(r#"memory = "32MiB""#),
    r#"
error: `memory` is out of range
 --> Smolfile:2:10
  |
2 | memory = "32MiB"
  |          ^^^^^^^ must be 64MiB to 64GiB
"#
);

mistake!(
    too_much_memory,
    top(r#"memory = "65GiB""#),
    r#"
error: `memory` is out of range
 --> Smolfile:2:10
  |
2 | memory = "65GiB"
  |          ^^^^^^^ must be 64MiB to 64GiB
"#
);

mistake!(
    more_memory_than_a_number_holds,
    top(r#"memory = "99999999999GiB""#),
    r#"
error: the size is too large
 --> Smolfile:2:10
  |
2 | memory = "99999999999GiB"
  |          ^^^^^^^^^^^^^^^^
"#
);

mistake!(
    memory_that_is_no_multiple_of_a_mebibyte,
    top(r#"memory = "65537KiB""#),
    r#"
error: `memory` must be a multiple of 1 MiB
 --> Smolfile:2:10
  |
2 | memory = "65537KiB"
  |          ^^^^^^^^^^
"#
);

mistake!(
    memory_without_a_unit,
    top(r#"memory = "256""#),
    r#"
error: not a size
 --> Smolfile:2:10
  |
2 | memory = "256"
  |          ^^^^^
  |
  = help: write a whole number with KiB, MiB or GiB, such as "256MiB"
"#
);

mistake!(
    a_negative_memory,
    top("memory = -1"),
    r#"
error: `memory` is out of range
 --> Smolfile:2:10
  |
2 | memory = -1
  |          ^^ must be 64MiB to 64GiB
"#
);

mistake!(
    port_zero,
    top("ports = [0]"),
    r#"
error: `port` is out of range
 --> Smolfile:2:10
  |
2 | ports = [0]
  |          ^ must be 1 to 65535
"#
);

mistake!(
    a_port_that_is_too_large,
    top("ports = [65536]"),
    r#"
error: `port` is out of range
 --> Smolfile:2:10
  |
2 | ports = [65536]
  |          ^^^^^ must be 1 to 65535
"#
);

mistake!(
    a_duplicate_port,
    top("ports = [80, 443, 80]"),
    r#"
error: port 80 is listed twice
 --> Smolfile:2:19
  |
2 | ports = [80, 443, 80]
  |          --       ^^
  |          |
  |          first here
"#
);

mistake!(
    a_port_of_the_host,
    top(r#"ports = ["8080:80"]"#),
    r#"
error: a port of the service alone is wanted here
 --> Smolfile:2:10
  |
2 | ports = ["8080:80"]
  |          ^^^^^^^^^
  |
  = help: write 80; the port of the host is chosen when the machine runs: smolrun -p 8080:80
"#
);

mistake!(
    a_port_in_quotes,
    top(r#"ports = ["80"]"#),
    r#"
error: expected an integer, found a string
 --> Smolfile:2:10
  |
2 | ports = ["80"]
  |          ^^^^
  |
  = help: write 80 without quotes
"#
);

mistake!(
    ports_that_are_no_list,
    top("ports = 80"),
    r#"
error: expected a list of ports, such as [8080], found an integer
 --> Smolfile:2:9
  |
2 | ports = 80
  |         ^^
"#
);

mistake!(
    a_kernel_path_that_is_absolute,
    at_end(
        r#"[kernel]
path = "/boot/vmlinux""#
    ),
    r#"
error: an absolute path would make the build depend on this host
 --> Smolfile:9:8
  |
9 | path = "/boot/vmlinux"
  |        ^^^^^^^^^^^^^^^
  |
  = help: name it relative to the folder of the Smolfile, and keep it inside
"#
);

mistake!(
    a_recipe_that_is_no_name,
    at_end(
        r#"[kernel]
recipe = "../smol""#
    ),
    r#"
error: not a valid name
 --> Smolfile:9:10
  |
9 | recipe = "../smol"
  |          ^^^^^^^^^
  |
  = help: use lower-case letters, digits, `.`, `_` and `-`; begin with a letter or digit
"#
);

mistake!(
    a_command_line_that_takes_over_what_smol_sets,
    at_end(
        r#"[kernel]
cmdline = "quiet init=/bin/sh""#
    ),
    r#"
error: `init` is set by smol
 --> Smolfile:9:11
  |
9 | cmdline = "quiet init=/bin/sh"
  |           ^^^^^^^^^^^^^^^^^^^^
  |
  = help: remove `init=/bin/sh`
"#
);

mistake!(
    a_command_line_of_two_lines,
    at_end(
        r#"[kernel]
cmdline = "a\nb""#
    ),
    r#"
error: a kernel command line is printable ASCII on one line
 --> Smolfile:9:11
  |
9 | cmdline = "a\nb"
  |           ^^^^^^
"#
);

mistake!(
    debian_without_a_suite,
    rootfs(r#"debian = { packages = ["redis"] }"#),
    r#"
error: `suite` is missing in `debian` of [rootfs]
 --> Smolfile:3:10
  |
3 | debian = { packages = ["redis"] }
  |          ^^^^^^^^^^^^^^^^^^^^^^^^
  |
  = help: write `suite = "bookworm"`
"#
);

mistake!(
    a_suite_that_is_no_name,
    rootfs(r#"debian = { suite = "Debian 12" }"#),
    r#"
error: not the name of a Debian release
 --> Smolfile:3:20
  |
3 | debian = { suite = "Debian 12" }
  |                    ^^^^^^^^^^^
  |
  = help: write its code name, such as "bookworm"
"#
);

mistake!(
    two_packages_in_one_string,
    rootfs(r#"debian = { suite = "bookworm", packages = ["redis curl"] }"#),
    r#"
error: not the name of a Debian package
 --> Smolfile:3:44
  |
3 | debian = { suite = "bookworm", packages = ["redis curl"] }
  |                                            ^^^^^^^^^^^^
  |
  = help: write one package to a string: lower-case letters, digits, `+`, `-` and `.`
"#
);

mistake!(
    a_duplicate_package,
    rootfs(r#"debian = { suite = "bookworm", packages = ["redis", "redis"] }"#),
    r#"
error: package `redis` is listed twice
 --> Smolfile:3:53
  |
3 | debian = { suite = "bookworm", packages = ["redis", "redis"] }
  |                                            -------  ^^^^^^^
  |                                            |
  |                                            first here
"#
);

mistake!(
    debian_that_is_no_table,
    rootfs(r#"debian = "bookworm""#),
    r#"
error: expected a table: `debian` of [rootfs], found a string
 --> Smolfile:3:10
  |
3 | debian = "bookworm"
  |          ^^^^^^^^^^
"#
);

mistake!(
    a_slim_archive,
    rootfs("tar = \"root.tar\"\nslim = true"),
    r#"
error: `slim` is for `debian` alone
 --> Smolfile:4:1
  |
4 | slim = true
  | ^^^^
  |
  = help: remove it: an archive or a folder is taken as it is
"#
);

mistake!(
    a_folder_without_packages,
    rootfs("dir = \"root\"\nwithout = [\"perl\"]"),
    r#"
error: `without` is for `debian` alone
 --> Smolfile:4:1
  |
4 | without = ["perl"]
  | ^^^^^^^
  |
  = help: remove it: an archive or a folder is taken as it is
"#
);

mistake!(
    packages_to_leave_out_of_a_whole_system,
    rootfs("debian.suite = \"bookworm\"\nwithout = [\"perl\"]"),
    r#"
error: `without` is for a slim system alone
 --> Smolfile:4:1
  |
4 | without = ["perl"]
  | ^^^^^^^
  |
  = help: write `slim = true`, too
"#
);

mistake!(
    a_package_that_is_asked_for_and_left_out,
    rootfs(
        r#"debian = { suite = "bookworm", packages = ["perl"] }
slim = true
without = ["perl"]"#
    ),
    r#"
error: package `perl` cannot be left out
 --> Smolfile:5:12
  |
5 | without = ["perl"]
  |            ^^^^^^
  |
  = help: it is among the `packages` of `debian`: remove it in one of the two
"#
);

mistake!(
    slim_that_is_no_boolean,
    rootfs("debian.suite = \"bookworm\"\nslim = \"yes\""),
    r#"
error: expected true or false, found a string
 --> Smolfile:4:8
  |
4 | slim = "yes"
  |        ^^^^^
"#
);
