//! The images every cluster has.

use std::path::Path;
use std::process::Command;

use crate::error::{During, Result};
use crate::image::Image;
use crate::parts::{COREDNS, PAUSE};

pub fn all(programs: &Path) -> Result<Vec<Image>> {
    Ok(vec![
        Image::of_program(PAUSE, &programs.join("pause")),
        busybox()?,
        Image::of_program(COREDNS, &programs.join("coredns")),
    ])
}

/// `busybox:1`: Debian's, under all its names.
fn busybox() -> Result<Image> {
    let program = Path::new("/usr/bin/busybox");
    let list = Command::new(program).arg("--list").output().during("busybox")?;
    let image = Image::new("busybox:1")
        .also_named("busybox:1.36")
        .linked_program("bin/busybox", program)
        .during("busybox")?
        .text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        .text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
        .text("etc/nsswitch.conf", "hosts: files dns\n")
        .folder("root", 0o700)
        .folder("tmp", 0o1777)
        .command(&["sh"]);
    let names = String::from_utf8_lossy(&list.stdout).into_owned();
    Ok(names
        .lines()
        .filter(|n| *n != "busybox")
        .fold(image, |image, name| image.link(&format!("bin/{name}"), "busybox")))
}
