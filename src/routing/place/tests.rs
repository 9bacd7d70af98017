//! Which replicas are left of those that could serve, by rules, preferences and zones.

use proptest::prelude::*;

use super::*;
use crate::config::affinity::{Operator, Preference};
use crate::routing::place::zones::ENOUGH;

/// A replica: zone, value of the label `disk`, score if it may be asked, whether it has a free slot.
type Place = (Option<&'static str>, Option<&'static str>, Option<f64>, bool);

const CLASS: RouteClass = RouteClass::Upload;

fn term(operator: Operator, values: &[&str]) -> Term {
    Term {
        key: "disk".into(),
        operator,
        values: values.iter().map(|value| (*value).to_owned()).collect(),
    }
}

fn preference(weight: u32, value: &str) -> Preference {
    Preference {
        weight,
        key: "disk".into(),
        operator: Operator::In,
        values: vec![value.to_owned()],
    }
}

fn rules(home: Option<&str>, require: Vec<Term>, prefer: Vec<Preference>) -> Rules {
    let affinity = Affinity::from([(CLASS, AffinityConfig { require, prefer })]);
    Rules::new(home, &affinity).unwrap()
}

fn labels(disk: Option<&str>) -> Labels {
    disk.map(|disk| ("disk".to_owned(), disk.to_owned()))
        .into_iter()
        .collect()
}

fn views(rules: &Rules, places: &[Place]) -> Vec<View<'static>> {
    let view = |(replica, &(zone, disk, score, free)): (usize, &Place)| View {
        replica,
        zone,
        marks: rules.mark(zone, &labels(disk)),
        standby: false,
        slots: 10,
        score,
        free: free && score.is_some(),
    };
    places.iter().enumerate().map(view).collect()
}

/// Of many draws, the share in which each replica is among those that are left.
fn shares(rules: &Rules, places: &[Place]) -> Vec<f64> {
    shares_of(rules, &views(rules, places))
}

fn shares_of(rules: &Rules, views: &[View<'_>]) -> Vec<f64> {
    const DRAWS: u32 = 20_000;
    let mut chance = Chance::seeded(11);
    let mut left = vec![0; views.len()];
    for _ in 0..DRAWS {
        for replica in rules.narrow(CLASS, views, &mut chance) {
            left[replica] += 1;
        }
    }
    left.iter()
        .map(|times| f64::from(*times) / f64::from(DRAWS))
        .collect()
}

#[track_caller]
fn assert_near(shares: &[f64], expected: &[f64]) {
    let near = shares
        .iter()
        .zip(expected)
        .all(|(one, other)| (one - other).abs() < 0.02);
    assert!(
        near && shares.len() == expected.len(),
        "{shares:?}, not {expected:?}"
    );
}

const A: Option<&str> = Some("a");
const B: Option<&str> = Some("b");
const C: Option<&str> = Some("c");
const WELL: Option<f64> = Some(1.0);

#[test]
fn without_rules_there_is_nothing_to_look_at() {
    assert!(Rules::new(None, &Affinity::new()).is_none());
    assert!(
        RouteClass::ALL
            .iter()
            .all(|class| Marks::default().allows(*class))
    );
    let rules = rules(None, vec![term(Operator::Exists, &[])], Vec::new());
    assert!(!rules.chooses(CLASS) && !rules.chooses(RouteClass::Listing));
}

#[test]
fn a_hard_rule_binds_its_class_alone() {
    let rules = rules(None, vec![term(Operator::In, &["ssd"])], Vec::new());
    let (ssd, hdd) = (
        rules.mark(None, &labels(Some("ssd"))),
        rules.mark(None, &labels(Some("hdd"))),
    );
    assert!(ssd.allows(CLASS) && !hdd.allows(CLASS));
    assert!(ssd.allows(RouteClass::Listing) && hdd.allows(RouteClass::Listing));
    let failure = rules.refusal(CLASS).unwrap();
    assert_eq!(failure.kind, FailureKind::NoReplica);
    assert!(
        failure.detail.contains("`upload`") && failure.detail.contains("disk In [ssd]"),
        "{failure}"
    );
    assert!(rules.refusal(RouteClass::Listing).is_none());
}

#[test]
fn the_own_zone_keeps_everything_while_it_is_well_enough() {
    let rules = rules(A, Vec::new(), Vec::new());
    let places = [
        (A, None, Some(0.8), true),
        (A, None, Some(0.6), true),
        (B, None, WELL, true),
    ];
    assert_near(&shares(&rules, &places), &[1.0, 1.0, 0.0]);
}

#[test]
fn a_zone_that_lost_half_of_its_replicas_spills_over_two_sevenths() {
    let rules = rules(A, Vec::new(), Vec::new());
    let places = [
        (A, None, WELL, true),
        (A, None, None, true),
        (B, None, WELL, true),
    ];
    assert_near(&shares(&rules, &places), &[0.714, 0.0, 0.286]);
}

#[test]
fn a_replica_counts_as_much_as_it_has_slots() {
    let rules = rules(A, Vec::new(), Vec::new());
    let places = [
        (A, None, WELL, true),
        (A, None, None, false),
        (B, None, WELL, true),
        (C, None, WELL, true),
    ];
    let mut views = views(&rules, &places);
    views[1].slots = 30;
    views[3].slots = 30;
    let score = 10.0 / 40.0;
    let leaves = 1.0 - score / ENOUGH;
    assert_near(
        &shares_of(&rules, &views),
        &[1.0 - leaves, 0.0, leaves / 4.0, leaves * 3.0 / 4.0],
    );
}

#[test]
fn what_leaves_goes_to_the_other_zones_by_their_weight() {
    let rules = rules(A, Vec::new(), Vec::new());
    // Half of it leaves: a third of that to `b`, half to `c`, a sixth to where no zone is named.
    let places = [
        (A, None, Some(0.35), true),
        (B, None, Some(0.2), true),
        (C, None, Some(0.2), true),
        (C, None, Some(0.1), true),
        (None, None, Some(0.1), true),
    ];
    assert_near(&shares(&rules, &places), &[0.5, 0.167, 0.25, 0.25, 0.083]);
}

#[test]
fn a_zone_that_is_full_spills_over_at_once_and_one_that_is_gone_leaves_all_others() {
    let rules = rules(A, Vec::new(), Vec::new());
    let full = [
        (A, None, WELL, false),
        (B, None, WELL, true),
        (C, None, WELL, false),
    ];
    assert_near(&shares(&rules, &full), &[0.0, 1.0, 0.0]);
    let gone = [
        (A, None, None, false),
        (B, None, WELL, true),
        (C, None, WELL, true),
    ];
    assert_near(&shares(&rules, &gone), &[0.0, 1.0, 1.0]);
    let none = [(B, None, WELL, true), (C, None, WELL, true)];
    assert_near(&shares(&rules, &none), &[1.0, 1.0]);
}

#[test]
fn a_replica_on_standby_belongs_to_no_zone() {
    let rules = rules(A, Vec::new(), Vec::new());
    let mut views = views(
        &rules,
        &[
            (A, None, None, false),
            (A, None, WELL, true),
            (B, None, WELL, true),
        ],
    );
    views[1].standby = true;
    views[2].standby = true;
    for seed in 0..20 {
        assert_eq!(rules.narrow(CLASS, &views, &mut Chance::seeded(seed))[..], [1, 2]);
    }
}

#[test]
fn a_preference_is_insisted_on_as_often_as_it_weighs() {
    let rules = rules(None, Vec::new(), vec![preference(30, "ssd")]);
    let places = [(None, Some("ssd"), WELL, true), (None, None, WELL, true)];
    assert_near(&shares(&rules, &places), &[1.0, 0.7]);
    let busy = [(None, Some("ssd"), WELL, false), (None, None, WELL, true)];
    assert_near(&shares(&rules, &busy), &[0.0, 1.0]);
}

#[test]
fn a_preference_leads_out_of_the_own_zone() {
    let rules = rules(A, Vec::new(), vec![preference(60, "ssd")]);
    let places = [(A, None, WELL, true), (B, Some("ssd"), WELL, true)];
    assert_near(&shares(&rules, &places), &[0.4, 0.6]);
}

prop_compose! {
    fn place()(
        zone in prop::sample::select(vec![None, A, B, C]),
        disk in prop::sample::select(vec![None, Some("ssd"), Some("hdd"), Some("7")]),
        score in prop::option::of(0.001..=1.0f64),
        free: bool,
    ) -> Place {
        (zone, disk, score, free)
    }
}

fn require() -> impl Strategy<Value = Vec<Term>> {
    let terms = vec![
        term(Operator::In, &["ssd", "7"]),
        term(Operator::NotIn, &["hdd"]),
        term(Operator::Exists, &[]),
        term(Operator::DoesNotExist, &[]),
        term(Operator::Gt, &["6"]),
        term(Operator::Lt, &["8"]),
    ];
    prop::sample::subsequence(terms, 0..3)
}

fn prefer() -> impl Strategy<Value = Vec<Preference>> {
    let one = (1u32..=100, prop::sample::select(vec!["ssd", "hdd", "7"]));
    prop::collection::vec(one.prop_map(|(weight, value)| preference(weight, value)), 0..4)
}

proptest! {
    #[test]
    fn hard_rules_hold_and_whoever_may_serve_is_found(
        places in prop::collection::vec(place(), 0..12), home in prop::sample::select(vec![None, A, B]),
        require in require(), prefer in prefer(), seed: u64,
    ) {
        let rules = rules(home, require.clone(), prefer);
        let (views, mut chance) = (views(&rules, &places), Chance::seeded(seed));
        let keeps = |disk| require.iter().all(|term| term.matches(&labels(disk)));
        let may = places.iter().any(|(_, disk, score, free)| *free && score.is_some() && keeps(*disk));
        for _ in 0..8 {
            let left = rules.narrow(CLASS, &views, &mut chance);
            prop_assert_eq!(left.is_empty(), !may);
            prop_assert!(left.iter().all(|replica| views[*replica].free && keeps(places[*replica].1)));
        }
    }
}

proptest! {
    // Each of many draws.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_share_that_leaves_is_what_the_score_says(own in prop::collection::vec(prop::option::of(0.001..=1.0f64), 1..5)) {
        let rules = rules(A, Vec::new(), Vec::new());
        let mut places: Vec<_> = own.iter().map(|score| (A, None, *score, true)).collect();
        places.push((B, None, WELL, true));
        let score = own.iter().flatten().sum::<f64>() / own.len() as f64;
        let leaves = shares(&rules, &places)[own.len()];
        prop_assert!((leaves - (1.0 - score / ENOUGH).max(0.0)).abs() < 0.02, "{leaves} at {score}");
    }
}
