import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { REFUSALS } from '../../src/domain/decision.ts';
import { readDocument } from '../support/readme.ts';
import { ROOT } from '../support/service.ts';

const text = await readDocument('docs/gateways.md');

function section(title: string): string {
  const [, found] = new RegExp(`\\n## ${title}\\n(.*?)(?=\\n## |$)`, 's').exec(text) ?? [];
  if (found === undefined) throw new Error(`there is no section ${title}`);
  return found;
}

/** What a table's first cells quote. */
function quoted(title: string): string[] {
  return [...section(title).matchAll(/^\| (`.*?`) \|/gm)].flatMap(([, cell = '']) =>
    [...cell.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code),
  );
}

/** Lines that say something: no comments, no brackets alone. */
async function linesOf(...path: string[]): Promise<string[]> {
  const content = await readFile(join(ROOT, 'examples', 'gateways', ...path), 'utf8');
  return content
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#') && /[a-z]/i.test(line));
}

describe.each([
  ['nginx', ['nginx', 'nginx.conf'], /^(http|server|location \/) \{$/],
  ['Caddy', ['caddy', 'Caddyfile'], /^$/],
  [
    'Traefik',
    ['traefik', 'dynamic.yaml'],
    /^(http|middlewares|claviger|forwardAuth|without-key|headers|service):$/,
  ],
  [
    'Envoy',
    ['envoy', 'envoy.yaml'],
    /^(static_resources|typed_config|route_config|route|http_filters|patterns):|^- (name: (claviger|service)|address:.*|endpoint:.*)$/,
  ],
])('the section on %s', (title, path, frame) => {
  test('explains every line of the recipe, and quotes no other', async () => {
    const lines = await linesOf(...path);
    const codes = quoted(title);
    expect(lines.filter((line) => !frame.test(line) && !codes.some((code) => line.includes(code)))).toEqual(
      [],
    );
    expect(codes.filter((code) => !lines.some((line) => line.includes(code)))).toEqual([]);
  });
});

test('the files that nginx’s recipe is set by are those that it includes', async () => {
  const included = [
    ...(await readFile(join(ROOT, 'examples/gateways/nginx/nginx.conf'), 'utf8')).matchAll(
      /include settings\/([\w-]+\.conf);/g,
    ),
  ];
  const files = await readdir(join(ROOT, 'examples/gateways/nginx/settings'));
  expect(included.map(([, name]) => name).sort()).toEqual(files.sort());
});

test('every reason to refuse a key stands in the table of answers, under its status', () => {
  for (const [code, status] of Object.entries(REFUSALS)) {
    const [row] = section('The question and the answer')
      .split('\n')
      .filter((line) => line.startsWith(`| ${status} |`));
    expect(row, code).toContain(`\`${code}\``);
  }
});
