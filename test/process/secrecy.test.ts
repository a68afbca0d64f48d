import { randomBytes, randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { newKeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { TEST_KEY_SECRET } from '../support/app.ts';
import type { Client } from '../support/client.ts';
import { databaseOfTest, type TestDatabase } from '../support/database.ts';
import { findPiece } from '../support/pieces.ts';
import { startService } from '../support/service.ts';
import { openSocket } from './load.ts';

/** Every row of every table and what the planner remembers of it, as text; binary columns in each of their readings. */
async function dump(database: TestDatabase): Promise<string> {
  const tables = await database.query<{ name: string }>(
    "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
  );
  const parts: string[] = [];
  for (const { name } of tables) {
    const rows = await database.query<Record<string, unknown>>(`SELECT * FROM ${name}`);
    parts.push(`${name} ${rows.length}`);
    for (const row of rows) {
      parts.push(JSON.stringify(row));
      for (const value of Object.values(row))
        if (Buffer.isBuffer(value)) parts.push(value.toString('latin1'));
    }
  }
  await database.query('ANALYZE');
  const remembered = await database.query(
    "SELECT to_json(s)::text FROM pg_stats s WHERE schemaname IN ('public', 'partitions')",
  );
  const running = await database.query(
    'SELECT query FROM pg_stat_activity WHERE datname = current_database()',
  );
  return [...parts, JSON.stringify(remembered), JSON.stringify(running)].join('\n');
}

test('neither the database nor the log at trace nor the metrics hold a token, or 20 characters of one', async () => {
  const database = await databaseOfTest({ empty: true });
  const folder = await mkdtemp(join(tmpdir(), 'claviger-secrecy-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  const adminKeyFile = join(folder, 'admin-key');
  const service = await startService({
    database,
    token: 'replaced below',
    environment: {
      LOG_LEVEL: 'trace',
      ADMIN_KEY_FILE: adminKeyFile,
      FAILED_AUTH_RATE_LIMIT: 'off',
    },
  });
  const admin = (await readFile(adminKeyFile, 'utf8')).trim();
  const asAdmin = { as: admin };
  const tokens = [admin];
  const statuses = new Set<number>();
  const send: Client['send'] = async (method, path, options = {}) => {
    const answer = await service.send(method, path, { ...asAdmin, ...options });
    statuses.add(answer.status);
    // Two endpoints hand a token out, to the one who asked for it.
    if (!(answer.status === 201 && path === '/v1/api-keys')) {
      expect(
        findPiece(answer.text + JSON.stringify(answer.headers), tokens),
        `${method} ${path}`,
      ).toBeUndefined();
    }
    return answer;
  };
  const create = async (settings: Record<string, unknown> = {}, idempotencyKey: string = randomUUID()) => {
    const { status, body, text } = await send('POST', '/v1/api-keys', {
      // So that the answer is kept, with the token sealed in it.
      headers: { 'idempotency-key': idempotencyKey },
      body: {
        workspace_id: 'ws_acme',
        name: 'Busy',
        scopes: ['read'],
        metadata: { team: 'data' },
        ...settings,
      },
    });
    expect(status, text).toBe(201);
    tokens.push(body.data.key);
    return { id: body.data.id as string, token: body.data.key as string };
  };

  // What goes well.
  const keys = await Promise.all(Array.from({ length: 12 }, () => create()));
  const reader = await create({ workspace_id: 'system', scopes: ['keys:read'] });
  const [first, second, third] = keys;
  if (first === undefined || second === undefined || third === undefined)
    throw new Error('there are no keys');
  for (const { token } of keys)
    await send('POST', '/v1/introspect', { body: { key: token, scopes: ['read'] } });
  await send('POST', '/v1/introspect', {
    body: `token=${first.token}`,
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
  });
  await send('PATCH', `/v1/api-keys/${first.id}`, {
    body: { name: 'Renamed', restrictions: { allowed_ips: ['::1'] } },
  });
  await send('POST', '/v1/introspect', { body: { key: first.token, request: { ip: '127.0.0.1' } } });
  await send('DELETE', `/v1/api-keys/${second.id}`, { body: { reason: 'leaked' } });
  await send('POST', '/v1/introspect', { body: { key: second.token } });
  await send('GET', '/v1/api-keys?limit=5');
  await send('GET', '/v1/me', { as: reader.token });

  // What does not: tokens where they do not belong.
  const never = createTokenMint([keySecret(TEST_KEY_SECRET).derive('mint')], randomBytes).mint({
    prefix: 'ck',
    environment: 'live',
    id: newKeyId(Date.now()),
  });
  tokens.push(never);
  for (const token of [first.token, second.token, never, reader.token, admin]) {
    const mistyped = `${token.slice(0, -1)}${token.endsWith('0') ? '1' : '0'}`;
    for (const presented of [token, mistyped]) {
      await send('POST', '/v1/introspect', { body: { key: presented } });
      await send('POST', '/v1/introspect', { body: { key: third.token }, as: presented });
      await send('GET', '/v1/me', { as: presented, headers: { 'x-api-key': `${presented}x` } });
      await send('GET', '/v1/me', { as: null, headers: { authorization: `Basic ${presented}` } });
      await send('GET', '/v1/me', {
        as: null,
        headers: { authorization: `Bearer ${presented} ${presented}` },
      });
    }
    // In the path.
    for (const path of [
      `/v1/api-keys/${token}`,
      `/v1/api-keys/${token}/revoke`,
      `/${token}`,
      `/v1/${token}/${token}`,
      `/docs/${token}`,
      `/v1/api-keys/%zz${token}`,
    ]) {
      for (const method of ['GET', 'POST', 'DELETE', 'PATCH', 'PUT', 'OPTIONS'])
        await send(method, path, method === 'GET' || method === 'OPTIONS' ? {} : { body: {} });
    }
    // In the query.
    for (const name of [
      'cursor',
      'scope',
      'status',
      'limit',
      'expires_before',
      'key',
      'token',
      token,
      'name',
      'created_by',
    ]) {
      await send('GET', `/v1/api-keys?${name}=${token}`);
      await send('GET', `/healthz?${name}=${token}`);
    }
    // In headers.
    for (const name of [
      'user-agent',
      'referer',
      'x-forwarded-for',
      'cookie',
      'accept',
      'x-request-id',
      'traceparent',
      'tracestate',
      'baggage',
      'forwarded',
      'if-none-match',
      'idempotency-key',
    ]) {
      await send('GET', '/v1/me', { headers: { [name]: token } });
      await send('GET', '/v1/nowhere', { headers: { [name]: token } });
    }
    await send('POST', '/v1/api-keys', {
      body: { workspace_id: 'ws_acme', name: 'x' },
      headers: { 'content-type': token },
    });
    await create({}, token);
    // As names of members, as values of the wrong type or place, and in what is no JSON.
    await send('POST', '/v1/api-keys', { body: { workspace_id: 'ws_acme', name: 'x', [token]: 1 } });
    await send('POST', '/v1/api-keys', {
      body: { workspace_id: 'ws_acme', name: 'x', restrictions: { [token]: [] } },
    });
    await send('POST', '/v1/api-keys', { body: { workspace_id: 'ws_acme', name: 'x', environment: token } });
    await send('POST', '/v1/api-keys', { body: { workspace_id: 'ws_acme', name: 'x', scopes: [token] } });
    await send('POST', '/v1/api-keys', { body: { workspace_id: 'ws_acme', name: 'x', expires_at: token } });
    await send('POST', '/v1/api-keys', { body: { workspace_id: 'ws_acme', name: 'x', rate_limit: token } });
    await send('POST', '/v1/api-keys', {
      body: {
        workspace_id: 'ws_acme',
        name: 'x',
        restrictions: { allowed_ips: [token], allowed_referrers: [token] },
      },
    });
    await send('POST', '/v1/introspect', { body: { key: token, token } });
    await send('POST', '/v1/introspect', { body: { key: [token] } });
    await send('POST', '/v1/introspect', { body: { key: third.token, request: { [token]: token } } });
    await send('POST', '/v1/introspect', {
      body: {
        key: third.token,
        request: { ip: token.slice(0, 60), method: token.slice(0, 30), path: token, referrer: token },
      },
    });
    for (const body of [
      `{"key":"${token}"`,
      `{"key":"${token}","key":"${token}"}`,
      token,
      `"${token}"`,
      `{"${token}\u0000":1}`,
    ]) {
      await send('POST', '/v1/introspect', { body });
      await send('POST', '/v1/introspect', { body, headers: { 'content-type': 'text/plain' } });
      await send('PATCH', `/v1/api-keys/${third.id}`, { body });
    }
    await send('POST', '/v1/introspect', { body: { key: token.repeat(1000) } });
    // In what is no HTTP.
    for (const text of [
      `${token}\r\n\r\n`,
      `GET /${token} HTTP/9.9\r\n\r\n`,
      `GET / HTTP/1.1\r\nHost: a\r\n${token}\r\n\r\n`,
      `GET / HTTP/1.1\r\nHost: a\r\nX-${token}: \u0001${token}\r\n\r\n`,
      `${token} / HTTP/1.1\r\nHost: a\r\n\r\n`,
      `GET http://${token}/${token} HTTP/1.1\r\nHost: ${token}\r\n\r\n`,
      `GET /healthz HTTP/1.1\r\nHost: ${token}\r\nConnection: Upgrade\r\nUpgrade: ${token}\r\n\r\n`,
      `GET /v1/me HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${token}\r\nAuthorization: Bearer ${token}\r\n\r\n`,
      `POST /v1/introspect HTTP/1.1\r\nHost: a\r\nX-Api-Key: ${admin}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nTrailer: x-${token}\r\n\r\n2\r\n{}\r\n0\r\nx-${token}: ${token}\r\n\r\n`,
      `CONNECT ${token}:443 HTTP/1.1\r\nHost: ${token}\r\n\r\n`,
      `POST /v1/introspect HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${token}\r\nTransfer-Encoding: chunked\r\n\r\n${token}`,
    ]) {
      const raw = await openSocket(service.url);
      raw.socket.end(text);
      await raw.closed;
      expect(findPiece(raw.received(), tokens)).toBeUndefined();
    }
  }

  // While the database's connections are killed.
  for (let round = 0; round < 10; round++) {
    const work = [
      ...keys.map(({ token }) => send('POST', '/v1/introspect', { body: { key: token, scopes: ['read'] } })),
      ...keys.map(({ id }) => send('PATCH', `/v1/api-keys/${id}`, { body: { name: `Round ${round}` } })),
      ...Array.from({ length: 6 }, async () => {
        const { status, body } = await send('POST', '/v1/api-keys', {
          body: { workspace_id: 'ws_acme', name: 'Killed' },
        });
        if (status === 201) tokens.push(body.data.key);
      }),
    ];
    await database.query(
      'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
    );
    await Promise.all(work);
  }
  // A constraint that fails in the database: its message quotes the row.
  await database.query(
    "ALTER TABLE api_keys ADD CONSTRAINT api_keys_never CHECK (name <> 'never') NOT VALID",
  );
  const refused = await send('POST', '/v1/api-keys', { body: { workspace_id: 'ws_acme', name: 'never' } });
  expect(refused.status).toBe(503);

  const metrics = await service.get('/metrics', { as: null });
  expect(await service.end('SIGTERM')).toBe(0);
  const { stdout, stderr } = service.output();
  const stored = await dump(database);

  // The test was busy, on every road, and it looked at something.
  for (const status of [200, 201, 400, 401, 404, 409, 413, 415, 503]) expect(statuses).toContain(status);
  expect(tokens.length).toBeGreaterThan(20);
  expect(stderr.split('\n').length).toBeGreaterThan(500);
  expect(stderr).toContain('"level":50');
  expect(stderr).toContain('api_keys_never');
  expect(stored).toContain(`"id":"`);
  expect(stored).toContain('$argon2id$');
  expect(stored).toMatch(/^public\.sealed_answers \d\d$/m);
  expect(findPiece(`before ${admin.slice(7, 27)} after`, tokens)).toBeDefined();

  expect(findPiece(stdout, tokens)).toBeUndefined();
  expect(findPiece(stderr, tokens)).toBeUndefined();
  expect(findPiece(stored, tokens)).toBeUndefined();
  expect(findPiece(metrics.text, tokens)).toBeUndefined();
  // Nor is a hash or the secret for the log.
  expect(stdout + stderr + metrics.text).not.toMatch(/\$argon2|argon2id\$/);
  expect(stdout + stderr + metrics.text + stored).not.toContain(TEST_KEY_SECRET);
}, 120_000);
