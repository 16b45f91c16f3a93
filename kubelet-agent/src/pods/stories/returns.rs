//! Stories of an agent that comes back to pods an earlier one had begun.

use super::super::start::container_id;
use super::*;

fn found(attempt: u32, state: ContainerState) -> ContainerStatus {
    ContainerStatus {
        id: container_id("u1", "app", attempt).0,
        sandbox: "u1".into(),
        name: "app".into(),
        attempt,
        state,
        pid: None,
        created_at: Timestamp::now(),
        started_at: Some(Timestamp::now()),
        labels: BTreeMap::new(),
        log_path: "/log".into(),
    }
}

fn ground() -> GroundInfo {
    GroundInfo { pod_ips: vec!["10.244.0.5".into()], netns: Some("/proc/self/ns/net".into()), ..GroundInfo::default() }
}

#[tokio::test]
async fn ground_nothing_stands_on_yet_is_prepared_once_more() {
    // The earlier agent was killed when the sandbox was made, and the files and volumes were not.
    let spec = json!({"containers": [{"name": "app", "image": "img:1"}], "volumes": [{"name": "v", "emptyDir": {}}]});
    let story = Story::goes_on(spec, Value::Null, &[], vec![], Some(ground()));
    story.until("running", ready).await;
    assert!(story.ctx.layout.etc("u1", "hosts").exists(), "the files of the pod were made");
    assert!(story.ctx.layout.volume("u1", "v").exists(), "its volumes were made");
    story.delete(0);
    story.ends().await;
}

#[tokio::test]
async fn runs_whose_removal_was_cut_off_are_removed_on_return() {
    let status = json!({"containerStatuses": [{"name": "app", "image": "img:1", "imageID": "", "ready": true,
        "restartCount": 1, "containerID": container_id("u1", "app", 1).wire(), "state": {"running": {}}}]});
    let containers = vec![found(0, ContainerState::Exited(exit(1))), found(1, ContainerState::Running)];
    let spec = json!({"containers": [{"name": "app", "image": "img:1"}]});
    let story = Story::goes_on(spec, status, &[], containers, Some(ground()));
    let mut removed = story.runtime.removed.subscribe();
    let old = container_id("u1", "app", 0).0;
    let removed = tokio::time::timeout(Duration::from_secs(20), removed.wait_for(|r| r.contains(&old)));
    assert_eq!(removed.await.expect("removed").unwrap().len(), 1, "only the run before");
    story.task.abort();
}
