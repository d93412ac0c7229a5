//! What keeps the pods of a lab apart: network namespaces as root; the same inside of a user namespace for everybody else; and
//! where the machine forbids that, addresses of loopback alone.
//!
//! A lab in a user namespace is this program, begun again as root of a namespace in which nobody else is. The machine's own
//! network stays its own, so the ways in are ordinary ports. A command about such a lab enters the namespace first.

use super::image::on_path;
use super::record::{self, Lab};
use crate::error::{Error, Result};
use clap::ValueEnum;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    /// A network namespace per pod; needs root
    Netns,
    /// The same inside of a user namespace, without root
    Userns,
    /// Addresses of loopback and explicit ports, without namespaces
    Loopback,
}

/// Tells the program that it was begun again.
const BEGUN_AGAIN: &str = "WEFT_LAB_IN_USERNS";

const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// All that a lab needs of a namespace, tried in one that goes away again.
const TRIAL: &str = "\
ip link add weft0 type veth peer name weft1 && \
echo 'table ip weft { chain c { type nat hook output priority -100; meta l4proto tcp redirect to :1; }; }' | nft -f - && \
echo 1 >/proc/sys/net/ipv4/ip_forward && mount --bind /etc/hosts /etc/hosts";

impl Isolation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Userns => "userns",
            Self::Loopback => "loopback",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Netns, Self::Userns, Self::Loopback].into_iter().find(|i| i.name() == name)
    }

    /// What the lab's first lines say of it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Netns => "netns: a network namespace per pod",
            Self::Userns => "userns: a network namespace per pod, inside of a user namespace",
            Self::Loopback => "loopback: an address of 127.0.0.0/8 per pod, and no namespaces",
        }
    }

    /// The one that is asked for, or the first that this machine has; of the others, why not.
    pub fn choose(forced: Option<Self>) -> Result<(Self, Vec<String>)> {
        if is_begun_again() {
            return Ok((Self::Userns, Vec::new()));
        }
        if let Some(forced) = forced {
            return match forced.obstacle() {
                None => Ok((forced, Vec::new())),
                Some(why) => {
                    let hint = "another --isolation, or none: the lab takes what this machine has";
                    Err(Error::new(format!("--isolation {} is not possible: {why}", forced.name()), hint))
                }
            };
        }
        let mut refused = Vec::new();
        for isolation in [Self::Netns, Self::Userns] {
            match isolation.obstacle() {
                None => return Ok((isolation, refused)),
                // Who is not root does not expect it.
                Some(why) if isolation == Self::Userns || rustix::process::geteuid().is_root() => {
                    refused.push(format!("no {}: {why}", isolation.name()));
                }
                Some(_) => {}
            }
        }
        Ok((Self::Loopback, refused))
    }

    /// Why this machine does not have it.
    fn obstacle(self) -> Option<String> {
        if self == Self::Loopback {
            return missing(&[("setpriv", "util-linux")]);
        }
        if let Some(missing) = missing(PROGRAMS) {
            return Some(missing);
        }
        if self == Self::Userns {
            return switched_off()
                .or_else(|| trial(&["--user", "--map-root-user"]).map(|why| restricted().unwrap_or(why)));
        }
        if !rustix::process::geteuid().is_root() {
            return Some("it takes root".into());
        }
        trial(&[]).or_else(|| match std::fs::create_dir_all("/run/netns").and_then(|()| writable("/run/netns")) {
            Ok(()) => None,
            Err(error) => Some(format!("/run/netns: {error}")),
        })
    }
}

fn missing(wanted: &[(&str, &str)]) -> Option<String> {
    let mut packages: Vec<&str> =
        wanted.iter().filter(|(program, _)| on_path(program).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    let packages = packages.join(" ");
    (!packages.is_empty()).then(|| format!("programs of {packages} are missing (apt-get install {packages})"))
}

fn writable(folder: &str) -> std::io::Result<()> {
    let file = Path::new(folder).join(format!(".weft-{}", std::process::id()));
    std::fs::write(&file, "").and_then(|()| std::fs::remove_file(&file))
}

/// What the kernel says.
fn setting(name: &str) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_string())
}

fn switched_off() -> Option<String> {
    [
        ("kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone"),
        ("user/max_user_namespaces", "user.max_user_namespaces"),
    ]
    .into_iter()
    .find(|(file, _)| setting(file).as_deref() == Some("0"))
    .map(|(_, name)| format!("user namespaces are switched off ({name} is 0)"))
}

fn restricted() -> Option<String> {
    let name = "kernel.apparmor_restrict_unprivileged_userns";
    (setting(&name.replace('.', "/")).as_deref() == Some("1"))
        .then(|| format!("AppArmor gives user namespaces no rights here ({name} is 1)"))
}

/// What goes wrong in a namespace, if anything does.
fn trial(of_a_user: &[&str]) -> Option<String> {
    let mut command = Command::new("unshare");
    command.args(of_a_user).args(["--net", "--mount", "--", "sh", "-c", TRIAL]).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).lines().next().map(String::from);
            Some(said.unwrap_or_else(|| output.status.to_string()))
        }
        Err(error) => Some(format!("unshare: {error}")),
    }
}

pub fn is_begun_again() -> bool {
    std::env::var_os(BEGUN_AGAIN).is_some()
}

/// Becomes this program again, as root of a user namespace. Returns only if that fails.
pub fn begin_again() -> Error {
    let words = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "--"];
    replace(words.map(String::from).to_vec())
}

/// For a command about a lab: goes to where the lab is.
pub fn join(lab: &Lab) -> Result<()> {
    if lab.isolation != Isolation::Userns {
        return Ok(());
    }
    let own = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user"));
    let Ok(theirs) = own(&lab.runs.pid.to_string()) else {
        let message = format!("lab {} is in a user namespace of somebody else", lab.id);
        return Err(Error::new(message, "run this as the user who runs the lab"));
    };
    if own("self").is_ok_and(|own| own == theirs) {
        return Ok(());
    }
    let of = |kind: &str| format!("--{kind}=/proc/{}/ns/{}", lab.runs.pid, if kind == "user" { "user" } else { "mnt" });
    let words = ["nsenter", "--preserve-credentials", &of("user"), &of("mount"), "--wd=.", "--"];
    Err(replace(words.map(String::from).to_vec()))
}

/// Has those words run this program, with the same arguments, in this one's place.
fn replace(mut words: Vec<String>) -> Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return format!("this program does not know where it is: {error}").into(),
    };
    let first = words.remove(0);
    let mut command = Command::new(&first);
    command.args(words).arg(program).args(std::env::args_os().skip(1));
    // As root of a user namespace it would look for labs where root's are.
    let error = command.env(BEGUN_AGAIN, "1").env("WEFT_LAB_HOME", record::home()).exec();
    format!("{first}: {error}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for isolation in [Isolation::Netns, Isolation::Userns, Isolation::Loopback] {
            assert_eq!(Isolation::named(isolation.name()), Some(isolation));
            assert!(isolation.describe().starts_with(isolation.name()));
        }
        assert_eq!(Isolation::named("vm"), None);
    }

    #[test]
    fn a_program_that_nobody_has() {
        let why = missing(&[("sh", "dash"), ("weft-no-such-program", "nothing")]).unwrap();
        assert_eq!(why, "programs of nothing are missing (apt-get install nothing)");
    }
}
