//! Which relay to try next, and when: backoff with full jitter, one relay's word to go, failover.

use std::time::Duration;

use tokio::time::Instant;

/// Doubling more often than this reaches any cap.
const DOUBLINGS_MAX: u32 = 20;

/// A relay may ask for a longer absence, but what it says is no more than a word of advice.
const ABSENCE_MAX: Duration = Duration::from_secs(3_600);

/// The relays of a client, in the order of preference.
pub(super) struct Routes {
    routes: Vec<Route>,
    /// Where we were when the connection was lost; tried first, so that a hiccup of the network does
    /// not scatter blobs over relays.
    stays_at: Option<usize>,
    base: Duration,
    max: Duration,
}

#[derive(Clone, Default)]
struct Route {
    url: String,
    failures: u32,
    not_before: Option<Instant>,
}

impl Routes {
    pub(super) fn new(urls: &[String], base: Duration, max: Duration) -> Self {
        let route = |url: &String| Route {
            url: url.clone(),
            ..Route::default()
        };
        Self {
            routes: urls.iter().map(route).collect(),
            stays_at: None,
            base,
            max,
        }
    }

    /// Where to go next, and from when on.
    pub(super) fn next(&self, now: Instant) -> (usize, Instant) {
        let when = |at: usize| {
            let route = self.routes.get(at);
            route
                .and_then(|route| route.not_before)
                .map_or(now, |before| before.max(now))
        };
        if let Some(at) = self.stays_at {
            return (at, when(at));
        }
        let failures = |at: usize| self.routes.get(at).map_or(0, |route| route.failures);
        // Of those that are due the one that failed least: while one takes its time to fail, the others
        // fall due, and one that was not tried would never have its turn.
        (0..self.routes.len())
            .map(|at| (at, when(at)))
            .min_by_key(|(at, when)| (*when, failures(*at)))
            .unwrap_or((0, now))
    }

    /// It could not be reached, or would not have us.
    pub(super) fn failed(&mut self, at: usize, now: Instant, retry_after: Option<Duration>) {
        self.stays_at = None;
        self.wait(at, now, retry_after);
    }

    /// The connection was there and is lost.
    pub(super) fn lost(&mut self, at: usize, now: Instant) {
        self.stays_at = Some(at);
        self.wait(at, now, None);
    }

    /// What no wait of ours is longer than.
    pub(super) fn longest_wait(&self) -> Duration {
        self.max
    }

    /// It has done something for us.
    pub(super) fn served(&mut self, at: usize) {
        if let Some(route) = self.routes.get_mut(at) {
            route.failures = 0;
            route.not_before = None;
        }
    }

    /// It asked us to go, and named others. Only those that we were configured with count, and that need
    /// not be waited for while others are free.
    pub(super) fn sent_away(
        &mut self,
        at: usize,
        now: Instant,
        after: Duration,
        alternates: &[String],
    ) {
        // At least as long as after a failure: one that sends everybody away at once would have its clients
        // come and go without end.
        self.wait(at, now, None);
        if let Some(route) = self.routes.get_mut(at) {
            let after = Some(now + after.min(ABSENCE_MAX));
            route.not_before = route.not_before.max(after);
        }
        let is_free = |at: usize| {
            let route = self.routes.get(at);
            route.is_some_and(|route| route.not_before.is_none_or(|before| before <= now))
        };
        self.stays_at = alternates
            .iter()
            .filter_map(|url| {
                self.routes
                    .iter()
                    .position(|route| is_same(&route.url, url))
            })
            .find(|other| *other != at && is_free(*other));
    }

    fn wait(&mut self, at: usize, now: Instant, retry_after: Option<Duration>) {
        let (base, max) = (self.base, self.max);
        let Some(route) = self.routes.get_mut(at) else {
            return;
        };
        let doubled = base.saturating_mul(1 << route.failures.min(DOUBLINGS_MAX));
        let jitter = doubled.min(max).mul_f64(rand::random());
        route.failures = route.failures.saturating_add(1);
        let asked = retry_after.unwrap_or_default().min(ABSENCE_MAX);
        route.not_before = Some(now + asked + jitter);
    }
}

/// A slash at the end makes no difference, nor does the relay's id behind ours.
fn is_same(ours: &str, theirs: &str) -> bool {
    let place = |url: &str| {
        url.split('#')
            .next()
            .unwrap_or_default()
            .trim_end_matches('/')
            .to_owned()
    };
    place(ours) == place(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(250);
    const MAX: Duration = Duration::from_secs(30);

    fn routes() -> Routes {
        let urls = ["ws://a", "ws://b", "ws://c#id"].map(str::to_owned);
        Routes::new(&urls, BASE, MAX)
    }

    #[test]
    fn the_first_is_preferred_and_the_next_takes_over_from_one_that_fails() {
        let (mut routes, now) = (routes(), Instant::now());
        assert_eq!(routes.next(now), (0, now));
        routes.failed(0, now, None);
        assert_eq!(routes.next(now), (1, now));
        routes.failed(1, now, None);
        routes.failed(2, now, Some(MAX));
        let (at, when) = routes.next(now);
        assert!(at < 2 && when <= now + BASE);
        assert_eq!(routes.next(now + MAX).0, 0);
    }

    #[test]
    fn a_relay_that_was_not_tried_goes_before_those_that_failed_though_they_are_due_again() {
        let (mut routes, now) = (routes(), Instant::now());
        routes.failed(0, now, None);
        // A relay that answers nothing takes as long as connecting may.
        let later = now + MAX;
        routes.failed(1, later, None);
        assert_eq!(routes.next(later), (2, later));
    }

    #[test]
    fn a_lost_connection_is_tried_again_where_it_was() {
        let (mut routes, now) = (routes(), Instant::now());
        routes.lost(1, now);
        let (at, when) = routes.next(now);
        assert!(at == 1 && when <= now + BASE);
        routes.failed(1, now, None);
        assert_eq!(routes.next(now), (0, now));
    }

    #[test]
    fn no_relay_can_send_a_client_away_for_ever() {
        let now = Instant::now();
        let mut alone = Routes::new(&["ws://a".to_owned()], BASE, MAX);
        alone.failed(0, now, Some(Duration::MAX));
        assert!(alone.next(now).1 <= now + ABSENCE_MAX + BASE);
        alone.sent_away(0, now, Duration::MAX, &[]);
        assert_eq!(alone.next(now), (0, now + ABSENCE_MAX));
    }

    #[test]
    fn waits_double_up_to_the_cap_are_spread_from_zero_and_begin_anew_once_served() {
        let mut longest = [Duration::ZERO; 10];
        let mut shortest = [MAX; 10];
        for _ in 0..400 {
            let (mut routes, now) = (routes(), Instant::now());
            for n in 0..10 {
                routes.lost(0, now);
                let wait = routes.next(now).1 - now;
                longest[n] = longest[n].max(wait);
                shortest[n] = shortest[n].min(wait);
            }
            routes.served(0);
            routes.lost(0, now);
            assert!(routes.next(now).1 <= now + BASE);
        }
        for n in 0..10 {
            let bound = (BASE * (1 << n)).min(MAX);
            assert!(longest[n] <= bound && longest[n] > bound / 2, "{n}");
            assert!(shortest[n] < bound / 10, "{n}");
        }
    }

    #[test]
    fn whoever_is_sent_away_goes_to_an_alternate_only_if_it_knows_it() {
        let (mut routes, now) = (routes(), Instant::now());
        let alternates = ["ws://stranger", "ws://a", "ws://c/"].map(str::to_owned);
        routes.sent_away(0, now, BASE, &alternates);
        assert_eq!(routes.next(now), (2, now));
        let mut routes = self::routes();
        routes.sent_away(0, now, BASE, &alternates[..1]);
        assert_eq!(routes.next(now), (1, now));
        let mut alone = Routes::new(&["ws://a".to_owned()], BASE, MAX);
        alone.sent_away(0, now, BASE, &[]);
        assert_eq!(alone.next(now), (0, now + BASE));
        // The alternate has asked to be left alone, and a third is free.
        let mut routes = self::routes();
        routes.failed(2, now, Some(MAX));
        routes.sent_away(0, now, BASE, &alternates);
        assert_eq!(routes.next(now), (1, now));
    }
}
