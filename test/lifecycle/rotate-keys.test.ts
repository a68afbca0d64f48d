import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import { expectProblem } from '../http/problem.ts';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer, SendOptions } from '../support/client.ts';

const DAY_SECONDS = 86_400;
const ROUNDS = 30;

let app: TestApp;
beforeAll(async () => {
  app = await createTestApp({ DATABASE_POOL_SIZE: '8' });
});
afterAll(() => app.close());

function rotate(id: string, graceSeconds?: number, options?: SendOptions): Promise<Answer> {
  const body = graceSeconds === undefined ? undefined : { grace_period_seconds: graceSeconds };
  return app.post(`/v1/api-keys/${id}/rotate`, body, options);
}

async function rotated(
  id: string,
  graceSeconds?: number,
): Promise<{ id: string; key: string } & Answer['body']> {
  const answer = await rotate(id, graceSeconds);
  expect(answer.status, answer.text).toBe(201);
  return answer.body.data;
}

async function shown(id: string): Promise<Answer['body']> {
  return (await app.get(`/v1/api-keys/${id}`)).body.data;
}

async function verdictOn(token: string): Promise<string> {
  const { body } = await app.introspect(token);
  return body.active ? 'active' : body.reason.code;
}

/** Lets a key's grace period pass, as time would. */
async function expire(id: string): Promise<void> {
  await app.database.query("UPDATE api_keys SET expires_at = now() - interval '1 ms' WHERE id = $1", [
    keyIdToUuid(id),
  ]);
  // By hand is beside the protocol: any change of the key makes it hold.
  expectProblem(await app.patch(`/v1/api-keys/${id}`, { name: 'x' }), 'key_not_active');
  await app.database.query(
    "SELECT pg_notify('claviger_changes', gen_random_uuid() || ' - key ' || $1::text)",
    [id],
  );
}

async function putLimits(id: string, limits: Record<string, unknown>): Promise<void> {
  const { status, text } = await app.put(`/v1/workspaces/${id}`, { limits });
  expect(status, text).toBe(200);
}

const SETTINGS = {
  workspace_id: 'ws_rotated',
  name: 'Production data warehouse',
  environment: 'test',
  scopes: ['read', 'validate:offers'],
  expires_at: '2999-12-31T23:59:59.999Z',
  restrictions: {
    allowed_ips: ['203.0.113.0/24'],
    allowed_referrers: null,
    allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
  },
  rate_limit: { limit: 5, window_seconds: 60 },
  metadata: { team: 'data' },
  created_by: 'usr_42',
};

describe('rotating a key', () => {
  test('answers with a successor of the same settings, its token, and how the change spread', async () => {
    const { id, token, data } = await app.createKey(SETTINGS);
    const answer = await rotate(id, 3600);
    expect(answer.status).toBe(201);
    const { key, ...successor } = answer.body.data;
    expect(answer.body).toEqual({
      success: true,
      data: {
        ...data,
        ...SETTINGS,
        id: expect.stringMatching(/^key_/),
        key: expect.stringMatching(/^ck_test_[0-9A-Za-z]{66}$/),
        hint: `ck_test_…${key.slice(-4)}`,
        created_at: expect.any(String),
        rotation_due_at: new Date(Date.parse(successor.created_at) + 90 * DAY_SECONDS * 1000).toISOString(),
        rotated_from: id,
        rotated_to: null,
      },
      propagation: { instances: 1, confirmed: 1, fenced: 0, waited_ms: expect.any(Number) },
    });
    expect(successor.id).not.toBe(id);
    expect(key).not.toBe(token);
    expect(Date.parse(successor.created_at)).toBeGreaterThanOrEqual(Date.parse(data.created_at));
    expect(await shown(successor.id)).toEqual(successor);
  });

  test('leaves both tokens good for the grace period; afterwards the old one has expired', async () => {
    const { id, token } = await app.createKey();
    const before = Date.now();
    const successor = await rotated(id, 3600);
    const old = await shown(id);
    expect(old).toMatchObject({ status: 'active', rotated_from: null, rotated_to: successor.id });
    expect(Date.parse(old.expires_at)).toBeGreaterThanOrEqual(before + 3_600_000 - 1_000);
    expect(Date.parse(old.expires_at)).toBeLessThanOrEqual(Date.now() + 3_600_000 + 1_000);
    expect(await verdictOn(token)).toBe('active');
    expect(await verdictOn(successor.key)).toBe('active');
    await expire(id);
    await expect.poll(() => verdictOn(token)).toBe('expired');
    expect(await verdictOn(successor.key)).toBe('active');
    expect((await shown(id)).status).toBe('expired');
  });

  test('gives a day where nothing is said, and takes up to thirty', async () => {
    for (const [body, seconds] of [
      [undefined, DAY_SECONDS],
      ['', DAY_SECONDS],
      ['null', DAY_SECONDS],
      [{}, DAY_SECONDS],
      [{ grace_period_seconds: 1 }, 1],
      [{ grace_period_seconds: 30 * DAY_SECONDS }, 30 * DAY_SECONDS],
    ] as const) {
      const { id } = await app.createKey();
      const before = Date.now();
      const answer = await app.post(`/v1/api-keys/${id}/rotate`, body);
      expect(answer.status, answer.text).toBe(201);
      const grace = Date.parse((await shown(id)).expires_at) - before;
      expect(grace).toBeGreaterThanOrEqual(seconds * 1000 - 1_000);
      expect(grace).toBeLessThanOrEqual(seconds * 1000 + Date.now() - before + 1_000);
    }
  });

  test.each<[unknown, string]>([
    [{ grace_period_seconds: -1 }, 'grace_period_seconds'],
    [{ grace_period_seconds: 30 * DAY_SECONDS + 1 }, 'grace_period_seconds'],
    [{ grace_period_seconds: 0.5 }, 'grace_period_seconds'],
    [{ grace_period_seconds: '60' }, 'grace_period_seconds'],
    [{ grace_period_seconds: null }, 'grace_period_seconds'],
    [{ grace: 60 }, 'grace'],
    [{ name: 'Renamed' }, 'name'],
  ])('takes no other body: %j', async (body, path) => {
    const { id } = await app.createKey();
    const answer = await app.post(`/v1/api-keys/${id}/rotate`, body);
    expectProblem(answer, 'invalid_request');
    expect(answer.body.errors).toMatchObject([{ path }]);
    expect((await shown(id)).rotated_to).toBeNull();
  });

  test('without grace revokes the old key at once', async () => {
    const { id, token, data } = await app.createKey();
    expect(await verdictOn(token)).toBe('active');
    const successor = await rotated(id, 0);
    expect(await verdictOn(token)).toBe('revoked');
    expect(await verdictOn(successor.key)).toBe('active');
    expect(await shown(id)).toMatchObject({
      status: 'revoked',
      revoked_at: expect.any(String),
      revoked_reason: 'rotated',
      expires_at: data.expires_at,
      rotated_to: successor.id,
    });
  });

  test('never lets the old key live longer than it would have', async () => {
    const expires_at = new Date(Date.now() + 60_000).toISOString();
    const { id } = await app.createKey({ expires_at });
    const successor = await rotated(id, DAY_SECONDS);
    expect((await shown(id)).expires_at).toBe(expires_at);
    expect(successor.expires_at).toBe(expires_at);
  });

  test('makes chains', async () => {
    const first = await app.createKey();
    const second = await rotated(first.id);
    const third = await rotated(second.id);
    expect(await shown(first.id)).toMatchObject({ rotated_from: null, rotated_to: second.id });
    expect(await shown(second.id)).toMatchObject({ rotated_from: first.id, rotated_to: third.id });
    expect(await shown(third.id)).toMatchObject({ rotated_from: second.id, rotated_to: null });
    for (const token of [first.token, second.key, third.key]) expect(await verdictOn(token)).toBe('active');
  });

  test('of a key that is revoked, expired, or rotated already is refused, and says which', async () => {
    const revoked = await app.createKey();
    await app.delete(`/v1/api-keys/${revoked.id}`);
    const expired = await app.createKey();
    await expire(expired.id);
    const again = await app.createKey();
    const successor = await rotated(again.id);
    const atOnce = await app.createKey();
    const successorAtOnce = await rotated(atOnce.id, 0);
    for (const [{ id }, detail] of [
      [revoked, 'revoked'],
      [expired, 'expired'],
      [again, successor.id],
      [atOnce, successorAtOnce.id],
    ] as const) {
      const answer = await rotate(id);
      expectProblem(answer, 'key_not_active');
      expect(answer.body.detail).toContain(detail);
    }
    expect((await shown(again.id)).rotated_to).toBe(successor.id);
  });

  test('of what is no key is refused', async () => {
    for (const id of ['key_01jzzzzzzzzzzzzzzzzzzzzzzz', 'nonsense'])
      expectProblem(await rotate(id), 'not_found');
  });

  test('leaves successor and predecessor to themselves when one of them is revoked', async () => {
    const first = await app.createKey();
    const second = await rotated(first.id);
    const third = await rotated(second.id);
    await app.delete(`/v1/api-keys/${second.id}`);
    expect(await verdictOn(first.token)).toBe('active');
    expect(await verdictOn(second.key)).toBe('revoked');
    expect(await verdictOn(third.key)).toBe('active');
  });

  test('tells of both keys in audit events', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_rotation_audit', scopes: ['read'] });
    const successor = await rotated(id, 0);
    const events = await app.database.query(
      "SELECT action, key_id, before, after FROM audit_events WHERE workspace_id = 'ws_rotation_audit' ORDER BY action DESC, id",
    );
    const { revoked_at } = await shown(id);
    const nothing = { expires_at: null, revoked_at: null, revoked_reason: null, rotated_to: null };
    expect(events).toMatchObject([
      {
        action: 'key.rotated',
        key_id: keyIdToUuid(id),
        before: nothing,
        after: { ...nothing, revoked_at, revoked_reason: 'rotated', rotated_to: successor.id },
      },
      { action: 'key.created', key_id: keyIdToUuid(id) },
      {
        action: 'key.created',
        key_id: keyIdToUuid(successor.id),
        before: null,
        after: { scopes: ['read'], rotated_from: id },
      },
    ]);
  });

  test('shows the token in this one answer', async () => {
    const { id } = await app.createKey({ workspace_id: 'ws_rotation_secrecy' });
    const { id: successor, key } = await rotated(id);
    for (const { text } of [
      await app.get(`/v1/api-keys/${id}`),
      await app.get(`/v1/api-keys/${successor}`),
      await app.get('/v1/api-keys?workspace_id=ws_rotation_secrecy'),
      await rotate(id),
    ]) {
      expect(text).not.toContain(key.slice(8, 60));
    }
    expect(app.logLines.join('\n')).not.toContain(key.slice(8, 60));
    const [row] = await app.database.query<{ hash: string }>('SELECT hash FROM api_keys WHERE id = $1', [
      keyIdToUuid(successor),
    ]);
    expect(row?.hash).toMatch(/^\$argon2id\$v=19\$m=1024,t=1,p=1\$/);
  });

  test('is done once for an Idempotency-Key, and answered again with the same token', async () => {
    const { id } = await app.createKey();
    const headers = { 'idempotency-key': 'rotation-1' };
    const first = await rotate(id, 60, { headers });
    expect(first.status).toBe(201);
    const again = await rotate(id, 60, { headers });
    expect(again.status, again.text).toBe(201);
    expect(again.headers['idempotent-replayed']).toBe('true');
    expect(again.body).toEqual({ ...first.body, propagation: expect.objectContaining({ confirmed: 1 }) });
    expectProblem(await rotate(id, 61, { headers }), 'idempotency_mismatch');
    expectProblem(await rotate(id, 60), 'key_not_active');
  });
});

describe('a rotated key', () => {
  test('can be changed, but for living longer', async () => {
    const { id } = await app.createKey();
    await rotated(id, 3600);
    const { expires_at } = await shown(id);
    const patch = (body: object) => app.patch(`/v1/api-keys/${id}`, body);
    for (const later of [null, new Date(Date.parse(expires_at) + 1).toISOString(), '2999-01-01T00:00:00Z']) {
      const answer = await patch({ expires_at: later });
      expectProblem(answer, 'invalid_request');
      expect(answer.body.errors).toMatchObject([{ path: 'expires_at' }]);
    }
    expect((await patch({ name: 'Old', expires_at })).status).toBe(200);
    const sooner = new Date(Date.parse(expires_at) - 1).toISOString();
    expect((await patch({ expires_at: sooner })).body.data).toMatchObject({
      name: 'Old',
      expires_at: sooner,
      rotated_to: expect.any(String),
    });
  });

  test('is not due for rotation, and its successor is not before its own time', async () => {
    const workspace_id = 'ws_rotation_due';
    const due = async () => {
      const { body } = await app.get(`/v1/api-keys?workspace_id=${workspace_id}&rotation_due=true`);
      return body.data.map((key: { id: string }) => key.id);
    };
    // A key made 91 days ago: its time is in its id.
    const { id: recent } = await app.createKey({ workspace_id });
    const [old] = await app.database.query<{ id: string }>(
      `INSERT INTO api_keys (id, workspace_id, environment, name, prefix, last_characters, hash, secret_id, scopes, created_at)
       SELECT (lpad(to_hex(made), 12, '0') || '7000a000000000000001')::uuid, workspace_id, environment, name, prefix,
         last_characters, hash, secret_id, scopes, to_timestamp(made / 1000.0)
       FROM api_keys, LATERAL (SELECT (extract(epoch FROM now()) * 1000)::bigint - 91 * 86400000::bigint AS made) AS key
       WHERE id = $1 RETURNING id`,
      [keyIdToUuid(recent)],
    );
    const [id] = await due();
    expect(keyIdToUuid(id)).toBe(old?.id);
    const successor = await rotated(id);
    expect(await due()).toEqual([]);
    expect(Date.parse((await shown(successor.id)).rotation_due_at)).toBeGreaterThan(Date.now());
  });
});

describe('a plan', () => {
  test('counts a rotated key and its successor once, for a chain too', async () => {
    const workspace_id = 'ws_rotation_count';
    await putLimits(workspace_id, { max_active_keys: 2 });
    const { id } = await app.createKey({ workspace_id });
    const second = await rotated(id);
    await rotated(second.id);
    await app.createKey({ workspace_id });
    expectProblem(await app.post('/v1/api-keys', { workspace_id, name: 'x' }), 'limit_reached');
  });

  test('counts a rotated key where its successor is not active', async () => {
    const workspace_id = 'ws_rotation_count_alone';
    await putLimits(workspace_id, { max_active_keys: 1 });
    const { id } = await app.createKey({ workspace_id });
    const successor = await rotated(id);
    await app.delete(`/v1/api-keys/${successor.id}`);
    const one = () => app.post('/v1/api-keys', { workspace_id, name: 'x' });
    expectProblem(await one(), 'limit_reached');
    await app.delete(`/v1/api-keys/${id}`);
    expect((await one()).status).toBe(201);
  });

  test('that is full does not stand in the way of a rotation', async () => {
    const workspace_id = 'ws_rotation_full';
    await putLimits(workspace_id, { max_active_keys: 1 });
    const { id } = await app.createKey({ workspace_id });
    const { id: next } = await rotated(id, 0);
    await rotated(next, 60);
  });

  test('without API keys lets none be rotated', async () => {
    const workspace_id = 'ws_rotation_none';
    const { id } = await app.createKey({ workspace_id });
    await putLimits(workspace_id, { max_active_keys: 0 });
    expectProblem(await rotate(id), 'limit_reached');
    expect((await shown(id)).rotated_to).toBeNull();
  });

  test('refuses a successor a scope that it does not allow any more, by name', async () => {
    const workspace_id = 'ws_rotation_scopes';
    const { id } = await app.createKey({ workspace_id, scopes: ['read', 'write'] });
    await putLimits(workspace_id, { allowed_scopes: ['read'] });
    const answer = await rotate(id);
    expectProblem(answer, 'limit_reached');
    expect(answer.body.detail).toContain('"write"');
    await app.patch(`/v1/api-keys/${id}`, { scopes: ['read'] });
    expect((await rotated(id)).scopes).toEqual(['read']);
  });

  test('lets a successor live no longer than it lets a new key', async () => {
    const workspace_id = 'ws_rotation_lifetime';
    const { id } = await app.createKey({ workspace_id });
    await putLimits(workspace_id, { max_key_lifetime_days: 30 });
    const { created_at, expires_at } = await rotated(id);
    expect(Date.parse(expires_at) - Date.parse(created_at)).toBe(30 * DAY_SECONDS * 1000);
  });
});

describe('a caller', () => {
  test('rotates the keys of its own workspaces, and sees no other', async () => {
    const { token: as } = await app.createServiceKey(['keys:write'], {
      restrictions: { allowed_workspaces: ['ws_rotation_bound'] },
    });
    const own = await app.createKey({ workspace_id: 'ws_rotation_bound' });
    const other = await app.createKey();
    expect((await rotate(own.id, 60, { as })).status).toBe(201);
    expectProblem(await rotate(other.id, 60, { as }), 'not_found');
    expect((await shown(other.id)).rotated_to).toBeNull();
  });

  test('rotates a service key only as an admin, and none that may do more than itself', async () => {
    const service = await app.createServiceKey(['introspect']);
    const { token: writer } = await app.createServiceKey(['keys:write', 'introspect']);
    expectProblem(await rotate(service.id, 60, { as: writer }), 'not_found');
    const { token: here } = await app.createServiceKey(['admin'], {
      restrictions: { allowed_ips: ['127.0.0.1'] },
    });
    expectProblem(await rotate(service.id, 60, { as: here }), 'forbidden');
    const answer = await rotate(service.id, 60);
    expect(answer.body.data).toMatchObject({ environment: 'svc', scopes: ['introspect'] });
    expect((await app.get('/v1/me', { as: answer.body.data.key })).status).toBe(200);
    expect((await app.get('/v1/me', { as: service.token })).status).toBe(200);
  });

  test('may rotate the last admin key, itself, at once: its successor is an admin', async () => {
    const alone = await appOfTest();
    const { id } = (await alone.get('/v1/me')).body.data;
    const answer = await alone.post(`/v1/api-keys/${id}/rotate`, { grace_period_seconds: 0 });
    expect(answer.status, answer.text).toBe(201);
    expectProblem(await alone.get('/v1/me'), 'unauthorized');
    const as = answer.body.data.key;
    expect((await alone.get('/v1/me', { as })).body.data.permissions).toEqual(['admin']);
    expectProblem(await alone.delete(`/v1/api-keys/${answer.body.data.id}`, undefined, { as }), 'last_admin');
  });
});

describe('at the same time', () => {
  test('two rotations of one key make one successor, and the other is refused', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const { id } = await app.createKey({ workspace_id: `ws_twice_${round}` });
      const answers = await Promise.all([
        rotate(id, round % 2 === 0 ? 60 : 0),
        rotate(id, 60),
        rotate(id, 0),
      ]);
      const made = answers.filter(({ status }) => status === 201);
      expect(made).toHaveLength(1);
      for (const answer of answers) if (answer.status !== 201) expectProblem(answer, 'key_not_active');
      const { body } = await app.get(`/v1/api-keys?workspace_id=ws_twice_${round}`);
      expect(body.data.map((key: { id: string }) => key.id).sort()).toEqual(
        [id, made[0]?.body.data.id].sort(),
      );
      expect((await shown(id)).rotated_to).toBe(made[0]?.body.data.id);
    }
  });

  test('a bulk revocation misses neither a key nor the successor that it is given beside it', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const workspace_id = `ws_bulk_${round}`;
      const { id, token } = await app.createKey({ workspace_id, created_by: 'usr_1' });
      // The rotation hashes before it begins: now the one is first, now the other.
      const later = new Promise((resolve) => setTimeout(resolve, round % 15));
      const [rotation, bulk] = await Promise.all([
        rotate(id, 60),
        later.then(() => app.post(`/v1/workspaces/${workspace_id}/revoke-keys`, { created_by: 'usr_1' })),
      ]);
      expect(bulk.status).toBe(200);
      if (rotation.status === 201 && bulk.body.data.revoked === 2) {
        expect(await verdictOn(rotation.body.data.key)).toBe('revoked');
      } else if (rotation.status === 409) expect(bulk.body.data.revoked).toBe(1);
      else throw new Error(`a key escaped: ${rotation.text} ${bulk.text}`);
      expect(await verdictOn(token)).toBe('revoked');
      const { body } = await app.get(`/v1/api-keys?workspace_id=${workspace_id}&status=active`);
      expect(body.data).toEqual([]);
    }
  });

  test('a rotation and a PATCH of one key follow one another: the successor has what the key had', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const { id } = await app.createKey({ scopes: ['read'] });
      const [rotation, patch] = await Promise.all([
        rotate(id, 60),
        app.patch(`/v1/api-keys/${id}`, { scopes: ['write'] }),
      ]);
      expect([rotation.status, patch.status]).toEqual([201, 200]);
      // Whether the successor came before the patch or after it: the key itself has it.
      expect((await shown(id)).scopes).toEqual(['write']);
      expect([['read'], ['write']]).toContainEqual(rotation.body.data.scopes);
    }
  });

  test('a rotation and a revocation of one key: a revoked key gets no successor', async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const { id } = await app.createKey();
      const later = new Promise((resolve) => setTimeout(resolve, round % 15));
      const [rotation, revocation] = await Promise.all([
        rotate(id, 60),
        later.then(() => app.delete(`/v1/api-keys/${id}`)),
      ]);
      expect(revocation.status).toBe(200);
      const { revoked_at, rotated_to } = await shown(id);
      if (rotation.status === 201) {
        expect(rotated_to).toBe(rotation.body.data.id);
        expect(Date.parse(rotation.body.data.created_at)).toBeLessThanOrEqual(Date.parse(revoked_at));
        expect(await verdictOn(rotation.body.data.key)).toBe('active');
      } else {
        expectProblem(rotation, 'key_not_active');
        expect(rotated_to).toBeNull();
      }
    }
  });
});
