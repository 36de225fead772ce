//! A connection to systemd: straight to its own socket, or by way of the bus.
//!
//! Blocking, one call at a time, every wait bounded. On systemd's own socket nobody has to introduce himself, and
//! signals come unasked; a bus wants both.
//!
//! Source: D-Bus specification, "Authentication Protocol", "Message Bus"; org.freedesktop.systemd1(5).

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wire::{self, Address, Malformed, Message, Property, Writer};

/// How long systemd may take for one thing. Starting a unit waits for all that is queued before it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line of the authentication.
const LINE_MAX: usize = 1024;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// Why something that was asked of systemd is not so.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    #[error("{message} ({name})")]
    Refused { name: String, message: String },
    #[error("the job ended as `{result}`")]
    Job { result: String },
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silence,
    #[error("the connection was not let in: {answer}")]
    Authentication { answer: String },
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Connection(io::Error),
}

impl BusError {
    /// Whether it is this error of systemd's.
    pub fn is(&self, kind: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.strip_prefix(SYSTEMD) == Some(kind))
    }
}

impl From<io::Error> for BusError {
    fn from(error: io::Error) -> Self {
        if crate::error::is_timeout(&error) { Self::Silence } else { Self::Connection(error) }
    }
}

/// Where systemd, or a bus that it is on, listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Own(PathBuf),
    Bus(Vec<u8>, Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Path,
    Abstract,
}

/// Where the system's manager is.
pub(super) fn of_system() -> Vec<Place> {
    vec![
        Place::Own("/run/systemd/private".into()),
        Place::Bus(b"/run/dbus/system_bus_socket".to_vec(), Kind::Path),
    ]
}

/// Where a user's manager is, by what the environment says.
pub(super) fn of_user(bus: Option<&OsStr>, directory: &Path) -> Vec<Place> {
    let mut places: Vec<Place> = bus.map(addresses).unwrap_or_default();
    places.push(Place::Bus(directory.join("bus").into_os_string().into_vec(), Kind::Path));
    places.push(Place::Own(directory.join("systemd/private")));
    places
}

/// The sockets in an address such as `unix:path=/run/user/1000/bus,guid=…;unix:abstract=…`.
fn addresses(text: &OsStr) -> Vec<Place> {
    let one = |address: &[u8]| {
        let keys = address.strip_prefix(b"unix:")?;
        keys.split(|byte| *byte == b',').find_map(|pair| {
            let path = pair.strip_prefix(b"path=").map(|path| (path, Kind::Path));
            let (name, kind) = path.or(pair.strip_prefix(b"abstract=").map(|name| (name, Kind::Abstract)))?;
            Some(Place::Bus(unescape(name), kind))
        })
    };
    text.as_bytes().split(|byte| *byte == b';').filter_map(one).collect()
}

/// Undoes `%2f` and the like.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits =
            after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// A connection that is let in.
#[derive(Debug)]
pub(super) struct Bus<S = UnixStream> {
    stream: S,
    serial: u32,
    /// `JobRemoved` signals that came while something else was waited for: job and result.
    ended: Vec<(String, String)>,
}

impl Bus {
    /// # Errors
    /// That of the last place, if systemd is at none of them.
    pub fn connect(places: &[Place]) -> Result<Self, BusError> {
        let mut last = io::Error::from(io::ErrorKind::NotFound).into();
        for place in places {
            match Self::at(place) {
                Ok(bus) => return Ok(bus),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn at(place: &Place) -> Result<Self, BusError> {
        let stream = match place {
            Place::Own(path) => UnixStream::connect(path)?,
            Place::Bus(name, Kind::Path) => UnixStream::connect(OsStr::from_bytes(name))?,
            Place::Bus(name, Kind::Abstract) => {
                UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?
            }
        };
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut bus = Self::open(stream)?;
        if let Place::Bus(..) = place {
            let to = |member| Address { destination: BUS, path: BUS_PATH, interface: BUS, member };
            bus.call(to("Hello"), "", |_| ())?;
            let rule = format!("type='signal',interface='{MANAGER}',member='JobRemoved'");
            bus.call(to("AddMatch"), "s", |body| body.text(&rule))?;
            bus.manager("Subscribe", "", |_| ())?;
        }
        Ok(bus)
    }
}

impl<S: Read + Write> Bus<S> {
    /// Says who is there. The other end knows it from the kernel; what name it goes by in which user namespace does not
    /// matter then.
    ///
    /// All of it goes at once, and nothing follows before it is answered: systemd overlooks a call that it reads together
    /// with the last of these lines, until another one comes.
    fn open(mut stream: S) -> Result<Self, BusError> {
        stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut answers = [read_line(&mut stream)?, read_line(&mut stream)?];
        // One that wants no more than the kernel's word finds the second line superfluous.
        answers.sort_by_key(|answer| !answer.starts_with("OK"));
        let [answer, _] = answers;
        if !answer.starts_with("OK") {
            return Err(BusError::Authentication { answer });
        }
        Ok(Self { stream, serial: 0, ended: Vec::new() })
    }

    /// Calls a method and waits for its answer.
    fn call(
        &mut self,
        to: Address<'_>,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) -> Result<Message, BusError> {
        self.serial += 1;
        self.stream.write_all(&wire::call(self.serial, to, signature, write))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(deadline)?;
            if message.reply_to != Some(self.serial) {
                self.note(&message)?;
                continue;
            }
            return match message.kind {
                wire::METHOD_RETURN => Ok(message),
                // An error, which is all that else answers a call.
                _ => Err(BusError::Refused {
                    message: message.values().text().unwrap_or("it did not say why").to_owned(),
                    name: message.error_name.unwrap_or_default(),
                }),
            };
        }
    }

    fn manager(
        &mut self,
        member: &str,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) -> Result<Message, BusError> {
        let to = Address { destination: SYSTEMD, path: MANAGER_PATH, interface: MANAGER, member };
        self.call(to, signature, write)
    }

    fn property(&mut self, path: &str, interface: &str, name: &str) -> Result<String, BusError> {
        let to = Address { destination: SYSTEMD, path, interface: PROPERTIES, member: "Get" };
        let answer = self.call(to, "ss", |body| {
            body.text(interface);
            body.text(name);
        })?;
        Ok(answer.values().text_variant()?.to_owned())
    }

    /// A property of systemd itself that is a string.
    pub fn property_of_manager(&mut self, name: &str) -> Result<String, BusError> {
        self.property(MANAGER_PATH, MANAGER, name)
    }

    /// A property of a unit that is a string; `kind` is `Scope` or `Slice`.
    pub fn property_of_unit(&mut self, unit: &str, kind: &str, name: &str) -> Result<String, BusError> {
        self.property(&unit_path(unit), &format!("{SYSTEMD}.{kind}"), name)
    }

    /// Makes a unit that nobody has a file of, and waits until it is there.
    pub fn start_transient(&mut self, unit: &str, properties: &[Property]) -> Result<(), BusError> {
        self.job("StartTransientUnit", "ssa(sv)a(sa(sv))", |body| {
            body.text(unit);
            body.text("replace");
            body.properties(properties);
            body.array(8, &[(); 0], |_, ()| ());
        })
    }

    /// Ends a unit with all its processes, and waits for that.
    pub fn stop(&mut self, unit: &str) -> Result<(), BusError> {
        self.job("StopUnit", "ss", |body| {
            body.text(unit);
            body.text("replace");
        })
    }

    /// Has a unit that failed forgotten.
    pub fn reset_failed(&mut self, unit: &str) -> Result<(), BusError> {
        self.manager("ResetFailedUnit", "s", |body| body.text(unit)).map(drop)
    }

    /// Changes properties of a unit until the next start of the machine, and waits until that had its effect on files:
    /// the queue of such work is done before the next call is looked at.
    pub fn set(&mut self, unit: &str, properties: &[Property]) -> Result<(), BusError> {
        self.manager("SetUnitProperties", "sba(sv)", |body| {
            body.text(unit);
            body.bool(true);
            body.properties(properties);
        })?;
        self.property_of_manager("Version").map(drop)
    }

    fn job(
        &mut self,
        member: &str,
        signature: &str,
        write: impl FnOnce(&mut Writer),
    ) -> Result<(), BusError> {
        self.ended.clear();
        let answer = self.manager(member, signature, write)?;
        let job = answer.values().text()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| ended == job) {
                return match result.as_str() {
                    "done" => Ok(()),
                    result => Err(BusError::Job { result: result.to_owned() }),
                };
            }
            let message = self.receive(deadline)?;
            self.note(&message)?;
        }
    }

    /// Keeps what a signal says about a job.
    fn note(&mut self, message: &Message) -> Result<(), BusError> {
        if message.kind == wire::SIGNAL && message.member.as_deref() == Some("JobRemoved") {
            let mut values = message.values();
            values.u32()?;
            let (job, _unit, result) = (values.text()?, values.text()?, values.text()?);
            self.ended.push((job.to_owned(), result.to_owned()));
        }
        Ok(())
    }

    /// The next message. A single read takes no longer than the stream's own limit.
    fn receive(&mut self, deadline: Instant) -> Result<Message, BusError> {
        if Instant::now() > deadline {
            return Err(BusError::Silence);
        }
        let mut prologue = [0; wire::PROLOGUE];
        self.stream.read_exact(&mut prologue)?;
        let mut bytes = prologue.to_vec();
        bytes.resize(wire::length(&prologue)?, 0);
        self.stream.read_exact(&mut bytes[wire::PROLOGUE..])?;
        Ok(Message::parse(&bytes)?)
    }
}

/// Byte by byte, for what follows the line is not text.
fn read_line(stream: &mut impl Read) -> Result<String, BusError> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < LINE_MAX {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// The object that stands for a unit. Source: `sd_bus_path_encode(3)`.
fn unit_path(unit: &str) -> String {
    let mut path = format!("{MANAGER_PATH}/unit/");
    for (at, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            path.push(byte.into());
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// The other end of a connection: reads and says what it is told to.
    fn against(script: impl FnOnce(UnixStream) + Send) -> Result<Bus, BusError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| script(theirs));
            Bus::open(ours)
        })
    }

    fn expect(stream: &mut UnixStream, expected: &str) {
        let mut found = vec![0; expected.len()];
        stream.read_exact(&mut found).unwrap();
        assert_eq!(String::from_utf8(found).unwrap(), expected);
    }

    #[test]
    fn whoever_is_let_in_says_nothing_before_the_answer() {
        let lines = "\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
        for (answer, expected) in [
            ("DATA\r\nOK 1234\r\n", Ok(())),
            ("OK 1234\r\nERROR\r\n", Ok(())),
            ("REJECTED EXTERNAL\r\nERROR\r\n", Err("the connection was not let in: REJECTED EXTERNAL")),
        ] {
            let found = against(|mut stream| {
                expect(&mut stream, lines);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            assert_eq!(found.map(drop).map_err(|error| error.to_string()), expected.map_err(str::to_owned));
        }
    }

    /// What systemd answers to one call after the other.
    fn answering(answers: &[Vec<u8>]) -> (Bus, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        theirs.write_all(&answers.concat()).unwrap();
        (Bus { stream: ours, serial: 0, ended: Vec::new() }, theirs)
    }

    #[test]
    fn a_job_has_ended_when_the_signal_says_so_whichever_comes_first() {
        let started = wire::tests::answer(wire::METHOD_RETURN, 1, None, "o", |body| body.text("/job/2"));
        let ended = |job: &str, result: &str| {
            wire::tests::answer(wire::SIGNAL, 0, Some("JobRemoved"), "uoss", |body| {
                body.u32(2);
                [job, "a.scope", result].iter().for_each(|text| body.text(text));
            })
        };
        for (answers, expected) in [
            ([started.clone(), ended("/job/1", "failed"), ended("/job/2", "done")], Ok(())),
            ([ended("/job/2", "done"), started.clone(), Vec::new()], Ok(())),
            ([started, ended("/job/2", "failed"), Vec::new()], Err("the job ended as `failed`")),
        ] {
            let (mut bus, _theirs) = answering(&answers);
            let found = bus.start_transient("a.scope", &[]).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned));
        }
    }

    #[test]
    fn refusals_are_told_from_losses() {
        let name = Some("org.freedesktop.systemd1.NoSuchUnit");
        let refused = wire::tests::answer(3, 1, name, "s", |body| body.text("Unit a.scope not loaded."));
        let (mut bus, theirs) = answering(&[refused]);
        let error = bus.stop("a.scope").unwrap_err();
        assert!(
            error.is(".NoSuchUnit") && error.to_string().starts_with("Unit a.scope not loaded."),
            "{error}"
        );
        drop(theirs);
        assert!(matches!(bus.stop("a.scope"), Err(BusError::Connection(_))));
    }

    #[test]
    fn addresses_of_buses_are_read() {
        let found = |text: &str| addresses(OsStr::new(text));
        let path = |path: &str| Place::Bus(path.as_bytes().to_vec(), Kind::Path);
        assert_eq!(found("unix:path=/run/user/1/bus,guid=ab"), [path("/run/user/1/bus")]);
        assert_eq!(found("unix:guid=ab,path=/a%20b"), [path("/a b")]);
        assert_eq!(
            found("tcp:host=x;unix:abstract=/tmp/x;unix:path=/y"),
            [Place::Bus(b"/tmp/x".to_vec(), Kind::Abstract), path("/y")]
        );
        assert_eq!(found("autolaunch:"), []);
        assert_eq!(unescape(b"%2f%zz%"), b"/%zz%");
    }

    #[test]
    fn units_have_paths() {
        assert_eq!(unit_path("rswarm-a1.scope"), "/org/freedesktop/systemd1/unit/rswarm_2da1_2escope");
        assert_eq!(unit_path("1"), "/org/freedesktop/systemd1/unit/_31");
    }
}
