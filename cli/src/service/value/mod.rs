//! How the values of service flags are written: pure readers from text, for clap's value parsers.
//!
//! What is malformed says what was expected and what was found (clap puts the flag's name in front); what Docker has
//! and rswarm has not yet is refused by name. Source: swarm-parity 1.3, "Value syntaxes".

mod mount;
mod port;

use std::net::IpAddr;

use rswarm_types::kernel::ULIMITS;
use rswarm_types::quantity::{ParseQuantityError, format_bytes};
use rswarm_types::service::{FailureAction, ServiceMode};
use rswarm_types::task::{LOG_BUFFER_BYTES_MAX, Ulimit};

pub use mount::mount;
pub use port::{PortPattern, Ports, port_pattern, ports};

/// More tasks than this in one service is a slip of the keyboard.
pub const MAX_REPLICAS: u64 = 1_000_000;

/// Why a value is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("expected {expected}, found `{found}`")]
    Malformed { expected: String, found: String },
    #[error("{what} is not supported yet: expected {expected}")]
    Unsupported { what: String, expected: &'static str },
    #[error(transparent)]
    Quantity(#[from] ParseQuantityError),
}

impl ValueError {
    pub fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Malformed { expected: expected.into(), found: found.into() }
    }

    fn unsupported(what: impl Into<String>, expected: &'static str) -> Self {
        Self::Unsupported { what: what.into(), expected }
    }
}

type Parsed<T> = Result<T, ValueError>;

/// A switch's value as Go reads it: `--read-only=false`.
pub fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ValueError::new("true or false", text)),
    }
}

/// `key=value`; a key alone has an empty value.
pub fn label(text: &str) -> Parsed<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim().is_empty() {
        return Err(ValueError::new("key=value", text));
    }
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// `key=value`, where the value may be empty but not left out.
pub fn option(text: &str) -> Parsed<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(ValueError::new("key=value", text)),
    }
}

/// `KEY=value`, or `KEY` for the value of the client's own environment.
pub fn env(text: &str) -> Parsed<String> {
    if text.split('=').next().is_none_or(str::is_empty) {
        return Err(ValueError::new("KEY=value or KEY", text));
    }
    Ok(text.to_owned())
}

/// Comma-separated fields, of which any may stand in double quotes, a doubled quote being one. Source: RFC 4180.
pub fn csv(text: &str) -> Parsed<Vec<String>> {
    let error = || ValueError::new("comma-separated fields with balanced quotes", text);
    let (mut fields, mut field) = (Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    loop {
        if field.is_empty() && chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next().ok_or_else(error)? {
                    '"' if chars.next_if_eq(&'"').is_some() => field.push('"'),
                    '"' => break,
                    c => field.push(c),
                }
            }
            if chars.peek().is_some_and(|c| *c != ',') {
                return Err(error());
            }
        }
        match chars.next() {
            Some(',') => fields.push(std::mem::take(&mut field)),
            Some(c) => field.push(c),
            None => break,
        }
    }
    fields.push(field);
    Ok(fields)
}

/// Words of a command, as a shell would split them; newtyped because one flag holds them all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

/// Splits at blanks, honouring single quotes, double quotes and backslashes. Nothing is expanded.
pub fn words(text: &str) -> Parsed<Words> {
    let error = || ValueError::new("words with balanced quotes", text);
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(error)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(error)? {
                        '"' => break,
                        '\\' => match chars.next().ok_or_else(error)? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or_else(error)?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(Words(words))
}

/// `name:address` or `name=address`, as the line `address name` of `/etc/hosts`.
pub fn host(text: &str) -> Parsed<String> {
    let error = || ValueError::new("name:address, like db:10.0.0.7", text);
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(error)?;
    let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    let address: IpAddr = address.parse().map_err(|_| error())?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(error());
    }
    Ok(format!("{address} {name}"))
}

/// The address of a name server.
pub fn address(text: &str) -> Parsed<String> {
    let address: IpAddr = text.trim().parse().map_err(|_| ValueError::new("an IP address", text))?;
    Ok(address.to_string())
}

/// `name=soft[:hard]`; -1 is unlimited, and the hard limit is the soft one if left out.
pub fn ulimit(text: &str) -> Parsed<Ulimit> {
    let error = || ValueError::new("name=soft[:hard], like nofile=1024:2048", text);
    let (name, limits) = text.split_once('=').ok_or_else(error)?;
    let name = name.to_ascii_lowercase();
    if !ULIMITS.contains(&name.as_str()) {
        return Err(ValueError::new(format!("one of {}", ULIMITS.join(", ")), name));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= -1).ok_or_else(error);
    let (soft, hard) = (number(soft)?, number(hard)?);
    let size = |limit: i64| if limit == -1 { i64::MAX } else { limit };
    if size(soft) > size(hard) {
        return Err(ValueError::new("a soft limit that is not above the hard one", text));
    }
    Ok(Ulimit { name, soft, hard })
}

/// Empties a list of capabilities in an update.
pub const RESET: &str = "RESET";
/// Stands for every capability.
pub const ALL: &str = "ALL";

/// A capability in upper case with `CAP_` in front; `ALL` and `RESET` are left as they are.
pub fn capability(text: &str) -> Parsed<String> {
    let name = text.trim().to_ascii_uppercase();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(ValueError::new("a capability like NET_ADMIN", text));
    }
    let special = [ALL, RESET].contains(&name.as_str()) || name.starts_with("CAP_");
    Ok(if special { name } else { format!("CAP_{name}") })
}

/// `spread=node.labels.zone`: the label to spread over.
pub fn preference(text: &str) -> Parsed<String> {
    let error = || ValueError::new("spread=LABEL, like spread=node.labels.zone", text);
    let (strategy, label) = text.split_once('=').ok_or_else(error)?;
    if !strategy.trim().eq_ignore_ascii_case("spread") || label.trim().is_empty() {
        return Err(error());
    }
    Ok(label.trim().to_owned())
}

/// A network as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Name or id.
    pub network: String,
    pub aliases: Vec<String>,
}

/// `NAME`, or `name=NAME,alias=ALIAS…`.
pub fn attachment(text: &str) -> Parsed<Attachment> {
    if !text.contains('=') {
        if text.is_empty() {
            return Err(ValueError::new("the name or id of a network", text));
        }
        return Ok(Attachment { network: text.to_owned(), aliases: Vec::new() });
    }
    const EXPECTED: &str = "name= and alias= only";
    let mut found = Attachment { network: String::new(), aliases: Vec::new() };
    for field in csv(text)? {
        let (key, value) = field.split_once('=').ok_or_else(|| ValueError::new("key=value", &field))?;
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "name" => value.clone_into(&mut found.network),
            "alias" => found.aliases.push(value.to_owned()),
            key @ ("driver-opt" | "ip" | "ip6" | "mac-address" | "link-local-ip" | "gw-priority") => {
                return Err(ValueError::unsupported(format!("`{key}`"), EXPECTED));
            }
            key => return Err(ValueError::new(EXPECTED, key)),
        }
    }
    if found.network.is_empty() {
        return Err(ValueError::new("name=NETWORK", text));
    }
    Ok(found)
}

/// What `--mode` takes.
pub fn mode(text: &str) -> Parsed<ServiceMode> {
    const EXPECTED: &str = "replicated or global";
    match text {
        "replicated" => Ok(ServiceMode::Replicated { replicas: 1 }),
        "global" => Ok(ServiceMode::Global),
        "replicated-job" | "global-job" => Err(ValueError::unsupported(format!("mode `{text}`"), EXPECTED)),
        _ => Err(ValueError::new(EXPECTED, text)),
    }
}

/// What is done when a rollback fails: it cannot roll back in turn.
pub fn rollback_failure_action(text: &str) -> Parsed<FailureAction> {
    match text {
        "pause" => Ok(FailureAction::Pause),
        "continue" => Ok(FailureAction::Continue),
        _ => Err(ValueError::new("pause or continue", text)),
    }
}

/// A number of tasks.
pub fn replicas(text: &str) -> Parsed<u64> {
    match text.parse::<u64>() {
        Ok(replicas) if replicas <= MAX_REPLICAS => Ok(replicas),
        _ => Err(ValueError::new(format!("a number of tasks from 0 to {MAX_REPLICAS}"), text)),
    }
}

/// A share of failures, from 0 to 1.
pub fn ratio(text: &str) -> Parsed<f64> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(ValueError::new("a ratio from 0 to 1", text)),
    }
}

/// A size in memory that is not nothing by accident: negative and nonsensical ones are refused, 0 means no limit.
pub fn bytes(text: &str) -> Parsed<u64> {
    Ok(rswarm_types::quantity::parse_bytes(text)?)
}

/// Docker's names for logs that can be read back; rswarm keeps them in one way of its own.
pub fn log_driver(text: &str) -> Parsed<String> {
    match text {
        "json-file" | "local" | "rswarm" => Ok(text.to_owned()),
        _ => Err(ValueError::unsupported(format!("log driver `{text}`"), "json-file, local or rswarm")),
    }
}

/// A bound of a task's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogOption {
    MaxSize(u64),
    MaxFile(u32),
    NonBlocking(bool),
    MaxBuffer(u64),
}

/// `max-size=10m`, `max-file=3`, `mode=non-blocking` or `max-buffer-size=4m`.
pub fn log_option(text: &str) -> Parsed<LogOption> {
    let (key, value) = option(text)?;
    match key.as_str() {
        "max-size" => match bytes(value.as_str())? {
            0 => Err(ValueError::new("a size above 0", text)),
            size => Ok(LogOption::MaxSize(size)),
        },
        "max-file" => match value.parse() {
            Ok(files) if files > 0 => Ok(LogOption::MaxFile(files)),
            _ => Err(ValueError::new("a number of files above 0", text)),
        },
        "mode" => match value.as_str() {
            "blocking" => Ok(LogOption::NonBlocking(false)),
            "non-blocking" => Ok(LogOption::NonBlocking(true)),
            _ => Err(ValueError::new("mode=blocking or mode=non-blocking", text)),
        },
        "max-buffer-size" => match bytes(value.as_str())? {
            size @ 1..=LOG_BUFFER_BYTES_MAX => Ok(LogOption::MaxBuffer(size)),
            _ => Err(ValueError::new(
                format!("a size above 0 and up to {}", format_bytes(LOG_BUFFER_BYTES_MAX)),
                text,
            )),
        },
        _ => Err(ValueError::unsupported(
            format!("log option `{key}`"),
            "max-size, max-file, mode or max-buffer-size",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_by_a_shell() {
        for (text, expected) in [
            ("", Some(vec![])),
            ("nginx -g 'daemon off;'", Some(vec!["nginx", "-g", "daemon off;"])),
            (r#"sh -c "echo \"a\" \n" b\ c"#, Some(vec!["sh", "-c", r#"echo "a" \n"#, "b c"])),
            ("a '' b", Some(vec!["a", "", "b"])),
            (" x\ty ", Some(vec!["x", "y"])),
            ("a'b'\"c\"", Some(vec!["abc"])),
            ("'open", None),
            ("\"open", None),
            ("open\\", None),
        ] {
            let expected = expected.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(words(text).ok().map(|w| w.0), expected, "{text}");
        }
    }

    #[test]
    fn fields_may_be_quoted() {
        for (text, expected) in [
            ("a=1,b=2", Some(vec!["a=1", "b=2"])),
            (r#"a=1,"b=2,3",c"#, Some(vec!["a=1", "b=2,3", "c"])),
            (r#""say ""hi""""#, Some(vec![r#"say "hi""#])),
            ("a,", Some(vec!["a", ""])),
            (r#""open"#, None),
            (r#""a"b"#, None),
        ] {
            let expected = expected.map(|f| f.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(csv(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn small_values() {
        let ok = |text: &str| Some(text.to_owned());
        assert_eq!(host("db:10.0.0.7").ok(), ok("10.0.0.7 db"));
        assert_eq!(host("db=fd00::1").ok(), ok("fd00::1 db"));
        assert_eq!(host("db:[fd00::1]").ok(), ok("fd00::1 db"));
        assert_eq!(host("db").ok(), None);
        assert_eq!(host("db:x").ok(), None);
        assert_eq!(capability("net_admin").ok(), ok("CAP_NET_ADMIN"));
        assert_eq!(capability("cap_chown").ok(), ok("CAP_CHOWN"));
        assert_eq!(capability("all").ok(), ok("ALL"));
        assert_eq!(capability("").ok(), None);
        assert_eq!(preference("spread=node.labels.zone").ok(), ok("node.labels.zone"));
        assert_eq!(preference("binpack=x").ok(), None);
        assert_eq!(env("=x").ok(), None);
        assert_eq!(label("a").ok(), Some(("a".into(), String::new())));
        assert_eq!(label("a=b=c").ok(), Some(("a".into(), "b=c".into())));
        assert_eq!(option("a").ok(), None);
        assert_eq!(address("1.1.1.256").ok(), None);
        assert_eq!(boolean("F").ok(), Some(false));
        assert_eq!(boolean("no").ok(), None);
        assert_eq!(ratio("0.5").ok(), Some(0.5));
        for wrong in ["1.1", "-1", "NaN", "x"] {
            assert!(ratio(wrong).is_err(), "{wrong}");
        }
        for wrong in ["-1", "1000001", "1e3", "", "18446744073709551616"] {
            assert!(replicas(wrong).is_err(), "{wrong}");
        }
        assert_eq!(log_option("max-size=1k").ok(), Some(LogOption::MaxSize(1024)));
        assert!(log_option("max-size=0").is_err());
        assert!(log_option("max-file=0").is_err());
        assert_eq!(log_option("mode=blocking").ok(), Some(LogOption::NonBlocking(false)));
        assert_eq!(log_option("max-buffer-size=4m").ok(), Some(LogOption::MaxBuffer(4 << 20)));
        for wrong in ["mode=", "mode=fast", "max-buffer-size=0", "max-buffer-size=257m"] {
            assert!(log_option(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ulimits() {
        let limit = |soft, hard| Some(Ulimit { name: "nofile".to_owned(), soft, hard });
        for (text, expected) in [
            ("nofile=1024", limit(1024, 1024)),
            ("nofile=1024:2048", limit(1024, 2048)),
            ("NOFILE=-1", limit(-1, -1)),
            ("nofile=10:-1", limit(10, -1)),
            ("nofile=-1:10", None),
            ("nofile=20:10", None),
            ("nofile", None),
            ("files=1", None),
            ("nofile=-2", None),
        ] {
            assert_eq!(ulimit(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn networks() {
        let network = |name: &str, aliases: &[&str]| {
            Some(Attachment {
                network: name.to_owned(),
                aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            })
        };
        for (text, expected) in [
            ("net", network("net", &[])),
            ("name=net,alias=a,alias=b", network("net", &["a", "b"])),
            ("alias=a", None),
            ("name=net,driver-opt=k=v", None),
            ("", None),
        ] {
            assert_eq!(attachment(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (error, message) in [
            (
                mode("replicated-job").map(drop),
                "mode `replicated-job` is not supported yet: expected replicated or global",
            ),
            (
                log_driver("syslog").map(drop),
                "log driver `syslog` is not supported yet: expected json-file, local or rswarm",
            ),
            (
                log_option("tag=x").map(drop),
                "log option `tag` is not supported yet: expected max-size, max-file, mode or max-buffer-size",
            ),
            (
                attachment("name=a,ip=1.2.3.4").map(drop),
                "`ip` is not supported yet: expected name= and alias= only",
            ),
            (rollback_failure_action("rollback").map(drop), "expected pause or continue, found `rollback`"),
        ] {
            assert_eq!(error.unwrap_err().to_string(), message);
        }
    }
}
