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
  // The last one found the limit spent; what came after it asked nobody.
  expect(metrics.get('claviger_rate_limit_statement_seconds_count')).toBe(3);
  expect(metrics.get('claviger_rate_limit_counters_total')).toBe(3);
  expect(metrics.get('claviger_rate_limit_waiting')).toBe(0);
  expect(metrics.get('claviger_rate_limit_outage')).toBe(0);
});
