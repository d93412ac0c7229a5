//! From an image's name to a program of this machine.

use super::workload::Container;
use crate::error::{Error, Result};
use std::path::PathBuf;

/// `--image NAME=COMMAND`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub image: String,
    pub command: Vec<String>,
}

impl std::str::FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is not NAME=COMMAND, as in --image shop/web='python3 server.py'");
        let (image, command) = text.split_once('=').ok_or_else(wrong)?;
        let command: Vec<String> = command.split_whitespace().map(Into::into).collect();
        if image.is_empty() || command.is_empty() {
            return Err(wrong());
        }
        Ok(Self { image: image.into(), command })
    }
}

/// A program and its arguments, and what it needs in its environment unless the manifest says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// Images that are a shell and some tools: what the manifest has them do is done with this machine's.
const TOOLS: &[&str] = &["curlimages/curl", "busybox", "alpine", "debian", "ubuntu", "bash", "nicolaka/netshoot"];

/// What the sample app stands in for.
const SAMPLE: &[&str] = &["mesh-sample", "weft/sample", "weft-sample"];
const SAMPLE_PREFIX: &[&str] = &["buoyantio/bb-"];

/// The program of a container. `service` is the name the sample app answers with.
pub fn program(container: &Container, service: &str, mappings: &[Mapping]) -> Result<Program> {
    let name = bare(&container.image);
    let mapped = mappings.iter().find(|m| m.image == container.image || m.image == name || bare(&m.image) == name);
    if let Some(mapping) = mapped {
        // A command of the manifest is a path inside the image; its arguments mean the same anywhere.
        let argv = mapping.command.iter().chain(&container.args).cloned().collect();
        return Ok(Program { argv, env: Vec::new() });
    }
    if TOOLS.contains(&name) {
        let mut argv: Vec<String> = container.command.iter().chain(&container.args).cloned().collect();
        if argv.is_empty() {
            argv = vec!["sleep".into(), "infinity".into()];
        } else if name == "curlimages/curl" && container.command.is_empty() {
            argv.insert(0, "curl".into());
        }
        return Ok(Program { argv, env: Vec::new() });
    }
    let named = |value: &str| vec![("SERVICE_NAME".to_string(), value.to_string())];
    if name == "hashicorp/http-echo" {
        let mut argv = vec![sample()?];
        // Its own flags have one dash; its own port is 5678 whatever the manifest declares.
        let (mut port, mut text, mut status) = ("5678".to_string(), "hello-world".to_string(), None);
        let mut words = container.args.iter();
        while let Some(word) = words.next() {
            let word = word.trim_start_matches('-');
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag, value.to_string()),
                None => (word, words.next().cloned().unwrap_or_default()),
            };
            let value = value.trim_matches('"').to_string();
            match flag {
                "text" => text = value,
                "listen" => port = value.rsplit(':').next().unwrap_or_default().into(),
                "status-code" => status = Some(value),
                other => {
                    return Err(Error::new(
                        format!("http-echo has no flag -{other}"),
                        "-text, -listen or -status-code",
                    ));
                }
            }
        }
        argv.extend(["--port".into(), port, "--text".into(), text]);
        argv.extend(status.into_iter().flat_map(|s| ["--status".to_string(), s]));
        return Ok(Program { argv, env: named(service) });
    }
    if SAMPLE.contains(&name) || SAMPLE_PREFIX.iter().any(|p| name.starts_with(p)) {
        let mut argv = vec![sample()?];
        argv.extend(container.args.iter().cloned());
        return Ok(Program { argv, env: named(service) });
    }
    Err(Error::new(
        format!("container {}: no program is known for the image {:?}", container.name, container.image),
        format!(
            "--image {name}=COMMAND with a program of this machine, or --image {name}=mesh-sample for the sample app"
        ),
    ))
}

/// Without registry, tag and digest.
fn bare(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    // A colon after the last slash begins a tag; one before it, a registry's port.
    let cut = image.rfind(':').filter(|colon| image.rfind('/').is_none_or(|slash| slash < *colon));
    let image = cut.map_or(image, |colon| &image[..colon]);
    match image.split_once('/') {
        Some((registry, rest)) if registry.contains(['.', ':']) || registry == "localhost" => {
            rest.strip_prefix("library/").unwrap_or(rest)
        }
        _ => image,
    }
}

fn sample() -> Result<String> {
    ours("mesh-sample", "weft-sample").map(|path| path.to_string_lossy().into_owned())
}

/// One of our own programs: beside this one, or on the PATH.
pub fn ours(program: &str, package: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(program)));
    beside.filter(|path| path.is_file()).or_else(|| on_path(program)).ok_or_else(|| {
        let hint = format!("cargo build --release -p {package}, in the same folder as meshctl");
        Error::new(format!("the program {program} is neither beside meshctl nor on the PATH"), hint)
    })
}

/// Where a program is, as a shell would look for it.
pub fn on_path(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|p| p.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(image: &str, command: &[&str], args: &[&str]) -> Container {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let (command, args) = (words(command), words(args));
        Container { name: "main".into(), image: image.into(), command, args, ..Container::default() }
    }

    #[test]
    fn names_without_their_dress() {
        for (image, name) in [
            ("busybox", "busybox"),
            ("busybox:1.36", "busybox"),
            ("docker.io/library/busybox:1", "busybox"),
            ("localhost:5000/shop/web:v1@sha256:ab", "shop/web"),
            ("buoyantio/bb-auth:v0.0.6", "buoyantio/bb-auth"),
        ] {
            assert_eq!(bare(image), name);
        }
    }

    #[test]
    fn what_runs_in_an_images_place() {
        let mapping: Mapping = "shop/web=python3 -m http.server".parse().unwrap();
        let got = program(&container("registry.test/shop/web:2", &["/bin/web"], &["8080"]), "web", &[mapping]).unwrap();
        assert_eq!(got.argv, ["python3", "-m", "http.server", "8080"]);
        let got = program(&container("curlimages/curl", &["sleep"], &["9"]), "c", &[]).unwrap();
        assert_eq!(got.argv, ["sleep", "9"]);
        assert_eq!(program(&container("alpine:3", &[], &[]), "c", &[]).unwrap().argv, ["sleep", "infinity"]);
        let error = program(&container("shop/web:2", &[], &[]), "web", &[]).unwrap_err().to_string();
        assert!(error.contains("shop/web:2") && error.contains("--image shop/web=COMMAND"), "{error}");
        assert!("web".parse::<Mapping>().is_err() && "web= ".parse::<Mapping>().is_err());
    }
}
