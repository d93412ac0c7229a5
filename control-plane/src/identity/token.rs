//! Join tokens: how a workload without a certificate proves who it is. A token is good once, for one workload; only its hash is
//! kept, as the name of a file that says whom it is for. Who removes the file has used the token, however many try at once.

use super::ca::{CaError, hex, random, seconds};
use super::own;
use crate::state::StateDir;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use weft_tls::hex_sha256;

/// What a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub namespace: String,
    pub service_account: String,
    pub pod: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the join token is unknown, expired, or was used before: make a new one with `weft-control token`")]
    Refused,
    #[error("join tokens cannot be read: {0}")]
    Io(String),
}

fn io(error: impl ToString) -> TokenError {
    TokenError::Io(error.to_string())
}

/// As names of Kubernetes are, so that they fit into a SPIFFE id, a resource's name and a log line.
pub fn is_name(text: &str) -> bool {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 253 && bytes.iter().copied().all(valid) && ends(bytes.first()) && ends(bytes.last())
}

pub fn create(dir: &StateDir, binding: &Binding, ttl: Duration, now: SystemTime) -> Result<String, CaError> {
    for (what, name) in
        [("namespace", &binding.namespace), ("service account", &binding.service_account), ("pod", &binding.pod)]
    {
        if !is_name(name) {
            return Err(CaError::Name(format!("{name:?} is no name for a {what}: a-z, 0-9, '-' and '.'")));
        }
    }
    if (binding.namespace.as_str(), binding.service_account.as_str()) == (own::NAMESPACE, own::ACCOUNT) {
        return Err(CaError::Name("this identity is the control plane's own: who had it could speak for it".into()));
    }
    let tokens = dir.subdir("tokens")?;
    sweep(&tokens, now)?;
    let token = hex(&random::<32>()?);
    let content = json!({
        "namespace": binding.namespace,
        "serviceAccount": binding.service_account,
        "pod": binding.pod,
        "expires": seconds(now).saturating_add(ttl.as_secs()),
    });
    tokens.write_secret(&hex_sha256(token.as_bytes()), &content.to_string())?;
    Ok(token)
}

/// Whom a token is for, if it is good; it stays so.
pub fn look(dir: &StateDir, token: &str, now: SystemTime) -> Result<Binding, TokenError> {
    let tokens = dir.subdir("tokens").map_err(io)?;
    let text = tokens.read(&hex_sha256(token.as_bytes())).map_err(io)?.ok_or(TokenError::Refused)?;
    let (binding, expires) = read(&text).ok_or(TokenError::Refused)?;
    if seconds(now) >= expires { Err(TokenError::Refused) } else { Ok(binding) }
}

/// Uses it up.
pub fn spend(dir: &StateDir, token: &str) -> Result<(), TokenError> {
    let tokens = dir.subdir("tokens").map_err(io)?;
    match tokens.remove(&hex_sha256(token.as_bytes())) {
        Ok(true) => Ok(()),
        Ok(false) => Err(TokenError::Refused),
        Err(e) => Err(io(e)),
    }
}

fn read(text: &str) -> Option<(Binding, u64)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let word = |name: &str| Some(value[name].as_str()?.to_string());
    let binding =
        Binding { namespace: word("namespace")?, service_account: word("serviceAccount")?, pod: word("pod")? };
    Some((binding, value["expires"].as_u64()?))
}

/// Those that nobody came for.
fn sweep(tokens: &StateDir, now: SystemTime) -> Result<(), CaError> {
    for name in tokens.names()? {
        let over = tokens.read(&name)?.is_some_and(|t| read(&t).is_none_or(|(_, expires)| seconds(now) >= expires));
        if over {
            tokens.remove(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use weft_testkit::dir::TempDir;

    fn web() -> Binding {
        Binding { namespace: "demo".into(), service_account: "web".into(), pod: "web-1".into() }
    }

    #[test]
    fn good_once_and_for_a_while() {
        let temp = TempDir::new();
        let dir = StateDir::open(temp.path()).unwrap();
        let (now, ttl) = (SystemTime::now(), Duration::from_secs(60));
        let token = create(&dir, &web(), ttl, now).unwrap();
        assert_eq!(look(&dir, &token, now), Ok(web()));
        assert_eq!(look(&dir, "", now), Err(TokenError::Refused));
        assert_eq!(look(&dir, &token[1..], now), Err(TokenError::Refused));
        assert_eq!(look(&dir, &token, now + ttl), Err(TokenError::Refused));
        assert_eq!(spend(&dir, &token), Ok(()));
        assert_eq!(spend(&dir, &token), Err(TokenError::Refused));
        assert_eq!(look(&dir, &token, now), Err(TokenError::Refused));
    }

    #[test]
    fn only_hashes_are_kept_and_old_ones_are_not() {
        let temp = TempDir::new();
        let dir = StateDir::open(temp.path()).unwrap();
        let now = SystemTime::now();
        let token = create(&dir, &web(), Duration::from_secs(1), now).unwrap();
        let tokens = dir.subdir("tokens").unwrap();
        let name = tokens.names().unwrap().remove(0);
        assert!(!name.contains(&token) && !tokens.read(&name).unwrap().unwrap().contains(&token));
        let mode = std::fs::metadata(tokens.path(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        create(&dir, &web(), Duration::from_secs(1), now + Duration::from_secs(2)).unwrap();
        assert_eq!(tokens.names().unwrap().len(), 1);
    }

    #[test]
    fn names_that_are_none() {
        let temp = TempDir::new();
        let dir = StateDir::open(temp.path()).unwrap();
        for bad in ["", "a/b", "a b", "A", "-a", "a.", "a\n", "../a"] {
            for which in 0..3 {
                let mut binding = web();
                *[&mut binding.namespace, &mut binding.service_account, &mut binding.pod][which] = bad.into();
                assert!(create(&dir, &binding, Duration::from_secs(1), SystemTime::now()).is_err(), "{bad:?}");
            }
        }
        let own = Binding { namespace: "weft-system".into(), service_account: "weft-control".into(), pod: "a".into() };
        assert!(create(&dir, &own, Duration::from_secs(1), SystemTime::now()).is_err());
    }
}
