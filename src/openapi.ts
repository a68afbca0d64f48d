import type { FastifyInstance } from 'fastify';
import pino from 'pino';
import { buildApp } from './app.ts';
import { readConfig } from './config.ts';
import { appSettings } from './server.ts';

/** The OpenAPI document as YAML: the committed openapi.yaml, and what `claviger openapi` prints. */
export async function writeDocument(): Promise<string> {
  return withApp((app) => app.swagger({ yaml: true }));
}

/** The OpenAPI document as the object that /openapi.json answers. */
export async function readDocument(): Promise<object> {
  return withApp((app) => app.swagger());
}

/** The routes alone: no database, no secret, no setting but the defaults. */
async function withApp<T>(look: (app: FastifyInstance) => T): Promise<T> {
  const app = await buildApp({
    logger: pino({ level: 'silent' }),
    database: unused(),
    verifier: unused(),
    lifecycle: unused(),
    scopes: unused(),
    recorder: unused(),
    workspaces: unused(),
    tokenRevocation: unused(),
    githubKeys: undefined,
    idempotency: unused(),
    accessTokens: unused(),
    publicKeys: () => [],
    cursors: unused(),
    lookAtQuota: unused(),
    readiness: unused(),
    ...appSettings(readConfig({})),
    metrics: unused(),
    traffic: undefined,
    isClosing: () => false,
  });
  try {
    await app.ready();
    return look(app);
  } finally {
    await app.close();
  }
}

/** Stands in for what only a request needs: there are none. */
function unused<T extends object>(): T {
  return new Proxy<T>(Object.create(null), {
    get() {
      throw new TypeError('the document is made without a database');
    },
  });
}
