//! Certificate, key and roots from files, and their rotation: what can be read whole and fits together replaces what was
//! there; anything else leaves it in use.

use super::file::IdentityFiles;
use std::io::Read;
use std::path::Path;
use weft_policy::id::TrustDomain;
use weft_tls::{Identity, TrustBundle};

const MAX_PEM: u64 = 4 << 20;

pub fn read(files: &IdentityFiles) -> Result<(Identity, TrustBundle), String> {
    let identity = read_pair(&files.certificate, &files.key)?;
    let mut bundle = TrustBundle::default();
    for trust in &files.trust {
        for file in &trust.roots {
            read_roots(&mut bundle, trust.domain.clone(), file)?;
        }
    }
    Ok((identity, bundle))
}

pub fn read_pair(certificate: &Path, key: &Path) -> Result<Identity, String> {
    let (cert, key) = (pem(certificate)?, pem(key)?);
    Identity::from_pem(&cert, &key).map_err(|e| format!("{}: {e}", certificate.display()))
}

pub fn read_roots(bundle: &mut TrustBundle, domain: Option<TrustDomain>, file: &Path) -> Result<(), String> {
    bundle.add_pem(domain, &pem(file)?).map_err(|e| format!("{}: {e}", file.display()))
}

fn pem(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_PEM).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|e| format!("{} cannot be read: {e}", path.display()))
}
