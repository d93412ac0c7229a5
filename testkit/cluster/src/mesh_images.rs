//! The mesh's own images, of programs as a build on this machine made them; `images/Containerfile.*` make the real ones.

use std::path::Path;

use crate::error::{During, Error, Result};
use crate::image::Image;

/// What `meshctl install` names without further words: `weft/proxy`, `weft/control`, `weft/injector`, of this version.
/// `programs` is where cargo puts them: `target/debug`.
pub fn mesh_images(programs: &Path) -> Result<Vec<Image>> {
    let image = |name: &str, program: &str, user: &str| {
        let from = programs.join(program);
        if !from.is_file() {
            let hint = "cargo build --bins, or build with the tests' profile";
            return Err(Error::new(format!("{} is not there", from.display()), hint));
        }
        let image = Image::new(&format!("weft/{name}:{}", env!("CARGO_PKG_VERSION")))
            .linked_program(&format!("usr/local/bin/{program}"), &from)
            .during(program)?
            .text("etc/nsswitch.conf", "hosts: files dns\n")
            .entrypoint(&[&format!("/usr/local/bin/{program}")])
            .user(user);
        Ok(image)
    };
    // The redirection's container runs as root, which its pod says; `curl` and `pilot-agent` are names of the same program.
    let proxy = image("proxy", "weft-proxy", "1337:1337")?;
    let proxy = ["curl", "pilot-agent"]
        .iter()
        .fold(proxy, |image, name| image.link(&format!("usr/local/bin/{name}"), "weft-proxy"));
    Ok(vec![
        proxy,
        image("control", "weft-control", "65532:65532")?,
        image("injector", "weft-injector", "65532:65532")?,
    ])
}
