//! The command line of `runc`, over this runtime: what `dockerd --add-runtime`, containerd's shim and podman call.
//!
//! One short-lived process per command, without threads, over the same plan and the same steps as the shim's. What
//! differs is who stays: here nobody of ours does. The container's first process belongs to the caller, waits on a
//! socket in the state directory until it is started, and leaves its exit status to its parent.
//!
//! | file | commands |
//! |---|---|
//! | `create`, with `notify` | `create`, `start`, `run` |
//! | `end` | `kill`, `delete` |
//! | `exec` | `exec` |
//! | `control` | `pause`, `resume`, `update` |
//! | `show`, `events` | `state`, `list`, `ps`; `events` |
//! | `spec`, `about` | `spec`; `features`, the version |
//!
//! Left out: `checkpoint` and `restore`, which are refused by name.

mod about;
mod commands;
mod console;
mod container;
mod control;
mod create;
mod end;
mod error;
mod events;
mod exec;
mod notify;
mod options;
mod report;
mod show;
mod spec;
mod time;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use commands::COMMANDS;
use container::{Container, Store};
use error::{CommandError, During};
use options::{Parsed, UsageError};
use report::{Log, chain};

/// The name under which the executable is this command line.
pub const PROGRAM: &str = "rswarm-runc";

/// Where containers are recorded without `--root`.
const ROOT: &str = "/run/rswarm-runc";

/// What commands share.
struct Context {
    store: Store,
    log: Log,
}

impl Context {
    fn id<'a>(&self, parsed: &'a Parsed) -> &'a str {
        // Their number was checked.
        parsed.arguments.first().map_or("", String::as_str)
    }

    fn load(&self, parsed: &Parsed) -> Result<Container, CommandError> {
        self.store.load(self.id(parsed))
    }
}

/// Runs one command: `args` is what follows the program's name. To be called before the process has a second thread.
/// Gives the exit code: 0 or 1 as runc does, of `run` and `exec` in the foreground that of the container's program, and
/// 255 for an `exec` that did not come about.
pub fn runc_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    // Starting a process of this size takes a third of the memory that a command may have.
    crate::sys::forget_program();
    crate::sys::expect_children();
    let words = args.into_iter().map(|word| {
        word.into_string().map_err(|word| UsageError::NotText { word: word.to_string_lossy().into_owned() })
    });
    let words = match words.collect::<Result<Vec<_>, _>>() {
        Ok(words) => words,
        Err(error) => return misused(None, &error),
    };
    let (command, parsed) = match Parsed::read(&words, COMMANDS) {
        Ok(read) => read,
        Err((command, error)) => return misused(command, &error),
    };
    let context = match context(&parsed) {
        Ok(context) => context,
        Err(error) => {
            Log::default().error(&chain(&error));
            return 1;
        }
    };
    if parsed.is_on("version") {
        return say(&about::version(PROGRAM));
    }
    let Some(command) = command.filter(|_| !parsed.is_on("help")) else {
        return say(&options::help(PROGRAM, COMMANDS, command));
    };
    if let Err(error) = parsed.check_arguments(command) {
        return misused(Some(command), &error);
    }
    if command.name == "help" {
        let word = parsed.arguments.first();
        let about = COMMANDS.iter().find(|command| word.is_some_and(|word| command.name == word));
        return match (word, about) {
            (Some(word), None) => misused(None, &UsageError::UnknownCommand { word: word.clone() }),
            (_, about) => say(&options::help(PROGRAM, COMMANDS, about)),
        };
    }
    if let Err(error) = context.log.check() {
        Log::default().error(&chain(&error));
        return 1;
    }
    match perform(command.name, &context, &parsed) {
        Ok(code) => code,
        Err(error) => {
            let (prefix, code) = match command.name {
                "exec" => ("exec failed: ", 255),
                "create" => ("container creation failed: ", 1),
                "run" => ("container run failed: ", 1),
                _ => ("", 1),
            };
            context.log.error(&format!("{prefix}{}", chain(&error)));
            code
        }
    }
}

/// What runc does with a command line that it does not understand: the help on standard output, and exit code 1; 3 for
/// a command that there is none of.
fn misused(command: Option<&'static options::Command>, error: &UsageError) -> i32 {
    let unknown = matches!(error, UsageError::UnknownCommand { .. });
    if !unknown {
        say(&format!("Incorrect Usage: {error}\n\n{}", options::help(PROGRAM, COMMANDS, command)));
    }
    Log::default().error(&error.to_string());
    if unknown { 3 } else { 1 }
}

fn perform(command: &str, context: &Context, parsed: &Parsed) -> Result<i32, CommandError> {
    if matches!(command, "create" | "run" | "exec") {
        // A process of ours will be seen in the container.
        crate::seal::run_sealed().during("protect the runtime's executable")?;
        let _ = rustix::thread::set_name(c"rswarm-runc");
    }
    context.log.debug(command);
    let done = match command {
        "run" => return create::run(context, parsed),
        "exec" => return exec::exec(context, parsed),
        "create" => create::create(context, parsed),
        "start" => create::start(context, parsed),
        "state" => show::state(context, parsed),
        "list" => show::list(context, parsed),
        "ps" => show::ps(context, parsed),
        "kill" => end::kill(context, parsed),
        "delete" => end::delete(context, parsed),
        "pause" => control::pause(context, parsed),
        "resume" => control::resume(context, parsed),
        "update" => control::update(context, parsed),
        "events" => events::events(context, parsed),
        "spec" => spec::spec(parsed),
        "features" => about::features(),
        "checkpoint" | "restore" => Err(CommandError::NoCheckpoint { command: command.to_owned() }),
        word => Err(UsageError::UnknownCommand { word: word.to_owned() }.into()),
    };
    done.map(|()| 0)
}

fn context(parsed: &Parsed) -> Result<Context, CommandError> {
    let root = create::absolute(parsed.value("root").map_or_else(default_root, PathBuf::from))?;
    let file = parsed.value("log").filter(|path| !path.is_empty()).map(create::absolute).transpose()?;
    let json = match parsed.value("log-format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(value) => {
            let (flag, value) = ("log-format", value.to_owned());
            return Err(UsageError::InvalidValue { flag, value, expected: "text or json" }.into());
        }
    };
    if let Some(value) = parsed.value("rootless").filter(|value| !is_bool_or_auto(value)) {
        let (flag, value) = ("rootless", value.to_owned());
        return Err(UsageError::InvalidValue { flag, value, expected: "true, false or auto" }.into());
    }
    Ok(Context { store: Store { root }, log: Log { file, json, debug: parsed.is_on("debug") } })
}

/// As runc reads it. Whether there are privileges is found out, whatever it says.
fn is_bool_or_auto(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    matches!(lower.as_str(), "" | "auto" | "1" | "t" | "true" | "0" | "f" | "false")
}

/// Users other than root have a place of their own.
fn default_root() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(own) if !rustix::process::geteuid().is_root() => Path::new(&own).join("rswarm-runc"),
        _ => ROOT.into(),
    }
}

fn say(text: &str) -> i32 {
    // Whoever closed standard output does not want to read it.
    let _ = std::io::stdout().write_all(text.as_bytes());
    0
}
