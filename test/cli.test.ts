import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { RULE_FORMATS, scannerRules } from '../src/domain/scanner-rules.ts';
import { CHEAP_ARGON2, TEST_KEY_SECRET } from './support/app.ts';
import { databaseOfTest, type TestDatabase } from './support/database.ts';
import { CLI, collectOutput, runCli, startService } from './support/service.ts';

const TOKEN = /^ck_svc_[0-9A-Za-z]{66}$/;

const environmentFor = (database: TestDatabase, more: Record<string, string> = {}) => ({
  DATABASE_URL: database.url,
  KEY_SECRET: TEST_KEY_SECRET,
  PORT: '0',
  ...CHEAP_ARGON2,
  ...more,
});

async function folderOfTest(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-cli-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** One line on standard error for the operator, no stack, and nothing on standard output. */
function expectOneLine(result: { code: number | null; stdout: string; stderr: string }, line: RegExp): void {
  expect(result.stderr).toMatch(/^claviger: [^\n]+\n$/);
  expect(result.stderr).toMatch(line);
  expect(result.stdout).toBe('');
  expect(result.code).toBe(1);
}

describe('a command that is called wrongly ends with the usage and another exit code than 0', () => {
  test.each([
    [[]],
    [['start']],
    [['serve', 'now']],
    [['serve', '--port', '80']],
    [['serve', '--name', 'me']],
    [['create-admin-key']],
    [['create-admin-key', '--name']],
    [['create-admin-key', 'me']],
    [['scanner-rules']],
    [['scanner-rules', '--format']],
    [['scanner-rules', '--format', 'yaml']],
    [['serve', '--format', 'gitleaks']],
  ])('%j', async (args) => {
    const { code, stdout, stderr } = await runCli(args, {});
    expect(code).toBe(1);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^Usage: claviger <command>\n/);
    expect(stderr).not.toMatch(/ {4}at /);
  });

  test.each([[['--help']], [['-h']], [['serve', '--help']]])('%j prints it and is no fault', async (args) => {
    const { code, stdout, stderr } = await runCli(args, {});
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^Usage: claviger <command>\n/);
    for (const command of ['serve', 'migrate', 'create-admin-key', 'openapi', 'scanner-rules'])
      expect(stdout).toContain(command);
  });
});

describe('an old Node', () => {
  // The version is all that is pretended: the process, its imports and its message are real.
  const underNode = async (version: string) => {
    const preload = `data:text/javascript,Object.defineProperty(process.versions,'node',{value:'${version}'})`;
    const child = spawn(process.execPath, ['--import', preload, CLI, '--help'], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: process.env.PATH },
    });
    const printed = collectOutput(child);
    const [code] = await once(child, 'close');
    return { code, ...printed };
  };

  test.each(['16.20.2', '18.20.8', '19.9.0', '20.18.3', '20.9.0'])(
    '%s is refused in one line',
    async (version) => {
      expectOneLine(
        await underNode(version),
        new RegExp(`Node ${version} is too old.* needs Node 20.19 or newer`),
      );
    },
  );

  test.each(['20.19.0', '20.20.2', '21.0.0', '22.12.0', '100.0.0'])('%s is not one', async (version) => {
    expect(await underNode(version)).toMatchObject({ code: 0, stderr: '' });
  });

  test('fails on no name that its own modules lack: they are imported as a whole', async () => {
    const source = await readFile(CLI, 'utf8');
    const imports = [...source.matchAll(/^import (.*) from '(.*)'/gm)];
    expect(imports.length).toBeGreaterThan(0);
    for (const [, names, module] of imports) {
      expect(names).not.toContain('{');
      expect(module).toMatch(/^node:/);
    }
  });
});

describe('claviger migrate', () => {
  test('brings an empty database to this release, prints nothing, and may be repeated', async () => {
    const database = await databaseOfTest({ empty: true });
    for (const _ of [1, 2]) {
      expect(await runCli(['migrate'], environmentFor(database))).toEqual({
        code: 0,
        stdout: '',
        stderr: '',
      });
    }
    expect(await database.query('SELECT id FROM workspaces')).toEqual([{ id: 'system' }]);
    expect(await database.query('SELECT id FROM api_keys')).toEqual([]);
  });

  test('says in one line why it cannot, without the password', async () => {
    const database = await databaseOfTest({ empty: true });
    const url = new URL(database.url);
    url.password = 'a-wrong-password';
    const result = await runCli(['migrate'], environmentFor(database, { DATABASE_URL: url.href }));
    expectOneLine(result, /password of DATABASE_URL/);
    expect(result.stderr).not.toContain('a-wrong-password');
  });
});

describe('claviger create-admin-key', () => {
  test('prints the key alone, and the key works', async () => {
    const database = await databaseOfTest({ empty: true });
    const result = await runCli(['create-admin-key', '--name', 'Ops laptop'], environmentFor(database));
    expect(result).toMatchObject({ code: 0, stderr: '' });
    const token = result.stdout.trimEnd();
    expect(token).toMatch(TOKEN);
    expect(result.stdout).toBe(`${token}\n`);

    const service = await startService({ database, token });
    const me = await service.get('/v1/me');
    expect(me.status, me.text).toBe(200);
    expect(me.body.data).toMatchObject({ name: 'Ops laptop', permissions: ['admin'] });
    const { token: made } = await service.createKey();
    expect((await service.introspect(made)).body.active).toBe(true);
  });

  test('makes another key each time', async () => {
    const database = await databaseOfTest();
    const make = () => runCli(['create-admin-key', '--name', 'Twin'], environmentFor(database));
    const [first, second] = [await make(), await make()];
    expect(first.stdout).not.toBe(second.stdout);
    expect(await database.query("SELECT name FROM api_keys WHERE workspace_id = 'system'")).toHaveLength(2);
  });

  test.each([[''], ['n'.repeat(121)]])('refuses the name "%s" in one line', async (name) => {
    const database = await databaseOfTest();
    expectOneLine(
      await runCli(['create-admin-key', '--name', name], environmentFor(database)),
      /name .*1 to 120 characters/,
    );
    expect(await database.query('SELECT id FROM api_keys')).toEqual([]);
  });
});

describe('claviger scanner-rules', () => {
  test('prints rules for the tokens of the settings, and asks no database', async () => {
    const form = { prefix: 'acme', environments: ['prod'] };
    const environment = { KEY_PREFIX: 'acme', KEY_ENVIRONMENTS: 'prod' };
    for (const format of RULE_FORMATS) {
      expect(await runCli(['scanner-rules', '--format', format], environment)).toEqual({
        code: 0,
        stderr: '',
        stdout: scannerRules(format, form),
      });
    }
  });
});

describe('the settings', () => {
  test('stop the start with all their faults, a line each', async () => {
    const { code, stdout, stderr } = await runCli(['serve'], {
      DATABASE_URL: 'mysql://user:word-of-pass@host/db',
      PORT: 'http',
      LOG_LEVEL: 'loud',
    });
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr.trimEnd().split('\n')).toEqual([
      expect.stringMatching(/^claviger: DATABASE_URL must/),
      expect.stringMatching(/^claviger: PORT must/),
      expect.stringMatching(/^claviger: LOG_LEVEL must/),
      expect.stringMatching(/^claviger: KEY_SECRET is required/),
    ]);
    expect(stderr).not.toContain('word-of-pass');
  });

  test('that name a port which is taken stop the start with one line', async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    onTestFinished(() => new Promise<void>((resolve) => server.close(() => resolve())));
    const address = server.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    const database = await databaseOfTest();
    const folder = await folderOfTest();
    const result = await runCli(
      ['serve'],
      environmentFor(database, { PORT: String(port), ADMIN_KEY_FILE: join(folder, 'key') }),
    );
    expectOneLine(result, new RegExp(`Port ${port} on 127.0.0.1 is taken. Set PORT`));
  });

  test.each([
    ['is not there', undefined],
    ['is no JSON', 'keys'],
    ['has no key that GitHub could sign with', '{"public_keys": []}'],
  ])('that name a file of keys which %s stop the start with one line, and make no key', async (_, text) => {
    const database = await databaseOfTest();
    const folder = await folderOfTest();
    const file = join(folder, 'github.json');
    if (text !== undefined) await writeFile(file, text);
    const settings = { GITHUB_KEYS_FILE: file, ADMIN_KEY_FILE: join(folder, 'key') };
    expectOneLine(
      await runCli(['serve'], environmentFor(database, settings)),
      /GITHUB_KEYS_FILE cannot be read/,
    );
    expect(await database.query('SELECT FROM api_keys')).toEqual([]);
  });

  test('that name a host which is not here stop the start with one line', async () => {
    const database = await databaseOfTest();
    expectOneLine(
      await runCli(['serve'], environmentFor(database, { HOST: '192.0.2.1' })),
      /HOST 192\.0\.2\.1 is no address of this machine/,
    );
  });
});

describe('the first admin key', () => {
  test('goes to ADMIN_KEY_FILE, for its owner’s eyes alone, works, and is not written again', async () => {
    const database = await databaseOfTest({ empty: true });
    const folder = await folderOfTest();
    const file = join(folder, 'admin-key');
    const environment = { ADMIN_KEY_FILE: file };

    const first = await startService({ database, token: 'none yet', environment });
    const content = await readFile(file, 'utf8');
    expect(content).toMatch(/^ck_svc_[0-9A-Za-z]{66}\n$/);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect(await readdir(folder)).toEqual(['admin-key']);
    const token = content.trim();
    expect((await first.get('/v1/me', { as: token })).status).toBe(200);
    expect(first.output().stdout + first.output().stderr).not.toContain(token);
    expect(await first.end('SIGTERM')).toBe(0);
    expect(first.output().stdout).toContain(file);

    await writeFile(file, 'kept');
    const second = await startService({ database, token, environment });
    expect(await readFile(file, 'utf8')).toBe('kept');
    expect((await second.get('/v1/me')).status).toBe(200);
    expect(await second.end('SIGTERM')).toBe(0);
  });

  test('is not made where its file cannot be written, and is made by a start that can', async () => {
    const database = await databaseOfTest({ empty: true });
    const folder = await folderOfTest();
    const result = await runCli(
      ['serve'],
      environmentFor(database, { ADMIN_KEY_FILE: join(folder, 'missing', 'admin-key') }),
    );
    expectOneLine(result, /ADMIN_KEY_FILE cannot be written \(ENOENT\)\. Name a file in a folder/);
    expect(await database.query('SELECT id FROM api_keys')).toEqual([]);
    expect(await database.query('SELECT id FROM audit_events')).toEqual([]);

    const file = join(folder, 'admin-key');
    const service = await startService({
      database,
      token: 'none yet',
      environment: { ADMIN_KEY_FILE: file },
    });
    const token = (await readFile(file, 'utf8')).trim();
    expect((await service.get('/v1/me', { as: token })).status).toBe(200);
  });

  test('is not made where its file is a folder, and leaves no draft beside it', async () => {
    const database = await databaseOfTest();
    const folder = await folderOfTest();
    await chmod(folder, 0o700);
    expectOneLine(
      await runCli(['serve'], environmentFor(database, { ADMIN_KEY_FILE: folder })),
      /ADMIN_KEY_FILE cannot be written/,
    );
    expect(
      await readdir(join(folder, '..')).then((names) =>
        names.filter((name) => name.endsWith('.tmp') && name.includes('claviger-cli')),
      ),
    ).toEqual([]);
    expect(await database.query('SELECT id FROM api_keys')).toEqual([]);
  });

  test('is named as missing, with the command that makes it, where DATABASE_URL comes without ADMIN_KEY_FILE', async () => {
    const database = await databaseOfTest();
    const service = await startService({ database, token: 'none yet', environment: { ADMIN_KEY_FILE: '' } });
    await expect.poll(() => service.output().stdout).toContain('claviger create-admin-key --name');
    expect(service.output().stdout).not.toMatch(/ck_svc_/);
    expect(await database.query('SELECT id FROM api_keys')).toEqual([]);

    const made = await runCli(['create-admin-key', '--name', 'me'], environmentFor(database));
    expect((await service.get('/v1/me', { as: made.stdout.trim() })).status).toBe(200);
    expect(await service.end('SIGTERM')).toBe(0);
    const again = await startService({
      database,
      token: made.stdout.trim(),
      environment: { ADMIN_KEY_FILE: '' },
    });
    expect(await again.end('SIGTERM')).toBe(0);
    expect(again.output().stdout).not.toContain('create-admin-key');
  });

  test('is one, and one that works, where several instances start at once on an empty database', async () => {
    const database = await databaseOfTest({ empty: true });
    const folder = await folderOfTest();
    const files = ['a', 'b', 'c', 'd'].map((name) => join(folder, name));
    const services = await Promise.all(
      files.map((file) =>
        startService({ database, token: 'none yet', environment: { ADMIN_KEY_FILE: file } }),
      ),
    );
    const written = await readdir(folder);
    expect(written).toHaveLength(1);
    expect(await database.query('SELECT workspace_id FROM api_keys')).toEqual([{ workspace_id: 'system' }]);
    const token = (await readFile(join(folder, written[0] ?? ''), 'utf8')).trim();
    for (const service of services) expect((await service.get('/v1/me', { as: token })).status).toBe(200);
    expect(await Promise.all(services.map((service) => service.end('SIGTERM')))).toEqual([0, 0, 0, 0]);
  });
});
