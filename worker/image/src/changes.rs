//! `image import --change`: instructions as a Dockerfile has them, those that say how containers start.
//!
//! Source: the Dockerfile reference. Variables are not expanded, as there are none.

use crate::import::ImportConfig;

const KNOWN: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR";

impl ImportConfig {
    /// Takes in one instruction, such as `CMD ["serve"]` or `ENV A=1 B="2 3"`.
    ///
    /// # Errors
    /// Says what is wrong with it, what was expected, and quotes it.
    pub fn change(&mut self, instruction: &str) -> Result<(), String> {
        let text = instruction.trim();
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let invalid = |reason: String| format!("invalid change `{text}`: {reason}");
        let name = name.to_ascii_uppercase();
        if rest.is_empty() && KNOWN.split(", ").any(|known| known == name) {
            return Err(invalid(format!("expected something after {name}")));
        }
        let one = || Some(rest.to_owned());
        match name.as_str() {
            "CMD" => self.cmd = Some(command(rest)),
            "ENTRYPOINT" => self.entrypoint = Some(command(rest)),
            "ENV" => {
                for (key, value) in pairs(rest).map_err(invalid)? {
                    self.env.retain(|held| held.split('=').next() != Some(&key));
                    self.env.push(format!("{key}={value}"));
                }
            }
            "LABEL" => self.labels.extend(pairs(rest).map_err(invalid)?),
            "EXPOSE" => {
                for port in words(rest).map_err(invalid)? {
                    self.exposed_ports.extend(ports(&port).map_err(invalid)?);
                }
            }
            "VOLUME" => self.volumes.extend(match list(rest) {
                Some(paths) => paths,
                None => words(rest).map_err(invalid)?,
            }),
            "WORKDIR" => self.workdir = Some(below(self.workdir.as_deref(), rest)),
            "USER" => self.user = one(),
            "STOPSIGNAL" => self.stop_signal = one(),
            other => return Err(invalid(format!("`{other}` is not one of {KNOWN}"))),
        }
        Ok(())
    }
}

/// A JSON list of strings is the command itself; anything else is for the shell, broken JSON too.
fn command(text: &str) -> Vec<String> {
    list(text).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// `KEY=VALUE` as often as one likes, or `KEY VALUE`, whose value is all the rest of the line.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let all = words(text);
    let first = match &all {
        Ok(all) => all.first().map(String::as_str),
        Err(_) => text.split_whitespace().next(),
    };
    if !first.is_some_and(|first| first.contains('=')) {
        let (key, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("expected KEY=VALUE or KEY VALUE, found `{text}`"))?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("expected KEY=VALUE, found `{word}`")),
    };
    all?.into_iter().map(pair).collect()
}

/// Words apart by white space; quotes and backslashes hold together, and are taken off, as in a shell.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            // Within double quotes only what would have a meaning there is escaped.
            ('\\', None | Some('"')) => {
                let next = letters.next().ok_or("nothing follows its last backslash")?;
                let word = word.get_or_insert_default();
                if quote.is_some() && !['"', '\\', '$'].contains(&next) {
                    word.push('\\');
                }
                word.push(next);
            }
            (_, None) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    match quote {
        Some(open) => Err(format!("a {open} is not closed")),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

/// `80`, `53/udp` or `90-92/tcp`, each port by itself.
fn ports(text: &str) -> Result<Vec<String>, String> {
    let invalid = || format!("expected a port like `80`, `53/udp` or `90-92/tcp`, found `{text}`");
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0).ok_or_else(invalid);
    let (first, last) = (number(first)?, number(last)?);
    if first > last || !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(invalid());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// A directory as seen from another one.
fn below(directory: Option<&str>, path: &str) -> String {
    match directory.unwrap_or("/") {
        _ if path.starts_with('/') => path.to_owned(),
        directory => format!("{}/{path}", directory.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(instructions: &[&str]) -> Result<ImportConfig, String> {
        let mut config = ImportConfig::default();
        instructions.iter().try_for_each(|instruction| config.change(instruction))?;
        Ok(config)
    }

    /// As `docker import --change` makes of them.
    #[test]
    fn instructions_are_read_as_in_a_dockerfile() {
        let config = changed(&[
            r#"CMD ["serve", "80"]"#,
            "entrypoint sleep 5",
            r#"ENV A=1 B="2 3" C='$x' D=a\ b"#,
            "ENV E all the rest = of it",
            "ENV A=9",
            r#"LABEL a="b c" d=e"#,
            r#"LABEL "f g"="\"h\"""#,
            "EXPOSE 80 53/UDP 90-92",
            r#"VOLUME ["/c d", "/e"]"#,
            "VOLUME /f /g",
            "WORKDIR /srv",
            "WORKDIR data",
            "USER 1000:1000",
            "STOPSIGNAL SIGINT",
        ])
        .unwrap();
        assert_eq!(config.cmd.unwrap(), ["serve", "80"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "sleep 5"]);
        assert_eq!(config.env, ["B=2 3", "C=$x", "D=a b", "E=all the rest = of it", "A=9"]);
        let labels: Vec<_> = config.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        assert_eq!(labels, ["a:b c", "d:e", "f g:\"h\""]);
        assert_eq!(config.exposed_ports, ["80/tcp", "53/udp", "90/tcp", "91/tcp", "92/tcp"]);
        assert_eq!(config.volumes, ["/c d", "/e", "/f", "/g"]);
        assert_eq!((config.workdir.unwrap(), config.user.unwrap()), ("/srv/data".into(), "1000:1000".into()));
        assert_eq!(config.stop_signal.unwrap(), "SIGINT");
    }

    #[test]
    fn what_makes_no_sense_is_quoted_with_what_was_expected() {
        for (instruction, part) in [
            ("RUN make", "`RUN` is not one of CMD, ENTRYPOINT"),
            ("ENV", "expected something after ENV"),
            ("ENV A", "expected KEY=VALUE or KEY VALUE, found `A`"),
            ("ENV A=1 B", "expected KEY=VALUE, found `B`"),
            ("LABEL a=\"b", "a \" is not closed"),
            ("EXPOSE 0", "expected a port like"),
            ("EXPOSE 92-90", "found `92-90`"),
            ("EXPOSE 80/icmp", "found `80/icmp`"),
            ("VOLUME a\\", "last backslash"),
        ] {
            let error = changed(&[instruction]).unwrap_err();
            let quoted = error.starts_with(&format!("invalid change `{instruction}`: "));
            assert!(quoted && error.contains(part), "{error}");
        }
    }
}
