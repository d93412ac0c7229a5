//! The cluster's certificates, and the kubeconfigs of its parts and of its administrator.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::error::{During, Result};
use crate::place::Place;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

struct Leaf {
    pem: String,
    key: String,
}

/// Writes everything below `pki/`, and the kubeconfigs.
pub fn write(place: &Place) -> Result<()> {
    let folder = place.path("pki");
    let cluster = Authority::new("weft-cluster", &folder.join("ca"))?;
    // Who may speak for others at the API server has an authority of its own.
    let front = Authority::new("weft-front-proxy", &folder.join("front-proxy-ca"))?;

    let (address, service) = (place.address(), place.api_service());
    let api_names = [
        "127.0.0.1",
        "localhost",
        &address,
        &service,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    cluster.leaf("kube-apiserver", None, &api_names)?.write(&folder.join("apiserver"))?;
    cluster.leaf(&place.node(), None, &[&place.node(), &address])?.write(&folder.join("kubelet"))?;
    cluster
        .leaf("kube-apiserver-kubelet-client", Some("system:masters"), &[])?
        .write(&folder.join("kubelet-client"))?;
    front.leaf("front-proxy-client", None, &[])?.write(&folder.join("front-proxy-client"))?;

    let accounts = KeyPair::generate().during("key")?;
    put(&folder.join("accounts.key"), &accounts.serialize_pem())?;
    put(&folder.join("accounts.pub"), &accounts.public_key_pem())?;

    let node = format!("system:node:{}", place.node());
    for (part, user, group) in [
        ("kube-controller-manager", "system:kube-controller-manager", None),
        ("kube-scheduler", "system:kube-scheduler", None),
        ("kube-proxy", "system:kube-proxy", None),
        ("kubelet", node.as_str(), Some("system:nodes")),
        ("kubectl", "weft-admin", Some("system:masters")),
    ] {
        let leaf = cluster.leaf(user, group, &[])?;
        let file = if part == "kubectl" { place.kubeconfig() } else { kubeconfig(place, part) };
        put(&file, &leaf.kubeconfig(place, &cluster))?;
    }
    Ok(())
}

/// Of one of the cluster's own parts.
pub fn kubeconfig(place: &Place, part: &str) -> PathBuf {
    place.path("pki").join(format!("{part}.kubeconfig"))
}

impl Authority {
    fn new(name: &str, file: &Path) -> Result<Self> {
        let key = KeyPair::generate().during("key")?;
        let mut params = CertificateParams::new(Vec::new()).during(name)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).during(name)?.pem();
        Leaf { pem: pem.clone(), key: key.serialize_pem() }.write(file)?;
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    fn leaf(&self, user: &str, group: Option<&str>, names: &[&str]) -> Result<Leaf> {
        let key = KeyPair::generate().during("key")?;
        let mut params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).during(user)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let pem = params.signed_by(&key, &self.issuer).during(user)?.pem();
        Ok(Leaf { pem, key: key.serialize_pem() })
    }
}

impl Leaf {
    /// `FILE.crt` and `FILE.key`.
    fn write(&self, file: &Path) -> Result<()> {
        put(&file.with_extension("crt"), &self.pem)?;
        put(&file.with_extension("key"), &self.key)
    }

    /// JSON, which is YAML.
    fn kubeconfig(&self, place: &Place, authority: &Authority) -> String {
        let data = |text: &str| BASE64_STANDARD.encode(text);
        let name = place.node();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {
                "server": format!("https://{}:6443", place.address()),
                "certificate-authority-data": data(&authority.pem),
            }}],
            "users": [{"name": name, "user": {
                "client-certificate-data": data(&self.pem),
                "client-key-data": data(&self.key),
            }}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        });
        format!("{config:#}\n")
    }
}

fn put(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).during(folder.display())?;
    }
    std::fs::write(file, text).during(file.display())
}
