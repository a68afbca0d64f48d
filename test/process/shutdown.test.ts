import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { databaseOfTest } from '../support/database.ts';
import { type Service, type ServiceOptions, startService } from '../support/service.ts';
import { type Outcome, openSocket, sendOnce, startLoad } from './load.ts';

/** SIGTERM to exit, at most (contract §9). */
const DRAIN_LIMIT_MS = 10_000;

async function startTestService(environment: ServiceOptions['environment'] = {}) {
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { CALLER_RATE_LIMIT: 'off', ...environment },
  });
  const admin = await service.createServiceKey(['admin']);
  return { database, service, token: admin.token };
}

/** The exit code, or the signal that ended it, and how long that took. */
async function endOf(service: Service, signal: NodeJS.Signals): Promise<{ code: unknown; tookMs: number }> {
  const startedMs = performance.now();
  const code = await service.end(signal);
  return { code, tookMs: performance.now() - startedMs };
}

function faultsOf(outcomes: readonly Outcome[]): string[] {
  return outcomes.flatMap((outcome) => {
    if (!outcome.answered) return [outcome.code];
    return outcome.status >= 400 ? [`${outcome.status} ${outcome.text}`] : [];
  });
}

describe.each(['SIGTERM', 'SIGINT'] as const)('%s under load', (signal) => {
  test('drops no request, tells load balancers first, and ends with 0 within 10 s', async () => {
    const { database, service, token } = await startTestService();
    const { token: key } = await service.createKey();
    const request = (index: number) => {
      switch (index % 4) {
        case 0:
          return {
            method: 'POST',
            path: '/v1/api-keys',
            body: { workspace_id: 'ws_load', name: `Key ${index}` },
          };
        case 1:
          return { method: 'GET', path: '/v1/api-keys?limit=5' };
        default:
          return { method: 'POST', path: '/v1/introspect', body: { key } };
      }
    };
    const common = { url: service.url, token };
    const kept = startLoad({ ...common, clients: 4, keepAlive: true, request });
    const fresh = startLoad({ ...common, clients: 4, keepAlive: false, request });
    const probes = startLoad({
      ...common,
      clients: 1,
      keepAlive: false,
      request: () => ({ method: 'GET', path: '/readyz' }),
    });
    await Promise.all([kept.reached(60), fresh.reached(60), probes.reached(5)]);
    expect(faultsOf(probes.outcomes)).toEqual([]);
    const before = kept.outcomes.length + fresh.outcomes.length;

    const end = await endOf(service, signal);
    expect(end.code).toBe(0);
    expect(end.tookMs).toBeLessThan(DRAIN_LIMIT_MS);
    await Promise.all([kept.ended, fresh.ended, probes.ended]);

    const outcomes = [...kept.outcomes, ...fresh.outcomes];
    expect(faultsOf(outcomes.filter((outcome) => outcome.answered))).toEqual([]);
    // When the port closes, the kernel resets the connections that it had queued and the service never saw: new
    // ones, once for each client at most, and without a trace of the request in the service.
    const reset = outcomes.filter((outcome) => !outcome.answered);
    expect(reset.length).toBeLessThanOrEqual(8);
    for (const outcome of reset) {
      expect(outcome).toMatchObject({ code: 'ECONNRESET', reused: false, receivedBytes: 0 });
      expect(service.output().stderr).not.toContain(outcome.id);
    }
    expect(service.output().stderr).toContain(outcomes.find((outcome) => outcome.answered)?.id);
    // It was under load when it was told to end, and went on answering.
    expect(outcomes.length).toBeGreaterThan(before);

    // Unready from some time on, and never ready again.
    const readiness = probes.outcomes.map((outcome) => (outcome.answered ? outcome.status : outcome.code));
    const firstRefusal = readiness.indexOf(503);
    expect(firstRefusal).toBeGreaterThan(0);
    // A probe that has been told may find the port closed, or be among the connections that closing it resets.
    const told = readiness.slice(firstRefusal).filter((answer) => answer !== 'ECONNRESET');
    expect(new Set(told)).toEqual(new Set([503]));
    expect(new Set(readiness.slice(0, firstRefusal))).toEqual(new Set([200]));

    // Each key that was answered is stored.
    const created = outcomes.filter((outcome) => outcome.answered && outcome.status === 201);
    const [stored] = await database.query<{ keys: string }>(
      "SELECT count(*) AS keys FROM api_keys WHERE workspace_id = 'ws_load'",
    );
    expect(Number(stored?.keys)).toBe(created.length);
  });
});

test.each(['SIGTERM', 'SIGINT'] as const)(
  '%s in the moment that it says it listens is a graceful end',
  async (signal) => {
    const database = await databaseOfTest();
    for (let start = 0; start < 3; start++) {
      const service = await startService({ database, token: 'none' });
      expect(await service.end(signal)).toBe(0);
      // The instance has left: no mutation waits for it.
      expect(await database.query('SELECT id FROM instances WHERE NOT released')).toEqual([]);
    }
  },
);

describe('while it drains', () => {
  test('a request that takes long has its answer, and what it did is done', async () => {
    // A second of argon2, so that the signal arrives in the middle of it.
    const { database, service, token } = await startTestService();
    const slow = await startService({
      database,
      token,
      environment: { ARGON2_MEMORY_KIB: '65536', ARGON2_TIME_COST: '25' },
    });
    await slow.get('/v1/me');
    const answer = sendOnce(slow.url, token, {
      method: 'POST',
      path: '/v1/api-keys',
      body: { workspace_id: 'ws_slow', name: 'Slow' },
    });
    // Answered on another connection, so the request before it has been read.
    await slow.get('/v1/me');
    const end = await endOf(slow, 'SIGTERM');
    const outcome = await answer;
    expect(outcome).toMatchObject({ answered: true, status: 201, headers: { connection: 'close' } });
    expect(end.code).toBe(0);
    const created = outcome.answered ? JSON.parse(outcome.text).data : undefined;
    expect((await service.introspect(created.key)).body).toMatchObject({ active: true, key_id: created.id });
  });

  test('idle kept connections do not hold it up, and are closed', async () => {
    const { service } = await startTestService();
    const idle = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const connection = await openSocket(service.url);
        connection.socket.write('GET /healthz HTTP/1.1\r\nHost: claviger\r\n\r\n');
        await once(connection.socket, 'data');
        return connection;
      }),
    );
    const unused = await openSocket(service.url);
    const end = await endOf(service, 'SIGTERM');
    expect(end.code).toBe(0);
    expect(end.tookMs).toBeLessThan(5_000);
    await Promise.all([...idle, unused].map(({ closed }) => closed));
    for (const { received } of idle) expect(received()).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  });

  test('a kept connection has its next request answered, as its last', async () => {
    const { service } = await startTestService();
    const connection = await openSocket(service.url);
    const ask = async () => {
      connection.socket.write('GET /healthz HTTP/1.1\r\nHost: claviger\r\n\r\n');
      await once(connection.socket, 'data');
    };
    await ask();
    const ended = service.end('SIGTERM');
    // Nobody listens any more: from now on answers are last ones.
    let listens = true;
    while (listens) {
      const probe = await sendOnce(service.url, 'none', { method: 'GET', path: '/readyz' });
      listens = probe.answered;
    }
    await ask();
    await connection.closed;
    const [first = '', second = ''] = connection.received().split(/(?=HTTP\/1\.1 )/);
    expect(first).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(first).not.toMatch(/^connection: close\r$/im);
    expect(second).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(second).toMatch(/^connection: close\r$/im);
    expect(await ended).toBe(0);
  });

  test.each([
    ['headers', 'POST /v1/introspect HTTP/1.1\r\nHost: claviger\r\nX-Unfinished: '],
    [
      'body',
      'POST /v1/introspect HTTP/1.1\r\nHost: claviger\r\nAuthorization: Bearer TOKEN\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"key":',
    ],
  ])('a client that never finishes its %s does not hold it beyond 10 s', async (_, text) => {
    const { service, token } = await startTestService();
    const { socket } = await openSocket(service.url);
    socket.write(text.replace('TOKEN', token));
    const end = await endOf(service, 'SIGTERM');
    expect(end.code).toBe(0);
    expect(end.tookMs).toBeLessThan(DRAIN_LIMIT_MS);
  });

  test('the instance is none of those that a mutation waits for, once it has ended', async () => {
    const { database, service, token } = await startTestService();
    const other = await startService({ database, token });
    const { id } = await service.createKey();
    expect(await other.end('SIGTERM')).toBe(0);
    const startedMs = performance.now();
    expect((await service.delete(`/v1/api-keys/${id}`)).status).toBe(200);
    // Waiting an instance out takes a lease, 10 s.
    expect(performance.now() - startedMs).toBeLessThan(5_000);
  });
});
