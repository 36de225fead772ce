//! What a container writes, shown while it does; its input; and its terminal.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use common::{Lab, chain, eventually, first_line, output, read_until};
use rswarm_runtime::{AttachEnd, Container, CreateRequest, TerminalSize};

fn text_of(end: OwnedFd) -> String {
    let mut text = String::new();
    File::from(end).read_to_string(&mut text).unwrap();
    text
}

fn with_input(mut request: CreateRequest) -> CreateRequest {
    request.stdin = true;
    request
}

fn with_terminal(mut request: CreateRequest) -> CreateRequest {
    request.spec.process_mut().as_mut().unwrap().set_terminal(Some(true));
    request
}

fn write(to: Option<&OwnedFd>, text: &str) {
    assert_eq!(rustix::io::write(to.unwrap(), text.as_bytes()).unwrap(), text.len());
}

fn create(lab: &Lab, request: &CreateRequest) -> Container {
    lab.containers.create(request).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[test]
fn several_clients_see_both_streams_and_the_end_and_the_log_has_it_all() {
    let Some(lab) = Lab::new() else { return };
    let script = "echo first; read a; echo $a; echo oops >&2; read b; exit $b";
    let container = create(&lab, &with_input(lab.script("one", script)));
    let early = container.attach().unwrap();
    container.start().unwrap();
    assert_eq!(first_line(&early.stdout), "first");
    let (late, left) = (container.attach().unwrap(), container.attach().unwrap());
    drop(left);
    write(late.stdin.as_ref(), "from late\n");
    assert_eq!(
        (first_line(&early.stdout), first_line(&late.stdout)),
        ("from late".into(), "from late".into())
    );
    // One that goes does not end the input of the others.
    let stdin = early.stdin.as_ref().unwrap().try_clone().unwrap();
    drop(early);
    write(Some(&stdin), "5\n");
    let AttachEnd::Exited(status) = late.wait().unwrap() else { panic!("it was too slow") };
    assert_eq!(status.code, Some(5));
    assert_eq!(text_of(late.stdout), "");
    assert_eq!(text_of(late.stderr.unwrap()), "oops\n");
    assert_eq!(output(&container), "first\nfrom late\noops\n");
    let error = container.attach().unwrap_err();
    assert_eq!(chain(&error), "container `one` is exited, expected created or running");
}

#[test]
fn without_input_there_is_none() {
    let Some(lab) = Lab::new() else { return };
    let container = create(&lab, &lab.script("one", "cat; echo end"));
    let attached = container.attach().unwrap();
    assert!(attached.stdin.is_none());
    container.start().unwrap();
    assert_eq!(text_of(attached.stdout), "end\n");
}

#[test]
fn a_client_that_does_not_read_is_told_and_nobody_waits_for_it() {
    let Some(lab) = Lab::new() else { return };
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do read line; yes | head -c 100000; done; echo end";
    let container = create(&lab, &with_input(lab.script("one", script)));
    let (slow, quick) = (container.attach().unwrap(), container.attach().unwrap());
    container.start().unwrap();
    let mut seen = Vec::new();
    for _ in 0..10 {
        // It writes no more than the quick one can take, however late that is.
        write(quick.stdin.as_ref(), "go on\n");
        let mut part = vec![0; 100_000];
        File::from(quick.stdout.try_clone().unwrap()).read_exact(&mut part).unwrap();
        seen.extend(part);
    }
    let seen = String::from_utf8(seen).unwrap() + &text_of(quick.stdout.try_clone().unwrap());
    assert!(seen.ends_with("\nend\n"), "{} bytes", seen.len());
    assert!(matches!(quick.wait().unwrap(), AttachEnd::Exited(status) if status.code == Some(0)));
    assert_eq!(slow.wait().unwrap(), AttachEnd::Lagging);
    // What was shown until then is whole from its beginning.
    let seen_by_slow = text_of(slow.stdout);
    assert!((100_000..1_000_000).contains(&seen_by_slow.len()), "{} bytes", seen_by_slow.len());
    assert!(seen.starts_with(&seen_by_slow));
    assert_eq!(output(&container), seen);
}

#[test]
fn a_terminal_is_logged_read_written_and_resized() {
    let Some(lab) = Lab::new() else { return };
    // Not `read` while the signal may come: if it does just before the shell waits, the trap waits for a line.
    let script = "trap 'stty size; resized=1' WINCH; tty; ls -l /dev/console | cut -c1; echo ready; \
                  until [ $resized ]; do sleep 0.01; done; read line; echo got $line; exit 4";
    let container = create(&lab, &with_terminal(lab.script("one", script)));
    let attached = container.attach().unwrap();
    assert!(attached.stderr.is_none());
    container.start().unwrap();
    assert_eq!(read_until(&attached.stdout, "ready\r\n"), "/dev/pts/0\r\nc\r\nready\r\n");
    attached.resize(TerminalSize { columns: 70, rows: 20 }).unwrap();
    assert_eq!(read_until(&attached.stdout, "\n"), "20 70\r\n");
    write(attached.stdin.as_ref(), "word\n");
    assert!(matches!(attached.wait().unwrap(), AttachEnd::Exited(status) if status.code == Some(4)));
    assert_eq!(text_of(attached.stdout), "word\r\ngot word\r\n");
    assert_eq!(
        output(&container),
        "/dev/pts/0\r\nc\r\nready\r\n20 70\r\nword\r\ngot word\r\n",
        "lines end as the terminal ends them"
    );
}

#[test]
fn nobody_has_to_read_a_terminal() {
    let Some(lab) = Lab::new() else { return };
    let (code, text) = lab.run(&with_terminal(lab.script("one", "yes | head -c 200000; echo; echo end")));
    assert_eq!(code, 0);
    assert_eq!(text.len(), 300_000 + "\r\nend\r\n".len());
    assert!(text.ends_with("y\r\n\r\nend\r\n"));
}

/// Its program may close the terminal and still run; the shim must neither spin nor think that it has ended.
#[test]
fn a_terminal_that_nobody_has_open_is_not_the_end() {
    let Some(lab) = Lab::new() else { return };
    let script = "echo before; exec </dev/null >/tmp/said 2>&1; echo $$; exec sleep 1000";
    let container = create(&lab, &with_terminal(lab.script("one", script)));
    container.start().unwrap();
    let said = lab.directory.path().join("layers/one/upper/tmp/said");
    eventually("it has said where it is", || std::fs::read_to_string(&said).is_ok_and(|text| text == "1\n"));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", container.pid().unwrap())).unwrap();
    let shim = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned();
    eventually("the shim sleeps", || {
        let stat = std::fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.trim_start().starts_with('S')
    });
    container.kill(libc::SIGKILL, false).unwrap();
    assert_eq!(container.wait().unwrap().signal, Some(libc::SIGKILL));
    assert_eq!(output(&container), "before\r\n");
}
