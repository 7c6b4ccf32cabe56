//! Calls that only look: one session, or all, page by page.

use aerie_state_cache::Storage;
use tokio::sync::oneshot;

use super::{Reply, Standing, Worker};
use crate::{auth::Principal, device::Device, sessions::SessionId};

/// How does a session stand?
#[derive(Debug)]
pub struct Look {
    pub who: Principal,
    pub id: SessionId,
    pub reply: Reply,
}

/// Which sessions are there?
#[derive(Debug)]
pub struct List {
    pub who: Principal,
    /// Where the page before ended; 0 for the first.
    pub place: u32,
    /// Sessions to tell of at most.
    pub sessions_max: usize,
    pub reply: oneshot::Sender<Page>,
}

/// Some of a worker's sessions.
#[derive(Debug, Default)]
pub struct Page {
    pub sessions: Vec<Standing>,
    /// Where the next page begins, if there may be one.
    pub next: Option<u32>,
}

/// Rows that are read for a page at most, so that nobody's tokens wait for those of tenants that are not shown.
const ROWS_PER_PAGE_MAX: usize = 1000;

impl<S: Storage, D: Device> Worker<S, D> {
    pub(super) fn look(&mut self, look: Look) {
        let Look { who, id, reply } = look;
        let standing = self.wake(who, id).map(|()| self.stands(id));
        self.sleep(id);
        reply.send(standing).ok();
    }

    pub(super) fn list(&mut self, list: List) {
        let List { who, place, sessions_max, reply } = list;
        let rows_max = sessions_max.min(ROWS_PER_PAGE_MAX);
        let rows: Vec<(u32, SessionId)> = self.parts.store.ids_from(place).take(rows_max).collect();
        let last = rows.last().map(|(place, _)| *place);
        let mut page = Page::default();
        for (_, id) in rows {
            if self.wake(who, id).is_ok() {
                page.sessions.push(self.stands(id));
            }
            self.sleep(id);
        }
        page.next = last.and_then(|last| {
            let next = last + 1;
            self.parts.store.ids_from(next).next().map(|_| next)
        });
        reply.send(page).ok();
    }
}
