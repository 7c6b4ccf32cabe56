use std::thread;

use super::*;
use crate::auth::{self, Tokens};

const TALES: &str = "[[tenants]]\nname = 'tales'\ntokens = ['TOKEN']\nsessions_max = 3\n";

#[test]
fn who_has_its_quota_gets_no_more_until_it_gives_back() {
    let (quotas, tales) = (quotas(TALES), TenantId::named("tales"));
    quotas.add_sessions(tales, 2);
    quotas.take_session(tales).unwrap();
    let refused = Err(Reject::QuotaSessions { sessions_max: 3 });
    assert_eq!(quotas.take_session(tales), refused);
    quotas.give_back_session(tales);
    quotas.take_session(tales).unwrap();

    // Lowered quotas, or a shutdown that keeps what was not to be kept.
    quotas.add_sessions(tales, 2);
    assert_eq!(quotas.n_sessions(tales), 5);
    quotas.give_back_session(tales);
    quotas.give_back_session(tales);
    assert_eq!(quotas.take_session(tales), refused);
    assert_eq!(quotas.n_sessions(tales), 3);
}

#[test]
fn tenants_without_limits_are_counted_and_unknown_ones_are_not() {
    let free = TALES.replace("sessions_max = 3", "");
    let (quotas, tales) = (quotas(&free), TenantId::named("tales"));
    for tenant in [tales, TenantId::ANONYMOUS] {
        (0..100).for_each(|_| quotas.take_session(tenant).unwrap());
        let _calls: Vec<_> = (0..100)
            .map(|_| {
                let mut share = quotas.begin_call(tenant).unwrap();
                share.generate().unwrap();
                share
            })
            .collect();
    }
    assert_eq!(quotas.n_sessions(tales), 100);
    assert_eq!(quotas.n_sessions(TenantId::ANONYMOUS), 0, "nobody can come as that");
}

/// Goal: workers that make sessions at the same time make no more than the quota.
#[test]
fn threads_share_one_count() {
    let (quotas, tales) = (quotas(TALES), TenantId::named("tales"));
    let made: usize = thread::scope(|scope| {
        let makers = [(); 4].map(|()| {
            scope.spawn(|| (0..100).filter(|_| quotas.take_session(tales).is_ok()).count())
        });
        makers.map(|it| it.join().unwrap()).iter().sum()
    });
    assert_eq!((made, quotas.n_sessions(tales)), (3, 3));
}

#[test]
fn metrics_tell_what_each_tenant_has() {
    let auth = Auth::with(Tokens::parse(&listed(TALES)).unwrap());
    let metrics = Metrics::new();
    let (quotas, tales) = (Quotas::new(&auth, &metrics), TenantId::named("tales"));
    let tells = |sessions: u32, generations: u32| {
        let text = metrics.render();
        for (what, n) in [("sessions", sessions), ("generations", generations)] {
            let line = format!("serve_tenant_{what}{{tenant=\"tales\"}} {n}\n");
            assert!(text.contains(&line), "{line} is missing from\n{text}");
        }
    };
    tells(0, 0);
    quotas.add_sessions(tales, 2);
    quotas.give_back_session(tales);
    let mut share = quotas.begin_call(tales).unwrap();
    share.generate().unwrap();
    share.generate().expect("it is one already");
    tells(1, 1);
    drop(share);
    tells(1, 0);
}

#[test]
fn the_anonymous_tenant_has_the_quota_of_those_that_say_nothing() {
    let quota = Quota { sessions_max: NonZeroU32::new(1), ..Quota::default() };
    let auth = Auth::open(&auth::Config { quota, ..auth::Config::default() }).unwrap();
    let quotas = Quotas::new(&auth, &Metrics::new());
    quotas.take_session(TenantId::ANONYMOUS).unwrap();
    quotas.take_session(TenantId::ANONYMOUS).unwrap_err();
}

fn quotas(list: &str) -> Quotas {
    Quotas::new(&Auth::with(Tokens::parse(&listed(list)).unwrap()), &Metrics::new())
}

/// A list with a token.
fn listed(list: &str) -> String {
    list.replace("TOKEN", &"a".repeat(64))
}
