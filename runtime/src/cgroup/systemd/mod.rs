//! systemd as the manager of cgroups: it makes and removes a container's directory, as that of a unit of its own, and is
//! told of the limits before they are written to the files. Everything else about the cgroup stays as it is without it.
//!
//! A scope is made around processes that exist, so here a container's first process comes before its cgroup. Hierarchies
//! that systemd does not manage (on v1, all but its own and a few) are ours as ever.
//!
//! Source: systemd, "The New Control Group Interfaces", "Control Group APIs and Delegation"; runc, `docs/systemd.md`.

mod annotation;
mod bus;
mod name;
mod properties;
mod wire;

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub(crate) use annotation::PREFIX as UNIT_ANNOTATIONS;

use super::{Cgroup, CgroupError, CgroupPlan, Layout, Write, check, update};
use crate::error::{Cause, Failure};
use bus::{Bus, BusError, Place};
use wire::Property;

pub(crate) use name::UnitName;

/// `char-136` and the like are understood from here on.
const VERSION_LEAST: u32 = 240;

/// A systemd that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// It is a user's, not the system's.
    user: bool,
    version: u32,
    /// The cgroup that all of its units are in; empty at the top.
    control_group: String,
}

/// The unit of systemd's whose cgroup a container has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    pub name: String,
    /// Of a user's manager, not the system's.
    pub user: bool,
}

/// A unit to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitPlan {
    unit: Unit,
    slice: String,
    /// Where its cgroup will be, below each hierarchy.
    control_group: String,
    is_v2: bool,
    /// That follow from limits, and then those that the configuration names.
    properties: Vec<Property>,
}

impl Manager {
    /// Looks for the one to ask: the system's, or without privileges on the host the user's own.
    ///
    /// # Errors
    /// Says what is not there, and what to do.
    pub fn find(layout: &Layout, user: bool) -> Result<Self, Failure> {
        let step = "have systemd manage the cgroup";
        if !Path::new("/run/systemd/system").is_dir() {
            let reason = "systemd does not run here: leave out --systemd-cgroup (docker: \
                          native.cgroupdriver=cgroupfs, podman: cgroup_manager=cgroupfs)";
            return Err(Failure::new(step, reason));
        }
        if user && !layout.is_v2() {
            let reason = "without privileges that takes cgroup v2 alone, and this host has v1 hierarchies";
            return Err(Failure::new(step, reason));
        }
        let mut bus = connect(user)?;
        let mut property = |name| {
            let failed = |error: BusError| failure("ask systemd for its properties", &error);
            bus.property_of_manager(name).map_err(failed)
        };
        let text = property("Version")?;
        let version = version(&text).filter(|version| *version >= VERSION_LEAST);
        let Some(version) = version else {
            return Err(Failure::new(
                step,
                format!("expected version {VERSION_LEAST} or newer, found `{text}`"),
            ));
        };
        Ok(Self { user, version, control_group: property("ControlGroup")?.trim_end_matches('/').to_owned() })
    }
}

/// As [`super::plan`], for a `path` of the form `slice:prefix:name`.
///
/// # Errors
/// The same, and annotations that cannot be read.
pub fn plan<'a>(
    layout: &Layout,
    manager: &Manager,
    path: &str,
    resources: Option<&LinuxResources>,
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<CgroupPlan, CgroupError> {
    let Manager { user, version, control_group } = manager;
    let place = UnitName::parse(path, *user)?;
    let control_group = format!("{control_group}{}", place.control_group());
    let unit = Unit { name: place.unit, user: *user };
    let cgroup = Cgroup { unit: Some(unit.clone()), ..Cgroup::at(layout, &control_group) };
    resources.map_or(Ok(()), check::check_first)?;
    let mut plan = update(layout, cgroup, resources)?;
    if *user {
        // What a user's part of the tree has was handed down to it, and is not the user's to change.
        plan.controllers.clear();
    }
    let mut properties = properties::of_limits(&plan.limits, *version);
    if let Some(rules) = resources.and_then(|resources| resources.devices().as_ref()) {
        properties.extend(properties::of_devices(rules)?);
    }
    properties.extend(annotation::properties(annotations)?);
    plan.unit = Some(UnitPlan { unit, slice: place.slice, control_group, is_v2: layout.is_v2(), properties });
    Ok(plan)
}

impl UnitPlan {
    /// Makes the unit, a scope around the process `first`.
    ///
    /// # Errors
    /// Names unit and reason; nothing is left of it then.
    pub(super) fn make(&self, first: Option<i32>) -> Result<(), Failure> {
        let Self { unit, slice, control_group, is_v2, properties } = self;
        let failed = |error: BusError| failure(&format!("start the unit `{}`", unit.name), &error);
        let is_slice = name::is_slice(&unit.name);
        let mut all = properties::basic(&unit.name, slice, is_slice, *is_v2);
        if let Some(pid) = first.filter(|_| !is_slice) {
            all.push(properties::first_process(pid));
        }
        all.extend(properties.iter().cloned());
        let mut bus = connect(unit.user)?;
        let mut started = bus.start_transient(&unit.name, &all);
        if started.as_ref().is_err_and(|error| error.is(".UnitExists")) {
            // One that failed is still known by its name, and only that.
            let _ = bus.reset_failed(&unit.name);
            started = bus.start_transient(&unit.name, &all);
        }
        match started {
            // There is none of ours.
            Err(error @ BusError::Refused { .. }) => return Err(failed(error)),
            Err(error) => {
                let _ = unit.stop();
                return Err(failed(error));
            }
            Ok(()) => {}
        }
        let kind = if is_slice { "Slice" } else { "Scope" };
        let found = bus.property_of_unit(&unit.name, kind, "ControlGroup").map_err(failed);
        match found {
            Ok(found) if found == *control_group => Ok(()),
            other => {
                let _ = unit.stop();
                let found = other?;
                let reason = format!("expected its cgroup at `{control_group}`, found `{found}`");
                Err(Failure::new(format!("start the unit `{}`", unit.name), reason))
            }
        }
    }
}

impl Unit {
    /// Tells systemd of changed limits.
    ///
    /// # Errors
    /// Names unit and reason.
    pub(super) fn tell(&self, limits: &[Write]) -> Result<(), Failure> {
        let failed = |error: BusError| failure(&format!("change the unit `{}`", self.name), &error);
        let mut bus = connect(self.user)?;
        let text = bus.property_of_manager("Version").map_err(failed)?;
        let properties = properties::of_limits(limits, version(&text).unwrap_or(VERSION_LEAST));
        if properties.is_empty() { Ok(()) } else { bus.set(&self.name, &properties).map_err(failed) }
    }

    /// Ends the unit, which removes its cgroup. Fine if there is none.
    ///
    /// # Errors
    /// Names unit and reason.
    pub(super) fn stop(&self) -> Result<(), Failure> {
        let mut bus = connect(self.user)?;
        let stopped = match bus.stop(&self.name) {
            // It ended by itself when its last process did.
            Err(error) if error.is(".NoSuchUnit") => Ok(()),
            other => other.map_err(|error| failure(&format!("stop the unit `{}`", self.name), &error)),
        };
        // It only knows failed ones.
        let _ = bus.reset_failed(&self.name);
        stopped
    }
}

fn connect(user: bool) -> Result<Bus, Failure> {
    let places = if user { of_user() } else { bus::of_system() };
    let step = if user { "connect to systemd of this user" } else { "connect to systemd" };
    Bus::connect(&places).map_err(|error| match error {
        BusError::Connection(error) if user => {
            let what = "is there a session, with DBUS_SESSION_BUS_ADDRESS or XDG_RUNTIME_DIR?";
            Failure::new(step, format!("{}; {what}", Cause::from(&error)))
        }
        error => failure(step, &error),
    })
}

fn of_user() -> Vec<Place> {
    let own = || PathBuf::from(format!("/run/user/{}", rustix::process::geteuid().as_raw()));
    let directory = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(own, PathBuf::from);
    bus::of_user(std::env::var_os("DBUS_SESSION_BUS_ADDRESS").as_deref(), &directory)
}

fn failure(step: &str, error: &BusError) -> Failure {
    match error {
        BusError::Connection(source) => Failure { step: step.to_owned(), cause: source.into() },
        other => Failure::new(step, other.to_string()),
    }
}

/// The number in `252.39-1~deb12u2` or `v245`.
fn version(text: &str) -> Option<u32> {
    let text = text.strip_prefix('v').unwrap_or(text);
    text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxMemoryBuilder, LinuxResourcesBuilder};
    use std::collections::BTreeMap;
    use wire::Value;

    fn manager(user: bool) -> Manager {
        let control_group = if user { "/user.slice/user-1.slice/user@1.service" } else { "" };
        Manager { user, version: 252, control_group: control_group.to_owned() }
    }

    #[test]
    fn cgroup_is_that_of_the_unit() {
        let layout = Layout { unified: Some("/c".into()), ..Default::default() };
        let memory = LinuxMemoryBuilder::default().limit(1000i64).build().unwrap();
        let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
        let annotations =
            BTreeMap::from([("org.systemd.property.CollectMode".to_owned(), "'inactive'".to_owned())]);
        let made =
            |user| plan(&layout, &manager(user), ":rswarm:web", Some(&resources), &annotations).unwrap();
        let system = made(false);
        assert_eq!(system.cgroup.members[0].directory, Path::new("/c/system.slice/rswarm-web.scope"));
        assert_eq!(system.limits[0].path, Path::new("/c/system.slice/rswarm-web.scope/memory.max"));
        assert!(!system.controllers.is_empty());
        let unit = system.unit.unwrap();
        assert_eq!(unit.slice, "system.slice");
        assert_eq!(
            unit.properties,
            [
                ("MemoryMax".to_owned(), Value::U64(1000)),
                ("CollectMode".to_owned(), Value::Text("inactive".to_owned())),
            ]
        );
        let user = made(true);
        let directory = "/c/user.slice/user-1.slice/user@1.service/user.slice/rswarm-web.scope";
        assert_eq!(user.cgroup.members[0].directory, Path::new(directory));
        assert!(user.controllers.is_empty());
    }

    #[test]
    fn versions_are_numbers() {
        for (text, expected) in
            [("252.39-1~deb12u2", Some(252)), ("v245", Some(245)), ("", None), ("x", None)]
        {
            assert_eq!(version(text), expected, "{text}");
        }
    }
}
