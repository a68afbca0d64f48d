import { randomBytes } from 'node:crypto';
import type { FastifyInstance } from 'fastify';
import { onTestFinished } from 'vitest';
import { buildApp } from '../../src/app.ts';
import { type Config, readConfig } from '../../src/config.ts';
import { openCore } from '../../src/core.ts';
import { createMetrics } from '../../src/metrics.ts';
import { appDependencies, createLogger, readVersion, reporterOf } from '../../src/server.ts';
import { type Answer, bodyOf, type Client, createClient } from './client.ts';
import { createTestDatabase, type TestDatabase } from './database.ts';
import { loadResponseCheck } from './response-check.ts';

export const TEST_KEY_SECRET = 'a-secret-for-tests-alone-of-40-characters';
/** The weakest argon2 that the configuration allows: tests are about what stands around it. */
export const CHEAP_ARGON2 = { ARGON2_MEMORY_KIB: '1024', ARGON2_TIME_COST: '1' };

export interface TestApp extends Client {
  readonly app: FastifyInstance;
  readonly config: Config;
  readonly database: TestDatabase;
  readonly adminToken: string;
  /** Every line logged, at `trace`. */
  readonly logLines: string[];
  close(): Promise<void>;
}

/** The service without a process or a socket, on a database of its own, with an admin key. The caller closes it. */
export async function createTestApp(
  environment: Readonly<Record<string, string>> = {},
  shared?: TestDatabase,
): Promise<TestApp> {
  const database = shared ?? (await createTestDatabase());
  const config = readConfig({
    DATABASE_URL: database.url,
    KEY_SECRET: TEST_KEY_SECRET,
    LOG_LEVEL: 'trace',
    DATABASE_POOL_SIZE: '4',
    ...CHEAP_ARGON2,
    ...environment,
  });
  const logLines: string[] = [];
  const logger = createLogger(config.LOG_LEVEL, { write: (line: string) => void logLines.push(line) });
  const metrics = createMetrics(readVersion());
  const core = await openCore(config, {
    role: 'service',
    report: reporterOf(logger),
    observers: metrics.observers,
  });
  metrics.watch(core, config);
  const admin = await core.lifecycle.createAdmin(`Test admin ${randomBytes(4).toString('hex')}`);
  const app = await buildApp(
    appDependencies(core, config, { logger, metrics, phase: { draining: false, closing: false } }),
  );
  const client = createClient(
    async ({ method, path, headers, body }): Promise<Answer> => {
      const response = await app.inject({
        method: method as 'GET',
        url: path,
        headers,
        ...(body === undefined ? {} : { payload: body }),
      });
      const found = Object.fromEntries(
        Object.entries(response.headers).map(([name, value]) => [name, String(value)]),
      );
      return {
        status: response.statusCode,
        headers: found,
        text: response.payload,
        body: bodyOf(found['content-type'], response.payload),
      };
    },
    { token: admin.token, check: await loadResponseCheck() },
  );
  return {
    ...client,
    app,
    config,
    database,
    adminToken: admin.token,
    logLines,
    async close() {
      await app.close();
      await core.close();
      if (shared === undefined) await database.drop();
    },
  };
}

/** The same for one test, closed when it ends. */
export async function appOfTest(environment?: Readonly<Record<string, string>>): Promise<TestApp> {
  const app = await createTestApp(environment);
  onTestFinished(() => app.close());
  return app;
}
