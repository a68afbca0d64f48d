import { randomBytes } from 'node:crypto';
import { type AddressInfo, connect } from 'node:net';
import pg from 'pg';
import { expect, onTestFinished, test } from 'vitest';
import { newKeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint } from '../../src/domain/token.ts';
import { createLogger } from '../../src/server.ts';
import { appOfTest, TEST_KEY_SECRET } from '../support/app.ts';
import { findPiece } from '../support/pieces.ts';

/** Holds what a statement locks, until it is released. */
async function hold(url: string, statement: string): Promise<{ release(): Promise<void> }> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(`BEGIN; ${statement}`);
  let released: Promise<void> | undefined;
  const release = () => {
    released ??= client.end();
    return released;
  };
  onTestFinished(release);
  return { release };
}

const linesOf = (lines: readonly string[]) =>
  lines.map((line) => JSON.parse(line)).filter(({ level, route }) => level === 30 && route !== undefined);

test('a request has one line at info, with its id, route, status and time', async () => {
  const app = await appOfTest();
  const { id } = await app.createKey();
  app.logLines.length = 0;
  await app.get(`/v1/api-keys/${id}?x=y`, { headers: { 'x-request-id': 'mine-1' } });
  await app.get('/nowhere', { as: null });
  await app.get('/v1/api-keys/%zz', { as: null });
  await app.get('/v1/me', { as: null });
  const lines = linesOf(app.logLines);
  expect(lines).toHaveLength(4);
  expect(lines[0]).toMatchObject({
    request_id: 'mine-1',
    method: 'GET',
    route: '/v1/api-keys/:id',
    duration_ms: expect.any(Number),
    caller: expect.stringMatching(/^key_/),
    address: '127.0.0.1',
    msg: 'answered',
  });
  expect(lines.map(({ status }) => status)).toEqual([200, 404, 400, 401]);
  expect(lines.map(({ route }) => route)).toEqual(['/v1/api-keys/:id', null, null, '/v1/me']);
});

test('a request whose client hangs up has its line and its count too', async () => {
  const app = await appOfTest();
  await app.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = app.app.server.address() as AddressInfo;
  const { id } = await app.createKey();
  // Somebody holds the row of the key, so that there is no answer yet.
  const held = await hold(app.database.url, 'SELECT 1 FROM api_keys FOR UPDATE');
  const body = JSON.stringify({ name: 'Never seen' });
  const socket = connect(port, '127.0.0.1');
  socket.write(
    `PATCH /v1/api-keys/${id} HTTP/1.1\r\nHost: a\r\nX-Request-Id: left-1\r\nX-Api-Key: ${app.adminToken}\r\n` +
      `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
  );
  await expect
    .poll(() =>
      app.database.query(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
      ),
    )
    .not.toEqual([]);
  socket.destroy();
  await expect
    .poll(() => linesOf(app.logLines))
    .toContainEqual(
      expect.objectContaining({ request_id: 'left-1', status: null, address: '127.0.0.1', msg: 'left' }),
    );
  await held.release();
  const { text } = await app.get('/metrics', { as: null });
  expect(text).toContain(
    'claviger_http_requests_total{method="PATCH",route="/v1/api-keys/:id",status="left"} 1\n',
  );
});

test('PostgreSQL shows the request id of a change in application_name, and no longer than it takes', async () => {
  const app = await appOfTest();
  const { id } = await app.createKey();
  const held = await hold(app.database.url, 'SELECT 1 FROM api_keys FOR UPDATE');
  const names = async () =>
    (
      await app.database.query<{ name: string }>(
        "SELECT application_name AS name FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'claviger %'",
      )
    ).map(({ name }) => name);
  const long = `long-${'x'.repeat(120)}`;
  const changes = [
    app.patch(`/v1/api-keys/${id}`, { name: 'Renamed' }, { headers: { 'x-request-id': 'change-1' } }),
    app.delete(`/v1/api-keys/${id}`, undefined, { headers: { 'x-request-id': long } }),
  ];
  // PostgreSQL cuts names at 63 characters.
  await expect
    .poll(names)
    .toEqual(expect.arrayContaining(['claviger change-1', `claviger ${long}`.slice(0, 63)]));
  await held.release();
  for (const { status } of await Promise.all(changes)) expect([200, 409]).toContain(status);
  expect((await names()).filter((name) => name !== 'claviger listener')).toEqual([]);
});

test('an error that quotes a token is logged without it, wherever in the error it stands', () => {
  const token = createTokenMint([keySecret(TEST_KEY_SECRET).derive('mint')], randomBytes).mint({
    prefix: 'ck',
    environment: 'live',
    id: newKeyId(Date.now()),
  });
  const lines: string[] = [];
  const logger = createLogger('trace', { write: (line: string) => void lines.push(line) });
  const cause = Object.assign(new Error(`cause ${token}`), { detail: { deep: [token] } });
  const error = Object.assign(new Error(`message ${token}`, { cause }), { input: token, [token]: 1 });
  logger.error({ err: error }, 'the request could not be answered');
  logger.fatal({ err: new AggregateError([error, new Error(token)], token) }, 'stopping after a fault');
  logger.warn({ err: token }, 'no Error was thrown');
  const circular: { self?: unknown; token: string } = { token };
  circular.self = circular;
  logger.warn({ err: Object.assign(new Error(token), { circular }) }, 'and one that has no end');

  expect(lines).toHaveLength(4);
  expect(JSON.parse(lines[0] ?? '')).toMatchObject({
    err: {
      type: 'Error',
      message: expect.stringContaining('message'),
      stack: expect.stringContaining('logs.test'),
    },
  });
  expect(findPiece(lines.join(''), [token])).toBeUndefined();
});
