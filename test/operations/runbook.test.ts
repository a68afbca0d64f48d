import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import { z } from 'zod';
import { readDocument } from '../support/readme.ts';
import { ROOT } from '../support/service.ts';

const rulesSchema = z.object({
  groups: z.array(
    z.object({
      rules: z.array(z.object({ alert: z.string(), annotations: z.object({ runbook_url: z.string() }) })),
    }),
  ),
});

const runbook = await readDocument('docs/operations.md');
/** Chapters by name, of the runbook's part on alerts. */
const chapters = new Map(
  (runbook.split('\n## Alerts\n')[1] ?? '')
    .split('\n### ')
    .slice(1)
    .map((chapter) => {
      const [name = '', ...text] = chapter.split('\n');
      return [name, text.join('\n').trim()] as const;
    }),
);
const rules = rulesSchema
  .parse(parse(await readFile(join(ROOT, 'ops/alerts.yml'), 'utf8')))
  .groups.flatMap((group) => group.rules);

/** GitHub's anchor of a heading. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\s_-]/gu, '')
    .replaceAll(' ', '-');

test('each alert has its chapter in the runbook, which says what it means and what to do, and leads there', () => {
  expect([...chapters.keys()].sort()).toEqual(rules.map(({ alert }) => alert).sort());
  for (const { alert, annotations } of rules) {
    expect(annotations.runbook_url).toMatch(new RegExp(`docs/operations\\.md#${anchorOf(alert)}$`));
    expect(chapters.get(alert), alert).toMatch(/^[A-Z][\s\S]+\n\n- [A-Z`]/);
  }
});

test('the runbook leads to chapters that it has, and names metrics that there are', async () => {
  const anchors = new Set([...runbook.matchAll(/^##+ (.+)$/gm)].map(([, heading = '']) => anchorOf(heading)));
  for (const [, anchor = ''] of runbook.matchAll(/\]\(#([^)]+)\)/g)) expect(anchors).toContain(anchor);
  const metrics = await readDocument('docs/metrics.md');
  for (const [, name = ''] of runbook.matchAll(/`(claviger_[a-z_0-9]+)/g))
    expect(metrics, name).toContain(`\`${name}\``);
});
