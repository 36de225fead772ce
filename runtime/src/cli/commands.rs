//! The table of commands.

use super::options::{Command, Flag, switch, value};

const BUNDLE: Flag = value("bundle", "b", "DIR", "the bundle (default: the working directory)");
const CONSOLE: Flag = value("console-socket", "", "PATH", "socket that takes the terminal's master");
const PID_FILE: Flag = value("pid-file", "", "FILE", "write the pid of the container's process there");
const PRESERVE: Flag = value("preserve-fds", "", "N", "keep N descriptors after the standard ones");
const NO_PIVOT: Flag = switch("no-pivot", "", "cover the root file system for want of pivot_root");
const NO_KEYRING: Flag = switch("no-new-keyring", "", "leave the container in the caller's session keyring");
const DETACH: Flag = switch("detach", "d", "do not stay with the container's process");
const NO_SUBREAPER: Flag = switch("no-subreaper", "", "leave orphans to the caller");

const ID: &str = "CONTAINER-ID";

const fn on_one(name: &'static str, about: &'static str, flags: &'static [Flag]) -> Command {
    Command { name, about, arguments: ID, least: 1, most: 1, passes_on_after: None, flags }
}

pub(super) const COMMANDS: &[Command] = &[
    on_one(
        "create",
        "Create a container from a bundle",
        &[BUNDLE, CONSOLE, PID_FILE, PRESERVE, NO_PIVOT, NO_KEYRING],
    ),
    on_one("start", "Run the program of a created container", &[]),
    on_one(
        "run",
        "Create a container and run its program",
        &[
            BUNDLE,
            CONSOLE,
            PID_FILE,
            PRESERVE,
            NO_PIVOT,
            NO_KEYRING,
            DETACH,
            NO_SUBREAPER,
            switch("keep", "", "do not delete the container when it has ended"),
        ],
    ),
    on_one("state", "Show the state of a container", &[]),
    Command {
        name: "kill",
        about: "Send a signal to a container's first process (default SIGTERM)",
        arguments: "CONTAINER-ID [SIGNAL]",
        least: 1,
        most: 2,
        passes_on_after: None,
        flags: &[switch("all", "a", "send it to every process of the container")],
    },
    on_one("delete", "Delete a container that has ended", &[switch("force", "f", "kill it first")]),
    Command {
        name: "exec",
        about: "Run one more program in a container",
        arguments: "CONTAINER-ID COMMAND [ARGS] | --process FILE CONTAINER-ID",
        least: 1,
        most: usize::MAX,
        passes_on_after: Some(1),
        flags: &[
            CONSOLE,
            PID_FILE,
            PRESERVE,
            DETACH,
            NO_SUBREAPER,
            value("process", "p", "FILE", "the process as JSON"),
            switch("tty", "t", "give it a terminal"),
            value("user", "u", "UID[:GID]", "run as this user"),
            value("additional-gids", "g", "GID", "further groups"),
            value("cwd", "", "DIR", "working directory in the container"),
            value("env", "e", "NAME=VALUE", "set an environment variable"),
            value("cap", "c", "CAPABILITY", "add a capability"),
            value("apparmor", "", "PROFILE", "AppArmor profile"),
            value("process-label", "", "LABEL", "SELinux label"),
            switch("no-new-privs", "", "forbid new privileges"),
            switch("ignore-paused", "", "do not refuse a paused container"),
            value("cgroup", "", "[CONTROLLERS:]PATH", "run in a cgroup below the container's"),
        ],
    },
    Command {
        name: "ps",
        about: "Show the processes of a container",
        arguments: "CONTAINER-ID [PS OPTIONS]",
        least: 1,
        most: usize::MAX,
        passes_on_after: Some(1),
        flags: &[value("format", "f", "table|json", "form of the output")],
    },
    on_one("pause", "Halt all processes of a container", &[]),
    on_one("resume", "Let a paused container go on", &[]),
    on_one(
        "update",
        "Change the limits of a container",
        &[
            value("resources", "r", "FILE", "limits as JSON, `-` for standard input"),
            value("blkio-weight", "", "N", "share of block I/O, 10 to 1000"),
            value("cpu-period", "", "MICROSECONDS", "period of the CPU quota"),
            value("cpu-quota", "", "MICROSECONDS", "CPU time in each period"),
            value("cpu-burst", "", "MICROSECONDS", "CPU time that may be saved up"),
            value("cpu-share", "", "N", "share of the CPUs"),
            value("cpu-rt-period", "", "MICROSECONDS", "period of the real-time quota"),
            value("cpu-rt-runtime", "", "MICROSECONDS", "real-time CPU time in each period"),
            value("cpuset-cpus", "", "LIST", "CPUs to use"),
            value("cpuset-mems", "", "LIST", "memory nodes to use"),
            value("kernel-memory", "", "BYTES", "ignored: kernels have given it up"),
            value("kernel-memory-tcp", "", "BYTES", "ignored: kernels have given it up"),
            value("memory", "", "BYTES", "memory limit"),
            value("memory-reservation", "", "BYTES", "memory that is kept longest"),
            value("memory-swap", "", "BYTES", "limit of memory and swap together, -1 for none"),
            value("pids-limit", "", "N", "number of processes, -1 for no limit"),
            value("l3-cache-schema", "", "SCHEMA", "refused: caches are not divided"),
            value("mem-bw-schema", "", "SCHEMA", "refused: bandwidth is not divided"),
            value("cpu-idle", "", "0|1", "run only when nothing else does"),
        ],
    ),
    Command {
        name: "checkpoint",
        about: "Refused: processes cannot be saved",
        arguments: ID,
        least: 0,
        most: usize::MAX,
        passes_on_after: None,
        flags: &[],
    },
    Command {
        name: "restore",
        about: "Refused: processes cannot be restored",
        arguments: ID,
        least: 0,
        most: usize::MAX,
        passes_on_after: None,
        flags: &[],
    },
    Command {
        name: "help",
        about: "Show help",
        arguments: "[COMMAND]",
        least: 0,
        most: 1,
        passes_on_after: None,
        flags: &[],
    },
    Command {
        name: "list",
        about: "Show all containers",
        arguments: "",
        least: 0,
        most: 0,
        passes_on_after: None,
        flags: &[value("format", "f", "table|json", "form of the output"), switch("quiet", "q", "ids alone")],
    },
    Command {
        name: "spec",
        about: "Write a configuration to start from",
        arguments: "",
        least: 0,
        most: 0,
        passes_on_after: None,
        flags: &[BUNDLE, switch("rootless", "", "for users other than root")],
    },
    Command {
        name: "features",
        about: "Show what is supported",
        arguments: "",
        least: 0,
        most: 0,
        passes_on_after: None,
        flags: &[],
    },
    on_one(
        "events",
        "Show use of resources and out-of-memory events",
        &[
            value("interval", "", "DURATION", "time between two outputs (default 5s)"),
            switch("stats", "", "show the use once"),
        ],
    ),
];
