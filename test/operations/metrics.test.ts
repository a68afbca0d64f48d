import { expect, test } from 'vitest';
import { appOfTest, type TestApp } from '../support/app.ts';

async function readMetrics(app: TestApp): Promise<Map<string, number>> {
  const { status, headers, text } = await app.get('/metrics', { as: null });
  expect(status).toBe(200);
  expect(headers['content-type']).toMatch(/^text\/plain/);
  const samples = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    samples.map((line) => [
      line.slice(0, line.lastIndexOf(' ')),
      Number(line.slice(line.lastIndexOf(' ') + 1)),
    ]),
  );
}

test('every metric is named claviger_…', async () => {
  const metrics = await readMetrics(await appOfTest());
  expect(metrics.size).toBeGreaterThan(20);
  expect([...metrics.keys()].filter((name) => !name.startsWith('claviger_'))).toEqual([]);
});

test('lookups and proofs are counted by where they came from', async () => {
  const app = await appOfTest();
  const { token } = await app.createKey();
  const before = await readMetrics(app);
  await app.introspect(token);
  await app.introspect(token);
  await app.introspect('no token at all');
  const after = await readMetrics(app);
  const grown = (name: string) => (after.get(name) ?? 0) - (before.get(name) ?? 0);
  // Each request looks up its caller too, which is warm by now.
  expect(grown('claviger_lookups_total{way="memory"}')).toBe(3 + 1);
  expect(grown('claviger_lookups_total{way="database"}')).toBe(1);
  expect(grown('claviger_lookups_total{way="unminted"}')).toBe(1);
  expect(grown('claviger_proofs_total{by="argon2"}')).toBe(1);
  expect(grown('claviger_argon2_seconds_count')).toBe(1);
  expect(grown('claviger_cached_keys')).toBe(1);
});

test('changes are counted with the time they waited', async () => {
  const app = await appOfTest();
  const { id } = await app.createKey();
  await app.delete(`/v1/api-keys/${id}`);
  const metrics = await readMetrics(app);
  expect(metrics.get('claviger_change_wait_seconds_count')).toBe(1);
  expect(metrics.get('claviger_fences_total')).toBe(0);
  expect(metrics.get('claviger_leased')).toBe(1);
  expect(metrics.get('claviger_lease_age_seconds')).toBeGreaterThanOrEqual(0);
  expect(metrics.get('claviger_registrations_total')).toBe(1);
});

test('introspections are counted by what they came to, and the writing of usage is told of', async () => {
  const app = await appOfTest();
  const { token } = await app.createKey();
  await app.introspect(token);
  await app.introspect(token, { scopes: ['write'] });
  await app.introspect('no token at all');
  const metrics = await readMetrics(app);
  expect(metrics.get('claviger_introspections_total{outcome="active"}')).toBe(1);
  expect(metrics.get('claviger_introspections_total{outcome="insufficient_scope"}')).toBe(1);
  expect(metrics.get('claviger_introspections_total{outcome="invalid"}')).toBe(1);
  expect(metrics.get('claviger_introspections_total{outcome="revoked"}')).toBe(0);
  expect(metrics.get('claviger_usage_flush_failures_total')).toBe(0);
  expect(metrics.get('claviger_usage_dropped_total')).toBe(0);
  await expect
    .poll(
      async () => {
        const later = await readMetrics(app);
        return [later.get('claviger_usage_pending'), later.get('claviger_usage_flush_seconds_count')];
      },
      { timeout: 10_000 },
    )
    .toEqual([0, expect.toSatisfy((flushes: number) => flushes >= 1)]);
});

test('metrics name no key, no workspace and no token', async () => {
  const app = await appOfTest();
  const { id, token } = await app.createKey({ workspace_id: 'ws_unmistakable' });
  await app.introspect(token);
  await app.delete(`/v1/api-keys/${id}`);
  const { text } = await app.get('/metrics', { as: null });
  expect(text).not.toContain('ws_unmistakable');
  expect(text).not.toContain(id);
  expect(text).not.toContain(token.slice(8, 28));
});

test('requests are counted and timed by route, method and status', async () => {
  const app = await appOfTest();
  const { id } = await app.createKey();
  await app.get(`/v1/api-keys/${id}`);
  // Its answer has a content type and no body, which the client would look at.
  await app.app.inject({
    method: 'HEAD',
    url: `/v1/api-keys/${id}`,
    headers: { 'x-api-key': app.adminToken },
  });
  await app.get(`/v1/api-keys/key_00000000000000000000000000`);
  await app.get('/v1/nowhere');
  await app.get('/v1/api-keys/%zz');
  const metrics = await readMetrics(app);
  const requests = (method: string, route: string, status: string) =>
    metrics.get(`claviger_http_requests_total{method="${method}",route="${route}",status="${status}"}`);
  expect(requests('POST', '/v1/api-keys', '201')).toBe(1);
  expect(requests('GET', '/v1/api-keys/:id', '200')).toBe(2);
  expect(requests('GET', '/v1/api-keys/:id', '404')).toBe(1);
  // What a route has not answered yet is not there, but for the one status that is Claviger's own fault.
  expect(requests('GET', '/v1/api-keys/:id', '403')).toBeUndefined();
  expect(requests('GET', '/v1/api-keys/:id', '503')).toBe(0);
  expect(requests('*', 'none', '404')).toBe(1);
  expect(requests('*', 'none', '400')).toBe(1);
  const buckets = [...metrics].filter(([name]) =>
    name.startsWith('claviger_http_request_seconds_bucket{method="GET",route="/v1/api-keys/:id"'),
  );
  expect(buckets.map(([, count]) => count)).toEqual(buckets.map(([, count]) => count).toSorted());
  expect(buckets.at(-1)).toEqual([expect.stringContaining('le="+Inf"'), 3]);
  const labels = 'method="GET",route="/v1/api-keys/:id"';
  expect(metrics.get(`claviger_http_request_seconds_count{${labels}}`)).toBe(3);
  const seconds = metrics.get(`claviger_http_request_seconds_sum{${labels}}`) ?? 0;
  expect(seconds).toBeGreaterThan(0);
  expect(seconds).toBeLessThan(30);
});

test('problems are counted by their code', async () => {
  const app = await appOfTest();
  await app.get('/v1/nowhere');
  await app.get('/v1/me', { as: null });
  await app.get('/v1/api-keys?limit=0');
  const metrics = await readMetrics(app);
  expect(metrics.get('claviger_problems_total{code="not_found"}')).toBe(1);
  expect(metrics.get('claviger_problems_total{code="unauthorized"}')).toBe(1);
  expect(metrics.get('claviger_problems_total{code="invalid_request"}')).toBe(1);
  expect(metrics.get('claviger_problems_total{code="overloaded"}')).toBe(0);
});

test('the database is watched: its pool, the wait for a connection, reads, transactions, and failures', async () => {
  const app = await appOfTest();
  const before = await readMetrics(app);
  const { id } = await app.createKey();
  await app.get(`/v1/api-keys/${id}`);
  const after = await readMetrics(app);
  const grown = (name: string) => (after.get(name) ?? 0) - (before.get(name) ?? 0);
  expect(grown('claviger_database_seconds_count{kind="transaction"}')).toBeGreaterThanOrEqual(1);
  expect(grown('claviger_database_seconds_count{kind="read"}')).toBeGreaterThanOrEqual(1);
  expect(grown('claviger_database_wait_seconds_count')).toBeGreaterThanOrEqual(2);
  expect(after.get('claviger_database_connections_max')).toBe(4);
  expect(after.get('claviger_database_connections{state="idle"}')).toBeGreaterThanOrEqual(1);
  expect(after.get('claviger_database_waiting')).toBe(0);
  expect(after.get('claviger_database_failures_total{reason="refused"}')).toBe(0);

  await app.database.query("ALTER TABLE api_keys ADD CONSTRAINT never CHECK (name <> 'never') NOT VALID");
  expect((await app.post('/v1/api-keys', { workspace_id: 'ws_acme', name: 'never' })).status).toBe(503);
  const refused = await readMetrics(app);
  expect(refused.get('claviger_database_failures_total{reason="refused"}')).toBe(1);
  expect(refused.get('claviger_database_failures_total{reason="unavailable"}')).toBe(0);
  expect(refused.get('claviger_problems_total{code="unavailable"}')).toBe(1);
});

test('requests with an Idempotency-Key are counted by whether they were done or replayed', async () => {
  const app = await appOfTest();
  const once = { headers: { 'idempotency-key': 'once' } };
  for (let times = 0; times < 3; times++) {
    await app.post('/v1/api-keys', { workspace_id: 'ws_acme', name: 'Once' }, once);
  }
  const metrics = await readMetrics(app);
  expect(metrics.get('claviger_idempotent_requests_total{as="done"}')).toBe(1);
  expect(metrics.get('claviger_idempotent_requests_total{as="replayed"}')).toBe(2);
  expect(metrics.get('claviger_idempotent_requests_running')).toBe(0);
});

test('memory that is too small tells what it forgets', async () => {
  const app = await appOfTest({ CACHED_KEYS: '2' });
  for (let times = 0; times < 3; times++) await app.introspect((await app.createKey()).token);
  const metrics = await readMetrics(app);
  expect(metrics.get('claviger_cached_keys_max')).toBe(2);
  expect(metrics.get('claviger_cached_keys')).toBe(2);
  // The caller's key is looked up by every request, so that it is always among the two.
  expect(metrics.get('claviger_cache_evictions_total')).toBe(2);
});

test('METRICS_ENABLED=off takes the route away', async () => {
  const app = await appOfTest({ METRICS_ENABLED: 'off' });
  expect((await app.get('/metrics', { as: null })).body).toMatchObject({ status: 404, code: 'not_found' });
});

test('/readyz tells the age of the lease', async () => {
  const app = await appOfTest({ LEASE_SECONDS: '30' });
  const { body } = await app.get('/readyz', { as: null });
  expect(body).toEqual({ status: 'ready', lease_age_ms: expect.any(Number) });
  expect(body.lease_age_ms).toBeLessThan(30_000);
});

test('uses of limited keys are counted by what decided them, and the statements that fetched their quota', async () => {
  const app = await appOfTest();
  const { token } = await app.createKey({ rate_limit: { limit: 2, window_seconds: 2_678_400 } });
  for (let times = 0; times < 4; times++) await app.introspect(token);
  await app.introspect((await app.createKey({ rate_limit: null })).token);
  const metrics = await readMetrics(app);
  expect(metrics.get('claviger_rate_limit_charges_total{by="fetched"}')).toBe(2);
  expect(metrics.get('claviger_rate_limit_charges_total{by="refused"}')).toBe(2);
  expect(metrics.get('claviger_rate_limit_charges_total{by="memory"}')).toBe(0);
  // A first use makes its counter and asks again. The last one found the limit spent; what came after asked nobody.
  expect(metrics.get('claviger_rate_limit_statement_seconds_count')).toBe(4);
  expect(metrics.get('claviger_rate_limit_counters_total')).toBe(4);
  expect(metrics.get('claviger_rate_limit_waiting')).toBe(0);
  expect(metrics.get('claviger_rate_limit_outage')).toBe(0);
});
