//! A machine whose first process is systemd: what it is told beside what Debian's packages say.
//!
//! The guest's own program makes the machine ready and then becomes systemd; its agent is a service, and the machine goes
//! off with that, as ever.

/// Where `cluster-tests/vm-systemd` puts it.
pub(super) const ROOT: &str = "/var/cache/rswarm-lab/systemd";
pub(super) const PROGRAM: &str = "/lib/systemd/systemd";

/// No login, no journal, no device manager: what the tests need, and a bus.
pub(super) const FILES: [(&str, &str); 6] = [
    (
        "/etc/systemd/system/lab-agent.service",
        "[Unit]\nDefaultDependencies=no\nAfter=dbus.service\nSuccessAction=poweroff-force\nFailureAction=poweroff-force\n\
         [Service]\nExecStart=/init agent\n",
    ),
    (
        "/etc/systemd/system/default.target",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket dbus.service lab-agent.service\nAfter=dbus.service\n",
    ),
    // Debian's own units want all that comes with the start of a whole system. systemd looks for these two by their names.
    (
        "/etc/systemd/system/dbus.socket",
        "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    ),
    (
        "/etc/systemd/system/dbus.service",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\n\
         ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
    ),
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/nonexistent:/bin/false\n\
         someone:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
    ),
    ("/etc/group", "root:x:0:\ntty:x:5:\nmessagebus:x:100:\nsomeone:x:1000:\nnogroup:x:65534:\n"),
];
