//! Who a workload is, for people: names beside the identity that a certificate proves.

use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Workload {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// The `app` label, or the canonical service name.
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub pod: Arc<str>,
    pub cluster: Arc<str>,
}

impl Workload {
    pub fn read(c: &mut crate::doc::Cursor<'_, '_>) -> Option<Self> {
        c.fields(|f| {
            let mut text = |name| f.opt(name, |c| c.text()).map(Arc::<str>::from);
            let (name, namespace, app) = (text("name"), text("namespace"), text("app"));
            let (version, pod, cluster) = (text("version"), text("pod"), text("cluster"));
            let name = name.unwrap_or_default();
            Some(Self {
                app: app.unwrap_or_else(|| name.clone()),
                name,
                namespace: namespace.unwrap_or_else(|| "default".into()),
                version: version.unwrap_or_default(),
                pod: pod.unwrap_or_default(),
                cluster: cluster.unwrap_or_default(),
            })
        })
    }
}
