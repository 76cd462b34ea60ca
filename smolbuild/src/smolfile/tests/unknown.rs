//! Keys that do not exist, or not here, or that another tool has.

use super::*;

mistake!(
    an_unknown_key_that_is_nearly_right,
    top(r#"memroy = "64MiB""#),
    r#"
error: unknown key `memroy`
 --> Smolfile:2:1
  |
2 | memroy = "64MiB"
  | ^^^^^^ not a key of a Smolfile
  |
  = help: did you mean `memory`?
"#
);

mistake!(
    an_unknown_key_that_stands_in_another_table,
    top(r#"timeout = "1s""#),
    r#"
error: unknown key `timeout`
 --> Smolfile:2:1
  |
2 | timeout = "1s"
  | ^^^^^^^ not a key of a Smolfile
  |
  = help: `timeout` stands in [[run]] or in [ready] or in [[warm]] or in [[restore]] or in [[warm_restore]]
"#
);

mistake!(
    a_top_level_key_below_a_table,
    service(r#"memory = "64MiB""#),
    r#"
error: unknown key `memory`
 --> Smolfile:6:1
  |
6 | memory = "64MiB"
  | ^^^^^^ not a key of [service]
  |
  = help: `memory` stands at the top of the file, before any [table] or in [[run]]
"#
);

mistake!(
    an_unknown_key_like_no_other,
    at_end(
        r#"[snapshot]
colour = "red""#
    ),
    r#"
error: unknown key `colour`
 --> Smolfile:9:1
  |
9 | colour = "red"
  | ^^^^^^ not a key of [snapshot]
  |
  = help: [snapshot] has the keys drop_caches
"#
);

mistake!(
    an_unknown_table,
    at_end(
        r#"[services]
cmd = ["b"]"#
    ),
    r#"
error: unknown key `services`
 --> Smolfile:8:2
  |
8 | [services]
  |  ^^^^^^^^ not a key of a Smolfile
  |
  = help: did you mean `service`?
"#
);

mistake!(
    an_unknown_key_with_a_control_character,
    top(r#""a\u001bb" = 1"#),
    r#"
error: unknown key `a\u{1b}b`
 --> Smolfile:2:1
  |
2 | "a\u001bb" = 1
  | ^^^^^^^^^^ not a key of a Smolfile
  |
  = help: a Smolfile has the keys name, version, cpus, cpu, memory, ports, kernel, rootfs, base, copy, fetch, run, service, ready, warm, restore, warm_restore, snapshot
"#
);

mistake!(
    a_container_image,
    top(r#"image = "redis:7""#),
    r#"
error: `image` is not supported
 --> Smolfile:2:1
  |
2 | image = "redis:7"
  | ^^^^^
  |
  = help: write the image into [rootfs]: image = "docker.io/library/nginx:1.27"; commands of a Dockerfile are [[run]] (`smolbuild init --from Dockerfile`); what it builds comes from a registry, or from an archive of `docker save`: image = "docker-archive:app.tar"
"#
);

mistake!(
    an_entrypoint,
    top(r#"entrypoint = ["/bin/app"]"#),
    r#"
error: `entrypoint` is not supported
 --> Smolfile:2:1
  |
2 | entrypoint = ["/bin/app"]
  | ^^^^^^^^^^
  |
  = help: write the whole command as `cmd` in [service]
"#
);

mistake!(
    a_command_at_the_top,
    top(r#"cmd = ["app"]"#),
    r#"
error: unknown key `cmd`
 --> Smolfile:2:1
  |
2 | cmd = ["app"]
  | ^^^ not a key of a Smolfile
  |
  = help: `cmd` stands in [[run]] or in [service] or in [[warm]] or in [[restore]]
"#
);

mistake!(
    init_commands,
    top(r#"init = ["apt-get update"]"#),
    r#"
error: `init` is not supported
 --> Smolfile:2:1
  |
2 | init = ["apt-get update"]
  | ^^^^
  |
  = help: write commands that change files as [[run]], and those that need the running service as [[warm]]: they run once, after ready and before the snapshot
"#
);

mistake!(
    a_network,
    at_end(
        r#"[network]
allow_hosts = ["example.org"]"#
    ),
    r#"
error: `network` is not supported
 --> Smolfile:8:2
  |
8 | [network]
  |  ^^^^^^^
  |
  = help: commands of the build have a network if their [[run]] says so, by its own `network`; running machines have none of their own yet: `smolrun -p` forwards the `ports` to the service
"#
);

mistake!(
    a_health_check,
    at_end(
        r#"[health]
exec = ["true"]"#
    ),
    r#"
error: `health` is not supported
 --> Smolfile:8:2
  |
8 | [health]
  |  ^^^^^^
  |
  = help: write the check as [ready]: it decides when the snapshot is taken
"#
);

mistake!(
    secrets,
    at_end(
        r#"[secrets]
TOKEN = "x""#
    ),
    r#"
error: `secrets` is not supported
 --> Smolfile:8:2
  |
8 | [secrets]
  |  ^^^^^^^
  |
  = help: secrets are not supported yet; do not put them into [service] `env`, for a snapshot holds all memory
"#
);

mistake!(
    volumes,
    top(r#"volumes = ["./a:/b"]"#),
    r#"
error: `volumes` is not supported
 --> Smolfile:2:1
  |
2 | volumes = ["./a:/b"]
  | ^^^^^^^
  |
  = help: put the files into the machine with [[copy]]
"#
);
