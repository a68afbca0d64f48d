import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { z } from 'zod';
import { SETTINGS } from '../../src/config.ts';
import { readStages } from '../image/dockerfile.ts';
import { readBlocks } from '../support/readme.ts';
import { collectOutput, ROOT } from '../support/service.ts';

/*
 * The manifests of ops/k8s/, without a cluster: against the Kubernetes API as the package kubernetes-models has it. Its
 * validators look into values and let unknown members pass; its types, by the compiler, know every member there is.
 */

// biome-ignore lint/suspicious/noExplicitAny: manifests are of every shape, and what is looked at is asserted
type Manifest = any;

const FOLDER = join(ROOT, 'ops/k8s');
/** How long a drain may take (contract §9). */
const DRAIN_SECONDS = 10;

const manifests: { file: string; manifest: Manifest }[] = [];
for (const file of (await readdir(FOLDER)).sort()) {
  for (const document of parseAllDocuments(await readFile(join(FOLDER, file), 'utf8')))
    manifests.push({ file, manifest: document.toJS() });
}
const the = (kind: string): Manifest => manifests.find(({ manifest }) => manifest.kind === kind)?.manifest;

const validatable = z.custom<new (manifest: Manifest) => { validate(): void }>(
  (found) => typeof found === 'function',
);

/** What the API would refuse of its values. */
async function faultOf(manifest: Manifest): Promise<string | undefined> {
  const { apiVersion, kind } = manifest;
  const path = `kubernetes-models/${apiVersion}`;
  const module: Record<string, unknown> = await import(/* @vite-ignore */ path);
  const Model = validatable.parse(module[kind]);
  try {
    new Model(manifest).validate();
    return undefined;
  } catch (error) {
    return String(error);
  }
}

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'claviger-k8s-'));
  await symlink(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** What the compiler finds wrong with them. */
async function typeFaultsOf(all: readonly Manifest[]): Promise<string> {
  const lines = all.flatMap((manifest, index) => [
    `import type { I${manifest.kind} as T${index} } from 'kubernetes-models/${manifest.apiVersion}';`,
    `export const manifest${index}: T${index} = ${JSON.stringify(manifest)};`,
  ]);
  await writeFile(join(folder, 'manifests.ts'), lines.join('\n'));
  const options = ['--noEmit', '--strict', '--skipLibCheck', '--module', 'nodenext', '--target', 'es2022'];
  const compiler = join(ROOT, 'node_modules/typescript/bin/tsc');
  const child = spawn(process.execPath, [compiler, ...options, '--types', '', 'manifests.ts'], {
    cwd: folder,
  });
  const printed = collectOutput(child);
  await once(child, 'close');
  return printed.stdout + printed.stderr;
}

describe('the manifests', () => {
  test('are a Deployment, its Service, its budget, its autoscaler, its Secret and a Job that migrates', () => {
    expect(manifests.map(({ manifest }) => manifest.kind).sort()).toEqual([
      'Deployment',
      'HorizontalPodAutoscaler',
      'Job',
      'PodDisruptionBudget',
      'Secret',
      'Service',
    ]);
  });

  test.each(manifests)('$file has no value that the API would refuse', async ({ manifest }) => {
    expect(await faultOf(manifest)).toBeUndefined();
  });

  test('have no member that the API does not know', async () => {
    expect(await typeFaultsOf(manifests.map(({ manifest }) => manifest))).toBe('');
  });

  test('would be refused with a value of another type, without what is required, and with a misspelt member', async () => {
    const bad = structuredClone(the('Deployment'));
    bad.spec.template.spec.terminationGracePeriodSeconds = '20s';
    expect(await faultOf(bad)).toContain('terminationGracePeriodSeconds');
    const incomplete = structuredClone(the('HorizontalPodAutoscaler'));
    delete incomplete.spec.scaleTargetRef;
    expect(await faultOf(incomplete)).toContain('scaleTargetRef');
    const misspelt = structuredClone(the('Deployment'));
    misspelt.spec.template.spec.containers[0].readynessProbe = {};
    expect(await typeFaultsOf([misspelt])).toMatch(/"readynessProbe"' does not exist/);
  });
});

describe('the pods', async () => {
  const pod: Manifest = the('Deployment').spec.template;
  const [container] = pod.spec.containers;
  const migration: Manifest = the('Job').spec.template;
  const [migrator] = migration.spec.containers;
  const image = (await readStages(join(ROOT, 'Dockerfile'))).at(-1);
  const textOf = (name: string) => image?.instructions.find((found) => found.name === name)?.text;

  test('are those that the Service, the budget and the autoscaler mean, and not those of the migration', () => {
    const { labels } = pod.metadata;
    expect(the('Deployment').spec.selector.matchLabels).toEqual(labels);
    expect(the('Service').spec.selector).toEqual(labels);
    expect(the('PodDisruptionBudget').spec.selector.matchLabels).toEqual(labels);
    expect(migration.metadata.labels).not.toEqual(labels);
    const { kind, name } = the('HorizontalPodAutoscaler').spec.scaleTargetRef;
    expect(the(kind).metadata.name).toBe(name);
    // Whoever sets both undoes the autoscaler's work at each deploy.
    expect(the('Deployment').spec.replicas).toBeUndefined();
  });

  test('can lose one of them without an end of the service', () => {
    expect(the('HorizontalPodAutoscaler').spec.minReplicas).toBeGreaterThan(
      the('PodDisruptionBudget').spec.maxUnavailable,
    );
    expect(the('Deployment').spec.strategy.rollingUpdate).toEqual({ maxUnavailable: 0, maxSurge: 1 });
  });

  test('have time for the drain after preStop, which waits', () => {
    const [command, seconds] = container.lifecycle.preStop.exec.command;
    expect(command).toBe('sleep');
    expect(Number(seconds)).toBeGreaterThan(0);
    expect(pod.spec.terminationGracePeriodSeconds).toBeGreaterThan(Number(seconds) + DRAIN_SECONDS);
  });

  test('are probed where the image listens, at routes that there are', async () => {
    const [port] = container.ports;
    expect(String(port.containerPort)).toBe(textOf('EXPOSE'));
    expect(pod.metadata.annotations['prometheus.io/port']).toBe(textOf('EXPOSE'));
    expect(the('Service').spec.ports[0].targetPort).toBe(port.name);
    const document = await readFile(join(ROOT, 'openapi.yaml'), 'utf8');
    const { startupProbe, readinessProbe, livenessProbe } = container;
    expect(startupProbe.httpGet).toEqual({ path: '/healthz', port: port.name });
    expect(livenessProbe.httpGet).toEqual({ path: '/healthz', port: port.name });
    expect(readinessProbe.httpGet).toEqual({ path: '/readyz', port: port.name });
    for (const path of ['/healthz', '/readyz', '/metrics']) expect(document).toContain(`  ${path}:\n`);
    // While the database is away warm keys verify, until the lease is over.
    expect(readinessProbe.periodSeconds * readinessProbe.failureThreshold).toBe(
      Number(SETTINGS.LEASE_SECONDS.default),
    );
  });

  test('run as the user of the image, which is not root and may do nothing else', () => {
    const [user, group] = (textOf('USER') ?? '').split(':').map(Number);
    for (const { spec } of [pod, migration]) {
      expect(spec.securityContext).toMatchObject({ runAsNonRoot: true, runAsUser: user, runAsGroup: group });
      expect(spec).toMatchObject({ automountServiceAccountToken: false, enableServiceLinks: false });
      expect(spec.containers[0].securityContext).toEqual({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      });
    }
  });

  test('get their settings from the Secret, which holds nothing until it is filled in', () => {
    const secret = the('Secret');
    for (const { envFrom, image: name } of [container, migrator]) {
      expect(envFrom).toEqual([{ secretRef: { name: secret.metadata.name } }]);
      expect(name).toBe(container.image);
    }
    expect(Object.keys(SETTINGS)).toEqual(expect.arrayContaining(Object.keys(secret.stringData)));
    expect(Object.values(secret.stringData)).toEqual(['', '']);
    const ofTheProcess = container.env.map(({ name }: { name: string }) => name);
    expect(ofTheProcess).toEqual(['UV_THREADPOOL_SIZE']);
    expect(migrator.command).toEqual(['claviger', 'migrate']);
  });
});

test('the commands of docs/operations.md name manifests and objects that there are', async () => {
  const blocks = (await readBlocks('docs/operations.md')).filter(({ where }) => where === 'kubernetes');
  const lines = blocks.flatMap(({ text }) => text.split('\n'));
  expect(lines.length).toBeGreaterThan(0);
  const files = new Set([...manifests.map(({ file }) => `ops/k8s/${file}`), 'ops/k8s/']);
  const objects = new Set(
    manifests.map(({ manifest }) => `${manifest.kind.toLowerCase()}/${manifest.metadata.name}`),
  );
  for (const line of lines) {
    const file = / --filename (\S+)/.exec(line)?.[1];
    const object = / ([a-z]+\/\S+)/.exec(line)?.[1];
    expect(line).toMatch(/^kubectl (apply|replace|wait|rollout|exec) /);
    if (file !== undefined) expect(files, line).toContain(file);
    else expect(objects, line).toContain(object);
  }
});
