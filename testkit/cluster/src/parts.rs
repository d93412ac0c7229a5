//! The cluster's daemons: what each is started with, and the files it is configured by.

use std::path::Path;

use serde_json::json;

use crate::error::{During, Result};
use crate::pki::kubeconfig;
use crate::place::Place;

/// Those that must be there before the API server answers, and those that talk to it.
pub const FIRST: &[&str] = &["etcd", "containerd", "kube-apiserver"];
pub const THEN: &[&str] = &["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

pub const PAUSE: &str = "weft.test/pause:1";
pub const COREDNS: &str = "weft.test/coredns:1";

/// Program and arguments. Paths are as seen inside, where `/run`, `/var/lib` and `/var/log` are the cluster's.
pub fn words(place: &Place, programs: &Path, part: &str) -> Vec<String> {
    let program = match part {
        "containerd" => "/usr/bin/containerd".into(),
        _ => programs.join(part).display().to_string(),
    };
    let pki = |file: &str| place.path("pki").join(file).display().to_string();
    let config = |file: &str| place.path("config").join(file).display().to_string();
    let own_kubeconfig = kubeconfig(place, part).display().to_string();
    let flags: Vec<(&str, String)> = match part {
        "etcd" => vec![
            ("data-dir", "/var/lib/etcd".into()),
            ("listen-client-urls", "http://127.0.0.1:2379".into()),
            ("advertise-client-urls", "http://127.0.0.1:2379".into()),
            ("listen-peer-urls", "http://127.0.0.1:2380".into()),
            // What it holds does not outlive the machine's power anyway.
            ("unsafe-no-fsync", "true".into()),
            ("log-level", "warn".into()),
        ],
        "containerd" => vec![("config", config("containerd.toml"))],
        "kube-apiserver" => vec![
            ("advertise-address", place.address()),
            ("allow-privileged", "true".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("client-ca-file", pki("ca.crt")),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("etcd-servers", "http://127.0.0.1:2379".into()),
            ("kubelet-certificate-authority", pki("ca.crt")),
            ("kubelet-client-certificate", pki("kubelet-client.crt")),
            ("kubelet-client-key", pki("kubelet-client.key")),
            // Else it looks up the node's name in DNS for `exec` and `logs`.
            ("kubelet-preferred-address-types", "InternalIP".into()),
            ("profiling", "false".into()),
            ("proxy-client-cert-file", pki("front-proxy-client.crt")),
            ("proxy-client-key-file", pki("front-proxy-client.key")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".into()),
            ("service-account-key-file", pki("accounts.pub")),
            ("service-account-signing-key-file", pki("accounts.key")),
            ("service-cluster-ip-range", place.services()),
            ("tls-cert-file", pki("apiserver.crt")),
            ("tls-private-key-file", pki("apiserver.key")),
        ],
        "kube-controller-manager" => vec![
            ("allocate-node-cidrs", "true".into()),
            ("authentication-kubeconfig", own_kubeconfig.clone()),
            ("authorization-kubeconfig", own_kubeconfig.clone()),
            ("bind-address", "127.0.0.1".into()),
            ("cluster-cidr", place.pods()),
            ("cluster-signing-cert-file", pki("ca.crt")),
            ("cluster-signing-key-file", pki("ca.key")),
            ("kubeconfig", own_kubeconfig),
            ("leader-elect", "false".into()),
            ("root-ca-file", pki("ca.crt")),
            ("service-account-private-key-file", pki("accounts.key")),
            ("service-cluster-ip-range", place.services()),
            ("use-service-account-credentials", "true".into()),
        ],
        "kube-scheduler" => vec![
            ("authentication-kubeconfig", own_kubeconfig.clone()),
            ("authorization-kubeconfig", own_kubeconfig.clone()),
            ("bind-address", "127.0.0.1".into()),
            ("kubeconfig", own_kubeconfig),
            ("leader-elect", "false".into()),
        ],
        "kubelet" => vec![
            ("config", config("kubelet.json")),
            ("hostname-override", place.node()),
            ("kubeconfig", own_kubeconfig),
            ("node-ip", place.address()),
            ("root-dir", "/var/lib/kubelet".into()),
        ],
        "kube-proxy" => vec![
            ("cluster-cidr", place.pods()),
            // The machine's table of connections is left as large as it is.
            ("conntrack-max-per-core", "0".into()),
            ("hostname-override", place.node()),
            ("kubeconfig", own_kubeconfig),
            ("proxy-mode", "nftables".into()),
        ],
        _ => Vec::new(),
    };
    let mut words = vec![program];
    words.extend(flags.into_iter().map(|(flag, value)| format!("--{flag}={value}")));
    words
}

/// What the flags cannot say.
pub fn write_files(place: &Place) -> Result<()> {
    let pki = |file: &str| place.path("pki").join(file);
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki("kubelet.crt"),
        "tlsPrivateKeyFile": pki("kubelet.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [place.dns()],
        "clusterDomain": "cluster.local",
        // The machine's resolvers are out of reach.
        "resolvConf": "/dev/null",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", place.node()),
        // Many machines still have version 1; Kubernetes 1.35 refuses it unless told, and so will later ones altogether.
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        // Nothing is evicted or collected because the machine's disk is filling up: images could not be fetched again.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "makeIPTablesUtilChains": false,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "maxPods": 200,
        // Several pods at once start with one waiting for the other otherwise.
        "serializeImagePulls": false,
    });
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "weft",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": place.node_pods()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/cni-addresses",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let cni = place.path("config/cni");
    let containerd = format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Root may lack the right to lower it, in a sandbox or a CI runner.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}"
"#,
        cni.display()
    );
    std::fs::create_dir_all(&cni).during(cni.display())?;
    let put = |file: &str, text: String| std::fs::write(place.path("config").join(file), text).during(file);
    put("kubelet.json", format!("{kubelet:#}\n"))?;
    put("cni/weft.conflist", format!("{network:#}\n"))?;
    put("containerd.toml", containerd)
}
