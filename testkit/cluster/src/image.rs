//! Container images without an engine or a registry: the archive that `docker save` writes, by hand.
//!
//! One layer with the given files, a configuration and a manifest. The same files give the same bytes: entries are sorted and
//! owned by root, and nothing has a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest;
use serde_json::json;

#[derive(Clone, Debug)]
pub struct Image {
    names: Vec<String>,
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) entrypoint: Vec<String>,
    command: Vec<String>,
    environment: Vec<String>,
    pub(crate) user: String,
}

#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Folder(u32),
    Program(PathBuf),
    Text(Vec<u8>, u32),
    Link(String),
}

const BLOCK: u64 = 512;

impl Image {
    /// An empty image; `name` with a tag that is not `latest`, or the kubelet asks a registry for it.
    pub fn new(name: &str) -> Self {
        Self {
            names: vec![name.into()],
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            environment: vec!["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into()],
            user: String::new(),
        }
    }

    /// An image of one static program, which it runs.
    pub fn of_program(name: &str, program: &Path) -> Self {
        let file = program.file_name().unwrap_or_default().to_string_lossy();
        Self::new(name).program(&format!("bin/{file}"), program).entrypoint(&[&format!("/bin/{file}")])
    }

    /// The same under another name.
    pub fn named(mut self, name: &str) -> Self {
        self.names = vec![name.into()];
        self
    }

    pub fn also_named(mut self, name: &str) -> Self {
        self.names.push(name.into());
        self
    }

    /// The file at `from` on this machine, as an executable.
    pub fn program(self, path: &str, from: &Path) -> Self {
        self.entry(path, Entry::Program(from.into()))
    }

    /// As `program`, with the shared libraries it needs, as this machine has them: for programs built on this machine for tests.
    pub fn linked_program(self, path: &str, from: &Path) -> io::Result<Self> {
        let libraries = libraries(from)?;
        Ok(libraries.iter().fold(self.program(path, from), |image, library| image.program(library, Path::new(library))))
    }

    pub fn text(self, path: &str, text: impl Into<Vec<u8>>) -> Self {
        self.entry(path, Entry::Text(text.into(), 0o644))
    }

    /// A text that runs.
    pub fn script(self, path: &str, text: impl Into<Vec<u8>>) -> Self {
        self.entry(path, Entry::Text(text.into(), 0o755))
    }

    pub fn link(self, path: &str, to: &str) -> Self {
        self.entry(path, Entry::Link(to.into()))
    }

    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.entry(path, Entry::Folder(mode))
    }

    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(ToString::to_string).collect();
        self
    }

    pub fn command(mut self, words: &[&str]) -> Self {
        self.command = words.iter().map(ToString::to_string).collect();
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    pub fn user(mut self, user: &str) -> Self {
        self.user = user.into();
        self
    }

    pub fn name(&self) -> &str {
        &self.names[0]
    }

    fn entry(mut self, path: &str, entry: Entry) -> Self {
        let path = path.trim_matches('/');
        for (i, _) in path.match_indices('/') {
            self.entries.entry(path[..i].into()).or_insert(Entry::Folder(0o755));
        }
        self.entries.insert(path.into(), entry);
        self
    }

    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        // The configuration names the layer by its digest, and a file's length comes before the file: so the layer is
        // made twice, and never held in memory.
        let mut measure = Measure { digest: digest::Context::new(&digest::SHA256), length: 0 };
        self.layer(&mut measure)?;
        let layer_length = measure.length;
        let config = json!({
            "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint, "Cmd": self.command, "Env": self.environment, "User": self.user,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(measure.digest.finish().as_ref()))]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "weft-cluster"}],
        })
        .to_string();
        let config_name = format!("{}.json", hex(digest::digest(&digest::SHA256, config.as_bytes()).as_ref()));
        let manifest = json!([{"Config": config_name, "RepoTags": self.names, "Layers": ["layer.tar"]}]).to_string();

        let text = |out: &mut dyn Write, name: &str, text: &str| {
            header(out, name, '0', 0o644, text.len() as u64, "")?;
            out.write_all(text.as_bytes())?;
            pad(out, text.len() as u64)
        };
        text(out, &config_name, &config)?;
        header(out, "layer.tar", '0', 0o644, layer_length, "")?;
        self.layer(out)?;
        pad(out, layer_length)?;
        text(out, "manifest.json", &manifest)?;
        out.write_all(&[0; 2 * BLOCK as usize])
    }

    fn layer(&self, out: &mut dyn Write) -> io::Result<()> {
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder(mode) => header(out, &format!("{path}/"), '5', *mode, 0, "")?,
                Entry::Link(to) => header(out, path, '2', 0o777, 0, to)?,
                Entry::Text(text, mode) => {
                    header(out, path, '0', *mode, text.len() as u64, "")?;
                    out.write_all(text)?;
                    pad(out, text.len() as u64)?;
                }
                Entry::Program(from) => {
                    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", from.display()));
                    let file = File::open(from).map_err(named)?;
                    let length = file.metadata().map_err(named)?.len();
                    header(out, path, '0', 0o755, length, "")?;
                    if io::copy(&mut file.take(length), out)? != length {
                        return Err(io::Error::other(format!("{} became shorter", from.display())));
                    }
                    pad(out, length)?;
                }
            }
        }
        out.write_all(&[0; 2 * BLOCK as usize])
    }
}

/// The shared libraries that a program is linked to, where this machine has them; a static program has none.
pub fn libraries(program: &Path) -> io::Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output()?;
    // That a program is static `ldd` calls an error, or says in words without a path.
    let listed = String::from_utf8_lossy(&output.stdout);
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x..)` and `/lib64/ld-linux-x86-64.so.2 (0x..)`
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(String::from);
    Ok(listed.lines().filter_map(path).collect())
}

/// One header of the format that POSIX calls ustar.
fn header(out: &mut dyn Write, path: &str, kind: char, mode: u32, length: u64, link: &str) -> io::Result<()> {
    let mut block = [0u8; BLOCK as usize];
    let mut put = |at: usize, room: usize, text: &str| {
        if text.len() > room {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("too long for an archive: {text}")));
        }
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
        Ok(())
    };
    // A long path is parted at a slash: up to 155 bytes before it, up to 100 after.
    let part = if path.len() <= 100 {
        None
    } else {
        path[..path.len() - 1].match_indices('/').map(|(i, _)| i).find(|i| path.len() - i <= 101)
    };
    match part {
        None => put(0, 100, path)?,
        Some(i) => {
            put(0, 100, &path[i + 1..])?;
            put(345, 155, &path[..i])?;
        }
    }
    put(100, 7, &format!("{mode:07o}"))?;
    put(108, 7, "0000000")?; // root
    put(116, 7, "0000000")?;
    put(124, 11, &format!("{length:011o}"))?;
    put(136, 11, "00000000000")?; // no time
    put(148, 8, "        ")?;
    put(156, 1, &kind.to_string())?;
    put(157, 100, link)?;
    put(257, 8, "ustar\x0000")?;
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&block)
}

fn pad(out: &mut dyn Write, length: u64) -> io::Result<()> {
    let missing = length.next_multiple_of(BLOCK) - length;
    out.write_all(&[0; BLOCK as usize][..missing as usize])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Measure {
    digest: digest::Context,
    length: u64,
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn example() -> Image {
        let long = format!("usr/{}/file", "a-folder-with-a-long-name/".repeat(5));
        Image::new("example:1")
            .program("bin/sh", Path::new("/bin/sh"))
            .link("bin/bash", "sh")
            .text("etc/motd", "hello\n")
            .text(&long, "far away")
            .folder("tmp", 0o1777)
            .entrypoint(&["/bin/sh"])
            .env("A", "b")
    }

    fn bytes(image: &Image) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write(&mut bytes).unwrap();
        bytes
    }

    /// What `tar` makes of it, with standard input given.
    fn tar(args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child =
            Command::new("tar").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tar");
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{args:?}");
        output.stdout
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        assert_eq!(bytes(&example()), bytes(&example()));
        assert_ne!(bytes(&example()), bytes(&example().env("A", "c")));
    }

    #[test]
    fn another_program_reads_it() {
        let archive = bytes(&example());
        let listed = String::from_utf8(tar(&["-t"], &archive)).unwrap();
        let names: Vec<&str> = listed.lines().collect();
        assert_eq!((names.len(), names[1], names[2]), (3, "layer.tar", "manifest.json"));

        let manifest: serde_json::Value = serde_json::from_slice(&tar(&["-xO", "manifest.json"], &archive)).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["example:1"]));
        assert_eq!(manifest[0]["Config"], names[0]);
        let config = tar(&["-xO", names[0]], &archive);
        assert_eq!(format!("{}.json", hex(digest::digest(&digest::SHA256, &config).as_ref())), names[0]);

        let layer = tar(&["-xO", "layer.tar"], &archive);
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let told = format!("sha256:{}", hex(digest::digest(&digest::SHA256, &layer).as_ref()));
        assert_eq!(config["rootfs"]["diff_ids"], json!([told]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh"]));

        let listed = String::from_utf8(tar(&["-tv"], &layer)).unwrap();
        for wanted in ["drwxrwxrwt 0/0", " bin/bash -> sh", " etc/motd", "-rwxr-xr-x 0/0", "1970-01-01"] {
            assert!(listed.contains(wanted), "{wanted}\n{listed}");
        }
        let far = listed.lines().find_map(|l| l.split_once(" usr/").filter(|(_, p)| p.ends_with("/file"))).unwrap().1;
        assert_eq!(tar(&["-xO", &format!("usr/{far}")], &layer), b"far away");
        assert_eq!(tar(&["-xO", "bin/sh"], &layer), std::fs::read("/bin/sh").unwrap());
    }

    #[test]
    fn libraries_come_along() {
        let image = Image::new("a:1").linked_program("bin/own", &std::env::current_exe().unwrap()).unwrap();
        let has = |end: &str| image.entries.keys().any(|path| path.ends_with(end));
        assert!(has("bin/own") && has("/libc.so.6"), "{:?}", image.entries.keys());
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let out = &mut Vec::new();
        assert!(Image::new("a:1").text(&"x".repeat(300), "").write(out).unwrap_err().to_string().contains("too long"));
        let missing = Image::new("a:1").program("bin/a", Path::new("/nowhere/at-all"));
        assert!(missing.write(out).unwrap_err().to_string().contains("/nowhere/at-all"));
    }
}
