//! How a device stands: what is kept from one judgement to the next, so that nothing is done twice for one cause.

use std::collections::{BTreeMap, BTreeSet};

use hedgerow_shared::{EntityId, TenantId, UnixTime};
use serde::{Deserialize, Serialize};

use super::{Action, Finding, Rule, Watch};
use crate::command::State;

/// A step whose command came to nothing is taken again so long after it was taken, seconds: an hour where it erases,
const ERASE_AGAIN_SECONDS: u64 = 3600;
/// a day otherwise, as a device that cannot do it says so each time.
const AGAIN_SECONDS: u64 = 24 * 3600;

/// Whether a device complies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It breaks no rule.
    Compliant,
    /// It breaks some.
    NotCompliant,
    /// No compliance profile has effect on it.
    NoProfile,
}

impl Verdict {
    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compliant => "compliant",
            Self::NotCompliant => "not_compliant",
            Self::NoProfile => "no_profile",
        }
    }
}

impl std::str::FromStr for Verdict {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "compliant" => Ok(Self::Compliant),
            "not_compliant" => Ok(Self::NotCompliant),
            "no_profile" => Ok(Self::NoProfile),
            _ => Err("there are compliant, not_compliant, no_profile"),
        }
    }
}

/// How a device stands, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whose.
    pub tenant: TenantId,
    /// Which device.
    pub device: EntityId,
    /// Whether it complies.
    pub verdict: Verdict,
    /// Whether it reaches nothing but the core.
    pub quarantined: bool,
    /// By which profile.
    pub profile: Option<EntityId>,
    /// When this became so.
    pub changed: UnixTime,
    /// Rules that it breaks.
    pub causes: Vec<Cause>,
}

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Which, and by what.
    #[serde(flatten)]
    pub finding: Finding,
    /// Since when.
    pub since: UnixTime,
    /// What was done about it.
    pub taken: Vec<Taken>,
}

/// Something that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// What.
    pub action: Action,
    /// When.
    pub at: UnixTime,
    /// By which command.
    pub command: Option<EntityId>,
}

/// Something that is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// What.
    pub action: Action,
    /// Because of which rules.
    pub rules: BTreeSet<Rule>,
}

/// What a judgement happens at.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// Now.
    pub now: UnixTime,
    /// Since when devices could have spoken with the core without interruption; `None`: not known.
    pub available: Option<UnixTime>,
    /// What has become of the commands that were given before; of one that is not there nothing is known any more.
    pub commands: &'a BTreeMap<EntityId, State>,
}

/// How the device stands after a judgement, and what is to be done now; whoever does it notes the command in `taken`.
///
/// A cause that stands in `before` goes on; one that does not begins now; one that is not found again is over, and with
/// it what was done about it: should it come back, it is another. Quarantine lasts as long as a cause with that step.
///
/// A step whose command failed, expired or was taken back counts as not taken while its cause lasts. Silence that an erasure
/// was given for does not end by the device being heard: first the erasure is delivered, or taken back. Nothing is erased
/// for silence while the core has not itself been available for as long as the rule wants it to last.
#[must_use]
pub fn follow(
    (tenant, device): (&TenantId, EntityId),
    before: Option<&Standing>,
    profile: Option<EntityId>,
    (findings, watched): (Vec<Finding>, &BTreeMap<Rule, Watch>),
    moment: Moment<'_>,
) -> (Standing, Vec<Due>) {
    let now = moment.now;
    let mut due: BTreeMap<Action, BTreeSet<Rule>> = BTreeMap::new();
    let mut causes = Vec::with_capacity(findings.len());
    let held = before.into_iter().flat_map(|b| &b.causes).filter(|cause| {
        let watched = watched.contains_key(&cause.finding.rule);
        watched && moment.awaits_erasure(cause) && !findings.iter().any(|f| f.rule == cause.finding.rule)
    });
    let mut findings: Vec<Finding> = held.map(|cause| cause.finding.clone()).chain(findings.iter().cloned()).collect();
    findings.sort_by_key(|finding| finding.rule);
    for finding in findings {
        let same = before.and_then(|b| b.causes.iter().find(|cause| cause.finding.rule == finding.rule));
        let mut cause = match same {
            Some(cause) => Cause { finding, ..cause.clone() },
            None => Cause { finding, since: now, taken: Vec::new() },
        };
        let watch = watched.get(&cause.finding.rule);
        let steps = watch.map(|watch| &watch.steps[..]).unwrap_or_default();
        for step in steps {
            let ripe = now.since(cause.since) >= step.after_hours.saturating_mul(3600);
            let taken = cause.taken.iter().find(|taken| taken.action == step.action);
            let is_due = match taken {
                Some(taken) => moment.came_to_nothing(taken),
                None => !step.action.erases() || moment.may_erase(cause.finding.rule, watch),
            };
            if ripe && is_due {
                cause.taken.retain(|taken| taken.action != step.action);
                cause.taken.push(Taken { action: step.action, at: now, command: None });
                due.entry(step.action).or_default().insert(cause.finding.rule);
            }
        }
        // A step that the profile has no more holds nobody.
        cause.taken.retain(|taken| {
            taken.action != Action::Quarantine || steps.iter().any(|step| step.action == Action::Quarantine)
        });
        causes.push(cause);
    }
    let verdict = match (profile, causes.is_empty()) {
        (None, _) => Verdict::NoProfile,
        (Some(_), true) => Verdict::Compliant,
        (Some(_), false) => Verdict::NotCompliant,
    };
    let holds = |cause: &Cause| cause.taken.iter().any(|taken| taken.action == Action::Quarantine);
    let quarantined = causes.iter().any(holds);
    let mut standing = Standing { tenant: tenant.clone(), device, verdict, quarantined, profile, changed: now, causes };
    if let Some(before) = before.filter(|before| standing.is_like(before)) {
        standing.changed = before.changed;
    }
    (standing, due.into_iter().map(|(action, rules)| Due { action, rules }).collect())
}

impl Moment<'_> {
    fn state(&self, taken: &Taken) -> Option<State> {
        self.commands.get(&taken.command?).copied()
    }

    /// Whether it is to be done again by now.
    fn came_to_nothing(&self, taken: &Taken) -> bool {
        let pause = if taken.action.erases() { ERASE_AGAIN_SECONDS } else { AGAIN_SECONDS };
        let ended = matches!(self.state(taken), Some(State::Failed | State::Expired | State::Cancelled));
        // One that a clock gave which ran ahead does not wait for that time to come.
        ended && (taken.at > self.now || self.now.since(taken.at) >= pause)
    }

    /// Whether it is silence that an erasure was given for, which is neither done nor taken back.
    fn awaits_erasure(&self, cause: &Cause) -> bool {
        let awaited = |taken: &Taken| {
            let state = self.state(taken);
            taken.action.erases() && state.is_some_and(|s| s.is_open() || matches!(s, State::Failed | State::Expired))
        };
        cause.finding.rule.is_silence() && cause.taken.iter().any(awaited)
    }

    /// Whether something may be erased because this rule is broken.
    fn may_erase(&self, rule: Rule, watch: Option<&Watch>) -> bool {
        let hours = watch.and_then(|watch| watch.hours).unwrap_or_default();
        let available = |since| self.now.since(since) >= hours.saturating_mul(3600);
        !rule.is_silence() || self.available.is_some_and(available)
    }
}

impl Standing {
    /// Whether both say the same, but for when it became so.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let Self { tenant, device, verdict, quarantined, profile, changed: _, causes } = self;
        (tenant, device, verdict, quarantined, profile, causes)
            == (&other.tenant, &other.device, &other.verdict, &other.quarantined, &other.profile, &other.causes)
    }

    /// Notes which command does an action that was taken for these rules just now.
    pub fn note(&mut self, due: &Due, command: EntityId) {
        for cause in self.causes.iter_mut().filter(|cause| due.rules.contains(&cause.finding.rule)) {
            for taken in cause.taken.iter_mut().filter(|taken| taken.action == due.action) {
                taken.command = Some(command);
            }
        }
    }

    /// For the audit record: rules, and by what.
    #[must_use]
    pub fn told(&self) -> String {
        let causes: Vec<_> =
            self.causes.iter().map(|c| format!("{} ({} in all)", c.finding.rule, c.finding.count)).collect();
        match causes.is_empty() {
            true => self.verdict.as_str().replace('_', " "),
            false => format!("{}: {}", self.verdict.as_str().replace('_', " "), causes.join(", ")),
        }
    }
}
