//! Mistakes in the values of `[ready]` and `[snapshot]`.

use super::*;

mistake!(
    a_timeout_that_is_too_long,
    ready(
        r#"tcp = 80
timeout = "2h""#
    ),
    r#"
error: `timeout` is out of range
 --> Smolfile:8:11
  |
8 | timeout = "2h"
  |           ^^^^ must be 1ms to 1h
"#
);

mistake!(
    a_duration_without_a_unit,
    ready(
        "tcp = 80
timeout = 30"
    ),
    r#"
error: a duration needs a unit
 --> Smolfile:8:11
  |
8 | timeout = 30
  |           ^^
  |
  = help: write "30s" or "30ms"
"#
);

mistake!(
    a_duration_in_m,
    ready(
        r#"tcp = 80
timeout = "5m""#
    ),
    r#"
error: not a duration
 --> Smolfile:8:11
  |
8 | timeout = "5m"
  |           ^^^^
  |
  = help: write "5min" or "5ms"
"#
);

mistake!(
    a_duration_that_is_none,
    ready(
        r#"tcp = 80
interval = "soon""#
    ),
    r#"
error: not a duration
 --> Smolfile:8:12
  |
8 | interval = "soon"
  |            ^^^^^^
  |
  = help: write a whole number with ms, s, min or h, such as "30s"
"#
);

mistake!(
    no_successes,
    ready(
        "tcp = 80
successes = 0"
    ),
    r#"
error: `successes` is out of range
 --> Smolfile:8:13
  |
8 | successes = 0
  |             ^ must be 1 to 100
"#
);

mistake!(
    an_interval_between_events,
    ready(
        r#"log = "up"
interval = "1s""#
    ),
    r#"
error: `interval` has no meaning with `log`, which happens once
 --> Smolfile:8:1
  |
8 | interval = "1s"
  | ^^^^^^^^
  |
  = help: remove `interval`
"#
);

mistake!(
    a_pattern_that_is_no_regular_expression,
    ready(r#"log = "(up""#),
    r#"
error: not a valid regular expression
 --> Smolfile:7:7
  |
7 | log = "(up"
  |       ^^^^^ found open group without closing ')'
"#
);

mistake!(
    a_body_that_is_no_regular_expression,
    ready(r#"http = { port = 80, body = "[" }"#),
    r#"
error: not a valid regular expression
 --> Smolfile:7:28
  |
7 | http = { port = 80, body = "[" }
  |                            ^^^ found unclosed character class
"#
);

mistake!(
    http_without_a_port,
    ready(r#"http = { path = "/" }"#),
    r#"
error: `port` is missing in `http` of [ready]
 --> Smolfile:7:8
  |
7 | http = { path = "/" }
  |        ^^^^^^^^^^^^^^
  |
  = help: write `port = 8080`
"#
);

mistake!(
    an_http_path_with_a_space,
    ready(r#"http = { port = 80, path = "/a b" }"#),
    r#"
error: not the path of an HTTP request
 --> Smolfile:7:28
  |
7 | http = { port = 80, path = "/a b" }
  |                            ^^^^^^
  |
  = help: begin with `/`; write spaces and other special characters percent-encoded
"#
);

mistake!(
    a_status_that_does_not_exist,
    ready("http = { port = 80, status = [200, 99] }"),
    r#"
error: `status` is out of range
 --> Smolfile:7:36
  |
7 | http = { port = 80, status = [200, 99] }
  |                                    ^^ must be 100 to 599
"#
);

mistake!(
    no_status,
    ready("http = { port = 80, status = [] }"),
    r#"
error: `status` lists no code
 --> Smolfile:7:30
  |
7 | http = { port = 80, status = [] }
  |                              ^^
  |
  = help: write `status = 200`
"#
);

mistake!(
    a_probe_on_port_zero,
    ready("tcp = 0"),
    r#"
error: `port` is out of range
 --> Smolfile:7:7
  |
7 | tcp = 0
  |       ^ must be 1 to 65535
"#
);

mistake!(
    a_file_probe_with_a_relative_path,
    ready(r#"file = "run/ready""#),
    r#"
error: a path in the guest must be absolute
 --> Smolfile:7:8
  |
7 | file = "run/ready"
  |        ^^^^^^^^^^^
  |
  = help: write "/run/ready"
"#
);

mistake!(
    an_empty_exec_probe,
    ready("exec = []"),
    r#"
error: `exec` is an empty command
 --> Smolfile:7:8
  |
7 | exec = []
  |        ^^
  |
  = help: write the program and its arguments, such as ["program", "argument"]
"#
);

mistake!(
    notify_that_is_false,
    ready("notify = false"),
    r#"
error: `notify` can only be true
 --> Smolfile:7:1
  |
7 | notify = false
  | ^^^^^^
  |
  = help: name another probe, or write `notify = true`
"#
);

mistake!(
    drop_caches_that_is_no_boolean,
    at_end(
        r#"[snapshot]
drop_caches = "yes""#
    ),
    r#"
error: expected true or false, found a string
 --> Smolfile:9:15
  |
9 | drop_caches = "yes"
  |               ^^^^^
"#
);

mistake!(
    a_url_of_another_host,
    ready(r#"http = "http://example.org:80/""#),
    r#"
error: the request goes to the machine itself
 --> Smolfile:7:8
  |
7 | http = "http://example.org:80/"
  |        ^^^^^^^^^^^^^^^^^^^^^^^^
  |
  = help: write `http://:PORT/PATH`, such as "http://:8080/health"
"#
);

mistake!(
    a_url_with_tls,
    ready(r#"http = "https://:8443/""#),
    r#"
error: not an http URL
 --> Smolfile:7:8
  |
7 | http = "https://:8443/"
  |        ^^^^^^^^^^^^^^^^
  |
  = help: the guest asks without TLS: name a port that answers plain HTTP, or use `tcp` or `exec`
"#
);

mistake!(
    a_path_in_place_of_a_url,
    ready(r#"http = "/health""#),
    r#"
error: not an http URL
 --> Smolfile:7:8
  |
7 | http = "/health"
  |        ^^^^^^^^^
  |
  = help: write `http://:PORT/PATH`, such as "http://:8080/health"
"#
);

mistake!(
    a_url_whose_port_is_none,
    ready(r#"http = "http://:0/""#),
    r#"
error: the port is out of range
 --> Smolfile:7:8
  |
7 | http = "http://:0/"
  |        ^^^^^^^^^^^^ must be 1 to 65535
"#
);
