//! Who wins where several objects speak about one port of one service, for the same clients. The only place that knows more
//! than one dialect.
//!
//! Routes: a Gateway API route of the client's own namespace, then a VirtualService, then a Gateway API route of the service's
//! namespace, then a TrafficSplit that is for some requests only, then a ServiceProfile. Gateway API routes of one rank and one
//! kind are merged, as Gateway API says; of the others the more specific one wins and then the oldest. A TrafficSplit says where
//! the rest goes: what has no routes, or only those of a ServiceProfile, which say nothing of it.
//!
//! Policies are merged by whole blocks: what Weft's own kind says comes first, then a DestinationRule, a ServiceProfile, and
//! annotations. A ServiceProfile does not switch off what others say.

use crate::builder::{PolicySet, RouteSet, Split, Subset};
use crate::ledger::{Finding, Ledger, Verdict};
use crate::object::{ObjectRef, Objects};
use crate::reader::Source;
use serde_json::{Map, Value};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use weft_policy::diag::Severity;
use weft_policy::id::ServiceId;

/// The first wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Routes {
    ConsumerRoute,
    VirtualService,
    ProducerRoute,
    /// One that is for some requests only.
    TrafficSplit,
    ServiceProfile,
    /// For everything, where nobody has routes: it carries what is said beside routes.
    Default,
}

impl Routes {
    pub fn are_gateway_api(self) -> bool {
        matches!(self, Self::ConsumerRoute | Self::ProducerRoute)
    }

    /// They say nothing of where requests go.
    fn leave_the_way_open(self) -> bool {
        matches!(self, Self::ServiceProfile | Self::Default)
    }
}

/// The first wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policies {
    TrafficPolicy,
    DestinationRule,
    ServiceProfile,
    Annotations,
    /// What routes bring to their backends.
    RouteDefaults,
}

/// Who won for somebody, and who lost to whom.
#[derive(Debug, Default)]
pub struct Outcome {
    won: BTreeSet<Key>,
    /// Those that are only less specific than others, as was meant.
    meant: BTreeSet<Key>,
    lost: BTreeMap<(Key, ServiceId), (Source, ObjectRef)>,
    wrong: BTreeMap<(Key, String), Source>,
}

/// An object's place and a field of it.
type Key = (usize, String);

fn key(source: &Source) -> Key {
    (source.age.1, source.field.clone())
}

impl Outcome {
    /// Whether it stands; what is wrong with it is told.
    pub fn judge(&mut self, source: &Source, wrong: Option<String>) -> bool {
        let stands = wrong.is_none();
        self.wrong.extend(wrong.map(|why| ((key(source), why), source.clone())));
        stands
    }

    pub fn win(&mut self, source: &Source) {
        self.won.insert(key(source));
    }

    /// The same for an object as a whole; always false.
    pub fn refuse(&mut self, object: &ObjectRef, objects: &Objects, why: String) -> bool {
        let found = objects.0.iter().enumerate().find(|(_, o)| o.reference() == *object);
        let source = found.map(|(order, o)| Source {
            object: object.clone(),
            file: o.file.clone(),
            field: "metadata.name".into(),
            at: o.node.locate("metadata.name"),
            age: (o.created.clone(), order),
        });
        self.wrong.extend(source.map(|source| ((key(&source), why), source)));
        false
    }

    /// To a more specific one: nothing to be told, as long as it wins for somebody.
    fn yields(&mut self, source: &Source, service: &ServiceId, to: &ObjectRef) {
        self.meant.insert(key(source));
        self.lose(source, service, to);
    }

    pub fn lose(&mut self, source: &Source, service: &ServiceId, to: &ObjectRef) {
        if source.object != *to {
            let lost = (source.clone(), to.clone());
            self.lost.entry((key(source), service.clone())).or_insert(lost);
        }
    }
}

pub struct ChosenRoutes<'s> {
    pub sets: Vec<&'s RouteSet>,
    pub split: Option<&'s Split>,
}

pub fn routes<'s>(
    service: &ServiceId,
    mut sets: Vec<&'s RouteSet>,
    mut splits: Vec<&'s Split>,
    outcome: &mut Outcome,
) -> ChosenRoutes<'s> {
    sets.sort_by_key(|s| (s.kind, Reverse(s.specific), s.from.age.clone()));
    let Some(first) = sets.first().copied() else {
        splits.sort_by_key(|s| s.from.age.clone());
        return ChosenRoutes { sets, split: only(service, &splits, outcome) };
    };
    // HTTPRoutes and GRPCRoutes are not merged with each other, says Gateway API.
    let same = |s: &RouteSet| s.kind == first.kind && s.from.object.kind == first.from.object.kind;
    let takes = |s: &RouteSet| std::ptr::eq(s, first) || (first.kind.are_gateway_api() && same(s));
    for set in &sets {
        match takes(set) {
            true => outcome.win(&set.from),
            false if set.kind == Routes::Default => {}
            false if set.kind == first.kind && set.specific < first.specific => {
                outcome.yields(&set.from, service, &first.from.object);
            }
            false => outcome.lose(&set.from, service, &first.from.object),
        }
    }
    sets.retain(|s| takes(s));
    splits.sort_by_key(|s| s.from.age.clone());
    if !first.kind.leave_the_way_open() {
        splits.iter().for_each(|s| outcome.lose(&s.from, service, &first.from.object));
        return ChosenRoutes { sets, split: None };
    }
    ChosenRoutes { sets, split: only(service, &splits, outcome) }
}

fn only<'s>(service: &ServiceId, splits: &[&'s Split], outcome: &mut Outcome) -> Option<&'s Split> {
    let first = *splits.first()?;
    outcome.win(&first.from);
    splits[1..].iter().for_each(|s| outcome.lose(&s.from, service, &first.from.object));
    Some(first)
}

#[derive(Default)]
pub struct ChosenPolicy {
    pub policy: Map<String, Value>,
    /// Who gave each block.
    pub blocks: BTreeMap<String, Source>,
    pub subsets: Vec<Subset>,
    pub from: Vec<ObjectRef>,
}

/// Of DestinationRules the most specific ones count. Among them the oldest that has a policy gives it, and subsets are added by
/// name. The other kinds fill what those before them left open, the more specific first.
pub fn policies(service: &ServiceId, mut sets: Vec<&PolicySet>, outcome: &mut Outcome) -> ChosenPolicy {
    sets.sort_by_key(|s| (s.kind, Reverse(s.specific), s.from.age.clone()));
    let mut chosen = ChosenPolicy::default();
    let mut tops: BTreeMap<Policies, &PolicySet> = BTreeMap::new();
    let mut whole: BTreeMap<Policies, &PolicySet> = BTreeMap::new();
    for set in sets {
        let top = *tops.entry(set.kind).or_insert(set);
        // A DestinationRule counts as a whole, as in Istio; of the other kinds each block is the first's that has it.
        let by_blocks = set.kind != Policies::DestinationRule;
        if top.specific != set.specific && !by_blocks {
            outcome.yields(&set.from, service, &top.from.object);
            continue;
        }
        let mut counts = set.policy.is_empty() && set.subsets.is_empty();
        let mut lost_to = None;
        if !set.policy.is_empty() {
            let owner = *whole.entry(set.kind).or_insert(set);
            if by_blocks || std::ptr::eq(owner, set) {
                for (block, value) in &set.policy {
                    if !chosen.policy.contains_key(block) {
                        chosen.policy.insert(block.clone(), value.clone());
                        chosen.blocks.insert(block.clone(), set.from.clone());
                        counts = true;
                    }
                }
            }
            lost_to = Some(&owner.from.object);
        }
        for subset in &set.subsets {
            if !chosen.subsets.iter().any(|s| s.name == subset.name) {
                chosen.subsets.push(subset.clone());
                counts = true;
            }
        }
        match counts {
            true => {
                outcome.win(&set.from);
                chosen.from.push(set.from.object.clone());
            }
            false if set.kind == Policies::RouteDefaults => {}
            false => {
                let winner = chosen.from.first().cloned();
                outcome.lose(&set.from, service, &winner.or(lost_to.cloned()).unwrap_or(set.from.object.clone()));
            }
        }
    }
    chosen
}

/// Tells losers: whoever won nowhere has no effect, and its fields say so; whoever won for others is only told.
pub fn tell(outcome: &Outcome, ledger: &mut Ledger) {
    let mut verdicts = Verdicts::default();
    for ((_, why), source) in &outcome.wrong {
        find(source, Severity::Error, format!("has no effect: {why}"), ledger);
        verdicts.say(source, Verdict::Ignored(why.clone()));
    }
    for ((key, service), (source, winner)) in &outcome.lost {
        match outcome.won.contains(key) {
            false => {
                find(source, Severity::Warning, format!("has no effect on {service}: {winner} wins"), ledger);
                verdicts.say(source, Verdict::WonBy(winner.clone()));
            }
            true if outcome.meant.contains(key) => {}
            true => {
                let message = format!("does not hold for all of {service}: {winner} wins");
                find(source, Severity::Warning, message, ledger);
            }
        }
    }
    verdicts.apply(ledger);
}

/// An object, or a part of one, that another one keeps from having any effect.
pub fn lost(source: &Source, winner: &ObjectRef, on: impl std::fmt::Display, ledger: &mut Ledger) {
    find(source, Severity::Warning, format!("has no effect on {on}: {winner} wins"), ledger);
    let mut verdicts = Verdicts::default();
    verdicts.say(source, Verdict::WonBy(winner.clone()));
    verdicts.apply(ledger);
}

fn find(source: &Source, severity: Severity, message: String, ledger: &mut Ledger) {
    ledger.findings.push(Finding {
        severity,
        reference: None,
        object: source.object.clone(),
        file: source.file.clone(),
        field: source.field.clone(),
        at: source.at,
        message,
        hint: None,
        absent: false,
    });
}

/// What is to be said of every field that was thought to be in force, by object; the first one to say it is believed.
#[derive(Default)]
struct Verdicts(BTreeMap<ObjectRef, Vec<(Source, Verdict)>>);

impl Verdicts {
    fn say(&mut self, source: &Source, verdict: Verdict) {
        self.0.entry(source.object.clone()).or_default().push((source.clone(), verdict));
    }

    fn apply(&self, ledger: &mut Ledger) {
        for entry in &mut ledger.entries {
            if !matches!(entry.verdict, Verdict::Honoured | Verdict::Differently(_)) {
                continue;
            }
            let of = |(source, _): &&(Source, Verdict)| {
                let rest = entry.field.strip_prefix(&source.field);
                source.file == entry.file && rest.is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']))
            };
            if let Some((_, verdict)) = self.0.get(&entry.object).and_then(|said| said.iter().find(of)) {
                entry.verdict = verdict.clone();
            }
        }
    }
}
