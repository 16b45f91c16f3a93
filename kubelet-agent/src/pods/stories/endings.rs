//! Stories of how pods and their containers end.

use super::super::track::Unhealthy;
use super::*;
use crate::probes::Verdict;

impl Story {
    /// The id of the container of that name.
    fn id(&self, name: &str) -> ContainerId {
        let containers = self.runtime.containers.lock();
        ContainerId(containers.values().find(|(spec, _)| spec.name == name).expect("it was created").0.id.clone())
    }

    async fn until_signalled(&self, name: &str, signal: i32) {
        let mut signals = self.runtime.signals.subscribe();
        let sent = signals.wait_for(|sent| sent.contains(&(name.to_owned(), signal)));
        tokio::time::timeout(Duration::from_secs(20), sent).await.expect("signalled").unwrap();
    }
}

#[tokio::test]
async fn a_pod_deleted_while_its_image_is_pulled_goes_at_once_and_the_pull_stops() {
    let story = Story::begins(json!({"containers": [{"name": "app", "image": "slow:1"}]}), &[]).await;
    let mut pulls = story.pulls.subscribe();
    pulls.wait_for(|n| *n == 1).await.unwrap();
    story.delete(30);
    story.ends().await;
    pulls.wait_for(|n| *n == 0).await.unwrap();
}

#[tokio::test]
async fn a_deletion_cuts_a_restart_under_way_short() {
    let story = Story::begins(json!({"containers": [{"name": "app", "image": "img:1"}]}), &[]).await;
    story.runtime.deaf.lock().insert("app".into());
    story.until("running", ready).await;
    let unhealthy = Unhealthy { message: "it failed its probe".into(), grace: Some(3600) };
    let verdict = Verdict::Unhealthy(unhealthy);
    story.ctx.registry.tell("u1", Message::Probed { id: story.id("app"), verdict });
    story.until_signalled("app", 15).await;
    story.delete(1);
    story.ends().await;
}

#[tokio::test]
async fn a_container_whose_post_start_hook_failed_is_stopped_as_any_other() {
    let hook = |name: &str| json!({"exec": {"command": [name]}});
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 3600, "containers": [
        {"name": "app", "image": "img:1", "lifecycle": {"postStart": hook("begin"), "preStop": hook("end")}}]});
    let story = Story::begins(spec, &[]).await;
    story.runtime.deaf.lock().insert("app".into());
    story.until_signalled("app", 15).await;
    assert_eq!(*story.runtime.commands.lock(), [["begin"], ["end"]]);
    assert!(!ready(&story.api.pod.borrow()["status"]));
    story.delete(1);
    story.until("killed", |s| s["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137).await;
    story.ends().await;
}

#[tokio::test]
async fn readiness_is_told_until_the_last_container_has_ended() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let spec = json!({"containers": [{"name": "app", "image": "img:1", "readinessProbe":
        {"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1, "failureThreshold": 1}}]});
    let story = Story::begins(spec, &[]).await;
    story.runtime.deaf.lock().insert("app".into());
    story.until("ready", ready).await;
    story.delete(30);
    story.until_signalled("app", 15).await;
    assert!(ready(&story.api.pod.borrow()["status"]), "it still serves");
    drop(server);
    story.until("not ready any more", |s| !ready(s) && s["phase"] == "Running").await;
    story.runtime.end("app", 0);
    story.ends().await;
}

#[tokio::test]
async fn a_pod_over_its_limit_of_the_disk_is_evicted_at_once() {
    let spec = json!({"terminationGracePeriodSeconds": 3600, "containers": [{"name": "app", "image": "img:1"}]});
    let story = Story::begins(spec, &[]).await;
    story.runtime.deaf.lock().insert("app".into());
    story.until("running", ready).await;
    story.ctx.registry.tell("u1", Message::OverLimit("Usage of EmptyDir volume \"v\" exceeds the limit. ".into()));
    let killed = |s: &Value| s["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137;
    let status = story.until("evicted", |s| s["phase"] == "Failed" && killed(s)).await;
    assert_eq!(status["reason"], "Evicted");
    story.delete(0);
    story.ends().await;
}
