//! A small option parser: commands and their flags as a table, read the way runc's callers write them.
//!
//! Flags stand before or after the container's id, with one or two dashes, their value behind `=` or as the next
//! word. Those of [`GLOBAL`] are understood everywhere. After `--`, and in commands that pass words on, after the id,
//! everything is an argument. A full argument parser would cost more than creating the container's namespaces does.

/// One flag of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub name: &'static str,
    /// One letter, or empty.
    pub short: &'static str,
    /// What its value stands for; `None` for a switch.
    pub value: Option<&'static str>,
    pub help: &'static str,
}

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    pub name: &'static str,
    pub about: &'static str,
    pub arguments: &'static str,
    /// How many arguments it takes.
    pub least: usize,
    pub most: usize,
    /// What follows this many arguments is passed on as it is.
    pub passes_on_after: Option<usize>,
    pub flags: &'static [Flag],
}

/// A command line that was understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// In the order they were given.
    flags: Vec<(&'static str, String)>,
    pub arguments: Vec<String>,
}

/// Something beside the command that it is about, if one was named.
type About<T> = (Option<&'static Command>, T);

/// A command line that was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UsageError {
    #[error("`{word}` is not valid UTF-8")]
    NotText { word: String },
    #[error("No help topic for '{word}': there is no such command")]
    UnknownCommand { word: String },
    #[error("flag provided but not defined: {flag}")]
    UnknownFlag { flag: String },
    #[error("flag needs an argument: `--{flag}`")]
    MissingValue { flag: &'static str },
    #[error("flag `--{flag}` has the invalid value `{value}`: expected {expected}")]
    InvalidValue { flag: &'static str, value: String, expected: &'static str },
    #[error("`{command}` requires {expected} argument(s), found {found}: {usage}")]
    Arguments { command: &'static str, expected: String, found: usize, usage: &'static str },
}

pub(super) const fn switch(name: &'static str, short: &'static str, help: &'static str) -> Flag {
    Flag { name, short, value: None, help }
}

pub(super) const fn value(
    name: &'static str,
    short: &'static str,
    value: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, short, value: Some(value), help }
}

pub(super) const GLOBAL: &[Flag] = &[
    switch("debug", "", "log what is done"),
    value("log", "", "FILE", "write the log there beside standard error"),
    value("log-format", "", "text|json", "form of the log"),
    value("root", "", "DIR", "where the state of containers is kept (default /run/rswarm-runc)"),
    value("criu", "", "PATH", "accepted for runc's callers; there is no checkpoint"),
    switch("systemd-cgroup", "", "have systemd manage the cgroups; cgroupsPath is slice:prefix:name"),
    value("rootless", "", "true|false|auto", "whether to do without privileges"),
    switch("help", "h", "show help"),
    switch("version", "v", "show the version"),
];

impl Parsed {
    /// Reads `words`, what follows the program's name: global flags, a command, and the rest. Without a command there
    /// are only global flags. An error comes with the command that it is about.
    pub fn read(words: &[String], commands: &'static [Command]) -> Result<About<Self>, About<UsageError>> {
        let mut parsed = Self::default();
        let mut command = None;
        parsed.read_into(words, commands, &mut command).map_err(|error| (command, error))?;
        Ok((command, parsed))
    }

    fn read_into(
        &mut self,
        words: &[String],
        commands: &'static [Command],
        chosen: &mut Option<&'static Command>,
    ) -> Result<(), UsageError> {
        let mut rest = words;
        let command = loop {
            match rest {
                [] => return Ok(()),
                [word, after @ ..] if word.starts_with('-') => rest = self.flag(word, after, &[])?,
                [word, after @ ..] => {
                    rest = after;
                    let found = commands
                        .iter()
                        .find(|command| command.name == word || word == "h" && command.name == "help");
                    break found.ok_or_else(|| UsageError::UnknownCommand { word: word.clone() })?;
                }
            }
        };
        *chosen = Some(command);
        loop {
            match rest {
                [] => break,
                _ if command.passes_on_after.is_some_and(|count| self.arguments.len() >= count) => {
                    self.arguments.extend_from_slice(rest);
                    break;
                }
                [word, after @ ..] if word == "--" => {
                    self.arguments.extend_from_slice(after);
                    break;
                }
                [word, after @ ..] if word.starts_with('-') && word.len() > 1 => {
                    rest = self.flag(word, after, command.flags)?;
                }
                [word, after @ ..] => {
                    self.arguments.push(word.clone());
                    rest = after;
                }
            }
        }
        Ok(())
    }

    /// Reads one flag; gives what follows it.
    fn flag<'a>(
        &mut self,
        word: &str,
        after: &'a [String],
        flags: &'static [Flag],
    ) -> Result<&'a [String], UsageError> {
        let text = word.strip_prefix("--").or(word.strip_prefix('-')).unwrap_or(word);
        let (name, given) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let is_meant = |flag: &&Flag| flag.name == name || (!name.is_empty() && flag.short == name);
        let flag = flags.iter().chain(GLOBAL).find(is_meant);
        let flag = flag.ok_or_else(|| UsageError::UnknownFlag { flag: format!("-{name}") })?;
        let (value, after) = match (flag.value, given) {
            (None, None) => ("true", after),
            (_, Some(given)) => (given, after),
            (Some(_), None) => {
                let [next, after @ ..] = after else {
                    return Err(UsageError::MissingValue { flag: flag.name });
                };
                (next.as_str(), after)
            }
        };
        if flag.value.is_none() && !matches!(value, "true" | "false") {
            let (flag, value) = (flag.name, value.to_owned());
            return Err(UsageError::InvalidValue { flag, value, expected: "true or false" });
        }
        self.flags.push((flag.name, value.to_owned()));
        Ok(after)
    }

    /// Checks the number of arguments.
    pub fn check_arguments(&self, command: &'static Command) -> Result<(), UsageError> {
        let found = self.arguments.len();
        if found >= command.least && found <= command.most {
            return Ok(());
        }
        let expected = match (command.least, command.most) {
            (least, most) if least == most => format!("exactly {least}"),
            (least, usize::MAX) => format!("at least {least}"),
            (least, most) => format!("{least} to {most}"),
        };
        Err(UsageError::Arguments { command: command.name, expected, found, usage: command.arguments })
    }

    /// A flag's value; of several the last. An empty one is none, as with runc: scripts pass on variables that are not set.
    pub fn value(&self, name: &str) -> Option<&str> {
        let last = self.flags.iter().rev().find(|(flag, _)| *flag == name);
        last.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a flag that may be given several times.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags.iter().filter(move |(flag, _)| *flag == name).map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// A flag's value as a number.
    pub fn number<T: std::str::FromStr>(&self, flag: &'static str) -> Result<Option<T>, UsageError> {
        let invalid = |value: &str| UsageError::InvalidValue {
            flag,
            value: value.to_owned(),
            expected: "a number in range",
        };
        self.value(flag).map(|value| value.parse().map_err(|_| invalid(value))).transpose()
    }
}

/// The help of the program, or of one of its commands, in runc's form.
pub(super) fn help(program: &str, commands: &[Command], command: Option<&Command>) -> String {
    let flags = |title: &str, flags: &[Flag]| {
        if flags.is_empty() {
            return String::new();
        }
        let lines = flags.iter().map(|flag| {
            let value = flag.value.map_or(String::new(), |value| format!(" {value}"));
            let short =
                if flag.short.is_empty() { String::new() } else { format!(", -{}{value}", flag.short) };
            format!("   {:<36} {}\n", format!("--{}{value}{short}", flag.name), flag.help)
        });
        format!("\n{title}:\n{}", lines.collect::<String>())
    };
    if let Some(Command { name, about, arguments, flags: own, .. }) = command {
        let options = if own.is_empty() { "" } else { "[command options] " };
        return format!(
            "NAME:\n   {program} {name} - {about}\n\nUSAGE:\n   {program} {name} {options}{arguments}\n{}",
            flags("OPTIONS", own)
        );
    }
    let commands = commands.iter().map(|command| format!("   {:<12} {}\n", command.name, command.about));
    format!(
        "NAME:\n   {program} - Open Container Initiative runtime, with runc's command line\n\nUSAGE:\n   \
         {program} [global options] command [command options] [arguments...]\n\nCOMMANDS:\n{}{}",
        commands.collect::<String>(),
        flags("GLOBAL OPTIONS", GLOBAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: &[Command] = &[
        Command {
            name: "kill",
            about: "",
            arguments: "ID [SIGNAL]",
            least: 1,
            most: 2,
            passes_on_after: None,
            flags: &[switch("all", "a", "")],
        },
        Command {
            name: "exec",
            about: "",
            arguments: "ID COMMAND",
            least: 1,
            most: usize::MAX,
            passes_on_after: Some(1),
            flags: &[value("env", "e", "NAME=VALUE", ""), switch("detach", "d", "")],
        },
    ];

    fn read(line: &str) -> Result<(Option<&'static str>, Parsed), String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (command, parsed) = Parsed::read(&words, COMMANDS).map_err(|(_, error)| error.to_string())?;
        if let Some(command) = command {
            parsed.check_arguments(command).map_err(|error| error.to_string())?;
        }
        Ok((command.map(|command| command.name), parsed))
    }

    #[test]
    fn flags_are_understood_before_and_after_the_id() {
        for line in [
            "--root /r kill --all x 9",
            "kill x 9 -a --root=/r",
            "--root=/r kill x -all 9",
            "-root /r kill x --all=true -- 9",
        ] {
            let (command, parsed) = read(line).unwrap();
            assert_eq!(command, Some("kill"), "{line}");
            assert_eq!(parsed.arguments, ["x", "9"], "{line}");
            assert!(parsed.is_on("all") && parsed.value("root") == Some("/r"), "{line}");
        }
    }

    #[test]
    fn words_for_others_are_passed_on() {
        let (_, parsed) = read("exec -e A=b -e C=d x ls -la --env").unwrap();
        assert_eq!(parsed.arguments, ["x", "ls", "-la", "--env"]);
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=b", "C=d"]);
        // The mark that ends the flags is one before the id only, as with runc.
        assert_eq!(read("exec x -- ls --").unwrap().1.arguments, ["x", "--", "ls", "--"]);
        assert_eq!(read("exec -- x -- ls").unwrap().1.arguments, ["x", "--", "ls"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            ("bogus", "No help topic for 'bogus': there is no such command"),
            ("kill", "`kill` requires 1 to 2 argument(s), found 0: ID [SIGNAL]"),
            ("kill --bogus x", "flag provided but not defined: -bogus"),
            ("--all kill x", "flag provided but not defined: -all"),
            ("kill x --root", "flag needs an argument: `--root`"),
            ("kill x --all=maybe", "flag `--all` has the invalid value `maybe`: expected true or false"),
        ] {
            assert_eq!(read(line).unwrap_err(), expected, "{line}");
        }
        assert_eq!(read("--debug").unwrap().0, None);
    }
}
