//! Real containers on the real kernel: needs root and a static busybox.

mod common;

use common::{Lab, chain};

#[test]
fn exit_code_and_output_come_back() {
    let Some(lab) = Lab::new() else { return };
    let request = lab.script("one", "echo hello; echo oops >&2; exit 7");
    let (code, text) = lab.run(&request);
    assert_eq!(code, 7);
    assert!(text.contains("hello\n") && text.contains("oops\n"), "{text}");
}

#[test]
fn missing_program_is_an_error_of_create() {
    let Some(lab) = Lab::new() else { return };
    let error = lab.containers.create(&lab.request("one", &["/bin/nope"])).unwrap_err();
    assert_eq!(
        chain(&error),
        "failed to create container `one`: exec `/bin/nope`: no such file or directory"
    );
    assert!(lab.containers.list().unwrap().is_empty());
}
