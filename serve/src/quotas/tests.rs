use std::thread;

use super::*;
use crate::auth::{self, Tokens};

const TALES: &str = "[[tenants]]\nname = 'tales'\ntokens = ['TOKEN']\nsessions_max = 3\n";

#[test]
fn who_has_its_quota_gets_no_more_until_it_gives_back() {
    let (quotas, tales) = (quotas(TALES), TenantId::named("tales"));
    let mut ledger = Ledger::new(quotas.clone());
    ledger.add(tales, 2);
    ledger.take(tales).unwrap();
    let refused = Err(Reject::QuotaSessions { sessions_max: 3 });
    assert_eq!(ledger.take(tales), refused);
    ledger.give_back(tales);
    ledger.take(tales).unwrap();

    // Lowered quotas, or a shutdown that keeps what was not to be kept.
    ledger.add(tales, 2);
    assert_eq!(quotas.usage(tales).sessions, 5);
    ledger.give_back(tales);
    ledger.give_back(tales);
    assert_eq!(ledger.take(tales), refused);
    assert_eq!(quotas.usage(tales).sessions, 3);
}

#[test]
fn tenants_without_limits_and_unknown_ones_are_counted() {
    let free = TALES.replace("sessions_max = 3", "");
    let (quotas, tales) = (quotas(&free), TenantId::named("tales"));
    let mut ledger = Ledger::new(quotas.clone());
    for tenant in [tales, TenantId::named("verses")] {
        (0..100).for_each(|_| ledger.take(tenant).unwrap());
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let mut share = quotas.begin_call(tenant).unwrap();
                share.generate().unwrap();
                share
            })
            .collect();
        assert_eq!(quotas.usage(tenant), Usage { sessions: 100, generations: 100 });
        drop(calls);
        assert_eq!(quotas.usage(tenant), Usage { sessions: 100, generations: 0 });
    }
}

/// Goal: classifications are limited as generations are, but neither takes the other's share; places are as many as calls.
#[test]
fn each_kind_of_call_has_a_share_of_its_own() {
    let list = TALES.replace("sessions_max = 3", "generations_max = 1");
    let (quotas, tales) = (quotas(&list), TenantId::named("tales"));
    let mut generation = quotas.begin_call(tales).unwrap();
    generation.generate().unwrap();
    let classification = quotas.classify(tales).unwrap();
    let too_many = TooMany { generations_max: 1 };
    assert_eq!(quotas.classify(tales).unwrap_err(), too_many);
    assert_eq!(quotas.usage(tales), Usage { sessions: 0, generations: 1 });
    drop(classification);
    let classification = quotas.classify(tales).unwrap();
    let places = [quotas.enter(tales).unwrap(), quotas.enter(tales).unwrap()];
    assert_eq!(quotas.enter(tales).unwrap_err(), too_many);
    drop((generation, classification, places));
    assert_eq!(quotas.tenant(tales).calls.n(), 0);
    quotas.enter(tales).unwrap();
}

/// Goal: limits that change hold from then on, for tenants that were not listed before as well; what was counted stays.
#[test]
fn limits_may_change_while_they_hold() {
    let (quotas, tales) = (quotas(TALES), TenantId::named("tales"));
    let verses = TenantId::named("verses");
    let mut ledger = Ledger::new(quotas.clone());
    ledger.add(tales, 2);
    ledger.add(verses, 5);
    let listed = |name: &str, n: u32| {
        let list = listed(TALES).replace("tales", name).replace("= 3", &format!("= {n}"));
        Auth::with(Tokens::parse(&list).unwrap()).tenants().remove(0)
    };
    quotas.limit(&[listed("tales", 1), listed("verses", 6)]);
    assert_eq!(ledger.take(tales), Err(Reject::QuotaSessions { sessions_max: 1 }));
    ledger.take(verses).unwrap();
    assert_eq!(ledger.take(verses), Err(Reject::QuotaSessions { sessions_max: 6 }));

    // Not listed any more: what it has is still there, and counts if it comes back.
    quotas.limit(&[listed("verses", 6)]);
    assert_eq!(quotas.usage(tales).sessions, 2);
    ledger.give_back(tales);
    quotas.limit(&[listed("tales", 1)]);
    assert_eq!(ledger.take(tales), Err(Reject::QuotaSessions { sessions_max: 1 }));
}

/// Goal: what a worker has lost without knowing whose it was counts for nobody; what others keep is not touched.
#[test]
fn a_ledger_is_corrected_by_what_is_found() {
    let (quotas, tales) = (quotas(TALES), TenantId::named("tales"));
    let verses = TenantId::named("verses");
    let (mut here, mut there) = (Ledger::new(quotas.clone()), Ledger::new(quotas.clone()));
    here.add(tales, 2);
    here.add(verses, 1);
    there.add(tales, 1);
    here.depart(tales);
    there.arrive(tales);
    here.correct([(verses, 1)].into());
    assert_eq!(quotas.usage(tales).sessions, 2);
    assert_eq!(quotas.usage(verses).sessions, 1);
    there.correct([].into());
    assert_eq!(quotas.usage(tales).sessions, 0);
}

/// Goal: workers that make sessions at the same time make no more than the quota.
#[test]
fn threads_share_one_count() {
    let (quotas, tales) = (quotas(TALES), TenantId::named("tales"));
    let made: usize = thread::scope(|scope| {
        let makers = [(); 4].map(|()| {
            let mut ledger = Ledger::new(quotas.clone());
            scope.spawn(move || (0..100).filter(|_| ledger.take(tales).is_ok()).count())
        });
        makers.map(|it| it.join().unwrap()).iter().sum()
    });
    assert_eq!((made, quotas.usage(tales).sessions), (3, 3));
}

#[test]
fn the_anonymous_tenant_has_the_quota_of_those_that_say_nothing() {
    let quota = Quota { sessions_max: NonZeroU32::new(1), ..Quota::default() };
    let auth = Auth::open(&auth::Config { quota, ..auth::Config::default() }, false).unwrap();
    let mut ledger = Ledger::new(Quotas::new(&auth));
    ledger.take(TenantId::ANONYMOUS).unwrap();
    ledger.take(TenantId::ANONYMOUS).unwrap_err();
}

#[test]
fn what_is_promised_is_what_the_limits_come_to() {
    let list = format!(
        "{}[[tenants]]\nname = 'verses'\nsessions_max = 4\ngenerations_max = 2\n[[tenants]]\nname = 'free'\n",
        listed(TALES),
    );
    let auth = Auth::with(Tokens::parse(&list).unwrap());
    assert_eq!(promised(&auth.tenants()), 3 + 4 + 2);
}

fn quotas(list: &str) -> Quotas {
    Quotas::new(&Auth::with(Tokens::parse(&listed(list)).unwrap()))
}

/// A list with a token.
fn listed(list: &str) -> String {
    list.replace("TOKEN", &"a".repeat(64))
}
