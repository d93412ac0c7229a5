//! What annotations ask for: each that is honoured changes the pod, and what is not a value changes nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod kit;

use kit::{container, flag, injected, namespace, pod, shop, sidecar, variable, verdict, verdict_with};
use serde_json::{Value, json};
use weft_injector::wishes::{HONOURED, REFUSED};
use weft_injector::{Settings, settings::Resources};

fn object(annotations: &[(&str, &str)]) -> Value {
    injected(verdict(&pod(annotations), &shop())).object
}

/// The pod without what was annotated and the record of what was there.
fn bare(mut object: Value) -> Value {
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|k, _| k.starts_with("prometheus.io/"));
    }
    object
}

#[test]
fn each_that_is_honoured_changes_the_pod() {
    let plain = bare(object(&[]));
    for honoured in HONOURED {
        let found = verdict(&pod(&[(honoured.name, honoured.example)]), &shop());
        let told = found.warnings.iter().any(|w| w.contains("refused") || w.contains("not known"));
        assert!(!told, "{}: {:?}", honoured.name, found.warnings);
        assert_ne!(bare(injected(found).object), plain, "{} changes nothing", honoured.name);
    }
    assert_eq!(HONOURED.len(), 52);
}

#[test]
fn hostile_values_are_refused_for_their_field_alone() {
    let plain = bare(object(&[]));
    let long = "8".repeat(1 << 20);
    let values = [
        "$(reboot)",
        "`reboot`",
        "; rm -rf / #",
        "a\nb: c",
        "--help",
        "{{ .Values.x }}",
        "&x [*x]",
        "!!python/object",
        "\u{1b}[31m",
        "\0",
        "-1",
        "1e309",
        "99999999999999999999999",
        "0x10",
        "NaN",
        "../../etc/passwd",
        "$(POD_NAME)",
        &long,
    ];
    let mut refused = 0;
    for honoured in HONOURED {
        for value in values {
            let found = verdict(&pod(&[(honoured.name, value)]), &shop());
            assert_eq!(found.warnings.len(), 1, "{} {value:.40}: {:?}", honoured.name, found.warnings);
            let warning = &found.warnings[0];
            assert!(warning.contains(honoured.name) && warning.len() <= 300, "{warning}");
            assert!(!warning.contains(char::is_control), "{warning:?}");
            assert_eq!(bare(injected(found).object), plain, "{} {value:.40}", honoured.name);
            refused += 1;
        }
    }
    assert_eq!(refused, HONOURED.len() * values.len());
}

#[test]
fn what_is_refused_and_what_nobody_knows_is_told() {
    let plain = bare(object(&[]));
    let known = REFUSED.iter().map(|(name, why)| (name.replace('*', "-x"), *why));
    for (name, why) in known.chain([("sidecar.istio.io/nativesidecar".to_string(), "not known here")]) {
        let found = verdict(&pod(&[(&name, "x")]), &shop());
        assert_eq!(found.warnings.len(), 1, "{name}: {:?}", found.warnings);
        assert!(found.warnings[0].contains(why), "{:?}", found.warnings);
        assert_eq!(bare(injected(found).object), plain, "{name}");
    }
    for silent in ["example.com/x", "prometheus.io/x", "config.linkerd.io/opaque-ports", "weft.dev/listens"] {
        assert_eq!(verdict(&pod(&[(silent, "x")]), &shop()).warnings, [""; 0], "{silent}");
    }
    assert!(verdict(&pod(&[("sidecar.istio.io/interceptionMode", "REDIRECT")]), &shop()).warnings.is_empty());
}

#[test]
fn warnings_are_bounded() {
    let many: Vec<String> = (0..1000).map(|i| format!("weft.dev/{i}{}", "x".repeat(200))).collect();
    let pairs: Vec<(&str, &str)> = many.iter().map(|n| (n.as_str(), "x")).collect();
    let found = verdict(&pod(&pairs), &shop());
    assert_eq!(found.warnings.len(), 20);
    assert!(found.warnings.iter().all(|w| w.chars().count() <= 250));
}

#[test]
fn ports_and_networks_reach_the_rules() {
    let object = object(&[
        ("traffic.sidecar.istio.io/excludeInboundPorts", "9000, 9001-9003"),
        ("config.linkerd.io/skip-inbound-ports", "9000,22"),
        ("traffic.sidecar.istio.io/includeInboundPorts", ""),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.1.2.3/8,fd00::/8"),
        ("weft.dev/skip-uids", "1001"),
    ]);
    let init = container(&object, &["weft-init"]);
    assert_eq!(init["args"][0], "redirect");
    let flags = |names: &[&str]| names.iter().map(|n| flag(init, n)).collect::<Vec<_>>();
    let text = |t: &str| Some(t.to_string());
    assert_eq!(
        flags(&[
            "outbound-port",
            "inbound-port",
            "uid",
            "skip-inbound-ports",
            "inbound-ports",
            "outbound-cidrs",
            "skip-uids"
        ]),
        [
            text("15001"),
            text("15006"),
            text("1337"),
            text("15020,15021,15090,9000,9001-9003,22"),
            text(""),
            text("10.0.0.0/8,fd00::/8"),
            text("1001")
        ],
    );
    assert_eq!(flag(init, "skip-outbound-ports"), None);
    // Linkerd's own defaults, and its admin port.
    let linkerd =
        namespace("shop", &[], &[("linkerd.io/inject", "enabled"), ("config.linkerd.io/skip-outbound-ports", "25")]);
    let object = injected(verdict(&pod(&[]), &linkerd)).object;
    let init = container(&object, &["weft-init"]);
    assert_eq!(flag(init, "skip-inbound-ports"), text("15020,15021,15090,4191,4567,4568"));
    assert_eq!(flag(init, "skip-outbound-ports"), text("25"));
    // The pod's word in the place of its namespace's.
    let object = injected(verdict(&pod(&[("config.linkerd.io/skip-outbound-ports", "26")]), &linkerd)).object;
    assert_eq!(flag(container(&object, &["weft-init"]), "skip-outbound-ports"), text("26"));
}

#[test]
fn resources_never_ask_for_more_than_their_limit() {
    let of = |annotations: &[(&str, &str)]| {
        let found = verdict(&pod(annotations), &shop());
        (found.warnings.clone(), sidecar(&injected(found).object)["resources"].clone())
    };
    let (request, limit) = ("sidecar.istio.io/proxyCPU", "sidecar.istio.io/proxyCPULimit");
    let cpu = |annotations: &[(&str, &str)]| {
        let (warnings, r) = of(annotations);
        (warnings.len(), r["requests"]["cpu"].clone(), r["limits"]["cpu"].clone())
    };
    assert_eq!(cpu(&[]), (0, json!("50m"), json!("2")));
    assert_eq!(cpu(&[(request, "4")]), (0, json!("4"), json!("4")));
    assert_eq!(cpu(&[(limit, "10m")]), (0, json!("10m"), json!("10m")));
    assert_eq!(cpu(&[(request, "1500m"), (limit, "1.5")]), (0, json!("1500m"), json!("1.5")));
    assert_eq!(cpu(&[(request, "2"), (limit, "1")]), (1, json!("50m"), json!("2")));
    // Ours counts before another dialect's.
    assert_eq!(cpu(&[(request, "1"), ("weft.dev/cpu-request", "100m")]), (0, json!("100m"), json!("2")));
    let none = Settings { resources: Resources::default(), ..Settings::default() };
    let object = injected(verdict_with(&none, &pod(&[]), &shop())).object;
    assert_eq!(sidecar(&object)["resources"], json!({}));
}

#[test]
fn the_end_fits_into_the_grace_period() {
    let with = |grace: u64, annotations: &[(&str, &str)]| {
        let mut pod = pod(annotations);
        pod["spec"]["terminationGracePeriodSeconds"] = grace.into();
        let found = verdict(&pod, &shop());
        let warnings = found.warnings.len();
        let object = injected(found).object;
        let sidecar = sidecar(&object);
        let sleep = sidecar["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        (variable(sidecar, "WEFT_DRAIN_SECONDS").expect("there"), sleep, warnings)
    };
    let classic = ("weft.dev/sidecar-mode", "classic");
    assert_eq!(with(30, &[]), ("25".into(), None, 0));
    assert_eq!(with(10, &[]), ("9".into(), None, 0));
    assert_eq!(with(0, &[]), ("0".into(), None, 0));
    assert_eq!(with(u64::MAX, &[]), ("25".into(), None, 0));
    assert_eq!(with(30, &[classic]), ("24".into(), Some(5), 0));
    assert_eq!(with(4, &[classic]), ("1".into(), Some(2), 0));
    assert_eq!(with(1, &[classic]), ("0".into(), None, 0));
    assert_eq!(with(60, &[("config.linkerd.io/shutdown-grace-period", "40s")]), ("40".into(), None, 0));
    assert_eq!(with(30, &[("proxy.istio.io/config", "terminationDrainDuration: 40s")]), ("29".into(), None, 1));
}

#[test]
fn the_page_names_every_annotation() {
    let page = include_str!("../../docs/injection.md");
    let names = HONOURED.iter().map(|h| h.name).chain(REFUSED.iter().map(|(n, _)| *n));
    let missing: Vec<&str> = names.filter(|n| !page.contains(&format!("`{n}`"))).collect();
    assert!(missing.is_empty(), "docs/injection.md says nothing of {missing:?}");
}
