import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { z } from 'zod';
import { databaseOfTest } from '../support/database.ts';
import { findPiece } from '../support/pieces.ts';
import { type Service, startService } from '../support/service.ts';

const text = z.object({ key: z.string(), value: z.record(z.string(), z.unknown()) });
const exported = z.object({
  resourceSpans: z.array(
    z.object({
      resource: z.object({ attributes: z.array(text) }),
      scopeSpans: z.array(
        z.object({
          spans: z.array(
            z.object({
              traceId: z.string(),
              spanId: z.string(),
              parentSpanId: z.string().optional(),
              traceState: z.string().optional(),
              name: z.string(),
              kind: z.number(),
              attributes: z.array(text),
            }),
          ),
        }),
      ),
    }),
  ),
});

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string | undefined;
  readonly traceState?: string | undefined;
  readonly name: string;
  readonly kind: number;
  readonly attributes: Readonly<Record<string, unknown>>;
}

interface Collector {
  readonly url: string;
  readonly spans: Span[];
  readonly resources: Readonly<Record<string, unknown>>[];
  /** Every byte that came, paths and headers too. */
  received(): string;
}

const membersOf = (attributes: z.infer<typeof text>[]) =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));

/** Takes OTLP over HTTP, as JSON. */
async function startCollector(): Promise<Collector> {
  const spans: Span[] = [];
  const resources: Record<string, unknown>[] = [];
  let received = '';
  const server = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => {
      body += chunk;
    });
    request.on('end', () => {
      received += `${request.method} ${request.url} ${JSON.stringify(request.headers)}\n${body}\n`;
      if (request.url === '/v1/traces' && request.headers['content-type'] === 'application/json') {
        for (const { resource, scopeSpans } of exported.parse(JSON.parse(body)).resourceSpans) {
          resources.push(membersOf(resource.attributes));
          for (const span of scopeSpans.flatMap((scope) => scope.spans)) {
            spans.push({ ...span, attributes: membersOf(span.attributes) });
          }
        }
      }
      response.setHeader('content-type', 'application/json').end('{}');
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, spans, resources, received: () => received };
}

// Each starts a process and stops it.
vi.setConfig({ testTimeout: 120_000 });

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const PARENT = '00f067aa0ba902b7';

/** The names of all modules that a process had loaded when it ended, by V8's own record of what it ran. */
async function modulesOf(
  start: (environment: Record<string, string>) => Promise<Service>,
): Promise<readonly string[]> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-modules-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  const service = await start({ NODE_V8_COVERAGE: folder });
  await service.createKey();
  expect(await service.end('SIGTERM')).toBe(0);
  const [file = ''] = await readdir(folder);
  const { result } = z
    .object({ result: z.array(z.object({ url: z.string() })) })
    .parse(JSON.parse(await readFile(join(folder, file), 'utf8')));
  return result.map(({ url }) => url);
}

test('a request, its handler and its statements are spans of one trace, which is that of the caller', async () => {
  const collector = await startCollector();
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/` },
  });
  const { status } = await service.post(
    '/v1/api-keys',
    { workspace_id: 'ws_acme', name: 'Traced' },
    {
      headers: {
        traceparent: `00-${TRACE}-${PARENT}-01`,
        tracestate: 'vendor=kept',
        'x-request-id': 'traced-1',
      },
    },
  );
  expect(status).toBe(201);
  await service.get('/v1/nowhere');
  expect(await service.end('SIGTERM')).toBe(0);

  const spans = collector.spans.filter(({ traceId }) => traceId === TRACE);
  const [request] = spans.filter(({ name }) => name === 'POST /v1/api-keys');
  expect(request).toMatchObject({
    parentSpanId: PARENT,
    traceState: 'vendor=kept',
    kind: 2,
    attributes: {
      'http.request.method': 'POST',
      'http.route': '/v1/api-keys',
      'http.response.status_code': 201,
      'claviger.request_id': 'traced-1',
    },
  });
  const [handler] = spans.filter(({ name }) => name === 'handler');
  expect(handler?.parentSpanId).toBe(request?.spanId);
  const statements = spans.filter(({ attributes }) => attributes['db.system.name'] === 'postgresql');
  expect(statements.map(({ attributes }) => attributes['db.query.text'])).toEqual(
    expect.arrayContaining([expect.stringMatching(/^BEGIN/), expect.stringMatching(/^insert/i), 'COMMIT']),
  );
  const ids = new Set(spans.map(({ spanId }) => spanId));
  for (const { parentSpanId } of statements) expect(ids).toContain(parentSpanId);
  // Another request is another trace.
  const other = collector.spans.find(({ name }) => name === 'GET none');
  expect(other?.traceId).not.toBe(TRACE);
  expect(collector.resources[0]).toMatchObject({ 'service.name': 'claviger' });
});

test('an introspection is a span too, and so is what it has to read', async () => {
  const collector = await startCollector();
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url },
  });
  const { token } = await service.createKey();
  await service.introspect(token, {}, { headers: { traceparent: `00-${TRACE}-${PARENT}-01` } });
  expect(await service.end('SIGTERM')).toBe(0);
  const spans = collector.spans.filter(({ traceId }) => traceId === TRACE);
  const [request] = spans.filter(({ name }) => name === 'POST /v1/introspect');
  expect(request).toMatchObject({ parentSpanId: PARENT, attributes: { 'http.response.status_code': 200 } });
  const ids = new Set(spans.map(({ spanId }) => spanId));
  const [read] = spans.filter(({ attributes }) =>
    /^select .*"api_keys"/.test(String(attributes['db.query.text'])),
  );
  expect(ids).toContain(read?.parentSpanId);
});

test('the context is passed on to PostgreSQL, which shows it with the statement', async () => {
  const collector = await startCollector();
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url },
  });
  const { id } = await service.createKey();
  const [{ pid = 0 } = {}] = await database.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  const shown = () =>
    database.query<{ query: string }>(
      `SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> ${pid} AND query LIKE '%${TRACE}%'`,
    );
  expect(await shown()).toEqual([]);
  await service.get(`/v1/api-keys/${id}/usage`, { headers: { traceparent: `00-${TRACE}-${PARENT}-01` } });
  const [{ query } = { query: '' }] = await shown();
  expect(query).toMatch(new RegExp(`/\\*traceparent='00-${TRACE}-[0-9a-f]{16}-01'\\*/$`));
});

test('what goes on after a request has ended is no part of its trace', async () => {
  const collector = await startCollector();
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url },
  });
  const { token } = await service.createKey();
  await service.introspect(token);
  await expect
    .poll(async () => (await database.query('SELECT 1 FROM usage')).length, { timeout: 10_000 })
    .toBeGreaterThan(0);
  expect(await service.end('SIGTERM')).toBe(0);
  const statements = collector.spans.map(({ attributes }) => String(attributes['db.query.text'] ?? ''));
  expect(statements.some((statement) => statement.includes('api_keys'))).toBe(true);
  expect(statements.filter((statement) => /\busage\b/.test(statement))).toEqual([]);
});

test('no span holds a token, wherever one was sent', async () => {
  const collector = await startCollector();
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url },
  });
  const { id, token } = await service.createKey();
  await service.introspect(token);
  await service.introspect(`${token}x`);
  for (const path of [
    `/v1/api-keys/${token}`,
    `/${token}`,
    `/v1/api-keys?cursor=${token}`,
    `/docs/${token}`,
  ]) {
    for (const method of ['GET', 'POST', 'DELETE', 'PATCH']) await service.send(method, path);
  }
  for (const name of [
    'user-agent',
    'referer',
    'x-request-id',
    'traceparent',
    'tracestate',
    'baggage',
    'cookie',
  ]) {
    await service.get('/v1/me', { headers: { [name]: token } });
  }
  await service.get('/v1/me', {
    headers: { traceparent: `00-${TRACE}-${PARENT}-01`, tracestate: `vendor=${token}` },
  });
  await service.get('/v1/me', { as: token });
  await service.post('/v1/api-keys', { workspace_id: 'ws_acme', name: token, [token]: token });
  await service.post('/v1/api-keys', { workspace_id: 'ws_acme', name: 'x', metadata: { note: token } });
  await service.patch(`/v1/api-keys/${id}`, { metadata: { note: token } });
  await service.send('POST', '/v1/introspect', { body: `{"key":"${token}` });
  // A fault of the database, whose message quotes the row.
  await database.query(
    "ALTER TABLE api_keys ADD CONSTRAINT never CHECK (metadata::text NOT LIKE '%never%') NOT VALID",
  );
  const refused = await service.post('/v1/api-keys', {
    workspace_id: 'ws_acme',
    name: 'x',
    metadata: { never: true },
  });
  expect(refused.status).toBe(503);
  expect(await service.end('SIGTERM')).toBe(0);

  expect(collector.spans.length).toBeGreaterThan(60);
  expect(collector.spans.some(({ traceId }) => traceId === TRACE)).toBe(true);
  expect(findPiece(`before ${token} after`, [token])).toBeDefined();
  expect(findPiece(collector.received(), [token])).toBeUndefined();
  expect(collector.received()).not.toMatch(/\$argon2|argon2id\$/);
  // All that a span says is on the list.
  expect(new Set(collector.spans.flatMap(({ attributes }) => Object.keys(attributes)))).not.toContain(
    'url.path',
  );
});

test('OTEL_TRACES_SAMPLER_ARG=0 keeps only traces that their caller keeps', async () => {
  const collector = await startCollector();
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_TRACES_SAMPLER_ARG: '0' },
  });
  await service.get('/v1/me');
  await service.get('/v1/me', { headers: { traceparent: `00-${TRACE}-${PARENT}-01` } });
  expect(await service.end('SIGTERM')).toBe(0);
  expect(new Set(collector.spans.map(({ traceId }) => traceId))).toEqual(new Set([TRACE]));
});

test('a collector that is away is told of once, and no request waits for it', async () => {
  const database = await databaseOfTest({ empty: true });
  const service = await startService({
    database,
    environment: { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:1', OTEL_EXPORTER_OTLP_TIMEOUT: '200' },
  });
  for (let times = 0; times < 20; times++) expect((await service.get('/v1/me')).status).toBe(200);
  expect(await service.end('SIGTERM')).toBe(0);
  const told = service
    .output()
    .stderr.split('\n')
    .filter((line) => line.includes('traces cannot be exported'));
  expect(told.length).toBeLessThanOrEqual(1);
});

test('without OTEL_EXPORTER_OTLP_ENDPOINT nothing that makes traces is loaded', async () => {
  const start = (environment: Record<string, string>) => async (more: Record<string, string>) =>
    startService({
      database: await databaseOfTest({ empty: true }),
      environment: { ...environment, ...more },
    });
  const loaded = await modulesOf(start({}));
  expect(loaded.some((url) => url.includes('/dist/server.js'))).toBe(true);
  // Of OpenTelemetry's packages prom-client brings the interfaces, whether or not there are traces.
  const ofTracing = (url: string) =>
    /\/@opentelemetry\/(?!api\/)|\/@fastify\/otel\/|\/dist\/tracing\.js$/.test(url);
  expect(loaded.filter(ofTracing)).toEqual([]);

  const collector = await startCollector();
  const traced = await modulesOf(start({ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url }));
  for (const part of ['/@opentelemetry/sdk-trace/', '/@fastify/otel/', '/dist/tracing.js']) {
    expect(traced.some((url) => ofTracing(url) && url.includes(part))).toBe(true);
  }
});
