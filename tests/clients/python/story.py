"""A day of the official Python client: every verb of a typed API, every type of patch, server-side apply, watches,
the dynamic client, a custom resource, a pod's logs, commands and ports. KUBECONFIG names the platform; an assertion that
does not hold ends it with an error."""

import threading
import warnings

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError
from kubernetes.stream import portforward, stream

NAMESPACE = "python"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "worker", "labels": {"app": "worker"}},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "main",
                "image": "test/busybox:1",
                "command": ["sh", "-c", "echo first; echo second; echo served > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            }
        ],
    },
}


def typed(core):
    """The generated API: create, read, list, replace with the version that was read, delete."""
    made = core.create_namespaced_config_map(
        NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="typed", labels={"of": "typed"}), data={"a": "1"})
    )
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo, made
    read = core.read_namespaced_config_map("typed", NAMESPACE)
    assert read.to_dict() == made.to_dict()
    read.data = {"a": "2"}
    replaced = core.replace_namespaced_config_map("typed", NAMESPACE, read)
    try:
        core.replace_namespaced_config_map("typed", NAMESPACE, read)
        raise AssertionError("a stale version was taken")
    except ApiException as error:
        assert (error.status, error.reason) == (409, "Conflict"), error
        assert '"reason":"Conflict"' in error.body, error.body
    assert replaced.metadata.resource_version != made.metadata.resource_version
    listed = core.list_namespaced_config_map(NAMESPACE, label_selector="of=typed", limit=1)
    assert [item.data for item in listed.items] == [{"a": "2"}]
    core.delete_namespaced_config_map("typed", NAMESPACE)
    try:
        core.read_namespaced_config_map("typed", NAMESPACE)
        raise AssertionError("it is still there")
    except ApiException as error:
        assert (error.status, error.reason) == (404, "Not Found"), error


def patches(apps, resource):
    """JSON, merge and strategic merge patches, then an apply that meets the fields of another."""
    container = {"name": "main", "image": "test/busybox:1"}
    template = {"metadata": {"labels": {"app": "patched"}}, "spec": {"containers": [container]}}
    apps.create_namespaced_deployment(
        NAMESPACE,
        {
            "metadata": {"name": "patched"},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "patched"}}, "template": template},
        },
    )
    # A list is a JSON patch, a map a strategic merge: the generated client chooses by that.
    apps.patch_namespaced_deployment(
        "patched", NAMESPACE, [{"op": "add", "path": "/metadata/annotations", "value": {"by": "json"}}]
    )
    sidecar = {"name": "side", "image": "test/busybox:1"}
    merged = apps.patch_namespaced_deployment(
        "patched", NAMESPACE, {"spec": {"template": {"spec": {"containers": [sidecar]}}}}
    )
    assert {each.name for each in merged.spec.template.spec.containers} == {"main", "side"}
    assert merged.metadata.annotations["by"] == "json"

    kind = resource("apps/v1", "Deployment")

    def patch(body, content_type, **more):
        return kind.patch(body=body, name="patched", namespace=NAMESPACE, content_type=content_type, **more)

    spec = {"template": {"spec": {"containers": [sidecar]}}}
    replaced = patch({"metadata": {"annotations": {"by": None}}, "spec": spec}, "application/merge-patch+json")
    assert [each.name for each in replaced.spec.template.spec.containers] == ["side"]
    assert not (replaced.metadata.annotations or {}).get("by")
    back = patch({"spec": {"template": {"spec": {"containers": [container]}}}}, "application/strategic-merge-patch+json")
    assert len(back.spec.template.spec.containers) == 2
    tested = [{"op": "test", "path": "/spec/replicas", "value": 7}, {"op": "remove", "path": "/spec"}]
    try:
        patch(tested, "application/json-patch+json")
        raise AssertionError("a test that fails let the patch through")
    except dynamic.exceptions.UnprocessibleEntityError as error:
        assert error.status == 422, error
    applied = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "patched"}, "spec": {"replicas": 3}}
    try:
        kind.server_side_apply(body=applied, namespace=NAMESPACE, field_manager="story")
        raise AssertionError("another's field was taken")
    except ConflictError as error:
        assert "FieldManagerConflict" in str(error.body), error.body
    forced = kind.server_side_apply(body=applied, namespace=NAMESPACE, field_manager="story", force_conflicts=True)
    assert forced.spec.replicas == 3
    managers = {entry.manager: entry.operation for entry in forced.metadata.managedFields}
    assert managers["story"] == "Apply", managers
    scale = apps.patch_namespaced_deployment_scale("patched", NAMESPACE, {"spec": {"replicas": 0}})
    # Go leaves out a nought (`omitempty` of ScaleSpec).
    assert not scale.spec.replicas, scale
    kind.delete(name="patched", namespace=NAMESPACE, propagation_policy="Background")


def watches(core):
    """A watch from the version of a list sees what comes after it, each change once, and ends when it was told to."""
    before = core.list_namespaced_secret(NAMESPACE, label_selector="of=watches").metadata.resource_version
    name = {"name": "seen", "labels": {"of": "watches"}}
    core.create_namespaced_secret(NAMESPACE, {"metadata": name, "stringData": {"key": "value"}})
    core.patch_namespaced_secret("seen", NAMESPACE, {"data": {"key": None}})
    core.delete_namespaced_secret("seen", NAMESPACE)
    seen = []
    follower = watch.Watch()
    options = {"label_selector": "of=watches", "resource_version": before, "timeout_seconds": 20}
    for event in follower.stream(core.list_namespaced_secret, NAMESPACE, **options):
        seen.append((event["type"], event["object"].metadata.name, event["object"].data))
        if event["type"] == "DELETED":
            follower.stop()
    assert seen[0] == ("ADDED", "seen", {"key": "dmFsdWU="}), seen
    assert [kind for kind, _, _ in seen] == ["ADDED", "MODIFIED", "DELETED"], seen
    assert list(watch.Watch().stream(core.list_namespaced_secret, NAMESPACE, **{**options, "timeout_seconds": 1}))


def custom(extensions, dynamic_client, resource):
    """A kind of one's own: defined, discovered, written, read by both clients and watched."""
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "pythons", "singular": "python", "kind": "Python"}
    extensions.create_custom_resource_definition(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "pythons.story.proa.dev"},
            "spec": {"group": "story.proa.dev", "scope": "Namespaced", "names": names, "versions": [version]},
        }
    )
    dynamic_client.resources.invalidate_cache()
    pythons = resource("story.proa.dev/v1", "Python")
    body = {"apiVersion": "story.proa.dev/v1", "kind": "Python", "metadata": {"name": "monty"}, "spec": {"size": 4}}
    made = pythons.create(body=body, namespace=NAMESPACE)
    objects = client.CustomObjectsApi()
    where = ("story.proa.dev", "v1", NAMESPACE, "pythons")
    assert objects.get_namespaced_custom_object(*where, "monty")["spec"] == {"size": 4}
    try:
        objects.patch_namespaced_custom_object(*where, "monty", {"spec": {"size": 0}})
        raise AssertionError("the schema was not asked")
    except ApiException as error:
        assert error.status == 422 and "should be greater than or equal to 1" in error.body, error
    pythons.delete(name="monty", namespace=NAMESPACE)
    events = pythons.watch(namespace=NAMESPACE, resource_version=made.metadata.resourceVersion, timeout=20)
    assert next(iter(events))["type"] == "DELETED"
    try:
        pythons.get(name="monty", namespace=NAMESPACE)
        raise AssertionError("it is still there")
    except NotFoundError:
        pass


def pods(core):
    """A real container: waited for by a watch, its logs read and followed, commands run in it, its port reached."""
    core.create_namespaced_pod(NAMESPACE, POD)
    until = watch.Watch()
    for event in until.stream(core.list_namespaced_pod, NAMESPACE, field_selector="metadata.name=worker", timeout_seconds=60):
        statuses = event["object"].status.container_statuses or []
        if statuses and statuses[0].ready:
            until.stop()
    assert core.read_namespaced_pod("worker", NAMESPACE).status.phase == "Running"
    assert core.read_namespaced_pod_log("worker", NAMESPACE, tail_lines=1) == "second\n"
    following = watch.Watch()
    lines = []
    for line in following.stream(core.read_namespaced_pod_log, "worker", NAMESPACE):
        lines.append(line)
        if len(lines) == 2:
            following.stop()
    assert lines == ["first", "second"], lines

    command = ["sh", "-c", "echo out; echo err >&2; read line; echo got $line; exit 3"]
    session = stream(
        core.connect_get_namespaced_pod_exec, "worker", NAMESPACE, command=command,
        stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
    )
    session.write_stdin("hello\n")
    session.run_forever(timeout=20)
    assert session.read_stdout() == "out\ngot hello\n"
    assert session.read_stderr() == "err\n"
    assert session.returncode == 3, session.returncode
    simple = stream(
        core.connect_get_namespaced_pod_exec, "worker", NAMESPACE, command=["cat", "/etc/hostname"],
        stdin=False, stdout=True, stderr=True, tty=False,
    )
    assert simple.strip() == "worker", simple

    forward = portforward(core.connect_get_namespaced_pod_portforward, "worker", NAMESPACE, ports="8080")
    port = forward.socket(8080)
    port.settimeout(20)
    port.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while not answer.endswith(b"served\n"):
        piece = port.recv(1024)
        assert piece, (answer, forward.error(8080))
        answer += piece
    assert answer.startswith(b"HTTP/1."), answer
    port.close()

    gone = threading.Event()
    # From what is there now: the watch may well begin after the pod has gone.
    since = core.list_namespaced_pod(NAMESPACE).metadata.resource_version

    def wait():
        waiting = watch.Watch()
        for event in waiting.stream(core.list_namespaced_pod, NAMESPACE, resource_version=since, timeout_seconds=30):
            if event["type"] == "DELETED":
                gone.set()
                waiting.stop()

    waiter = threading.Thread(target=wait)
    waiter.start()
    # What it was is the answer, as for each kind whose registry returns what it deletes.
    was = core.delete_namespaced_pod("worker", NAMESPACE, grace_period_seconds=0)
    assert was.metadata.name == "worker", was
    waiter.join()
    assert gone.is_set()


def main():
    # What the client says of its own future is not what is asked here.
    warnings.simplefilter("ignore", DeprecationWarning)
    config.load_kube_config()
    connection = client.ApiClient()
    core, apps = client.CoreV1Api(connection), client.AppsV1Api(connection)
    dynamic_client = dynamic.DynamicClient(connection)

    def resource(version, kind):
        return dynamic_client.resources.get(api_version=version, kind=kind)

    assert client.VersionApi().get_code().git_version.startswith("v1.")
    assert "apps" in {group.name for group in client.ApisApi().get_api_versions().groups}
    utils.create_from_dict(connection, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "mine"}})
    typed(core)
    patches(apps, resource)
    watches(core)
    custom(client.ApiextensionsV1Api(connection), dynamic_client, resource)
    pods(core)
    core.delete_namespace(NAMESPACE)
    print("the Python client's day is over")


main()
