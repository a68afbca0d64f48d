import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { createTestApp, type TestApp } from '../support/app.ts';

let app: TestApp;
let service: { id: string; token: string };
beforeAll(async () => {
  app = await createTestApp({ TRUSTED_PROXY_CIDRS: '127.0.0.1' });
  service = await app.createServiceKey(['keys:read', 'keys:write', 'introspect'], { name: 'the dashboard' });
});
afterAll(() => app.close());

interface Event {
  action: string;
  at: Date;
  actor_key_id: string | null;
  workspace_id: string;
  key_id: string | null;
  before: unknown;
  after: unknown;
  address: string | null;
  request_id: string | null;
}

function eventsOf(workspace: string): Promise<Event[]> {
  return app.database.query<Event & Record<string, unknown>>(
    'SELECT * FROM audit_events WHERE workspace_id = $1 ORDER BY at, id',
    [workspace],
  );
}

/** As the dashboard, from its own address, in a request of this name. */
function from(requestId: string) {
  return {
    as: service.token,
    headers: { 'x-request-id': requestId, 'x-forwarded-for': '198.51.100.7' },
  };
}

const SETTINGS = {
  name: 'Before',
  scopes: ['read'],
  created_by: 'usr_1',
  restrictions: { allowed_ips: ['10.0.0.1'], allowed_endpoints: [{ path: '/a' }] },
  rate_limit: { limit: 10, window_seconds: 60 },
  metadata: { team: 'data', kept: 1 },
};

describe('an audit event', () => {
  test('is written for each change of a key: who, from where, in which request, what it was and became', async () => {
    const workspace_id = 'ws_audit';
    const { id } = await app.createKey({ workspace_id, ...SETTINGS }, from('req-create'));
    await app.patch(
      `/v1/api-keys/${id}`,
      { name: 'After', scopes: ['read'], metadata: { team: null }, expires_at: '2999-01-01T00:00:00Z' },
      from('req-patch'),
    );
    const revoked = await app.delete(`/v1/api-keys/${id}`, { reason: 'leaked' }, from('req-revoke'));

    const common = {
      actor_key_id: keyIdToUuid(service.id),
      workspace_id,
      key_id: keyIdToUuid(id),
      address: '198.51.100.7',
    };
    const events = await eventsOf(workspace_id);
    expect(events).toMatchObject([
      { ...common, action: 'key.created', request_id: 'req-create' },
      { ...common, action: 'key.updated', request_id: 'req-patch' },
      { ...common, action: 'key.revoked', request_id: 'req-revoke' },
    ]);
    const [created, updated, ended] = events;
    expect(created?.before).toBeNull();
    expect(created?.after).toMatchObject({ ...SETTINGS, environment: 'live', expires_at: null });
    // Of a change just the members that changed: the scopes were named, and were so already.
    expect(updated?.before).toEqual({
      name: 'Before',
      metadata: { team: 'data', kept: 1 },
      expires_at: null,
    });
    expect(updated?.after).toEqual({
      name: 'After',
      metadata: { kept: 1 },
      expires_at: '2999-01-01T00:00:00.000Z',
    });
    expect(ended?.before).toMatchObject({ revoked_at: null });
    expect(ended?.after).toEqual({ revoked_at: revoked.body.data.revoked_at, revoked_reason: 'leaked' });
    expect(ended?.at.toISOString()).toBe(revoked.body.data.revoked_at);
  });

  test('names restrictions only where one of them changed', async () => {
    const workspace_id = 'ws_audit_restrictions';
    const { id } = await app.createKey({ workspace_id, ...SETTINGS }, from('req-create'));
    await app.patch(
      `/v1/api-keys/${id}`,
      { name: 'After', restrictions: SETTINGS.restrictions, metadata: { team: 'data' } },
      from('req-name'),
    );
    await app.patch(`/v1/api-keys/${id}`, { restrictions: { allowed_ips: ['10.0.0.2'] } }, from('req-ips'));
    const [, name, ips] = await eventsOf(workspace_id);
    expect([name?.before, name?.after]).toEqual([{ name: 'Before' }, { name: 'After' }]);
    expect(Object.keys(ips?.after ?? {})).toEqual(['restrictions']);
    expect(ips?.before).toMatchObject({ restrictions: { allowed_ips: ['10.0.0.1'] } });
    expect(ips?.after).toMatchObject({
      restrictions: { allowed_ips: ['10.0.0.2'], allowed_endpoints: [{ path: '/a' }] },
    });
  });

  test('is one for a bulk revocation, with its filters and its count', async () => {
    const workspace_id = 'ws_audit_bulk';
    for (const created_by of ['usr_1', 'usr_1', 'usr_2']) await app.createKey({ workspace_id, created_by });
    await app.post(
      `/v1/workspaces/${workspace_id}/revoke-keys`,
      { reason: 'left', created_by: 'usr_1' },
      from('req-bulk'),
    );
    const events = (await eventsOf(workspace_id)).filter(({ action }) => action !== 'key.created');
    expect(events).toMatchObject([
      {
        action: 'workspace.keys_revoked',
        actor_key_id: keyIdToUuid(service.id),
        key_id: null,
        before: null,
        after: { revoked: 2, reason: 'left', environment: null, created_by: 'usr_1' },
        address: '198.51.100.7',
        request_id: 'req-bulk',
      },
    ]);
  });

  test('is not written for what changed nothing: refusals, repeats, reading', async () => {
    const workspace_id = 'ws_audit_quiet';
    const { id, token } = await app.createKey({ workspace_id }, from('req-create'));
    await app.patch(`/v1/api-keys/${id}`, { name: '' }, from('req-1'));
    await app.patch(`/v1/api-keys/${id}`, {}, from('req-2'));
    await app.get(`/v1/api-keys/${id}`, from('req-3'));
    await app.introspect(token, {}, from('req-4'));
    await app.delete(`/v1/api-keys/${id}`, undefined, from('req-5'));
    await app.delete(`/v1/api-keys/${id}`, undefined, from('req-6'));
    await app.patch(`/v1/api-keys/${id}`, { name: 'x' }, from('req-7'));
    await app.post('/v1/api-keys', { workspace_id }, from('req-8'));
    const events = await eventsOf(workspace_id);
    expect(events.map(({ request_id }) => request_id)).toEqual(['req-create', 'req-5']);
  });

  test('of an operator at the command line has neither actor nor address nor request', async () => {
    const events = await eventsOf('system');
    expect(events[0]).toMatchObject({
      action: 'key.created',
      actor_key_id: null,
      address: null,
      request_id: null,
    });
  });

  test('holds no token, no hash and no piece of either', async () => {
    const workspace_id = 'ws_audit_secret';
    const tokens = [];
    for (let count = 0; count < 3; count++) {
      const { id, token } = await app.createKey({ workspace_id, ...SETTINGS });
      tokens.push(token);
      await app.introspect(token);
      await app.patch(`/v1/api-keys/${id}`, { name: `After ${count}` });
      await app.delete(`/v1/api-keys/${id}`);
    }
    const events = await app.database.query<{ line: string }>(
      'SELECT audit_events::text AS line FROM audit_events',
    );
    const written = events.map(({ line }) => line).join('\n');
    expect(written).toContain('After 2');
    expect(written).not.toContain('argon2');
    for (const token of tokens) {
      // Its first 8 characters are its prefix, which is no secret.
      for (let at = 8; at + 12 <= token.length; at++) expect(written).not.toContain(token.slice(at, at + 12));
    }
    const hashes = await app.database.query<{ hash: string }>('SELECT hash FROM api_keys');
    for (const { hash } of hashes) expect(written).not.toContain(hash.slice(-20));
  });
});
