//! From what is published to what should be: a function of the object's data, the keys and the time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::identity::svid::unix;
use crate::issuer::anchor::{Anchor, Entry, Unfit};
use crate::issuer::bundle;
use crate::issuer::keys::union;
use crate::issuer::publication::object::Changes;
use crate::spiffe::TrustDomain;

/// Before the id of an entry's JWT key.
const PREFIX: &str = "issuer-";
/// The roots, for those who read PEM.
const PEM: &str = "bundle.pem";
/// The SPIFFE bundle.
const JSON: &str = "bundle.json";
/// How long beyond the longest life of a signature an entry says it is needed: its replica may be cut off from the
/// API server for an hour and the entry is still good for all it signs.
const SPARE: Duration = Duration::from_secs(2 * 3600);
/// An entry with less than this beyond the longest life is put off.
const RENEW: Duration = Duration::from_secs(3600);
/// An entry of somebody else's that was needed until then is removed this much later: clocks differ.
const SKEW: Duration = Duration::from_secs(600);

/// What a plan is made from, beside the data.
pub(super) struct Facts<'a> {
    pub(super) own: &'a [Arc<Anchor>],
    pub(super) replica: &'a str,
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) longest: Duration,
    /// The lowest the sequence number may be.
    pub(super) sequence: i64,
    pub(super) now: SystemTime,
}

/// What is to be done, and what is known.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) changes: Changes,
    pub(super) others: Vec<Arc<Anchor>>,
    pub(super) sequence: i64,
    /// Ids of our JWT keys that are in the data already.
    pub(super) published: HashSet<String>,
    pub(super) removed: usize,
    /// Entries of another trust domain that may still be needed.
    pub(super) elsewhere: usize,
    /// Why entries are not used.
    pub(super) unusable: Vec<String>,
    /// Roots in the bundle, for the log.
    pub(super) roots: usize,
}

impl Plan {
    /// Whether all there is to do is to undo what the issuers of another trust domain have made of the bundle.
    pub(super) fn contested(&self) -> bool {
        self.elsewhere > 0 && self.changes.keys().all(|key| key == PEM || key == JSON)
    }
}

/// What has to change in `data` so that it is right.
pub(super) fn plan(data: &BTreeMap<String, String>, facts: &Facts<'_>) -> Plan {
    let mut plan = Plan {
        changes: BTreeMap::new(),
        others: Vec::new(),
        sequence: facts.sequence,
        published: HashSet::new(),
        removed: 0,
        elsewhere: 0,
        unusable: Vec::new(),
        roots: 0,
    };
    for anchor in facts.own {
        own(&mut plan, data, anchor, facts);
    }
    for (key, text) in data {
        let ours = facts.own.iter().any(|anchor| key.strip_prefix(PREFIX) == Some(anchor.kid()));
        if key.starts_with(PREFIX) && !ours {
            other(&mut plan, key, text, facts);
        }
    }
    documents(&mut plan, data, facts);
    plan
}

/// One of ours: written when it is not there, and put off in time.
fn own(plan: &mut Plan, data: &BTreeMap<String, String>, anchor: &Anchor, facts: &Facts<'_>) {
    let key = format!("{PREFIX}{}", anchor.kid());
    let there = data.get(&key).and_then(|text| serde_json::from_str::<Entry>(text).ok());
    let there = there.filter(|entry| {
        Anchor::parse(entry, facts.trust_domain).is_ok_and(|published| published.same(anchor))
    });
    if there.is_some() {
        plan.published.insert(anchor.kid().to_owned());
    }
    let held = there.and_then(|entry| humantime::parse_rfc3339(&entry.until).ok());
    let until = (facts.now + facts.longest + SPARE).min(anchor.not_after);
    let enough = (facts.now + facts.longest + RENEW).min(anchor.not_after);
    if held.is_none_or(|held| held < enough) {
        let entry = anchor.entry(until, facts.replica);
        // Strings and a map of strings: this does not fail.
        let text = serde_json::to_string(&entry).unwrap_or_default();
        plan.changes.insert(key, Some(text));
    }
}

/// Somebody else's: trusted while it is needed, removed when it is needed no more.
fn other(plan: &mut Plan, key: &str, text: &str, facts: &Facts<'_>) {
    let mut unusable = |problem: &dyn std::fmt::Display| plan.unusable.push(format!("{key}: {problem}"));
    let Ok(entry) = serde_json::from_str::<Entry>(text) else {
        return unusable(&"it is no entry of this version");
    };
    let Ok(until) = humantime::parse_rfc3339(&entry.until) else {
        return unusable(&"its time can't be read");
    };
    let over = |until: SystemTime| until + SKEW <= facts.now;
    match Anchor::parse(&entry, facts.trust_domain) {
        Ok(anchor) if over(until.min(anchor.not_after)) => remove(plan, key),
        Ok(anchor) if key.strip_prefix(PREFIX) == Some(anchor.kid()) => plan.others.push(Arc::new(anchor)),
        Ok(_) => unusable(&"its JWT key has another id"),
        // Left by issuers from before the trust domain was changed: nobody else would take it away.
        Err(Unfit::Elsewhere(_)) if over(until) => remove(plan, key),
        Err(problem) => {
            unusable(&problem);
            plan.elsewhere += usize::from(matches!(problem, Unfit::Elsewhere(_)));
        }
    }
}

/// Needed no more.
fn remove(plan: &mut Plan, key: &str) {
    plan.changes.insert(key.to_owned(), None);
    plan.removed += 1;
}

/// The documents made from all entries.
fn documents(plan: &mut Plan, data: &BTreeMap<String, String>, facts: &Facts<'_>) {
    let all = union(facts.own.iter().chain(&plan.others).map(Arc::clone).collect());
    let mut roots: Vec<Vec<u8>> = all.iter().map(|anchor| anchor.root.clone()).collect();
    roots.dedup();
    plan.roots = roots.len();
    let pem = bundle::pem(&roots);
    let held: Option<Value> = data.get(JSON).and_then(|text| serde_json::from_str(text).ok());
    let numbered = held.as_ref().and_then(|held| held.get("spiffe_sequence")?.as_i64());
    let unchanged = held.as_ref().is_some_and(|held| held.get("keys") == bundle::spiffe(&all, 0).get("keys"));
    plan.sequence = match numbered {
        Some(number) if unchanged => number,
        Some(number) => (number.saturating_add(1)).max(facts.sequence).max(unix(facts.now)),
        None => facts.sequence.max(unix(facts.now)),
    };
    if !unchanged || numbered.is_none() {
        plan.changes.insert(JSON.to_owned(), Some(bundle::spiffe(&all, plan.sequence).to_string()));
    }
    if data.get(PEM) != Some(&pem) {
        plan.changes.insert(PEM.to_owned(), Some(pem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::svid::moment;
    use crate::issuer::config::Config;
    use crate::issuer::keys::Keys;
    use crate::issuer::root::LIFE;
    use crate::issuer::tests::cluster::{Cluster, NOW};

    const LONGEST: Duration = Duration::from_secs(3600);

    struct Replica {
        keys: Keys,
        name: &'static str,
        domain: TrustDomain,
    }

    impl Replica {
        fn new(name: &'static str) -> Self {
            Self::of(name, "example.org")
        }

        fn of(name: &'static str, domain: &str) -> Self {
            let mut config: Config = Cluster::new().config();
            config.trust_domain = domain.parse().unwrap();
            let domain = config.trust_domain.clone();
            Self { keys: Keys::new(&config, moment(NOW)).unwrap(), name, domain }
        }

        fn plan(&self, data: &BTreeMap<String, String>, after: Duration) -> Plan {
            plan(
                data,
                &Facts {
                    own: &self.keys.own(),
                    replica: self.name,
                    trust_domain: &self.domain,
                    longest: LONGEST,
                    sequence: NOW,
                    now: moment(NOW) + after,
                },
            )
        }

        /// Does what its plan says, and says whether that was anything.
        fn act(&self, data: &mut BTreeMap<String, String>, after: Duration) -> bool {
            let plan = self.plan(data, after);
            for (key, text) in &plan.changes {
                match text {
                    Some(text) => data.insert(key.clone(), text.clone()),
                    None => data.remove(key),
                };
            }
            !plan.changes.is_empty()
        }
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    fn roots(data: &BTreeMap<String, String>) -> usize {
        data[PEM].matches("BEGIN CERTIFICATE").count()
    }

    fn sequence(data: &BTreeMap<String, String>) -> i64 {
        serde_json::from_str::<Value>(&data[JSON]).unwrap()["spiffe_sequence"].as_i64().unwrap()
    }

    #[test]
    fn replicas_join_stay_and_go() {
        let (one, two) = (Replica::new("one"), Replica::new("two"));
        let mut data = BTreeMap::new();
        data.insert("somebody-elses".to_owned(), "left alone".to_owned());
        assert!(one.plan(&data, hours(0)).published.is_empty());
        assert!(one.act(&mut data, hours(0)));
        assert!(!one.act(&mut data, hours(0)), "nothing more to do");
        assert_eq!(one.plan(&data, hours(0)).published.len(), 1);
        let first = sequence(&data);
        assert!(two.act(&mut data, hours(0)));
        assert!(!one.act(&mut data, hours(0)), "the other's entry is no reason to write");
        assert_eq!((roots(&data), one.plan(&data, hours(0)).others.len()), (2, 1));
        assert!(sequence(&data) > first);
        assert_eq!(one.plan(&data, hours(0)).sequence, two.plan(&data, hours(0)).sequence);
        // `two` is gone. What it signed ends within the hour; its entry says three.
        let joined = sequence(&data);
        for hour in 1..=3 {
            one.act(&mut data, hours(hour));
            assert_eq!((roots(&data), sequence(&data)), (2, joined), "put off, not changed");
        }
        assert!(one.act(&mut data, hours(4)));
        assert_eq!(roots(&data), 1);
        assert!(sequence(&data) > joined);
        assert_eq!(data.len(), 4);
        assert_eq!(data["somebody-elses"], "left alone");
    }

    #[test]
    fn another_trust_domain_s_entries_are_no_reason_to_hurry_and_go_in_time() {
        let (one, other) = (Replica::new("one"), Replica::of("other", "elsewhere.org"));
        let mut data = BTreeMap::new();
        assert!(one.act(&mut data, hours(0)));
        let joins = other.plan(&data, hours(0));
        assert!(!joins.contested() && !joins.changes.is_empty(), "its own entry waits for nobody");
        other.act(&mut data, hours(0));
        assert_eq!(roots(&data), 1, "a bundle is of one trust domain");
        let undo = one.plan(&data, hours(0));
        assert!(undo.contested() && undo.changes.len() == 2, "{:?}", undo.changes);
        assert!(!other.act(&mut data, hours(0)));
        // `other` is gone: its entry goes like that of one of ours.
        assert!(one.act(&mut data, hours(1)));
        assert_eq!(one.plan(&data, hours(3)).elsewhere, 1);
        one.act(&mut data, hours(4));
        assert_eq!((one.plan(&data, hours(4)).elsewhere, data.len()), (0, 3));
    }

    #[test]
    fn a_living_replicas_entry_comes_back_and_a_dead_ones_does_not() {
        let (one, two) = (Replica::new("one"), Replica::new("two"));
        let mut data = BTreeMap::new();
        one.act(&mut data, hours(0));
        two.act(&mut data, hours(0));
        data.retain(|key, _| !key.starts_with(PREFIX));
        assert!(one.plan(&data, hours(0)).published.is_empty());
        one.act(&mut data, hours(0));
        assert_eq!(roots(&data), 1);
        two.act(&mut data, hours(0));
        assert_eq!(roots(&data), 2);
    }

    #[test]
    fn a_successor_joins_and_no_entry_outlives_its_root() {
        let one = Replica::new("one");
        let mut data = BTreeMap::new();
        one.act(&mut data, hours(0));
        one.keys.advance(moment(NOW) + LIFE / 2).unwrap();
        one.act(&mut data, LIFE / 2);
        assert_eq!(roots(&data), 2);
        let last = hours(7 * 24 - 1);
        one.act(&mut data, last);
        let first = Arc::clone(&one.keys.own()[0]);
        let entry: Entry = serde_json::from_str(&data[&format!("{PREFIX}{}", first.kid())]).unwrap();
        assert_eq!(humantime::parse_rfc3339(&entry.until).unwrap(), first.not_after);
        assert!(!one.act(&mut data, last), "it can't be put off any further");
        // The third is made when the first ends.
        one.keys.advance(moment(NOW) + LIFE).unwrap();
        one.act(&mut data, LIFE);
        assert_eq!(roots(&data), 3);
        one.act(&mut data, LIFE + SKEW);
        assert_eq!(roots(&data), 2);
        assert!(!data.contains_key(&format!("{PREFIX}{}", first.kid())));
    }

    #[test]
    fn entries_that_cannot_be_trusted_are_left_out_and_left_alone() {
        let (one, two) = (Replica::new("one"), Replica::new("two"));
        let mut data = BTreeMap::new();
        two.act(&mut data, hours(0));
        let (key, good) = data.iter().find(|(key, _)| key.starts_with(PREFIX)).unwrap();
        let (key, good) = (key.clone(), serde_json::from_str::<Value>(good).unwrap());
        let change = |pointer: &str, value: Value| {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            bad.to_string()
        };
        let mut foreign = Cluster::new().config();
        foreign.trust_domain = "elsewhere.org".parse().unwrap();
        let foreign = Keys::new(&foreign, moment(NOW)).unwrap().own()[0].entry(moment(NOW) + LONGEST, "");
        for (text, why) in [
            ("{}".to_owned(), "no entry of this version"),
            (change("/until", "tomorrow".into()), "its time can't be read"),
            (change("/root", "-".into()), "no PEM certificate"),
            (change("/jwtKey/x", "AA".into()), "no P-256 key"),
            (change("/jwtKey/x", good["jwtKey"]["y"].clone()), "another id"),
            (serde_json::to_string(&foreign).unwrap(), "trust domain"),
        ] {
            data.insert(key.clone(), text.clone());
            one.act(&mut data, hours(0));
            let plan = one.plan(&data, hours(0));
            assert_eq!((plan.others.len(), roots(&data)), (0, 1), "{text}");
            assert!(
                plan.unusable[0].starts_with(&key) && plan.unusable[0].contains(why),
                "{:?}",
                plan.unusable
            );
            assert_eq!(data[&key], text, "a newer version may have written it");
        }
        // Fields that a newer version adds are no trouble.
        let mut newer = good.clone();
        newer["since"] = "2027-01-01T00:00:00Z".into();
        data.insert(key, newer.to_string());
        assert_eq!(one.plan(&data, hours(0)).others.len(), 1);
    }
}
