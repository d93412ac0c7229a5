//! The mesh's own images, of programs that are built already; `images/Containerfile` makes the same with an engine.

use std::path::Path;

use crate::error::{During, Error, Result};
use crate::image::Image;

/// What `meshctl install` names without further words: `weft/proxy`, `weft/control`, `weft/injector`, of this version.
/// `programs` is where they are: `target/debug`, or where `images/programs` put static ones.
pub fn mesh_images(programs: &Path) -> Result<Vec<Image>> {
    Ok(vec![
        proxy_image(programs)?,
        image(programs, "control", "65532:65532")?,
        image(programs, "injector", "65532:65532")?,
    ])
}

/// The sidecar's. The redirection's container is of it too, and runs as root, which its pod says.
pub fn proxy_image(programs: &Path) -> Result<Image> {
    let image = image(programs, "proxy", "1337:1337")?;
    // `curl` and `pilot-agent` are names of the same program.
    let image = ["curl", "pilot-agent"]
        .iter()
        .fold(image, |image, name| image.link(&format!("usr/local/bin/{name}"), "weft-proxy"));
    // Roots of the public web, for TLS that a sidecar begins towards hosts outside the mesh.
    let places = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
    let roots = places.iter().find_map(|place| std::fs::read(place).ok()).ok_or_else(|| {
        Error::new(
            "this machine has no roots of the public web for the sidecar's image",
            "apt-get install ca-certificates",
        )
    })?;
    Ok(image.text("etc/ssl/certs/ca-certificates.crt", roots))
}

fn image(programs: &Path, name: &str, user: &str) -> Result<Image> {
    let program = format!("weft-{name}");
    let from = programs.join(&program);
    if !from.is_file() {
        let hint = "cargo build --bins, build with the tests' profile, or images/programs";
        return Err(Error::new(format!("{} is not there", from.display()), hint));
    }
    let image = Image::new(&format!("weft/{name}:{}", env!("CARGO_PKG_VERSION")))
        .linked_program(&format!("usr/local/bin/{program}"), &from)
        .during(&program)?
        .text("etc/nsswitch.conf", "hosts: files dns\n")
        .entrypoint(&[&format!("/usr/local/bin/{program}")])
        .user(user);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Entry;

    /// Two descriptions of one thing: what is in an image, who it runs as and what it runs.
    #[test]
    fn the_containerfile_says_the_same() {
        let folder = std::env::temp_dir().join(format!("weft-images-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["proxy", "control", "injector"] {
            std::fs::copy("/bin/true", folder.join(format!("weft-{name}"))).unwrap();
        }
        let images = mesh_images(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let file = include_str!("../../../images/Containerfile");
        for image in &images {
            let name = image.name().trim_start_matches("weft/").split(':').next().unwrap();
            let stage = file.split_once(&format!("FROM scratch AS {name}\n")).unwrap().1;
            let stage = stage.split("\n\n").next().unwrap();
            assert!(stage.contains(&format!("USER {}\n", image.user)), "{stage}");
            assert!(stage.contains(&format!("ENTRYPOINT [{:?}]", image.entrypoint[0])), "{stage}");
            // A test's image has the libraries of this machine beside what is meant.
            let meant = image.entries.iter().filter(|(path, _)| !path.starts_with("lib"));
            for (path, entry) in meant.filter(|(_, entry)| !matches!(entry, Entry::Folder(_))) {
                let file_name = path.rsplit('/').next().unwrap().replace(&format!("weft-{name}"), "weft-$name");
                assert!(file.contains(&file_name), "{path}: {entry:?}");
            }
        }
        assert!(file.contains(images[0].name()), "its example is of an older version");
    }
}
