//! Logs and metrics of a process. Logs go to standard error, as text for people or as JSON lines; metrics are kept
//! in this process and rendered in Prometheus text form when asked for.

mod repeats;

use std::io::IsTerminal;
use std::sync::OnceLock;

use hedgerow_shared::fault::DropReason;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub(crate) use repeats::WINDOW as REPEATS_WINDOW;
pub use repeats::note_repeats;

/// Upper bounds of the buckets of every histogram whose name ends in `_seconds`.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The name of the one metric of drops, labelled `reason`.
pub const DROPPED: &str = "hedgerow_dropped_total";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal unless `NO_COLOR` is set.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged and how.
#[derive(Debug, Clone)]
pub struct Logging {
    /// A level (`info`), or directives of `tracing_subscriber::EnvFilter` (`info,hedgerow_relay=debug`).
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for Logging {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Starts logging for the process. A second call changes nothing (tests, and roles that share a process).
///
/// # Errors
/// The filter is not valid; says where.
pub fn init_logs(logging: &Logging) -> Result<(), crate::config::ConfigFault> {
    let filter = EnvFilter::try_new(&logging.filter).map_err(|e| {
        crate::config::ConfigFault::new(format!("the log filter {:?} is not valid: {e}", logging.filter))
    })?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let colours = std::io::stderr().is_terminal() && !no_color;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match logging.format {
        LogFormat::Text => lines.with_ansi(colours).with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    // An error means that somebody set a subscriber before us: theirs stays.
    let _ = tracing_subscriber::registry().with(filter).with(repeats::Limit::default()).with(lines).try_init();
    Ok(())
}

/// The metrics of the process.
#[derive(Debug, Clone)]
pub struct Metrics(Option<PrometheusHandle>);

impl Metrics {
    /// Starts counting and announces at zero what must be visible before it happens. Every call returns the same
    /// metrics. Where another recorder was installed before, this one renders nothing.
    #[must_use]
    pub fn install() -> Self {
        static METRICS: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        Self(METRICS.get_or_init(Self::start).clone())
    }

    fn start() -> Option<PrometheusHandle> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .expect("the list of buckets is not empty");
        let handle = builder.install_recorder().ok()?;
        metrics::describe_counter!(DROPPED, "What arrived, or was to be sent, and was dropped without ending anything");
        for reason in DropReason::ALL {
            metrics::counter!(DROPPED, "reason" => reason.label()).increment(0);
        }
        metrics::describe_gauge!("hedgerow_build_info", "1, labelled with what was built");
        metrics::gauge!("hedgerow_build_info", "version" => VERSION, "commit" => commit()).set(1.0);
        metrics::describe_counter!(repeats::SUPPRESSED, "Log lines left out because the same line came too often");
        metrics::counter!(repeats::SUPPRESSED).increment(0);
        Some(handle)
    }

    /// The metrics in Prometheus text form.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |handle| {
            handle.run_upkeep();
            handle.render()
        })
    }

    /// Moves finished samples out of their buffers; called by `boot` now and then, so that histograms which nobody
    /// scrapes do not grow.
    pub fn upkeep(&self) {
        if let Some(handle) = &self.0 {
            handle.run_upkeep();
        }
    }
}

/// Counts one drop.
pub fn dropped(reason: DropReason) {
    dropped_many(reason, 1);
}

/// Counts several at once.
pub fn dropped_many(reason: DropReason, count: u64) {
    metrics::counter!(DROPPED, "reason" => reason.label()).increment(count);
}

/// The product's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from, when the build named it (`HEDGEROW_COMMIT`).
#[must_use]
pub fn commit() -> &'static str {
    option_env!("HEDGEROW_COMMIT").unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_and_the_build_are_announced() {
        let metrics = Metrics::install();
        let text = metrics.render();
        for reason in DropReason::ALL {
            assert!(text.contains(&format!("hedgerow_dropped_total{{reason=\"{}\"}}", reason.label())), "{text}");
        }
        assert!(text.contains("hedgerow_build_info{"), "{text}");
        let before = DropReason::LaneLegAlone;
        dropped(before);
        assert!(Metrics::install().render().contains("reason=\"lane_leg_alone\"} 1"));
    }

    #[test]
    fn a_bad_filter_is_a_configuration_fault() {
        let bad = Logging { filter: "info,=,x=loud".to_owned(), ..Logging::default() };
        assert!(init_logs(&bad).unwrap_err().to_string().contains("loud"));
    }
}
