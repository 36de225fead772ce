//! Flags that Docker has and rswarm has not yet: known, hidden from help, and refused by name.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};

use crate::service::value::boolean;

/// How a flag is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `--flag VALUE`
    Value,
    /// `--flag`, or `--flag=false`, which asks for nothing.
    Switch,
}

/// The command that has a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Create,
    Update,
    Both,
}

const FILE: &str = "mount a file with --mount type=bind for now";
const GENERIC: &str = "nodes offer CPU and memory only";
const HEALTH: &str = "tasks have no health checks so far";
const WINDOWS: &str = "it is for Windows";
const SWAP: &str = "tasks use the node's swap as the kernel decides";

/// Name, kind, command, and the reason or what to do instead.
const FLAGS: [(&str, Kind, On, &str); 21] = [
    ("secret", Kind::Value, On::Create, FILE),
    ("secret-add", Kind::Value, On::Update, FILE),
    ("secret-rm", Kind::Value, On::Update, FILE),
    ("config", Kind::Value, On::Create, FILE),
    ("config-add", Kind::Value, On::Update, FILE),
    ("config-rm", Kind::Value, On::Update, FILE),
    ("generic-resource", Kind::Value, On::Create, GENERIC),
    ("generic-resource-add", Kind::Value, On::Update, GENERIC),
    ("generic-resource-rm", Kind::Value, On::Update, GENERIC),
    ("health-cmd", Kind::Value, On::Both, HEALTH),
    ("health-interval", Kind::Value, On::Both, HEALTH),
    ("health-retries", Kind::Value, On::Both, HEALTH),
    ("health-start-interval", Kind::Value, On::Both, HEALTH),
    ("health-start-period", Kind::Value, On::Both, HEALTH),
    ("health-timeout", Kind::Value, On::Both, HEALTH),
    ("credential-spec", Kind::Value, On::Both, WINDOWS),
    ("isolation", Kind::Value, On::Both, WINDOWS),
    ("max-concurrent", Kind::Value, On::Both, "there are no jobs so far"),
    ("memory-swap", Kind::Value, On::Both, SWAP),
    ("memory-swappiness", Kind::Value, On::Both, SWAP),
    ("tty", Kind::Switch, On::Both, "services have no terminal so far"),
];

/// The refused flags of `service create`, or of `service update`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsupported<const UPDATE: bool>;

impl<const UPDATE: bool> Unsupported<UPDATE> {
    fn flags() -> impl Iterator<Item = (&'static str, Kind, &'static str)> {
        let here = if UPDATE { On::Update } else { On::Create };
        let flags = FLAGS.iter().filter(move |(_, _, on, _)| [here, On::Both].contains(on));
        flags.map(|(name, kind, _, reason)| (*name, *kind, *reason))
    }
}

impl<const UPDATE: bool> Args for Unsupported<UPDATE> {
    fn augment_args(command: Command) -> Command {
        command.args(Self::flags().map(|(name, kind, _)| {
            let arg = Arg::new(name).long(name).hide(true);
            let arg = if name == "tty" { arg.short('t') } else { arg };
            if kind == Kind::Switch {
                let arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
                arg.value_parser(boolean).action(ArgAction::Append)
            } else {
                arg.action(ArgAction::Append)
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const UPDATE: bool> FromArgMatches for Unsupported<UPDATE> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        for (name, kind, reason) in Self::flags() {
            let given = match kind {
                Kind::Switch => matches.get_many::<bool>(name).and_then(Iterator::last).is_some_and(|on| *on),
                Kind::Value => matches.contains_id(name),
            };
            if given {
                let message = format!("--{name} is not supported yet: {reason}\n");
                return Err(clap::Error::raw(ErrorKind::InvalidValue, message));
            }
        }
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
