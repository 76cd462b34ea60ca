//! Mistakes in `[[warm_restore]]`.

use super::*;

fn request(lines: &str) -> String {
    at_end(&format!("[[warm_restore]]\n{lines}"))
}

mistake!(
    a_line_of_the_log_as_a_request,
    request(r#"log = "served""#),
    r#"
error: `log` cannot be a request: it asks the service nothing
 --> Smolfile:9:1
  |
9 | log = "served"
  | ^^^
  |
  = help: write one of exec, tcp, http
"#
);

mistake!(
    a_file_as_a_request,
    request(r#"file = "/run/served""#),
    r#"
error: `file` cannot be a request: it asks the service nothing
 --> Smolfile:9:1
  |
9 | file = "/run/served"
  | ^^^^
  |
  = help: write one of exec, tcp, http
"#
);

mistake!(
    a_notification_as_a_request,
    request(
        r#"notify = true
tcp = 80"#
    ),
    r#"
error: `notify` cannot be a request: it asks the service nothing
 --> Smolfile:9:1
  |
9 | notify = true
  | ^^^^^^
  |
  = help: write one of exec, tcp, http
"#
);

mistake!(
    a_request_that_asks_nothing,
    request(r#"timeout = "1s""#),
    r#"
error: [[warm_restore]] does not say what to ask
 --> Smolfile:8:1
  |
8 | [[warm_restore]]
  | ^^^^^^^^^^^^^^^^
  |
  = help: write exactly one of exec, tcp, http
"#
);

mistake!(
    two_requests_in_one,
    request(
        r#"tcp = 80
exec = ["ask"]"#
    ),
    r#"
error: `exec` and `tcp` cannot both be there
  --> Smolfile:10:1
   |
 9 | tcp = 80
   | --- the other one
10 | exec = ["ask"]
   | ^^^^
   |
   = help: write exactly one of exec, tcp, http
"#
);

mistake!(
    a_request_to_port_zero,
    request(r#"tcp = 0"#),
    r#"
error: `port` is out of range
 --> Smolfile:9:7
  |
9 | tcp = 0
  |       ^ must be 1 to 65535
"#
);

mistake!(
    a_request_by_an_empty_command,
    request(r#"exec = []"#),
    r#"
error: `exec` is an empty command
 --> Smolfile:9:8
  |
9 | exec = []
  |        ^^
  |
  = help: write the program and its arguments, such as ["program", "argument"]
"#
);

mistake!(
    an_http_request_without_a_port,
    request(r#"http = { path = "/" }"#),
    r#"
error: `port` is missing in `http` of [[warm_restore]]
 --> Smolfile:9:8
  |
9 | http = { path = "/" }
  |        ^^^^^^^^^^^^^^
  |
  = help: write `port = 8080`
"#
);

mistake!(
    an_http_request_with_a_bad_path,
    request(r#"http = { port = 80, path = "first" }"#),
    r#"
error: not the path of an HTTP request
 --> Smolfile:9:28
  |
9 | http = { port = 80, path = "first" }
  |                            ^^^^^^^
  |
  = help: begin with `/`; write spaces and other special characters percent-encoded
"#
);

mistake!(
    an_http_request_for_a_status_that_does_not_exist,
    request(r#"http = { port = 80, status = 600 }"#),
    r#"
error: `status` is out of range
 --> Smolfile:9:30
  |
9 | http = { port = 80, status = 600 }
  |                              ^^^ must be 100 to 599
"#
);

mistake!(
    an_http_request_for_a_body_that_is_no_pattern,
    request(r#"http = { port = 80, body = "(" }"#),
    r#"
error: not a valid regular expression
 --> Smolfile:9:28
  |
9 | http = { port = 80, body = "(" }
  |                            ^^^ found open group without closing ')'
"#
);

mistake!(
    an_http_request_with_an_unknown_key,
    request(r#"http = { port = 80, method = "POST" }"#),
    r#"
error: unknown key `method`
 --> Smolfile:9:21
  |
9 | http = { port = 80, method = "POST" }
  |                     ^^^^^^ not a key of `http` of [[warm_restore]]
  |
  = help: `http` of [[warm_restore]] has the keys port, path, status, body
"#
);

mistake!(
    a_request_that_may_take_no_time,
    request(
        r#"tcp = 80
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

mistake!(
    a_request_that_is_repeated,
    request(
        r#"tcp = 80
successes = 2"#
    ),
    r#"
error: unknown key `successes`
  --> Smolfile:10:1
   |
10 | successes = 2
   | ^^^^^^^^^ not a key of [[warm_restore]]
   |
   = help: `successes` stands in [ready]
"#
);

mistake!(
    a_command_instead_of_a_request,
    request(r#"cmd = ["ask"]"#),
    r#"
error: [[warm_restore]] does not say what to ask
 --> Smolfile:8:1
  |
8 | [[warm_restore]]
  | ^^^^^^^^^^^^^^^^
  |
  = help: write exactly one of exec, tcp, http

error: unknown key `cmd`
 --> Smolfile:9:1
  |
9 | cmd = ["ask"]
  | ^^^ not a key of [[warm_restore]]
  |
  = help: `cmd` stands in [[run]] or in [service] or in [[warm]] or in [[restore]]
"#
);

mistake!(
    requests_in_single_brackets,
    at_end("[warm_restore]\ntcp = 80"),
    r#"
error: expected an array of tables: [[warm_restore]], found a table
 --> Smolfile:8:1
  |
8 | [warm_restore]
  | ^^^^^^^^^^^^^^
  |
  = help: write `[[warm_restore]]` with two pairs of brackets
"#
);
