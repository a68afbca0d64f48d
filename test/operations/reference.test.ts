import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { z } from 'zod';
import { createTestApp } from '../support/app.ts';
import { type Family, parseExposition } from '../support/exposition.ts';
import { hasPromtool, promtool } from '../support/promtool.ts';
import { readBlocks } from '../support/readme.ts';
import { ROOT } from '../support/service.ts';

/** Labels with more values than a table has room for; what they are is said beside it. */
const OPEN_LABELS = new Set(['method', 'route', 'status', 'version', 'code', 'outcome']);
const OF_THE_PROCESS = /^claviger_(process|nodejs)_/;

/** Labels that Prometheus or a histogram puts on. */
const OF_THE_SCRAPE = new Set(['job', 'instance', 'le']);

let exposition: string;
let families: ReadonlyMap<string, Family>;

beforeAll(async () => {
  const app = await createTestApp();
  exposition = (await app.get('/metrics', { as: null })).text;
  families = parseExposition(exposition);
  await app.close();
});

test('docs/metrics.md has every metric there is, and no other', async () => {
  const text = await readFile(join(ROOT, 'docs/metrics.md'), 'utf8');
  const told = [...text.matchAll(/^\| `(claviger_\w+)` \| (\w+) \| (.*?) \| (.*) \|$/gm)].map(
    ([, name = '', type, labels, help]) => ({ name, type, labels, help }),
  );
  const there = [...families]
    .filter(([name]) => !OF_THE_PROCESS.test(name))
    .map(([name, { type, help, labels }]) => ({
      name,
      type,
      labels: [...labels]
        .map(([label, values]) =>
          OPEN_LABELS.has(label) ? `\`${label}\`` : `\`${label}\`: ${[...values].join(', ')}`,
        )
        .join(', '),
      help,
    }))
    .sort((one, other) => (one.name < other.name ? -1 : 1));
  expect(told).toEqual(there);
});

/** What is wrong with the names in an expression, by what a scrape shows. */
function faultsOf(expression: string): string[] {
  const faults: string[] = [];
  for (const [, name = '', , matchers = ''] of expression.matchAll(/(claviger_\w+)(\{([^}]*)\})?/g)) {
    const family = families.get(name) ?? histogramOf(name);
    if (family === undefined) {
      faults.push(`there is no metric ${name}`);
      continue;
    }
    for (const [, label = '', operator, value = ''] of matchers.matchAll(/(\w+)(=~|!~|!=|=)"([^"]*)"/g)) {
      if (OF_THE_SCRAPE.has(label)) continue;
      const values = family.labels.get(label);
      if (values === undefined) faults.push(`${name} has no label ${label}`);
      else if (/^!?=$/.test(operator ?? '') && !values.has(value)) {
        faults.push(`${name} never has ${label}="${value}"`);
      }
    }
  }
  const labels = new Set([...families.values()].flatMap((family) => [...family.labels.keys()]));
  for (const [, grouping = ''] of expression.matchAll(/\b(?:by|without) \(([^)]*)\)/g)) {
    for (const label of grouping.split(/, */)) {
      if (!labels.has(label) && !OF_THE_SCRAPE.has(label)) faults.push(`there is no label ${label}`);
    }
  }
  return faults;
}

function histogramOf(name: string): Family | undefined {
  const family = families.get(name.replace(/_(bucket|sum|count)$/, ''));
  return family?.type === 'histogram' ? family : undefined;
}

test('a name that is no metric, a label it lacks and a value it never has are noticed', () => {
  expect(faultsOf('rate(claviger_lookups_total{way="memory",job=~"a"}[5m])')).toEqual([]);
  expect(faultsOf('claviger_lookup_total')).toEqual(['there is no metric claviger_lookup_total']);
  expect(faultsOf('claviger_lookups_total_bucket')).toHaveLength(1);
  expect(faultsOf('claviger_lookups_total{road="memory"}')).toHaveLength(1);
  expect(faultsOf('claviger_lookups_total{way="memmory"}')).toHaveLength(1);
  expect(faultsOf('sum by (wya) (claviger_lookups_total)')).toEqual(['there is no label wya']);
});

test('the alert rules are about metrics and labels that there are', async () => {
  const { groups } = z
    .object({
      groups: z.array(z.object({ rules: z.array(z.object({ alert: z.string(), expr: z.string() })) })),
    })
    .parse(parse(await readFile(join(ROOT, 'ops/alerts.yml'), 'utf8')));
  for (const { alert, expr } of groups.flatMap(({ rules }) => rules))
    expect(faultsOf(expr), alert).toEqual([]);
});

const panel = z.object({
  id: z.number(),
  title: z.string(),
  gridPos: z.object({ x: z.number(), y: z.number(), w: z.number(), h: z.number() }),
  targets: z.array(z.object({ refId: z.string(), expr: z.string(), legendFormat: z.string() })).default([]),
});

describe('the dashboard', async () => {
  const dashboard = z
    .object({
      panels: z.array(panel),
      templating: z.object({ list: z.array(z.object({ name: z.string() })) }),
    })
    .parse(JSON.parse(await readFile(join(ROOT, 'ops/grafana.json'), 'utf8')));
  const targets = dashboard.panels.flatMap(({ title, targets }) =>
    targets.map(({ expr }) => ({ title, expr })),
  );

  test('shows metrics and labels that there are', () => {
    expect(targets.length).toBeGreaterThan(50);
    for (const { title, expr } of targets) expect(faultsOf(expr), title).toEqual([]);
  });

  test('shows every metric that is not of every Node process', () => {
    const shown = targets.map(({ expr }) => expr).join('\n');
    const hidden = [...families.keys()].filter(
      (name) => !OF_THE_PROCESS.test(name) && !new RegExp(`\\b${name}(_bucket)?\\b`).test(shown),
    );
    // By this one it chooses jobs and instances.
    expect(hidden).toEqual(['claviger_build_info']);
  });

  test('names the variables that it has, and puts no panel over another', () => {
    const names = new Set(dashboard.templating.list.map(({ name }) => name));
    expect(names).toEqual(new Set(['datasource', 'job', 'instance']));
    for (const { expr } of targets) {
      for (const [, name = ''] of expr.matchAll(/\$(\w+)/g)) {
        expect(name === '__rate_interval' || names.has(name), name).toBe(true);
      }
    }
    const taken = new Set<string>();
    for (const { title, gridPos } of dashboard.panels) {
      expect(gridPos.x + gridPos.w, title).toBeLessThanOrEqual(24);
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          expect(taken.has(`${x} ${y}`), title).toBe(false);
          taken.add(`${x} ${y}`);
        }
      }
    }
    const ids = dashboard.panels.map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
  });

  test.skipIf(!hasPromtool)('asks what Prometheus understands', async () => {
    const rules = targets.map(({ expr }, index) => ({
      record: `panel:${index}`,
      expr: expr.replaceAll('$__rate_interval', '5m').replace(/\$\w+/g, '.*'),
    }));
    const { code, output } = await promtoolOn(
      'rules.yml',
      stringify({ groups: [{ name: 'panels', rules }] }),
      ['check', 'rules'],
    );
    expect(output).toContain(`${rules.length} rules found`);
    expect(code).toBe(0);
  });
});

test.skipIf(!hasPromtool)('Prometheus understands the configuration in docs/metrics.md', async () => {
  const [block] = (await readBlocks('docs/metrics.md')).filter(({ language }) => language === 'yaml');
  const config = (block?.text ?? '').replace('alerts.yml', join(ROOT, 'ops/alerts.yml'));
  const { code, output } = await promtoolOn('prometheus.yml', config, ['check', 'config']);
  expect(output).toContain('1 rule files found');
  expect(code).toBe(0);
});

test.skipIf(!hasPromtool)('promtool finds no fault with a scrape, but for names of prom-client', async () => {
  const { output } = promtool(['check', 'metrics'], exposition);
  const faults = output
    .split('\n')
    .filter((line) => line !== '' && !/^claviger_(process|nodejs)_/.test(line));
  expect(faults).toEqual([]);
});

/** Runs promtool on a file with this text. */
async function promtoolOn(name: string, text: string, args: readonly string[]) {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-promtool-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  await writeFile(join(folder, name), text);
  return promtool([...args, join(folder, name)]);
}
