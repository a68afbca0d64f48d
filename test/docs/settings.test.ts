import { parseEnv } from 'node:util';
import { describe, expect, test } from 'vitest';
import { readConfig, SETTINGS } from '../../src/config.ts';
import { readDocument, settingsTable } from '../support/readme.ts';

test("the README's table has every setting with its name, default and range", async () => {
  const [, table] =
    /<!-- settings -->\n(.*)\n<!-- \/settings -->/s.exec(await readDocument('README.md')) ?? [];
  expect(table?.trim()).toBe(settingsTable());
});

describe('.env.example', async () => {
  const example = await readDocument('.env.example');

  test('has every setting once, with its default', () => {
    const found = [...example.matchAll(/^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$/gm)].map(([, name, value]) => [
      name,
      value,
    ]);
    const expected = Object.entries(SETTINGS).map(([name, setting]) => [name, setting.default]);
    expect(found.sort()).toEqual([...expected, ['POSTGRES_PASSWORD', '']].sort());
  });

  test('sets nothing as it is: the service starts from it as from no settings at all', () => {
    const environment = parseEnv(example);
    expect(Object.values(environment).filter((value) => value !== '')).toEqual([]);
    expect(readConfig(environment as Record<string, string>)).toEqual(readConfig({}));
  });

  test('is read as written once its lines are taken in', () => {
    const environment = parseEnv(example.replaceAll(/^# (?=[A-Z][A-Z0-9_]*=)/gm, ''));
    expect(readConfig(environment as Record<string, string>)).toEqual(readConfig({}));
  });
});
