//! Several virtual machines on one wire: hosts with a kernel and cgroups of their own, where namespaces share this
//! machine's.
//!
//! ```text
//!    qemu: host-1             qemu: host-2                a kernel, pure cgroup v2, all files in memory
//!     eth0   control           eth0   control
//!       │       └─ unix socket   │       └─ unix socket   programs are run there, and nothing else is shared
//!   ─── h1 ────── br0 ────────── h2 ───                   rswlab-<name>-net: the wire, in a namespace of its own
//!
//! <run dir>/initramfs          what is in every machine
//! <run dir>/host-1.control     the control channel
//! <run dir>/host-1.console     what its kernel said
//! ```
//!
//! Machines run on emulated processors, hence everywhere that qemu does, and some ten times slower than this machine.
//! They end with [`VmLab`], and also when the process that made them is killed: the guest sees its channel close.

mod channel;
mod cpio;
mod frame;
pub mod guest;
mod initramfs;
mod kernel;
mod qemu;
mod systemd;

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rswarm_net::Cidr;
use rswarm_net::lab::{LabSpec, Wire, command_in_netns};

pub use channel::ChannelError;
pub use initramfs::{Payload, strip};
pub use kernel::Kernel;

use crate::error::LabError;
use crate::host::{self, tail};
use crate::machine::{Machine, Output};
use crate::processes;
use channel::Channel;
use frame::Run;
use guest::Settings;
use qemu::Hardware;

/// Name of the port that the control channel comes through.
const PORT_NAME: &str = "rswarm.control";
const BUSYBOX: &str = "/bin/busybox";
/// In the guest: paths of modules, one a line, in the order they are to be loaded in.
const MODULES_LIST: &str = "/lib/modules/list";
/// Where the guests have `rswarm`, if the payload puts it there.
pub const RSWARM: &str = "/usr/local/bin/rswarm";
/// The daemon's roots are the default ones, as on any host.
const DATA_ROOT: &str = "/var/lib/rswarm";
const PREFIX_LEN: u8 = 24;
/// Emulated machines need seconds, but several may start at once on a busy machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// qemu connects and makes its tap before the guest's first instruction.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// For the small things this module does by itself.
const CALL: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Which machines, and where the lab keeps its files.
#[derive(Debug, Clone)]
pub struct VmLabConfig {
    /// Letters, digits and `-`; told apart from other labs on this machine by it.
    pub name: String,
    /// 1 to 200.
    pub machines: usize,
    /// The first address belongs to the first machine, the last to the wire. `/24`.
    pub subnet: Ipv4Addr,
    /// The lab's own; made and removed with it.
    pub run_dir: PathBuf,
    /// The static program that calls [`guest::main`].
    pub init: PathBuf,
    /// What the machines hold besides.
    pub payload: Payload,
    /// Each. Files live in it as well.
    pub memory_mib: u32,
    /// Each.
    pub cpus: u32,
}

/// Machines on a wire, up and reachable. Dropping it ends them.
#[derive(Debug)]
pub struct VmLab {
    config: VmLabConfig,
    machines: Vec<Vm>,
    wire: Option<Wire>,
}

/// One virtual machine.
#[derive(Debug)]
pub struct Vm {
    number: usize,
    name: String,
    address: Ipv4Addr,
    console: PathBuf,
    qemu: Option<Child>,
    channel: Channel,
    payload: Payload,
}

/// Whether there is all that virtual machines need.
///
/// # Errors
/// `Missing` with the first thing that is not there, and where to get it.
pub fn check() -> Result<(), LabError> {
    qemu::find()?;
    qemu::find_tap()?;
    Kernel::find().map(drop)
}

impl VmLabConfig {
    /// Ends and removes whatever there is of this lab. Fine if there is nothing.
    ///
    /// # Errors
    /// `Leftovers` when a process does not end, `Directory`.
    pub fn destroy(&self) -> Result<(), LabError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let left = processes::of_directory(qemu::PROGRAM, &self.run_dir);
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                let left = left.iter().map(|process| format!("process {}", process.pid));
                return Err(LabError::Leftovers(left.collect()));
            }
            left.iter().for_each(processes::Process::kill);
            std::thread::sleep(POLL);
        }
        rswarm_net::lab::Lab::destroy_named(&self.name)?;
        match fs::remove_dir_all(&self.run_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LabError::directory(&self.run_dir)(error));
            }
            _ => {}
        }
        // What several labs share goes with the last of them.
        if let Some(parent) = self.run_dir.parent()
            && parent.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rswarm-"))
        {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    fn control(&self, number: usize) -> PathBuf {
        self.run_dir.join(format!("{}.control", host::name(number)))
    }

    fn console(&self, number: usize) -> PathBuf {
        self.run_dir.join(format!("{}.console", host::name(number)))
    }
}

impl VmLab {
    /// Starts the machines, all at once, and waits until they are up. What is left of a lab of the same name goes first.
    ///
    /// # Errors
    /// `Missing` for what this machine lacks, `Guest` for a machine that does not come up, `Network`, `Directory`,
    /// `Spawn`. Nothing is left behind then.
    pub fn create(config: VmLabConfig) -> Result<Self, LabError> {
        check()?;
        config.destroy()?;
        fs::create_dir_all(&config.run_dir).map_err(LabError::directory(&config.run_dir))?;
        // From here on dropping it undoes whatever was made.
        let mut lab = Self { config, machines: Vec::new(), wire: None };
        let config = &lab.config;
        let kernel = Kernel::find()?;
        let initramfs = config.run_dir.join("initramfs");
        initramfs::write(&initramfs, &config.init, &kernel, &config.payload, &config.run_dir)?;
        let spec = LabSpec {
            subnet: config.subnet,
            prefix_len: PREFIX_LEN,
            gateway: true,
            ..LabSpec::new(&config.name, config.machines)
        };
        let wire = lab.wire.insert(Wire::create(&spec)?);
        for number in 1..=lab.config.machines {
            let address = spec.address(number);
            let settings = Settings {
                name: host::name(number),
                address: Some(Cidr { address, prefix_len: PREFIX_LEN }),
                gateway: Some(spec.gateway_address()),
                first: lab.config.payload.first.map(str::to_owned),
            };
            let hardware = Hardware {
                kernel: &kernel,
                initramfs: &initramfs,
                words: format!("{} {}", lab.config.payload.kernel_words, settings.words()),
                memory_mib: lab.config.memory_mib,
                cpus: lab.config.cpus,
                tap: port(number),
                address,
                control: lab.config.control(number),
                console: lab.config.console(number),
            };
            let payload = lab.config.payload.clone();
            lab.machines.push(Vm::start(number, &hardware, payload, wire)?);
        }
        for machine in &lab.machines {
            machine.channel.until_up(BOOT_DEADLINE).map_err(|error| machine.failed("come up", &error))?;
        }
        Ok(lab)
    }

    /// The machines in order of their numbers.
    pub fn machines(&self) -> &[Vm] {
        &self.machines
    }

    /// The machine with this number, from 1.
    ///
    /// # Panics
    /// When there is none.
    pub fn machine(&self, number: usize) -> &Vm {
        &self.machines[number - 1]
    }

    /// All machines, to be changed.
    pub fn machines_mut(&mut self) -> &mut [Vm] {
        &mut self.machines
    }

    /// A namespace from which all machines can be reached.
    pub fn wire_netns(&self) -> PathBuf {
        self.wire.as_ref().map(|wire| wire.netns().to_owned()).unwrap_or_default()
    }

    /// Pulls a machine's cable, or puts it back. The control channel needs none.
    ///
    /// # Errors
    /// `Network`.
    pub fn set_cable(&self, number: usize, up: bool) -> Result<(), LabError> {
        self.wire.as_ref().map_or(Ok(()), |wire| Ok(wire.set_cable(&port(number), up)?))
    }

    /// Ends all machines and removes what was made for them.
    ///
    /// # Errors
    /// Those of [`VmLabConfig::destroy`].
    pub fn destroy(mut self) -> Result<(), LabError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), LabError> {
        self.machines.clear();
        self.wire = None;
        self.config.destroy()
    }
}

impl Drop for VmLab {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("lab `{}`: {error}", self.config.name);
        }
    }
}

impl Vm {
    fn start(
        number: usize,
        hardware: &Hardware<'_>,
        payload: Payload,
        wire: &Wire,
    ) -> Result<Self, LabError> {
        let name = host::name(number);
        let listener =
            UnixListener::bind(&hardware.control).map_err(LabError::directory(&hardware.control))?;
        listener.set_nonblocking(true).map_err(LabError::directory(&hardware.control))?;
        let said = hardware.console.with_extension("qemu");
        let log = File::create(&said).map_err(LabError::directory(&said))?;
        let program = qemu::find()?;
        let spawn_error = |source| LabError::Spawn { program: program.clone(), host: name.clone(), source };
        let mut command = command_in_netns(wire.netns(), &program)?;
        // Ctrl-C at the terminal is for whoever started this, and is passed on as it sees fit.
        command.args(hardware.arguments()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut qemu = Process(Some(command.spawn().map_err(spawn_error)?));
        let stream = accept(&listener, &mut qemu).map_err(|source| LabError::Guest {
            host: name.clone(),
            action: "start",
            reason: tail_or(&said, &source),
        })?;
        let deadline = Instant::now() + START_DEADLINE;
        while !wire.plug(&hardware.tap)? {
            if Instant::now() > deadline || qemu.has_ended() {
                let reason = tail(&said, 5).unwrap_or_default();
                return Err(LabError::Guest { host: name, action: "be connected", reason });
            }
            std::thread::sleep(POLL);
        }
        Ok(Self {
            number,
            address: hardware.address,
            console: hardware.console.clone(),
            qemu: qemu.0.take(),
            channel: Channel::new(stream).map_err(spawn_error)?,
            payload,
            name,
        })
    }

    /// Runs any program there with `input` as its standard input.
    ///
    /// # Errors
    /// `Guest`.
    pub fn run_with_input(
        &self,
        words: &[&str],
        input: &mut dyn io::Read,
        within: Duration,
    ) -> Result<Output, LabError> {
        let run = Run {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            environment: std::collections::BTreeMap::new(),
        };
        self.channel.run(run, input, within).map_err(|error| self.failed("run a program", &error))
    }

    /// Whether the machine still has power.
    pub fn is_on(&mut self) -> bool {
        self.qemu.as_mut().is_some_and(|qemu| matches!(qemu.try_wait(), Ok(None)))
    }

    /// The last lines that its kernel said.
    pub fn console_tail(&self, lines: usize) -> String {
        tail(&self.console, lines).unwrap_or_default()
    }

    fn failed(&self, action: &'static str, error: &ChannelError) -> LabError {
        let mut reason = error.to_string();
        if let ChannelError::Off(_) | ChannelError::TimedOut(_) = error {
            reason.push_str(&format!("; its console ends with:\n{}", self.console_tail(20)));
        }
        LabError::Guest { host: self.name.clone(), action, reason }
    }

    fn end(&mut self) {
        self.channel.close();
        drop(Process(self.qemu.take()));
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end();
    }
}

impl Machine for Vm {
    fn number(&self) -> usize {
        self.number
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn run(&self, program: &str, args: &[&str], within: Duration) -> Result<Output, LabError> {
        self.run_with_input(&[&[program], args].concat(), &mut io::empty(), within)
    }

    fn rswarm(&self, args: &[&str], within: Duration) -> Result<Output, LabError> {
        self.run(RSWARM, args, within)
    }

    /// What is in the payload is there already; anything else goes over the control channel, at a few megabytes a
    /// second.
    fn give(&self, file: &Path) -> Result<PathBuf, LabError> {
        if let Some(place) = self.payload.place_of(file) {
            return Ok(place);
        }
        let mut input = File::open(file).map_err(LabError::directory(file))?;
        let to = Path::new("/root").join(file.file_name().unwrap_or_default());
        let output =
            self.run_with_input(&["/init", guest::WRITE, &to.to_string_lossy()], &mut input, BOOT_DEADLINE)?;
        if output.code != Some(0) {
            return Err(LabError::Guest {
                host: self.name.clone(),
                action: "take a file",
                reason: output.stderr,
            });
        }
        Ok(to)
    }

    fn start_daemon(&mut self) -> Result<(), LabError> {
        // The shell ends at once, and the first process takes the daemon over.
        let script = format!(
            "mkdir -p -m 700 {DATA_ROOT} && {RSWARM} daemon </dev/null >>{DATA_ROOT}/daemon.log 2>&1 &"
        );
        self.run("/bin/sh", &["-c", &script], CALL).map(drop)
    }

    /// The process that is the machine is killed; its memory, and with it all its files, is gone.
    fn power_off(&mut self) -> Result<(), LabError> {
        self.end();
        Ok(())
    }

    fn log_tail(&self, lines: usize) -> String {
        let count = lines.to_string();
        let log = format!("{DATA_ROOT}/daemon.log");
        let daemon = self.run("/bin/tail", &["-n", &count, &log], CALL).map(|output| output.stdout);
        format!("{}\n(console) {}", daemon.unwrap_or_default(), self.console_tail(lines))
    }
}

/// The machine's link on the wire.
fn port(number: usize) -> String {
    format!("h{number}")
}

/// A process that ends with its value.
struct Process(Option<Child>);

impl Process {
    fn has_ended(&mut self) -> bool {
        self.0.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for qemu to connect.
fn accept(listener: &UnixListener, qemu: &mut Process) -> io::Result<UnixStream> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if qemu.has_ended() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "qemu has ended"));
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL);
    }
}

/// What qemu said, or else what went wrong.
fn tail_or(said: &Path, otherwise: &io::Error) -> String {
    match tail(said, 5) {
        Ok(text) if !text.trim().is_empty() => text,
        _ => otherwise.to_string(),
    }
}
