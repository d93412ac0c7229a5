//! The file of settings. It is looked at once a second, which sees every way of changing a file, mounted ConfigMaps included; one
//! with a mistake changes nothing, and the log says so.

use super::Settings;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_policy::diag::Diags;
use weft_policy::yaml;

const LOOK: Duration = Duration::from_secs(1);
const MOST: u64 = 1 << 20;

/// What is wrong comes with the file's name.
pub fn read(path: &Path) -> Result<Settings, String> {
    parse(&text(path)?).map_err(|why| format!("{}: {why}", path.display()))
}

fn text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MOST + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() as u64 > MOST => Err(format!("{}: more than {MOST} bytes", path.display())),
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

pub fn parse(text: &str) -> Result<Settings, String> {
    // An empty file changes no default.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Settings::default());
    }
    let mut diags = Diags::default();
    let node = yaml::parse(text, &mut diags);
    let node = node.ok_or_else(|| diags.0.first().map(ToString::to_string).unwrap_or_default())?;
    let fields = yaml::json(&node);
    // Derived code takes a list for the fields in their order.
    if !fields.is_object() {
        return Err("settings are fields with values, such as `image: weft/proxy:0.1.0`".into());
    }
    serde_json::from_value(fields).map_err(|e| e.to_string())
}

/// Until nobody listens.
pub async fn follow(path: PathBuf, out: watch::Sender<Arc<Settings>>) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = out.closed() => return,
        }
        let own = path.clone();
        let read = tokio::task::spawn_blocking(move || read(&own)).await;
        match read.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(new) => {
                told.clear();
                if **out.borrow() != new {
                    tracing::info!(image = new.image, mode = new.mode.word(), "new settings");
                    out.send_replace(Arc::new(new));
                }
            }
            Err(why) if why != told => {
                tracing::error!("{why}; the settings from before stay in force");
                told = why;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        assert_eq!(parse("# nothing\n\n").unwrap(), Settings::default());
        assert_eq!(parse("image: a/b:1\n").unwrap().image, "a/b:1");
        for bad in ["imgae: a", "image: [", "- a", "workers: many"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(read(Path::new("/nowhere/settings.yaml")).unwrap_err().contains("/nowhere/settings.yaml"));
    }
}
