import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { z } from 'zod';
import { hasPromtool, promtool } from '../support/promtool.ts';
import { ROOT } from '../support/service.ts';
import { type AlertSamples, SAMPLES, type Samples } from './alert-samples.ts';

const RULES = join(ROOT, 'ops/alerts.yml');

const rule = z.strictObject({
  alert: z.string(),
  expr: z.string(),
  for: z.string().optional(),
  labels: z.strictObject({ severity: z.enum(['critical', 'warning', 'info']) }),
  annotations: z.strictObject({ summary: z.string(), runbook_url: z.string() }),
});
const { groups } = z
  .strictObject({ groups: z.array(z.strictObject({ name: z.string(), rules: z.array(rule) })) })
  .parse(parse(await readFile(RULES, 'utf8')));
const alerts = groups.flatMap(({ rules }) => rules);

interface Case {
  readonly name: string;
  readonly alert: string;
  readonly samples: Samples;
  readonly expected: readonly { readonly labels: Record<string, string>; readonly summary: string }[];
}

const casesOf = (alert: string, { fires, quiet }: AlertSamples): Case[] => [
  { name: `${alert} fires`, alert, samples: fires, expected: [fires] },
  ...quiet.map((samples) => ({
    name: `${alert} stays quiet ${samples.when}`,
    alert,
    samples,
    expected: [],
  })),
];

const cases = Object.entries(SAMPLES).flatMap(([alert, samples]) => casesOf(alert, samples));

function testOf({ name, alert, samples, expected }: Case): object {
  const rule = alerts.find((one) => one.alert === alert);
  return {
    name,
    interval: '15s',
    input_series: Object.entries(samples.series).map(([series, values]) => ({ series, values })),
    alert_rule_test: [
      {
        eval_time: samples.at,
        alertname: alert,
        exp_alerts: expected.map(({ labels, summary }) => ({
          exp_labels: { ...labels, severity: rule?.labels.severity },
          exp_annotations: { summary, runbook_url: rule?.annotations.runbook_url },
        })),
      },
    ],
  };
}

/** Runs the rules over all samples, in one process; answers what is wrong, by the name of the case. */
async function evaluate(): Promise<{ code: number | null; faults: ReadonlyMap<string, string> }> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-alerts-'));
  const file = join(folder, 'test.yml');
  await writeFile(
    file,
    stringify({ rule_files: [RULES], evaluation_interval: '15s', tests: cases.map(testOf) }),
  );
  const { code, output } = promtool(['test', 'rules', file]);
  await rm(folder, { recursive: true });
  const faults = output.split(/^ *(?=name: )/m).map((part) => {
    const [, name = part] = /^name: (.*),$/m.exec(part) ?? [];
    return [name, part] as const;
  });
  return { code, faults: new Map(faults.slice(1)) };
}

test('every alert has samples on which it fires, and on which it does not', () => {
  expect(Object.keys(SAMPLES)).toEqual(alerts.map(({ alert }) => alert));
});

test('every alert names its own chapter of the runbook', () => {
  for (const { alert, annotations } of alerts) {
    expect(annotations.runbook_url).toBe(`docs/operations.md#${alert.toLowerCase()}`);
  }
});

describe.skipIf(!hasPromtool)('promtool', () => {
  test('finds no fault with the rules', () => {
    const { code, output } = promtool(['check', 'rules', '--lint=all', '--lint-fatal', RULES]);
    expect(output).toContain(`${alerts.length} rules found`);
    expect(code).toBe(0);
  });

  describe('on recorded samples', () => {
    let run: Awaited<ReturnType<typeof evaluate>>;
    beforeAll(async () => {
      run = await evaluate();
    }, 180_000);

    test.each(cases)('$name', ({ name }) => {
      expect(run.faults.get(name) ?? '').toBe('');
    });

    test('and found no fault beside those', () => {
      expect([...run.faults.keys()].filter((name) => !cases.some((one) => one.name === name))).toEqual([]);
      expect(run.code).toBe(0);
    });
  });
});
