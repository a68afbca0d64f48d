import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { databaseOfTest } from '../support/database.ts';
import { readBlocks, readDocument } from '../support/readme.ts';
import { ROOT } from '../support/service.ts';

const documents = [
  'README.md',
  'CHANGELOG.md',
  ...(await readdir(join(ROOT, 'docs'))).filter((name) => name.endsWith('.md')).map((name) => `docs/${name}`),
];

describe.each(documents)('%s', async (document) => {
  const text = await readDocument(document);

  test('links to files that are there', () => {
    const links = [...text.matchAll(/\]\(([^)\s]+)\)|<img[^>]* src="([^"]+)"/g)].map(
      ([, link, image]) => link ?? image,
    );
    const files = links.filter((link) => link !== undefined && !/^(https?:|#)/.test(link)) as string[];
    for (const file of files) {
      const path = join(ROOT, dirname(document), file.replace(/#.*$/, ''));
      expect(existsSync(path), `${document} links to ${file}`).toBe(true);
    }
  });

  test('names source files and folders that are there', () => {
    const paths = [...text.matchAll(/`((?:src|test|docs|migrations|bench|scripts|ops)\/[\w./-]*)`/g)].map(
      ([, path]) => path ?? '',
    );
    for (const path of paths) expect(existsSync(join(ROOT, path)), `${document} names ${path}`).toBe(true);
  });

  test('has no example that no test knows how to run', async () => {
    for (const { language, where, place } of await readBlocks(document)) {
      expect(['sh', 'json', 'text', 'ts', 'yaml', 'mermaid'], place).toContain(language);
      expect(['', 'setup', 'docker', 'own-postgres', 'operations', 'kubernetes'], place).toContain(where);
    }
  });
});

test('docs/architecture.md tells of every table there is, and of no other', async () => {
  const database = await databaseOfTest();
  const rows = await database.query<{ name: string }>(
    "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
  );
  const [, section = ''] = /\n## Tables\n(.*?)\n## /s.exec(await readDocument('docs/architecture.md')) ?? [];
  const told = [...section.matchAll(/^\| `(\w+)` \|/gm)].map(([, name]) => name);
  expect(told.sort()).toEqual(rows.map(({ name }) => name));
});
