// A day of the official JavaScript client: every verb of a typed API, every type of patch, server-side apply, an informer,
// objects of any kind, a pod's logs, commands and ports. KUBECONFIG names the platform; an assertion that does not hold ends
// it with an error.

import assert from 'node:assert/strict';
import net from 'node:net';
import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import * as k8s from '@kubernetes/client-node';

const namespace = 'javascript';
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);

/** Everything a stream says, as it comes. */
function collected() {
  const stream = new PassThrough();
  stream.text = '';
  stream.on('data', (piece) => (stream.text += piece));
  return stream;
}

/** What an API error of the client says. */
async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    const body = typeof error.body === 'string' ? JSON.parse(error.body) : error.body;
    return { code: error.code, ...body };
  }
  throw new Error('it was not refused');
}

async function typed() {
  const body = { metadata: { name: 'typed', labels: { of: 'typed' } }, data: { a: '1' } };
  const made = await core.createNamespacedConfigMap({ namespace, body });
  assert(made.metadata.uid && made.metadata.creationTimestamp instanceof Date);
  const read = await core.readNamespacedConfigMap({ name: 'typed', namespace });
  assert.deepEqual(read, made);
  read.data = { a: '2' };
  await core.replaceNamespacedConfigMap({ name: 'typed', namespace, body: read });
  const stale = await refusal(core.replaceNamespacedConfigMap({ name: 'typed', namespace, body: read }));
  assert.equal(stale.code, 409);
  assert.equal(stale.reason, 'Conflict');
  const list = await core.listNamespacedConfigMap({ namespace, labelSelector: 'of=typed' });
  assert.deepEqual(list.items.map((item) => item.data), [{ a: '2' }]);
  const gone = await core.deleteNamespacedConfigMap({ name: 'typed', namespace });
  assert.equal(gone.status, 'Success');
}

async function patches() {
  const container = { name: 'main', image: 'test/busybox:1' };
  const side = { name: 'side', image: 'test/busybox:1' };
  const named = { apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'patched', namespace } };
  const containers = (...list) => ({ spec: { template: { spec: { containers: list } } } });
  const template = { metadata: { labels: { app: 'patched' } }, spec: { containers: [container] } };
  const spec = { replicas: 0, selector: { matchLabels: { app: 'patched' } }, template };
  await apps.createNamespacedDeployment({ namespace, body: { ...named, spec } });
  const patch = (body, strategy, manager, force) =>
    objects.patch({ ...named, ...body }, undefined, undefined, manager, force, strategy);
  const names = (object) => object.spec.template.spec.containers.map((each) => each.name).sort();

  const annotate = [{ op: 'add', path: '/metadata/annotations', value: { by: 'json' } }];
  const header = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.JsonPatch);
  const annotated = await apps.patchNamespacedDeployment({ name: 'patched', namespace, body: annotate }, header);
  assert.equal(annotated.metadata.annotations.by, 'json');
  const both = await patch(containers(side), k8s.PatchStrategy.StrategicMergePatch);
  assert.deepEqual(names(both), ['main', 'side']);
  const one = await patch(containers(side), k8s.PatchStrategy.MergePatch);
  assert.deepEqual(names(one), ['side']);
  const failing = [{ op: 'test', path: '/spec/replicas', value: 7 }];
  const failed = await refusal(apps.patchNamespacedDeployment({ name: 'patched', namespace, body: failing }, header));
  assert.equal(failed.code, 422);
  assert.equal(failed.reason, 'Invalid');

  const three = { spec: { replicas: 3 } };
  const conflict = await refusal(patch(three, k8s.PatchStrategy.ServerSideApply, 'story', false));
  assert.equal(conflict.code, 409);
  assert.equal(conflict.details.causes[0].reason, 'FieldManagerConflict');
  const applied = await patch(three, k8s.PatchStrategy.ServerSideApply, 'story', true);
  assert.equal(applied.spec.replicas, 3);
  assert(applied.metadata.managedFields.some((entry) => entry.manager === 'story' && entry.operation === 'Apply'));
  const scale = await apps.readNamespacedDeploymentScale({ name: 'patched', namespace });
  // Its version is that of the Deployment, whose status a controller writes meanwhile: last write wins.
  delete scale.metadata.resourceVersion;
  scale.spec.replicas = 0;
  await apps.replaceNamespacedDeploymentScale({ name: 'patched', namespace, body: scale });
  await objects.delete(named, undefined, undefined, undefined, undefined, 'Background');
}

/** An informer holds what a list had and hears of each change after. */
async function informed() {
  const labelSelector = 'of=informed';
  const secret = (name) => ({ metadata: { name, labels: { of: 'informed' } }, stringData: { key: 'value' } });
  await core.createNamespacedSecret({ namespace, body: secret('before') });
  const path = `/api/v1/namespaces/${namespace}/secrets`;
  const list = () => core.listNamespacedSecret({ namespace, labelSelector });
  const informer = k8s.makeInformer(config, path, list, labelSelector);
  const heard = [];
  const deleted = new Promise((resolve, reject) => {
    informer.on('error', reject);
    for (const verb of ['add', 'update', 'delete']) {
      informer.on(verb, (object) => {
        heard.push(`${verb} ${object.metadata.name}`);
        if (verb === 'delete') resolve();
      });
    }
  });
  await informer.start();
  assert.equal(informer.get('before', namespace).data.key, 'dmFsdWU=');
  await core.createNamespacedSecret({ namespace, body: secret('after') });
  const labelled = await core.readNamespacedSecret({ name: 'after', namespace });
  labelled.metadata.annotations = { changed: 'yes' };
  await core.replaceNamespacedSecret({ name: 'after', namespace, body: labelled });
  await core.deleteNamespacedSecret({ name: 'after', namespace });
  await deleted;
  await informer.stop();
  assert.deepEqual(heard, ['add before', 'add after', 'update after', 'delete after']);
}

/** Follows a watch until an event satisfies; a watch that ends before is an error. */
function until(path, query, satisfied) {
  return new Promise((resolve, reject) => {
    let done = false;
    const seen = (type, object) => {
      if (!done && satisfied(type, object)) {
        done = true;
        resolve(object);
        watching.then((request) => request.abort());
      }
    };
    const ended = (error) => done || reject(error ?? new Error(`the watch of ${path} ended`));
    const watching = new k8s.Watch(config).watch(path, query, seen, ended);
  });
}

async function pods() {
  const script = 'echo first; echo second; echo served > /tmp/index.html; exec httpd -f -p 8080 -h /tmp';
  const readinessProbe = { tcpSocket: { port: 8080 }, periodSeconds: 1 };
  const containers = [{ name: 'main', image: 'test/busybox:1', command: ['sh', '-c', script], readinessProbe }];
  const body = { metadata: { name: 'worker' }, spec: { terminationGracePeriodSeconds: 0, containers } };
  const made = await core.createNamespacedPod({ namespace, body });
  const path = `/api/v1/namespaces/${namespace}/pods`;
  const query = { fieldSelector: 'metadata.name=worker', timeoutSeconds: 60 };
  const ready = (_, pod) => pod.status.containerStatuses?.[0].ready;
  const pod = await until(path, { ...query, resourceVersion: made.metadata.resourceVersion }, ready);
  assert.equal(pod.status.phase, 'Running');

  assert.equal(await core.readNamespacedPodLog({ name: 'worker', namespace, tailLines: 1 }), 'second\n');
  const log = collected();
  const following = await new k8s.Log(config).log(namespace, 'worker', 'main', log, { follow: true });
  while (log.text.length < 'first\nsecond\n'.length) await once(log, 'data');
  following.abort();
  assert.equal(log.text, 'first\nsecond\n');

  const [stdin, stdout, stderr] = [new PassThrough(), collected(), collected()];
  stdin.end('hello\n');
  const command = ['sh', '-c', 'echo out; echo err >&2; read line; echo got $line; exit 3'];
  const status = await new Promise((resolve, reject) => {
    new k8s.Exec(config).exec(namespace, 'worker', 'main', command, stdout, stderr, stdin, false, resolve).catch(reject);
  });
  assert.equal(status.status, 'Failure');
  assert.equal(status.reason, 'NonZeroExitCode');
  assert.deepEqual(status.details.causes, [{ reason: 'ExitCode', message: '3' }]);
  assert.equal(stdout.text, 'out\ngot hello\n');
  assert.equal(stderr.text, 'err\n');

  const forward = new k8s.PortForward(config);
  const server = net.createServer((socket) => forward.portForward(namespace, 'worker', [8080], socket, null, socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = net.connect(server.address().port, '127.0.0.1');
  const answer = collected();
  socket.pipe(answer);
  socket.write('GET / HTTP/1.0\r\n\r\n');
  while (!answer.text.endsWith('served\n')) await once(answer, 'data');
  assert.match(answer.text, /^HTTP\/1\./);
  socket.destroy();
  server.close();

  const gone = until(path, { ...query, resourceVersion: pod.metadata.resourceVersion }, (type) => type === 'DELETED');
  // What it was is the answer, as for each kind whose registry returns what it deletes.
  const was = await core.deleteNamespacedPod({ name: 'worker', namespace, gracePeriodSeconds: 0 });
  assert.equal(was.metadata.uid, made.metadata.uid);
  await gone;
}

const version = await config.makeApiClient(k8s.VersionApi).getCode();
assert.match(version.gitVersion, /^v1\./);
await objects.create({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } });
await typed();
await patches();
await informed();
await pods();
await core.deleteNamespace({ name: namespace });
console.log("the JavaScript client's day is over");
process.exit(0);
