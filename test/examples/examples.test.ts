import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { createTestDatabase } from '../support/database.ts';
import { examplesOf, readBlocks, readDocument } from '../support/readme.ts';
import { ROOT, startService } from '../support/service.ts';
import { openShell } from '../support/shell.ts';

/*
 * The commands of each example's README, as they stand and in their order, in one shell, against a real service. bash
 * and curl are the reader's; where they are missing there is nobody to follow the READMEs.
 */

const names = (await readdir(join(ROOT, 'examples'), { withFileTypes: true }))
  // Recipes for gateways are no APIs: test/gateways/ runs them.
  .filter((entry) => entry.isDirectory() && entry.name !== 'gateways')
  .map(({ name }) => name);
const missing = ['bash', 'curl'].filter((name) => spawnSync(name, ['--version']).error !== undefined);

/** A service on a database of its own, and an admin key of it. */
async function startWithAdmin() {
  const database = await createTestDatabase();
  // After the service is gone: what is to be done last is said first.
  onTestFinished(() => database.drop());
  const service = await startService({ database });
  const { body } = await service.post('/v1/api-keys', {
    workspace_id: 'system',
    name: 'Reader of the example',
    scopes: ['admin'],
  });
  return { url: service.url, token: String(body.data.key) };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

describe.skipIf(missing.length > 0)('the examples', () => {
  test.each(names)('%s does what its README shows', async (name) => {
    const blocks = examplesOf(await readBlocks(`examples/${name}/README.md`));
    expect(blocks.filter(({ output }) => output !== undefined).length).toBeGreaterThanOrEqual(2);
    const service = await startWithAdmin();
    const shell = openShell(ROOT, {
      CLAVIGER_URL: service.url,
      CLAVIGER_KEY: service.token,
      PORT: String(await freePort()),
    });
    onTestFinished(() => shell.close());
    for (const { commands, output } of blocks) {
      const printed = await shell.run(commands.text);
      if (output !== undefined) expect(printed.trim(), commands.place).toBe(output.text.trim());
    }
  });

  test('are those that the overview names', async () => {
    const overview = await readDocument('examples/README.md');
    const told = [...overview.matchAll(/^\| \[([\w-]+)\]\(\1\/README\.md\)/gm)].map(([, name]) => name);
    expect(told.sort()).toEqual([...names].sort());
  });
});
