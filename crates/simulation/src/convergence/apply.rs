//! What arrives from other nodes: knowledge gathered, the rule asked, its plan carried out.

use pg_ha_model::PgTimestamp;
use pg_ha_replication::conflict::Version;
use pg_ha_replication::convergence::{
    Change, Death, Kind, Knowledge, MergeRule, Outcome, Plan, RowVersion, Rules, Standing, Take, Whose,
    Write, greater, lesser, resolve, shown_sum,
};

use super::history::World;
use super::node::Candidate;
use super::{Breakage, Key, Row, RowStep, Step, Transaction, place_of, version};

impl World {
    /// Applies a transaction of `from` on the node at `place`.
    pub(super) fn apply(&mut self, place: usize, from: usize, number: usize) {
        let Some(transaction) = self.logs.get(from).and_then(|log| log.get(number)).cloned() else {
            return;
        };
        for step in &transaction.steps {
            match step {
                Step::Row(step) => self.apply_row(place, from, number, &transaction, step),
                Step::Truncate => self.apply_truncate(place, from, number, &transaction),
            }
        }
        let Some(node) = self.nodes.get_mut(place) else {
            return;
        };
        node.settle(transaction.version);
        if let Some(limit) = self.settings.death_limit {
            node.bound_deaths(limit);
        }
        let state = &mut node.state;
        let timestamp = transaction.version.timestamp.0;
        if let Some(progress) = state.progress.get_mut(from) {
            *progress = (*progress).max(number + 1);
        }
        for (place, value) in [
            (&mut state.applied, timestamp),
            (&mut state.heard, timestamp),
            (&mut state.told, transaction.settled),
        ] {
            if let Some(known) = place.get_mut(from) {
                *known = value.max(*known);
            }
        }
        state.floor = state.floor.max(timestamp);
    }

    /// A TRUNCATE deletes what is older than it; what is newer, or belongs to a later life, stays.
    fn apply_truncate(&mut self, place: usize, from: usize, number: usize, transaction: &Transaction) {
        let death = Death {
            version: transaction.version,
            step: 0,
        };
        let keys = self.nodes.get(place).map(|node| node.keys()).unwrap_or_default();
        for key in keys {
            if self.broken == Breakage::TruncateTakesAll {
                if let Some(node) = self.nodes.get_mut(place) {
                    node.remove(key);
                }
                continue;
            }
            let step = RowStep {
                key,
                kind: Kind::Delete,
                step: 0,
                after: None,
                true_after: None,
                new: Row {
                    plain: 0,
                    large: 0,
                    unique: [None; 2],
                    count: None,
                    bound: None,
                },
                old_count: None,
                unchanged: false,
            };
            self.apply_row(place, from, number, transaction, &step);
        }
        if let Some(node) = self.nodes.get_mut(place) {
            node.truncate(death, self.settings.keys);
        }
    }

    fn apply_row(
        &mut self,
        place: usize,
        from: usize,
        number: usize,
        transaction: &Transaction,
        step: &RowStep,
    ) {
        let Some(node) = self.nodes.get(place) else { return };
        let rules = Rules {
            merges: self.settings.merges.is_some(),
            ..Rules::default()
        };
        let mut change = Change {
            kind: step.kind,
            version: transaction.version,
            row_version: RowVersion::Known(transaction.version),
            step: step.step,
            after: step.after,
            settled: PgTimestamp(transaction.settled),
            incomplete: step.unchanged,
        };
        let standing = self.standing(place, step.key, transaction.version);
        let known = self.knowledge(place, from, number, transaction, &standing);
        if self.broken == Breakage::OneLife && !step.kind.deletes() {
            change.after = standing.death;
        }
        let local = node.candidate(step.key);
        let mut brought = Candidate {
            row: step.new.clone(),
            version: RowVersion::Known(transaction.version),
            null_in_newest: step.new.count.is_none(),
        };
        let mut outcome = resolve(&change, &standing, &rules, &known);
        if outcome == Outcome::NeedRow {
            self.asked += 1;
            let there = self.nodes.get(from);
            match there.and_then(|node| node.candidate(step.key)) {
                Some(row) => {
                    change = change.with_row(row.version);
                    brought = row;
                }
                None => change = change.gone(there.and_then(|node| node.death(step.key)), &rules),
            }
            // What is written here from now on has seen the answer.
            let learned = change.row_version.timestamp().0;
            if let Some(node) = self.nodes.get_mut(place)
                && self.broken != Breakage::AnswerNotTold
            {
                node.state.ahead = node.state.ahead.max(learned);
            }
            if let Some(node) = self.nodes.get_mut(place)
                && self.broken != Breakage::AnswerBelowFloor
            {
                node.state.floor = node.state.floor.max(learned);
            }
            outcome = resolve(&change, &standing, &rules, &known);
        }
        match outcome {
            Outcome::Do(plan) => {
                if let Some(conflict) = plan.conflict {
                    self.conflicts.push((conflict.kind, conflict.resolution));
                }
                self.carry_out(place, &change, step, plan, local, brought);
            }
            Outcome::Refuse(_) | Outcome::NeedRow | Outcome::Ask(_) => self.refused += 1,
        }
    }

    /// What is known of a key, as the rule is told.
    fn standing(&self, place: usize, key: Key, remote: Version) -> Standing {
        let Some(node) = self.nodes.get(place) else {
            return Standing::default();
        };
        let mut standing = node.standing(key);
        standing.row = standing.row.map(|row| match (row, self.broken) {
            (RowVersion::Known(local), Breakage::TieByNode)
                if local.timestamp == remote.timestamp && local.origin != remote.origin =>
            {
                RowVersion::Known(version(local.timestamp.0, pg_ha_model::NodeId::MAX))
            }
            (RowVersion::Known(local), Breakage::LastToCome) if local.origin != remote.origin => {
                RowVersion::Known(version(i64::MIN, local.origin))
            }
            (RowVersion::NotAfter(_), Breakage::FrozenIsNewest) => {
                RowVersion::Known(version(i64::MAX, pg_ha_model::NodeId::MAX))
            }
            _ => row,
        });
        standing
    }

    /// Who had seen what. A server knows it from its streams; here the logs tell.
    fn knowledge(
        &self,
        place: usize,
        from: usize,
        number: usize,
        transaction: &Transaction,
        standing: &Standing,
    ) -> Knowledge {
        let saw = |version: Version| {
            let reached = if place_of(version.origin) == from {
                Some(&transaction.version.timestamp.0)
            } else {
                transaction.seen_times.get(place_of(version.origin))
            };
            reached.is_some_and(|reached| version.timestamp.0 <= *reached)
        };
        let seen_by = |version: Version| {
            self.written(version)
                .and_then(|writer| writer.seen.get(from))
                .is_some_and(|seen| *seen > number)
        };
        let node = self.nodes.get(place);
        let complete = node.is_some_and(|node| {
            let progress = node.state.progress.iter().enumerate();
            let seen = transaction.seen.iter();
            progress
                .zip(seen)
                .all(|((origin, here), there)| origin == from || here >= there)
                && node.has_all_but(from) >= transaction.ahead
        });
        let (saw_row, row_saw) = match standing.row {
            Some(RowVersion::Known(version)) => (saw(version), seen_by(version)),
            Some(RowVersion::NotAfter(bound)) => (bound.0 <= transaction.settled, false),
            None => (false, false),
        };
        let death = standing.death.map(|death| death.version);
        Knowledge {
            saw_row,
            saw_death: death.is_some_and(saw),
            row_saw,
            death_saw: death.is_some_and(seen_by),
            complete: complete || self.broken == Breakage::UnchangedFromAnywhere,
            acknowledged: PgTimestamp(node.map_or(i64::MIN, |node| node.acknowledged())),
            forgotten: PgTimestamp(node.map_or(i64::MIN, |node| node.state.forgotten)),
        }
    }

    /// The transaction of a version.
    fn written(&self, version: Version) -> Option<&Transaction> {
        let log = self.logs.get(place_of(version.origin))?;
        let place = log
            .binary_search_by_key(&version.timestamp, |transaction| transaction.version.timestamp)
            .ok()?;
        log.get(place)
    }

    fn carry_out(
        &mut self,
        place: usize,
        change: &Change,
        step: &RowStep,
        plan: Plan,
        local: Option<Candidate>,
        brought: Candidate,
    ) {
        let Some(node) = self.nodes.get_mut(place) else {
            return;
        };
        match plan.write {
            Write::Nothing => {}
            Write::Delete => node.remove(step.key),
            Write::Insert | Write::Update => {
                if plan.plain == Whose::Local && self.broken == Breakage::LosersNotMerged {
                    return;
                }
                let candidate = compose(
                    change,
                    step,
                    plan,
                    local.as_ref(),
                    &brought,
                    self.settings.merges,
                    self.broken,
                );
                node.put(step.key, candidate, change.version);
            }
        }
        if let Some(death) = plan.death {
            node.remember(step.key, death);
        }
    }
}

/// The row that a plan makes.
fn compose(
    change: &Change,
    step: &RowStep,
    plan: Plan,
    local: Option<&Candidate>,
    brought: &Candidate,
    merges: Option<MergeRule>,
    broken: Breakage,
) -> Candidate {
    let here = local.unwrap_or(brought);
    let plain = if plan.plain == Whose::Remote {
        brought
    } else {
        here
    };
    let large = if change.incomplete {
        here.row.large
    } else {
        plain.row.large
    };
    let null_in_newest = plain.null_in_newest && broken != Breakage::NoNull;
    let number =
        |rule, here: Option<i64>, brought: Option<i64>, new: Option<i64>, old: Option<i64>| match plan
            .take(change, rule)
        {
            Take::Remote if rule == MergeRule::LastUpdate => brought,
            Take::Remote => new,
            Take::Local => here,
            Take::Sum { local, minus_old } => {
                let zero = |value: Option<i64>, counts| value.filter(|_| counts).unwrap_or(0);
                let sum = zero(here, local) + zero(new, true) - zero(old, minus_old);
                shown_sum(sum, sum == 0, null_in_newest)
            }
            Take::Greater => greater(here, new),
            Take::Lesser => lesser(here, new),
        };
    let count_rule = merges.map_or(MergeRule::LastUpdate, |_| MergeRule::Delta);
    let bound_rule = merges.unwrap_or_default();
    let new = &step.new;
    Candidate {
        row: Row {
            plain: plain.row.plain,
            large,
            unique: plain.row.unique,
            count: number(
                count_rule,
                here.row.count,
                brought.row.count,
                new.count,
                step.old_count,
            ),
            bound: number(bound_rule, here.row.bound, brought.row.bound, new.bound, None),
        },
        version: plan.version.unwrap_or(RowVersion::Known(change.version)),
        null_in_newest,
    }
}
