//! Files are written whole or not at all, and only if they are still what was read.

use crate::error::{During, Error, Result};
use std::fs::{OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

/// `before` is what was read, and `after` what is to be; `None` is no file.
pub fn save(path: &Path, before: Option<&str>, after: Option<&str>) -> Result<()> {
    unchanged(path, before)?;
    let shown = path.display();
    let Some(after) = after else { return std::fs::remove_file(path).during(format!("removing {shown}")) };
    // A link stays one.
    let real = if before.is_some() { path.canonicalize().during(&shown)? } else { path.to_path_buf() };
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    let hidden = real.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = write(&hidden, &real, after).and_then(|()| {
        // Once more: whoever saved meanwhile keeps what they wrote.
        unchanged(path, before)?;
        std::fs::rename(&hidden, &real).during(format!("writing {shown}"))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&hidden);
    }
    written
}

fn unchanged(path: &Path, before: Option<&str>) -> Result<()> {
    let now = match std::fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e).during(path.display()),
    };
    match now.as_deref() == before.map(str::as_bytes) {
        true => Ok(()),
        false => Err(Error::new(
            format!("{} was changed by somebody else meanwhile; nothing is written to it", path.display()),
            "the same command again",
        )),
    }
}

/// With the mode and the owner of the file whose place it takes.
fn write(hidden: &Path, real: &Path, text: &str) -> Result<()> {
    let doing = format!("writing {}", hidden.display());
    let as_before = std::fs::metadata(real).ok();
    let mode = as_before.as_ref().map_or(0o644, |m| m.mode() & 0o7777);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(hidden).during(&doing)?;
    file.write_all(text.as_bytes()).during(&doing)?;
    if let Some(meta) = as_before {
        file.set_permissions(Permissions::from_mode(mode)).during(&doing)?;
        // Only root may give files away, and only root has to.
        let _ = chown(hidden, Some(meta.uid()), Some(meta.gid()));
    }
    file.sync_all().during(&doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_testkit::dir::TempDir;

    #[test]
    fn whole_with_its_mode_and_only_if_nobody_else_wrote() {
        let dir = TempDir::new();
        let file = dir.write("a.yaml", "old");
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let link = dir.join("link.yaml");
        std::os::unix::fs::symlink("a.yaml", &link).unwrap();
        save(&link, Some("old"), Some("new")).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());

        let late = save(&file, Some("old"), Some("newer")).unwrap_err().to_string();
        assert!(late.contains("changed by somebody else") && late.contains("try: the same command"), "{late}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert!(save(&file, None, Some("x")).is_err(), "a new file takes nobody's place");

        save(&dir.join("b.yaml"), None, Some("b")).unwrap();
        save(&dir.join("b.yaml"), Some("b"), None).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
