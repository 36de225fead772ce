//! What runs inside a virtual machine, besides the tests: its first process, and the agent that does what comes over the
//! control channel. Both are this module, in the small static program `vm-init`.
//!
//! The first process makes the machine what a container host is (pure cgroup v2, `/proc`, `/sys`, `/dev`, kernel modules,
//! an address), starts the agent, and then only buries orphans. When the agent ends, the machine goes off; the agent ends
//! when the host lets go of the channel, so that no machine outlives whoever made it. Where another program is to be the
//! first process, as systemd, this one makes way for it, and the agent is that program's to start.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use rswarm_net::{Cidr, lab};

use super::frame::{self, Frame, PIECE_BYTES, Run};
use super::{BUSYBOX, MODULES_LIST, PORT_NAME};

/// The argument by which the program is the agent.
const AGENT: &str = "agent";
/// The argument by which the program writes its input to the file named next.
pub(crate) const WRITE: &str = "write";
/// What every program gets.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("TMPDIR", "/tmp"),
    ("TERM", "dumb"),
];
/// Devices appear a moment after their drivers, and the host's end of the channel after the device.
const DEVICE_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);

/// What went wrong while the machine came up, as one line for whoever waits for it.
type Failure = String;

/// The program of the guest: the first process, or what its first argument says.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [AGENT] => agent(None),
        [WRITE, path] => write(Path::new(path)),
        _ if std::process::id() == 1 => first_process(),
        _ => {
            eprintln!(
                "this is the first process of a virtual machine of rswarm's tests, and no use elsewhere"
            );
            ExitCode::FAILURE
        }
    }
}

fn write(path: &Path) -> ExitCode {
    match File::create(path).and_then(|mut file| io::copy(&mut io::stdin(), &mut file)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to write `{}`: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

// ---- the first process ----

fn first_process() -> ExitCode {
    match come_up() {
        Ok(Settings { first: Some(program), .. }) => {
            let error = Command::new(&program).exec();
            agent(Some(failed("run", &program)(error)));
        }
        Ok(_) => {
            let started = Command::new("/init").arg(AGENT).stdin(Stdio::null()).spawn();
            match started {
                Ok(agent) => bury_until(agent.id() as i32),
                Err(error) => eprintln!("failed to start the agent: {error}"),
            }
        }
        Err(reason) => {
            eprintln!("{reason}");
            // The channel works unless it is the channel that failed.
            agent(Some(reason));
        }
    }
    // Files live in memory only, so there is nothing to be written first. It only returns on failure; then the kernel
    // panics at the end of its first process, which ends the machine as well.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

/// Waits for every child, orphans of others among them, until the agent ends.
fn bury_until(agent: i32) {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid.as_raw() == agent => {
                return;
            }
            Err(nix::errno::Errno::ECHILD) => return,
            _ => {}
        }
    }
}

fn come_up() -> Result<Settings, Failure> {
    leave_first_root()?;
    for (kind, target, options) in [
        ("devtmpfs", "/dev", ""),
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("cgroup2", "/sys/fs/cgroup", ""),
        ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
        ("tmpfs", "/tmp", "mode=1777"),
    ] {
        fs::create_dir_all(target).map_err(failed("make", target))?;
        // Without flags: bind mounts of tests would have them, too.
        let flags = MsFlags::empty();
        mount(Some(kind), target, Some(kind), flags, Some(options)).map_err(failed("mount", target))?;
    }
    // The directories are there where the kernel has, and was started with, what these are about.
    for (kind, target) in [("securityfs", "/sys/kernel/security"), ("selinuxfs", "/sys/fs/selinux")] {
        if Path::new(target).exists() {
            let none = None::<&str>;
            mount(Some(kind), target, Some(kind), MsFlags::empty(), none).map_err(failed("mount", target))?;
        }
    }
    // Containers hold others' mounts back only if the root is private, which is what the kernel begins with.
    load_modules()?;
    let words = fs::read_to_string("/proc/cmdline").map_err(failed("read", "/proc/cmdline"))?;
    let settings = Settings::parse(&words)?;
    nix::unistd::sethostname(&settings.name).map_err(failed("set the host name to", &settings.name))?;
    make_files(&settings)?;
    if Path::new(BUSYBOX).exists() {
        let installed = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).status();
        installed.map_err(failed("run", BUSYBOX))?;
    }
    if let Some(address) = settings.address {
        until(|| Path::new("/sys/class/net/eth0").exists(), "there is no network device")?;
        lab::configure("eth0", address, settings.gateway).map_err(|error| chain(&error))?;
    }
    Ok(settings)
}

/// The first root file system cannot be the old root of `pivot_root`, which every container is started by. A bind mount
/// of it, moved over it, can.
fn leave_first_root() -> Result<(), Failure> {
    const NEW: &str = "/newroot";
    let none = None::<&str>;
    fs::create_dir_all(NEW).map_err(failed("make", NEW))?;
    mount(Some("/"), NEW, none, MsFlags::MS_BIND, none).map_err(failed("mount", NEW))?;
    std::env::set_current_dir(NEW).map_err(failed("enter", NEW))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(failed("move", NEW))?;
    nix::unistd::chroot(".").map_err(failed("enter", NEW))?;
    std::env::set_current_dir("/").map_err(failed("enter", "/"))?;
    fs::remove_dir(NEW).map_err(failed("remove", NEW))
}

fn load_modules() -> Result<(), Failure> {
    let list = fs::read_to_string(MODULES_LIST).map_err(failed("read", MODULES_LIST))?;
    for path in list.lines() {
        let file = File::open(path).map_err(failed("open", path))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(failed("load", path)(error)),
        }
        // It is in the kernel now; its file would be in memory a second time.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn make_files(settings: &Settings) -> Result<(), Failure> {
    for directory in ["/etc", "/root", "/usr", "/var/lib", "/var/tmp", "/bin", "/mnt"] {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
    }
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {}\n", settings.name);
    for (path, text) in [
        ("/etc/hostname", format!("{}\n", settings.name)),
        ("/etc/hosts", hosts),
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n".to_owned()),
        ("/etc/group", "root:x:0:\ntty:x:5:\n".to_owned()),
        ("/etc/os-release", "ID=rswarm-lab\nPRETTY_NAME=\"rswarm lab\"\n".to_owned()),
    ] {
        // A machine with a system of its own has its own.
        if !Path::new(path).exists() {
            fs::write(path, text).map_err(failed("write", path))?;
        }
    }
    for (path, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/etc/mtab", "/proc/self/mounts"),
        // One place for all programs, by all the names that scripts know it by.
        ("/sbin", "/bin"),
        ("/usr/bin", "/bin"),
        ("/usr/sbin", "/bin"),
    ] {
        match symlink(target, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("make", path))?,
        }
    }
    Ok(())
}

/// What the host says on the kernel's command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub name: String,
    pub address: Option<Cidr>,
    pub gateway: Option<Ipv4Addr>,
    /// The program that becomes the first process.
    pub first: Option<String>,
}

impl Settings {
    /// As words for the kernel's command line; one with a dot is left alone by the kernel.
    pub(crate) fn words(&self) -> String {
        let mut words = format!("rswarm.name={}", self.name);
        if let Some(Cidr { address, prefix_len }) = self.address {
            words.push_str(&format!(" rswarm.address={address}/{prefix_len}"));
        }
        if let Some(gateway) = self.gateway {
            words.push_str(&format!(" rswarm.gateway={gateway}"));
        }
        if let Some(first) = &self.first {
            words.push_str(&format!(" rswarm.first={first}"));
        }
        words
    }

    fn parse(words: &str) -> Result<Self, Failure> {
        let value =
            |key: &str| words.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let wrong = |key: &str, value: &str| format!("invalid `{key}={value}` on the kernel's command line");
        let cidr = |text: &str| {
            let (address, prefix_len) = text.split_once('/')?;
            Some(Cidr { address: address.parse().ok()?, prefix_len: prefix_len.parse().ok()? })
        };
        let (address, gateway) = ("rswarm.address", "rswarm.gateway");
        Ok(Self {
            name: value("rswarm.name").ok_or("no `rswarm.name=` on the kernel's command line")?.to_owned(),
            address: value(address).map(|text| cidr(text).ok_or_else(|| wrong(address, text))).transpose()?,
            gateway: value(gateway).map(|text| text.parse().map_err(|_| wrong(gateway, text))).transpose()?,
            first: value("rswarm.first").map(str::to_owned),
        })
    }
}

fn failed<E: Display>(verb: &str, what: &str) -> impl FnOnce(E) -> Failure {
    let start = format!("failed to {verb} `{what}`");
    move |error| format!("{start}: {error}")
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn until(mut there: impl FnMut() -> bool, otherwise: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + DEVICE_DEADLINE;
    while !there() {
        if Instant::now() > deadline {
            return Err(otherwise.to_owned());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

// ---- the agent ----

/// The guest's end of the channel. Frames are written whole, one after the other.
struct Port {
    device: File,
    writing: Mutex<()>,
}

impl Port {
    fn open() -> Result<Self, Failure> {
        let mut path = None;
        until(
            || {
                path = device();
                path.is_some()
            },
            "there is no control channel",
        )?;
        let path = path.unwrap_or_default();
        let shown = path.display().to_string();
        let device = File::options().read(true).write(true).open(&path).map_err(failed("open", &shown))?;
        // Until the host has opened its end, reading would say that the stream is over.
        let closed = || {
            let mut polled = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut polled, PollTimeout::ZERO);
            polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
        };
        until(|| !closed(), "nobody is at the other end of the control channel")?;
        Ok(Self { device, writing: Mutex::new(()) })
    }

    fn send(&self, request: u32, frame: &Frame) {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a host the machine is about to end: the reading side sees to it.
        let _ = frame::write(&self.device, request, frame);
    }
}

/// The control channel's device, by the name that its port was given.
fn device() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let named =
        |path: &Path| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
    let port = ports.map(|entry| entry.path()).find(|path| named(path))?;
    let device = Path::new("/dev").join(port.file_name()?);
    device.exists().then_some(device)
}

/// Serves the channel until the host lets go of it; with a failure it only tells that.
fn agent(failure: Option<Failure>) -> ExitCode {
    let port = match Port::open() {
        Ok(port) => Arc::new(port),
        Err(reason) => {
            eprintln!("{reason}");
            return ExitCode::FAILURE;
        }
    };
    match failure {
        Some(reason) => port.send(0, &Frame::Failed(reason)),
        None => port.send(0, &Frame::Ready),
    }
    let mut inputs: BTreeMap<u32, Sender<Vec<u8>>> = BTreeMap::new();
    loop {
        match frame::read(&port.device) {
            Ok(Some((request, Frame::Run(run)))) => {
                // As long as the input: what the program has not taken yet waits here, lest one program's slowness
                // hold up the others.
                let (sender, pieces) = channel();
                inputs.insert(request, sender);
                let port = port.clone();
                std::thread::spawn(move || serve(&port, request, &run, pieces));
            }
            Ok(Some((request, Frame::Input(piece)))) if piece.is_empty() => drop(inputs.remove(&request)),
            Ok(Some((request, Frame::Input(piece)))) => {
                if let Some(sender) = inputs.get(&request) {
                    // A program that has ended takes no more.
                    let _ = sender.send(piece);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return ExitCode::SUCCESS,
        }
    }
}

fn serve(port: &Port, request: u32, run: &Run, input: Receiver<Vec<u8>>) {
    let answer = match start(run) {
        Ok(child) => match attend(port, request, child, input) {
            Ok(code) => Frame::Ended(code),
            Err(error) => Frame::Refused(error.to_string()),
        },
        Err(error) => Frame::Refused(error.to_string()),
    };
    port.send(request, &answer);
}

fn start(run: &Run) -> io::Result<Child> {
    let [program, args @ ..] = &run.words[..] else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a program"));
    };
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(ENVIRONMENT).envs(&run.environment).current_dir("/root");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Passes input and output on until the program has ended and nobody holds its output open any more.
fn attend(port: &Port, request: u32, mut child: Child, input: Receiver<Vec<u8>>) -> io::Result<i32> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(mut stdin) = stdin {
        // On its own: it ends with the program or with its input, whichever comes first.
        std::thread::spawn(move || input.iter().all(|piece| stdin.write_all(&piece).is_ok()));
    }
    std::thread::scope(|scope| {
        if let Some(stderr) = stderr {
            scope.spawn(|| pass_on(stderr, |piece| port.send(request, &Frame::ErrorOutput(piece))));
        }
        if let Some(stdout) = stdout {
            pass_on(stdout, |piece| port.send(request, &Frame::Output(piece)));
        }
    });
    let status = child.wait()?;
    Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1))
}

fn pass_on(mut from: impl Read, send: impl Fn(Vec<u8>)) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => send(piece[..length].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_command_line() {
        let mut settings = Settings { name: "host-1".to_owned(), address: None, gateway: None, first: None };
        assert_eq!(Settings::parse(&settings.words()).as_ref(), Ok(&settings));
        settings.address = Some(Cidr { address: [10, 79, 0, 1].into(), prefix_len: 24 });
        settings.gateway = Some([10, 79, 0, 254].into());
        settings.first = Some("/lib/systemd/systemd".to_owned());
        let words = format!("console=ttyS0 quiet {} panic=-1\n", settings.words());
        assert_eq!(Settings::parse(&words), Ok(settings));

        for (words, expected) in [
            ("quiet", "no `rswarm.name="),
            ("rswarm.name=a rswarm.address=10.0.0.1", "invalid `rswarm.address=10.0.0.1`"),
            ("rswarm.name=a rswarm.gateway=x", "invalid `rswarm.gateway=x`"),
        ] {
            let reason = Settings::parse(words).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn programs_get_their_input_and_their_output_and_codes_come_back() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let device = File::from(std::os::fd::OwnedFd::from(theirs));
        let port = Port { device, writing: Mutex::new(()) };
        let check = |words: &[&str], pieces: &[&[u8]], expected: (&[u8], Frame)| {
            let run = Run {
                words: words.iter().map(|word| (*word).to_owned()).collect(),
                environment: [("X".to_owned(), "y".to_owned())].into(),
            };
            let (sender, input) = channel();
            pieces.iter().for_each(|piece| sender.send(piece.to_vec()).unwrap());
            drop(sender);
            serve(&port, 5, &run, input);
            // Which of the two comes first is nobody's promise.
            let (mut output, mut errors) = (Vec::new(), Vec::new());
            loop {
                match frame::read(&ours).unwrap().unwrap() {
                    (5, Frame::Output(piece)) => output.extend(piece),
                    (5, Frame::ErrorOutput(piece)) => errors.extend(piece),
                    (5, last) => {
                        output.extend(errors);
                        return assert_eq!((&output[..], last), expected, "{words:?}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        check(&["/bin/sh", "-c", "cat; echo $X >&2; exit 3"], &[b"a", b"b\n"], (b"ab\ny\n", Frame::Ended(3)));
        check(&["/bin/sh", "-c", "kill -9 $$"], &[], (b"", Frame::Ended(137)));
        // It ends without having taken its input.
        check(&["/bin/true"], &[&[0; 1 << 20]], (b"", Frame::Ended(0)));
        let missing = "No such file or directory (os error 2)".to_owned();
        check(&["/no/such/program"], &[], (b"", Frame::Refused(missing)));
    }
}
