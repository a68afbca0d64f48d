import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { readDocument } from '../support/readme.ts';
import { ROOT } from '../support/service.ts';

describe('docs/standards.md', async () => {
  const text = await readDocument('docs/standards.md');
  const rows = [...text.matchAll(/^\| (\d[\d., ]*) \| (.+) \| (.+) \|$/gm)].map(
    ([, section, demand, shown]) => ({
      section,
      demand,
      shown: shown ?? '',
    }),
  );

  test('has each of the standards', () => {
    const sections = text.split(/^## /m).slice(1);
    expect(sections.map((section) => /^RFC \d+/.exec(section)?.[0])).toEqual([
      'RFC 6749',
      'RFC 6750',
      'RFC 7009',
      'RFC 7662',
      'RFC 8414',
      'RFC 9068',
    ]);
    for (const section of sections) expect(section).toMatch(/^\| \d/m);
    expect(rows.length).toBeGreaterThan(40);
  });

  test.each(rows)('names a test that is there: $section $demand', async ({ shown }) => {
    const [, file = '', name = ''] = /^`(test\/[\w./-]+)`: (.+)$/.exec(shown) ?? [];
    const source = await readFile(join(ROOT, file), 'utf8');
    const quoted = [`'${name.replaceAll("'", "\\'")}'`, `"${name}"`].filter((one) => source.includes(one));
    expect(quoted, shown).not.toEqual([]);
    expect(source).not.toMatch(/\b(test|describe)\.(skip|todo|only)\b/);
  });
});
