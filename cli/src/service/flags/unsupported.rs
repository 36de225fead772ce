//! Flags that Docker has and rswarm has not yet: known, hidden from help, and refused by name.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};

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

/// Name, command, and the reason or what to do instead.
const FLAGS: [(&str, On, &str); 20] = [
    ("secret", On::Create, FILE),
    ("secret-add", On::Update, FILE),
    ("secret-rm", On::Update, FILE),
    ("config", On::Create, FILE),
    ("config-add", On::Update, FILE),
    ("config-rm", On::Update, FILE),
    ("generic-resource", On::Create, GENERIC),
    ("generic-resource-add", On::Update, GENERIC),
    ("generic-resource-rm", On::Update, GENERIC),
    ("health-cmd", On::Both, HEALTH),
    ("health-interval", On::Both, HEALTH),
    ("health-retries", On::Both, HEALTH),
    ("health-start-interval", On::Both, HEALTH),
    ("health-start-period", On::Both, HEALTH),
    ("health-timeout", On::Both, HEALTH),
    ("credential-spec", On::Both, WINDOWS),
    ("isolation", On::Both, WINDOWS),
    ("max-concurrent", On::Both, "there are no jobs so far"),
    ("memory-swap", On::Both, SWAP),
    ("memory-swappiness", On::Both, SWAP),
];

/// The refused flags of `service create`, or of `service update`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsupported<const UPDATE: bool>;

impl<const UPDATE: bool> Unsupported<UPDATE> {
    fn flags() -> impl Iterator<Item = (&'static str, &'static str)> {
        let here = if UPDATE { On::Update } else { On::Create };
        let flags = FLAGS.iter().filter(move |(_, on, _)| [here, On::Both].contains(on));
        flags.map(|(name, _, reason)| (*name, *reason))
    }
}

impl<const UPDATE: bool> Args for Unsupported<UPDATE> {
    fn augment_args(command: Command) -> Command {
        command.args(
            Self::flags().map(|(name, _)| Arg::new(name).long(name).hide(true).action(ArgAction::Append)),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const UPDATE: bool> FromArgMatches for Unsupported<UPDATE> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        for (name, reason) in Self::flags() {
            if matches.contains_id(name) {
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
