//! Laws of the runner, with a loop that only counts.

use super::*;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};

/// Plans `left` actions per key, one per run, and watches that no key is run twice at once.
#[derive(Default)]
struct Counting {
    left: Mutex<HashMap<Key, u32>>,
    running: Mutex<HashSet<Key>>,
    fail_first: bool,
    acted: Mutex<Vec<Key>>,
}

impl Loop for Counting {
    type Seen = u32;
    type Action = u32;

    fn name(&self) -> &'static str {
        "counting"
    }

    fn wire(&self, _: &Queue) {}

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn see(&self, key: &Key) -> Option<u32> {
        assert!(self.running.lock().insert(key.clone()), "{key} is in work twice");
        let left = self.left.lock().get(key).copied();
        if left.is_none_or(|left| left == 0) {
            self.running.lock().remove(key);
            return None;
        }
        left
    }

    fn plan(&self, seen: &u32, _: Timestamp) -> Plan<u32> {
        Plan::act(vec![*seen])
    }

    async fn act(&self, key: &Key, action: u32, _: &Writes) -> Result<(), ActError> {
        tokio::task::yield_now().await;
        self.running.lock().remove(key);
        let failed_before = self.acted.lock().contains(key);
        self.acted.lock().push(key.clone());
        if self.fail_first && !failed_before {
            return Err(ActError::Failed("first time".into()));
        }
        self.left.lock().insert(key.clone(), action - 1);
        Ok(())
    }
}

async fn run(this: Counting, keys: &[Key]) -> Arc<Counting> {
    let this = Arc::new(this);
    let queue = Queue::new();
    for key in keys {
        queue.add(key.clone());
        queue.add(key.clone());
    }
    let driving = tokio::spawn(drive(this.clone(), queue.clone(), Clock::system()));
    while this.left.lock().values().any(|left| *left > 0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    queue.close();
    driving.await.expect("the runner does not panic");
    this
}

fn keys(n: u32) -> Vec<Key> {
    (0..n).map(|n| Key::new("ns", &n.to_string())).collect()
}

#[tokio::test]
async fn a_key_is_looked_at_again_until_its_plan_is_empty() {
    let keys = keys(20);
    let left = keys.iter().map(|key| (key.clone(), 5)).collect();
    let this = run(Counting { left: Mutex::new(left), ..Default::default() }, &keys).await;
    assert_eq!(this.acted.lock().len(), 100);
}

#[tokio::test]
async fn a_failed_action_is_tried_again() {
    let keys = keys(3);
    let left = keys.iter().map(|key| (key.clone(), 1)).collect();
    let this = run(Counting { left: Mutex::new(left), fail_first: true, ..Default::default() }, &keys).await;
    assert_eq!(this.acted.lock().len(), 6);
}

#[test]
fn of_several_wishes_to_look_again_the_earliest_stands() {
    let mut plan = Plan::<()>::nothing();
    plan.look_again(Duration::from_secs(9));
    plan.look_again(Duration::from_secs(3));
    plan.look_again(Duration::from_secs(5));
    assert_eq!(plan.again, Some(Duration::from_secs(3)));
}

#[tokio::test]
async fn nobody_works_on_a_key_before_it_is_known_what_came_of_a_write_that_was_not_answered() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let outcomes: [(fn() -> ActError, u32); 2] =
        [(|| ActError::Failed("no answer".into()), 3), (|| ActError::Refused("you may not list".into()), 1)];
    for (outcome, expected) in outcomes {
        let (asked, writes) = (Arc::new(AtomicU32::new(0)), Writes::default());
        let count = asked.clone();
        writes.unanswered(move || {
            let so_far = count.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { if so_far < 2 { Err(outcome()) } else { Ok(Writes::default()) } })
        });
        writes.settled().await;
        assert_eq!(asked.load(Ordering::Relaxed), expected);
    }
}
