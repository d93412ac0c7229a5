//! The images that are shipped: of static programs, as archives, without an engine.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{During, Error, Result};
use crate::image;
use crate::mesh_images::mesh_images;

/// Builds static programs into a folder, by the script that `images/Containerfile` uses: `profile` is `dist` for what is shipped,
/// `dev` for what only has to run. No names means all.
pub fn static_programs(folder: &Path, profile: &str, names: &[&str]) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/programs");
    let folder = std::path::absolute(folder).during(folder.display())?;
    let mut command = Command::new(&script);
    let status = command
        .args(["--profile", profile])
        .arg(folder)
        .args(names)
        .stdin(Stdio::null())
        .status()
        .during(script.display())?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}; what it said is above", script.display()).into()) }
}

/// An archive that has been written.
pub struct Written {
    pub name: String,
    pub file: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// Writes the images of static programs into a folder, one archive each: what `docker load`, `podman load`, `ctr images import`,
/// `kind load image-archive` and `skopeo copy docker-archive:` read. `prefix` stands before the names: `weft`, or a registry and
/// a folder of it.
pub fn shipped_images(programs: &Path, prefix: &str, folder: &Path) -> Result<Vec<Written>> {
    let images = mesh_images(programs)?;
    for name in ["weft-proxy", "weft-control", "weft-injector"] {
        let program = programs.join(name);
        if let Some(library) = image::libraries(&program).during(name)?.first() {
            let message =
                format!("{} is linked to this machine's {library}: it is no program for an image", program.display());
            return Err(Error::new(
                message,
                "images/programs builds static ones; weft-cluster mesh takes these as they are",
            ));
        }
    }
    std::fs::create_dir_all(folder).during(folder.display())?;
    let write = |image: image::Image| {
        let rest = image.name().trim_start_matches("weft/").to_string();
        let file = folder.join(format!("weft-{}.tar", rest.replace(':', "-")));
        let name = format!("{}/{rest}", prefix.trim_end_matches('/'));
        let size = write_archive(&image.named(&name), &file).during(file.display())?;
        Ok(Written { name, file, size })
    };
    images.into_iter().map(write).collect()
}

/// A half-written archive bears another name.
fn write_archive(image: &image::Image, file: &Path) -> io::Result<u64> {
    let unfinished = file.with_extension("unfinished");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
    image.write(&mut out)?;
    out.flush()?;
    std::fs::rename(&unfinished, file)?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_libraries_is_refused() {
        let folder = std::env::temp_dir().join(format!("weft-shipped-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["weft-proxy", "weft-control", "weft-injector"] {
            // What cargo has built for this test, and what Debian builds static.
            let from =
                if name == "weft-injector" { std::env::current_exe().unwrap() } else { "/usr/bin/busybox".into() };
            std::fs::copy(from, folder.join(name)).unwrap();
        }
        let refused = shipped_images(&folder, "weft", &folder.join("out")).err().unwrap().to_string();
        assert!(refused.contains("weft-injector") && refused.contains("images/programs"), "{refused}");
        assert!(!folder.join("out").exists());

        std::fs::copy("/usr/bin/busybox", folder.join("weft-injector")).unwrap();
        let written = shipped_images(&folder, "registry.example/a/", &folder.join("out")).unwrap();
        assert_eq!(written.len(), 3);
        assert_eq!(written[0].name, format!("registry.example/a/proxy:{}", env!("CARGO_PKG_VERSION")));
        for archive in &written {
            assert_eq!(archive.file.metadata().unwrap().len(), archive.size);
            assert!(archive.size > std::fs::metadata("/usr/bin/busybox").unwrap().len());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
