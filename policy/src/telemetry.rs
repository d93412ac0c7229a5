//! What is recorded and where it goes. Counting never stops; these settings choose names, lines and spans.

use crate::doc::Cursor;
use std::collections::BTreeMap;

/// Upper bounds of Weft's duration buckets, in microseconds. Metrics have them, and reports to the control plane, so they stay.
pub const DURATIONS: [u64; 17] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Off,
    Json,
    Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// OTLP over gRPC, as `http://HOST:PORT`; `None`: contexts are passed on but no spans are sent.
    pub otlp: Option<String>,
    /// Of root requests, in hundredths of a percent; a parent's decision wins.
    pub sampling_per_10k: u32,
    pub b3: bool,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { otlp: None, sampling_per_10k: 100, b3: true }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub access_log: LogFormat,
    pub istio_names: bool,
    pub linkerd_names: bool,
    pub tracing: Tracing,
    /// Series per family at most; the rest is counted in an overflow series.
    pub max_series: u32,
    /// Extra labels of this proxy's own workload.
    pub labels: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            access_log: LogFormat::Off,
            istio_names: false,
            linkerd_names: false,
            tracing: Tracing::default(),
            max_series: 5000,
            labels: BTreeMap::new(),
        }
    }
}

impl Config {
    pub fn read(c: &mut Cursor<'_, '_>) -> Option<Self> {
        let d = Self::default();
        c.fields(|f| {
            let names = f.list("names", |c| c.word(&[("weft", 0u8), ("istio", 1), ("linkerd", 2)]));
            Some(Self {
                access_log: f.or("accessLog", d.access_log, |c| {
                    c.word(&[("off", LogFormat::Off), ("json", LogFormat::Json), ("text", LogFormat::Text)])
                }),
                istio_names: names.contains(&1),
                linkerd_names: names.contains(&2),
                tracing: f
                    .opt("tracing", |c| {
                        c.fields(|f| {
                            Some(Tracing {
                                otlp: f.opt("otlp", |c| c.text()),
                                sampling_per_10k: f
                                    .opt("samplingPercent", |c| c.float(0.0, 100.0))
                                    .map_or(100, |p| (p * 100.0).round() as u32),
                                b3: f.or("b3", true, |c| c.bool()),
                            })
                        })
                    })
                    .unwrap_or_default(),
                max_series: f.or("maxSeries", d.max_series, |c| c.int(10, 1_000_000).map(|i| i as u32)),
                labels: f
                    .opt("labels", |c| c.entries(|_, c| c.text()))
                    .map(|entries| entries.into_iter().collect())
                    .unwrap_or_default(),
            })
        })
    }
}
