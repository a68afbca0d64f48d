import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { createTestApp, type TestApp } from '../support/app.ts';
import { type Family, parseExposition } from '../support/exposition.ts';
import { ROOT } from '../support/service.ts';

/** Labels with more values than a table has room for; what they are is said beside it. */
const OPEN_LABELS = new Set(['method', 'route', 'status', 'version', 'code', 'outcome']);
const OF_THE_PROCESS = /^claviger_(process|nodejs)_/;

async function scrape(app: TestApp): Promise<Map<string, Family>> {
  return parseExposition((await app.get('/metrics', { as: null })).text);
}

let families: Map<string, Family>;

beforeAll(async () => {
  const app = await createTestApp();
  families = await scrape(app);
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
