//! `/clusters` of a sidecar, which is lines for people and scripts: `CLUSTER::KEY::VALUE` and `CLUSTER::ADDRESS::KEY::VALUE`.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    pub name: String,
    figures: BTreeMap<String, String>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoint {
    pub address: String,
    figures: BTreeMap<String, String>,
}

pub fn read(text: &str) -> Vec<Cluster> {
    let mut all: Vec<Cluster> = Vec::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once("::") else { continue };
        if all.last().is_none_or(|c| c.name != name) {
            all.push(Cluster { name: name.into(), ..Cluster::default() });
        }
        let Some(cluster) = all.last_mut() else { continue };
        match address(rest) {
            None => {
                let (key, value) = rest.rsplit_once("::").unwrap_or((rest, ""));
                cluster.figures.insert(key.into(), value.into());
            }
            Some((address, rest)) => {
                if cluster.endpoints.last().is_none_or(|e| e.address != address) {
                    cluster.endpoints.push(Endpoint { address: address.into(), ..Endpoint::default() });
                }
                let (key, value) = rest.rsplit_once("::").unwrap_or((rest, ""));
                cluster.endpoints.last_mut().map(|e| e.figures.insert(key.into(), value.into()));
            }
        }
    }
    all
}

/// Addresses of IPv6 have colons of their own, in brackets.
fn address(rest: &str) -> Option<(&str, &str)> {
    let from = rest.find(']').map_or(0, |at| at);
    let at = from + rest[from..].find("::")?;
    let (address, rest) = (&rest[..at], &rest[at + 2..]);
    address.parse::<std::net::SocketAddr>().is_ok().then_some((address, rest))
}

impl Cluster {
    pub fn figure(&self, key: &str) -> &str {
        self.figures.get(key).map_or("", String::as_str)
    }

    /// `web.demo:80/v1`
    pub fn short(&self) -> String {
        let parts: Vec<&str> = self.name.split('|').collect();
        let [_, port, subset, host] = parts[..] else { return self.name.clone() };
        let host = host.trim_end_matches(".svc.cluster.local");
        if subset.is_empty() { format!("{host}:{port}") } else { format!("{host}:{port}/{subset}") }
    }

    /// `3/100`: in use, and how many there may be.
    pub fn used(&self, figure: &str, limit: &str) -> String {
        let limit = self.figure(&format!("default_priority::{limit}"));
        match limit.is_empty() || limit == u32::MAX.to_string() {
            true => self.figure(figure).into(),
            false => format!("{}/{limit}", self.figure(figure)),
        }
    }
}

impl Endpoint {
    pub fn figure(&self, key: &str) -> &str {
        self.figures.get(key).map_or("", String::as_str)
    }

    pub fn state(&self) -> &str {
        match self.figure("health_flags") {
            "healthy" => "healthy",
            _ => "ejected",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_clusters() {
        let text = "outbound|80|v1|web.demo.svc.cluster.local::observability_name::x\n\
                    outbound|80|v1|web.demo.svc.cluster.local::default_priority::max_connections::100\n\
                    outbound|80|v1|web.demo.svc.cluster.local::default_priority::max_requests::4294967295\n\
                    outbound|80|v1|web.demo.svc.cluster.local::cx_active::3\n\
                    outbound|80|v1|web.demo.svc.cluster.local::10.0.0.1:80::rq_active::2\n\
                    outbound|80|v1|web.demo.svc.cluster.local::10.0.0.1:80::health_flags::/failed_outlier_check\n\
                    outbound|80|v1|web.demo.svc.cluster.local::[fd00::1]:80::health_flags::healthy\n\
                    outbound|81||web.demo.svc.cluster.local::cx_active::0\n";
        let all = read(text);
        assert_eq!(all.iter().map(Cluster::short).collect::<Vec<_>>(), ["web.demo:80/v1", "web.demo:81"]);
        let web = &all[0];
        assert_eq!(
            (web.used("cx_active", "max_connections"), web.used("cx_active", "max_requests")),
            ("3/100".into(), "3".into())
        );
        let states: Vec<(&str, &str)> = web.endpoints.iter().map(|e| (e.address.as_str(), e.state())).collect();
        assert_eq!(states, [("10.0.0.1:80", "ejected"), ("[fd00::1]:80", "healthy")]);
        assert_eq!(web.endpoints[0].figure("rq_active"), "2");
    }
}
