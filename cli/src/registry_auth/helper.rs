//! Credential helpers: programs `docker-credential-<name>` that keep secrets, asked by `get`, `store` and `erase`.
//!
//! Source: `docker/docker-credential-helpers`, README, "Development".

use std::io::Write as _;
use std::process::{Command, Stdio};

use rswarm_api::v1;
use serde_json::{Value, json};

use super::AuthError;

/// The user name under which helpers keep identity tokens.
const TOKEN_USER: &str = "<token>";

/// The credential of `key`; `None` if the helper has none.
pub fn get(program: &str, key: &str) -> Result<Option<v1::RegistryAuth>, AuthError> {
    let answer = match run(program, "get", key)? {
        Ok(answer) => answer,
        // The words are part of the protocol.
        Err(reason) if reason.contains("credentials not found") => return Ok(None),
        Err(reason) => return Err(failed(program, "get", reason)),
    };
    let answer: Value = serde_json::from_str(&answer)
        .map_err(|error| failed(program, "get", format!("its answer is not valid: {error}")))?;
    let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (username, secret) = (text("Username"), text("Secret"));
    if secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(if username == TOKEN_USER {
        v1::RegistryAuth { identity_token: secret, ..Default::default() }
    } else {
        v1::RegistryAuth { username, password: secret, ..Default::default() }
    }))
}

pub fn store(program: &str, key: &str, auth: &v1::RegistryAuth) -> Result<(), AuthError> {
    let (username, secret) = if auth.identity_token.is_empty() {
        (auth.username.as_str(), auth.password.as_str())
    } else {
        (TOKEN_USER, auth.identity_token.as_str())
    };
    let entry = json!({ "ServerURL": key, "Username": username, "Secret": secret }).to_string();
    run(program, "store", &entry)?.map(drop).map_err(|reason| failed(program, "store", reason))
}

pub fn erase(program: &str, key: &str) -> Result<(), AuthError> {
    match run(program, "erase", key)? {
        Err(reason) if !reason.contains("credentials not found") => Err(failed(program, "erase", reason)),
        _ => Ok(()),
    }
}

fn failed(program: &str, action: &'static str, reason: String) -> AuthError {
    AuthError::HelperFailed { program: program.to_owned(), action, reason }
}

/// Runs the helper; the inner error is what it said as it failed.
fn run(program: &str, action: &'static str, input: &str) -> Result<Result<String, String>, AuthError> {
    let missing = |source| AuthError::HelperMissing { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says why by its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(Ok(text(&output.stdout)));
    }
    // Helpers say what is wrong on standard output; those that crash, on standard error.
    let said = [text(&output.stdout), text(&output.stderr)].into_iter().find(|text| !text.is_empty());
    Ok(Err(said.unwrap_or_else(|| output.status.to_string())))
}
