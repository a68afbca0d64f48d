import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { readConfig } from '../../src/config.ts';
import { TEST_KEY_SECRET } from '../support/app.ts';
import { databaseOfTest } from '../support/database.ts';
import { type Block, examplesOf, masked, readBlocks, shapeOf } from '../support/readme.ts';
import { CLI, collectOutput, ROOT } from '../support/service.ts';
import { openShell, plainEnvironment, type Shell } from '../support/shell.ts';

/*
 * The README's examples, in its order and then those of docs/, in one shell, against a service started by the
 * README's own first command.
 * curl, bash and openssl are the reader's; where they are missing there is nobody to follow the README.
 */

const README = await readBlocks('README.md');
const others = (await readdir(join(ROOT, 'docs'))).filter((name) => name.endsWith('.md')).sort();
const blocks = [...README, ...(await Promise.all(others.map((name) => readBlocks(`docs/${name}`)))).flat()];
const examples = examplesOf(blocks);
const tour = examples.filter(({ commands }) => commands.where === '');
const START_TIMEOUT_MS = 60_000;

const missing = ['bash', 'curl', 'openssl'].filter(
  (name) => spawnSync(name, ['--version']).error !== undefined,
);

describe.skipIf(missing.length > 0)('the documented examples', () => {
  let folder: string;
  let service: ChildProcess;
  let printed: { stdout: string; stderr: string };
  let url: string;
  let shell: Shell;
  /** What the tour has printed: each command's answer, as JSON where it is. */
  const answers: Answered[] = [];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'claviger-readme-'));
    // As root the embedded PostgreSQL runs as another user, who has to reach its data.
    await chmod(folder, 0o755);
    // A checkout after `npm ci`, which .ci/run and test/image/ carry out.
    for (const name of ['package.json', 'scripts', 'dist', 'migrations']) {
      await cp(join(ROOT, name), join(folder, name), { recursive: true });
    }
    await symlink(join(ROOT, 'node_modules'), join(folder, 'node_modules'));

    const setup = examples.find(({ commands }) => commands.where === 'setup')?.commands.text ?? '';
    expect(setup).toBe('npm ci && npm start');
    service = spawn('npm', ['start'], {
      cwd: folder,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...plainEnvironment(), PORT: '0' },
    });
    printed = collectOutput(service);
    const listening = /listens on (http:\/\/\S+)/;
    while (!listening.test(printed.stdout) && service.exitCode === null) await sleep(50);
    url = listening.exec(printed.stdout)?.[1] ?? '';
    expect(url, printed.stderr).not.toBe('');
    shell = openShell(folder);
  }, START_TIMEOUT_MS + 10_000);

  afterAll(async () => {
    shell?.close();
    if (service?.pid !== undefined && service.exitCode === null) {
      const ended = once(service, 'exit');
      // npm and the service it started, as Ctrl-C would.
      process.kill(-service.pid, 'SIGINT');
      await ended;
      // npm may be gone before the service is.
      for (let waits = 0; waits < 200 && groupLives(service.pid); waits++) await sleep(50);
    }
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  }, 30_000);

  test('the first start prints what the README shows, and the admin key', async () => {
    const shown = examples.find(({ commands }) => commands.where === 'setup')?.output?.text ?? '';
    await expect.poll(() => printed.stdout).toContain('/v1/introspect');
    expect(masked(printed.stdout)).toContain(masked(shown));
  });

  test('the two commands of the first start work as they are pasted', async () => {
    const [, key] = /(export CLAVIGER_KEY=\S+)/.exec(printed.stdout) ?? [];
    const [, create, introspect] = printed.stdout.split(/^(?=Create a key:|Ask what it may do:)/m);
    const text = await shell.run(
      [key, create?.replace(/^.*\n/, ''), introspect?.replace(/^.*\n/, '')].join('\n'),
    );
    expect(masked(text)).toMatch(/^\s*ck_live_<token>\n\{"active":true,/);
  });

  test.each(tour.map((example, index) => ({ ...example, index, place: example.commands.place })))(
    '$place runs, and prints what is shown',
    async ({ commands, output }) => {
      const text = await shell.run(filledIn(commands));
      for (const line of text.split('\n').filter((candidate) => candidate.startsWith('{'))) {
        answers.push(JSON.parse(line));
      }
      if (output === undefined) return;
      if (output.language === 'text') {
        expect(masked(text)).toContain(masked(output.text));
        return;
      }
      expect(JSON.parse(masked(text))).toEqual(shapeOf(output.text, expect.anything()));
    },
  );

  test('the TypeScript is strict, and does what its comments say', async () => {
    const files = blocks.filter(({ language }) => language === 'ts');
    const names = await Promise.all(
      files.map(async ({ text }) => {
        const [, name = ''] = /^\/\/ (\S+\.ts)\n/.exec(text) ?? [];
        await writeFile(join(folder, name), text);
        return name;
      }),
    );
    expect(names).toEqual(['dashboard.ts', 'contacts-api.ts']);
    await writeFile(join(folder, 'driver.ts'), DRIVER);
    await writeFile(
      join(folder, 'tsconfig.json'),
      JSON.stringify({
        compilerOptions: {
          target: 'es2023',
          module: 'nodenext',
          strict: true,
          noEmit: true,
          types: ['node'],
          skipLibCheck: true,
          allowImportingTsExtensions: true,
        },
        files: names,
      }),
    );
    const checked = await run(process.execPath, [
      'node_modules/typescript/bin/tsc',
      '--project',
      'tsconfig.json',
    ]);
    expect(checked).toEqual({ code: 0, stdout: '', stderr: '' });

    const keys = answers.filter(({ data }) => data?.workspace_id === 'system');
    expect(keys.map(({ data }) => data?.name)).toEqual(['Dashboard', 'Contacts API']);
    const driven = await run(process.execPath, ['node_modules/tsx/dist/cli.mjs', 'driver.ts'], {
      CLAVIGER_URL: url,
      DASHBOARD_KEY: keys[0]?.data?.key ?? '',
      INTROSPECT_KEY: keys[1]?.data?.key ?? '',
    });
    expect(driven).toMatchObject({ code: 0, stderr: '' });
    expect(JSON.parse(driven.stdout)).toEqual({
      listed: ['Nightly export'],
      isSameAgain: true,
      withoutKey: 401,
      withKey: [200, { contacts: ['of ws_globex'] }],
      withoutClaviger: 503,
      afterRevocation: [401, { error: expect.stringMatching(/^The key was revoked on /) }],
      faultOfDashboard: expect.stringMatching(/^Claviger: not_found: /),
    });
  });

  test('the commands for a PostgreSQL of your own make a key and serve', async () => {
    const database = await databaseOfTest({ empty: true });
    const commands =
      examples.find(({ commands: { where } }) => where === 'own-postgres')?.commands.text ?? '';
    const child = spawn('bash', ['-e', '-c', commands.replace('postgres://…', database.url)], {
      cwd: folder,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...plainEnvironment(), PORT: '0' },
    });
    const { pid } = child;
    const own = collectOutput(child);
    try {
      await expect
        .poll(() => own.stdout + own.stderr, { timeout: START_TIMEOUT_MS })
        .toMatch(/^ck_svc_[0-9A-Za-z]{66}\nClaviger listens on http:\S+ /);
    } finally {
      if (pid !== undefined) process.kill(-pid, 'SIGTERM');
      await once(child, 'close');
    }
  });

  test('the commands for Docker make a usable .env, name what docker-compose.yml has, and make an admin key', async () => {
    const database = await databaseOfTest();
    const place = join(folder, 'compose');
    await mkdir(join(place, 'bin'), { recursive: true });
    await writeFile(join(place, 'claviger.dump'), 'a dump');
    // Stands for docker: notes how it was called, and runs claviger where it was to run in the container.
    await writeFile(
      join(place, 'bin', 'docker'),
      `#!/bin/sh\nprintf '%s\\n' "$*" >> calls\ncase "$*" in "compose exec claviger claviger "*) shift 4; exec "${process.execPath}" "${CLI}" "$@";; esac\n`,
      { mode: 0o755 },
    );
    const compose = parse(await readFile(join(ROOT, 'docker-compose.yml'), 'utf8'));
    let made = '';
    for (const { commands } of examples.filter(({ commands: { where } }) => where === 'docker')) {
      const ended = await run(
        'bash',
        ['-e', '-c', commands.text],
        {
          PATH: `${join(place, 'bin')}:${process.env.PATH}`,
          DATABASE_URL: database.url,
          KEY_SECRET: TEST_KEY_SECRET,
        },
        place,
      );
      expect(ended, commands.place).toMatchObject({ code: 0, stderr: '' });
      made += ended.stdout;
    }
    expect(made).toMatch(/^ck_svc_[0-9A-Za-z]{66}\n$/);

    const env = await readFile(join(place, '.env'), 'utf8');
    const [, secret] = /^KEY_SECRET=(.+)$/m.exec(env) ?? [];
    const [, password] = /^POSTGRES_PASSWORD=(.+)$/m.exec(env) ?? [];
    const DATABASE_URL = compose.services.claviger.environment.DATABASE_URL.replace(/\$\{[^}]*\}/, password);
    expect(readConfig({ KEY_SECRET: secret, DATABASE_URL })).toMatchObject({
      KEY_SECRET: [secret],
      DATABASE_URL,
    });

    const calls = (await readFile(join(place, 'calls'), 'utf8')).trim().split('\n');
    for (const call of calls) {
      const [, service] = /^compose (?:exec (?:-T )?|stop |start )(\S+)/.exec(call) ?? [];
      if (service !== undefined) expect(Object.keys(compose.services), call).toContain(service);
      else expect(call).toBe('compose up --build --detach --wait');
    }
    for (const call of calls.filter((candidate) => /pg_(dump|restore)/.test(candidate))) {
      const { POSTGRES_USER, POSTGRES_DB } = compose.services.postgres.environment;
      expect(call).toContain(`--username=${POSTGRES_USER}`);
      expect(call).toMatch(new RegExp(`(--dbname=| )${POSTGRES_DB}\\b`));
    }
  });

  /** A block as the reader would run it: at the service's address, with values for the placeholders. */
  function filledIn({ text }: Block): string {
    const [, admin] = /CLAVIGER_KEY=(\S+)/.exec(printed.stdout) ?? [];
    const created = answers.findLast(({ data }) => data?.key !== undefined)?.data;
    const values: Record<string, string | undefined> = {
      CLAVIGER_KEY: admin,
      KEY: created?.key,
      ID: created?.id,
    };
    return text
      .replaceAll('http://127.0.0.1:8080', url)
      .replaceAll(
        /^((?:export )?(\w+)=)\S*…/gm,
        (_line, assignment: string, name: string) => assignment + values[name],
      );
  }

  function run(
    command: string,
    args: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    cwd = folder,
  ): Promise<{ code: number | null; stdout: string; stderr: string }> {
    const child = spawn(command, args, {
      cwd,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...plainEnvironment(), ...environment },
    });
    const collected = collectOutput(child);
    return once(child, 'close').then(([code]) => ({ code, ...collected }));
  }
});

interface Answered {
  readonly data?: {
    readonly id: string;
    readonly key?: string;
    readonly name: string;
    readonly workspace_id: string;
  };
}

/** Uses the examples as a program would, and prints what came of it. */
const DRIVER = `
import { once } from 'node:events';
import { createKey, listKeys, revokeKey } from './dashboard.ts';
import { server } from './contacts-api.ts';

const ask = async (token) => {
  const response = await fetch('http://127.0.0.1:' + server.address().port + '/contacts?page=2', {
    headers: token === undefined ? {} : { authorization: 'Bearer ' + token },
  });
  return [response.status, await response.json()];
};
async function main() {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { id, token } = await createKey('ws_globex', 'usr_7', 'Nightly export', 'form-1');
  const again = await createKey('ws_globex', 'usr_7', 'Nightly export', 'form-1');
  const listed = (await listKeys('ws_globex')).map(({ name }) => name);
  const [withoutKey] = await ask(undefined);
  const withKey = await ask(token);
  const right = process.env.INTROSPECT_KEY;
  process.env.INTROSPECT_KEY = 'wrong';
  const [withoutClaviger] = await ask(token);
  process.env.INTROSPECT_KEY = right;
  await revokeKey(id, 'no longer needed');
  const afterRevocation = await ask(token);
  const faultOfDashboard = await revokeKey('key_00000000000000000000000000', 'none').catch((error) => error.message);
  console.log(JSON.stringify({ isSameAgain: again.token === token, listed, withoutKey, withKey, withoutClaviger, afterRevocation, faultOfDashboard }));
  server.close();
  server.closeAllConnections();
}
void main();
`;

function groupLives(pid: number): boolean {
  try {
    process.kill(-pid, 0);
    return true;
  } catch {
    return false;
  }
}
