import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer, SendOptions } from '../support/client.ts';
import { listen } from './listen.ts';
import { expectProblem, expectRefusal, expectSilentOn } from './problem.ts';
import { type RawAnswer, request } from './raw.ts';

let app: TestApp;
let port: number;
beforeAll(async () => {
  app = await createTestApp({ CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
});
afterAll(() => app.close());

const BODY = { workspace_id: 'ws_acme', name: 'Made once', scopes: ['read'], metadata: { a: 1, b: [2] } };

function create(idempotencyKey: string, body: unknown = BODY, options: SendOptions = {}): Promise<Answer> {
  return app.post('/v1/api-keys', body, { ...options, headers: { 'idempotency-key': idempotencyKey } });
}

/** With the header lines as they are. */
function createRaw(headers: readonly string[]): Promise<RawAnswer> {
  return request({
    port,
    line: 'POST /v1/api-keys HTTP/1.1',
    headers: [`Authorization: Bearer ${app.adminToken}`, 'Content-Type: application/json', ...headers],
    body: JSON.stringify(BODY),
  });
}

function expectReplay(again: Answer, first: Answer): void {
  expect(again.status, again.text).toBe(201);
  expect(again.headers['idempotent-replayed']).toBe('true');
  expect(again.text).toBe(first.text);
}

async function countKeys(name: string): Promise<number> {
  const [row] = await app.database.query<{ keys: number }>(
    'SELECT count(*)::int AS keys FROM api_keys WHERE name = $1',
    [name],
  );
  return row?.keys ?? Number.NaN;
}

async function expectFirst(answer: Answer): Promise<void> {
  expect(answer.status, answer.text).toBe(201);
  expect(answer.headers['idempotent-replayed']).toBeUndefined();
}

describe('a retry with the same Idempotency-Key', () => {
  test('is given the first answer, token included, and makes no second key', async () => {
    const name = `Once ${randomUUID()}`;
    const first = await create('retry-1', { ...BODY, name });
    await expectFirst(first);
    for (let retry = 0; retry < 3; retry++) expectReplay(await create('retry-1', { ...BODY, name }), first);
    expect(await countKeys(name)).toBe(1);
    expect((await app.introspect(first.body.data.key)).body).toMatchObject({ active: true, name });
    const events = await app.database.query("SELECT 1 FROM audit_events WHERE after ->> 'name' = $1", [name]);
    expect(events).toHaveLength(1);
  });

  test('is another request for another Idempotency-Key, and without one each request makes a key', async () => {
    const name = `Each ${randomUUID()}`;
    const answers = [
      await create('each-1', { ...BODY, name }),
      await create('each-2', { ...BODY, name }),
      // Another spelling is another key: it is yours, and nothing is read into it.
      await create('Each-1', { ...BODY, name }),
      await app.post('/v1/api-keys', { ...BODY, name }),
      await app.post('/v1/api-keys', { ...BODY, name }),
    ];
    for (const answer of answers) await expectFirst(answer);
    expect(new Set(answers.map(({ body }) => body.data.key)).size).toBe(5);
    expect(await countKeys(name)).toBe(5);
  });

  test('has the same body where that is the same JSON value, however it is written', async () => {
    const first = await create('spelled-1');
    for (const text of [
      `{"metadata":{"b":[2],"a":1},"scopes":["read"],"name":"Made once","workspace_id":"ws_acme"}`,
      `  {"workspace_id" : "ws_acme","name":"Made\\u0020once", "scopes":["read"],\n"metadata":{"a":1.0,"b":[2e0]}}`,
    ]) {
      expectReplay(await create('spelled-1', text), first);
    }
    const path = await app.send('POST', '/v1/api%2Dkeys', {
      body: BODY,
      headers: { 'idempotency-key': 'spelled-1' },
    });
    expectReplay(path, first);
  });

  test.each<[string, unknown]>([
    ['another value', { ...BODY, name: 'Made twice' }],
    ['a value of another type', { ...BODY, metadata: { a: '1', b: [2] } }],
    ['a member more', { ...BODY, created_by: 'usr_1' }],
    ['a member more that is null', { ...BODY, expires_at: null }],
    ['a member more that is the default', { ...BODY, environment: 'live' }],
    ['a member less', { workspace_id: 'ws_acme', name: 'Made once', scopes: ['read'] }],
    ['an element more', { ...BODY, metadata: { a: 1, b: [2, 2] } }],
    ['another workspace', { ...BODY, workspace_id: 'ws_other' }],
  ])('is refused with another body: %s', async (what, body) => {
    const idempotencyKey = `mismatch ${what}`.replaceAll(' ', '-');
    const first = await create(idempotencyKey, { ...BODY, metadata: { a: 1, b: [2] } });
    const answer = await create(idempotencyKey, body);
    expectRefusal(answer, 'idempotency_mismatch');
    expect(answer.headers['idempotent-replayed']).toBeUndefined();
    expectSilentOn(answer, first.body.data.key);
    // And it has not spoilt the first one.
    expectReplay(await create(idempotencyKey), first);
  });

  test('is given the first answer also when the key was changed or revoked meanwhile', async () => {
    const first = await create('revoked-1');
    await app.patch(`/v1/api-keys/${first.body.data.id}`, { name: 'Renamed' });
    expectReplay(await create('revoked-1'), first);
    await app.delete(`/v1/api-keys/${first.body.data.id}`);
    expectReplay(await create('revoked-1'), first);
    expect((await app.introspect(first.body.data.key)).body.reason.code).toBe('revoked');
  });

  test('is given the first answer also when it could not be made any more', async () => {
    const expiresAt = new Date(Date.now() + 400).toISOString();
    const first = await create('expired-1', { ...BODY, expires_at: expiresAt });
    await expectFirst(first);
    await expect
      .poll(async () => (await app.introspect(first.body.data.key)).body.active, { timeout: 10_000 })
      .toBe(false);
    expectReplay(await create('expired-1', { ...BODY, expires_at: expiresAt }), first);
  });

  test('is given a large answer as well', async () => {
    const metadata = { text: 'é'.repeat(2_000) };
    const entries = Array.from(
      { length: 100 },
      (_, index) => `https://${'a'.repeat(60)}.example.com/${index}/*`,
    );
    const body = { ...BODY, metadata, restrictions: { allowed_referrers: entries } };
    const first = await create('large-1', body);
    await expectFirst(first);
    expectReplay(await create('large-1', body), first);
  });
});

describe('the header', () => {
  test.each([
    ['one character', '!'],
    ['255 characters', 'k'.repeat(255)],
    ['every visible character', Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i)).join('')],
    ['a quote alone', '"'],
  ])('takes %s', async (_what, value) => {
    const first = await createRaw([`Idempotency-Key: ${value}`]);
    await expectFirst(first);
    expectReplay(await createRaw([`idempotency-key:   ${value}  `]), first);
  });

  test('is the same with and without surrounding quotes, which do not count', async () => {
    const value = 'q'.repeat(255);
    const first = await createRaw([`Idempotency-Key: "${value}"`]);
    await expectFirst(first);
    expectReplay(await createRaw([`Idempotency-Key: ${value}`]), first);
  });

  test.each([
    ['nothing', ['Idempotency-Key:']],
    ['quotes around nothing', ['Idempotency-Key: ""']],
    ['256 characters', [`Idempotency-Key: ${'k'.repeat(256)}`]],
    ['256 characters in quotes', [`Idempotency-Key: "${'k'.repeat(256)}"`]],
    ['a space', ['Idempotency-Key: a b']],
    ['a tab', ['Idempotency-Key: a\tb']],
    ['a space in quotes', ['Idempotency-Key: " "']],
    ['a byte above ASCII', ['Idempotency-Key: caf\u00e9']],
    ['two of them', ['Idempotency-Key: twice', 'Idempotency-Key: twins']],
    ['the same one twice', ['Idempotency-Key: twice', 'idempotency-key: twice']],
    ['one and an empty one', ['Idempotency-Key: twice', 'Idempotency-Key:']],
  ])('refuses %s', async (_what, headers) => {
    const before = await countKeys(BODY.name);
    const answer = await createRaw(headers);
    expectProblem(answer, 'invalid_request');
    expect(answer.body.errors).toEqual([{ path: 'Idempotency-Key', message: expect.any(String) }]);
    expect(answer.text).not.toMatch(/twice|twins|kkk/);
    expect(await countKeys(BODY.name)).toBe(before);
  });

  test('means nothing where nothing is made', async () => {
    const { id } = await app.createKey();
    const headers = { 'idempotency-key': 'elsewhere' };
    for (let time = 0; time < 2; time++) {
      const answer = await app.patch(`/v1/api-keys/${id}`, { name: `Name ${time}` }, { headers });
      expect(answer.body.data.name).toBe(`Name ${time}`);
    }
    await expectFirst(await create('elsewhere'));
  });
});

describe('an Idempotency-Key belongs to the calling service key', () => {
  test('another caller never reaches its answer, and is not told of it', async () => {
    const one = await app.createServiceKey(['keys:write']);
    const other = await app.createServiceKey(['keys:write']);
    const first = await create('shared-1', BODY, { as: one.token });
    await expectFirst(first);
    const theirs = await create('shared-1', { ...BODY, name: 'Theirs' }, { as: other.token });
    await expectFirst(theirs);
    expectSilentOn(theirs, first.body.data.key);
    const same = await create('shared-1', BODY);
    await expectFirst(same);
    expect(new Set([first, theirs, same].map(({ body }) => body.data.id)).size).toBe(3);
    expectReplay(await create('shared-1', BODY, { as: one.token }), first);
    expectReplay(await create('shared-1', { ...BODY, name: 'Theirs' }, { as: other.token }), theirs);
  });

  test('the same caller may show itself in either header', async () => {
    const { token } = await app.createServiceKey(['keys:write']);
    const first = await create('either-1', BODY, { as: token });
    const again = await app.send('POST', '/v1/api-keys', {
      as: null,
      headers: { 'x-api-key': token, 'idempotency-key': 'either-1' },
      body: BODY,
    });
    expectReplay(again, first);
  });

  test('a caller that lost its right is given nothing', async () => {
    const service = await app.createServiceKey(['keys:write', 'keys:read']);
    const first = await create('lost-1', BODY, { as: service.token });
    await expectFirst(first);
    const path = `/v1/api-keys/${service.id}`;
    const refused = async (code: 'forbidden' | 'unauthorized') => {
      const answer = await create('lost-1', BODY, { as: service.token });
      expectProblem(answer, code);
      expectSilentOn(answer, first.body.data.key);
      expect(answer.headers['idempotent-replayed']).toBeUndefined();
    };

    await app.patch(path, { scopes: ['keys:read'] });
    await refused('forbidden');
    await app.patch(path, { scopes: ['keys:write'] });
    expectReplay(await create('lost-1', BODY, { as: service.token }), first);

    await app.patch(path, { restrictions: { allowed_workspaces: ['ws_other'] } });
    await refused('forbidden');
    await app.patch(path, { restrictions: { allowed_workspaces: ['ws_other', 'ws_acme'] } });
    expectReplay(await create('lost-1', BODY, { as: service.token }), first);

    await app.delete(path);
    await refused('unauthorized');
  });

  test('a caller that could not make such a service key any more is not given its token', async () => {
    const service = await app.createServiceKey(['admin']);
    const body = { workspace_id: 'system', name: 'An admin', scopes: ['admin'] };
    const first = await create('excess-1', body, { as: service.token });
    await expectFirst(first);
    await app.patch(`/v1/api-keys/${service.id}`, {
      restrictions: { allowed_ips: ['127.0.0.1'] },
    });
    const answer = await create('excess-1', body, { as: service.token });
    expectProblem(answer, 'forbidden');
    expectSilentOn(answer, first.body.data.key);
  });
});

describe('an answer that made nothing is not kept', () => {
  test('a refused request can be corrected under the same Idempotency-Key', async () => {
    expectProblem(await create('corrected-1', { ...BODY, name: '' }), 'invalid_request');
    expectProblem(await create('corrected-1', { ...BODY, environment: 'nowhere' }), 'invalid_request');
    const { token } = await app.createServiceKey(['keys:write'], {
      restrictions: { allowed_workspaces: ['ws_acme'] },
    });
    const foreign = { ...BODY, workspace_id: 'ws_other' };
    expectProblem(await create('corrected-1', foreign, { as: token }), 'forbidden');
    await expectFirst(await create('corrected-1', BODY, { as: token }));
    await expectFirst(await create('corrected-1'));
  });

  test('what a plan refuses is made once the plan allows it, and given again when it does no more', async () => {
    const put = (limit: number) =>
      app.send('PUT', '/v1/workspaces/ws_plan', { body: { limits: { max_active_keys: limit } } });
    const body = { ...BODY, workspace_id: 'ws_plan' };
    await put(0);
    expectProblem(await create('plan-1', body), 'limit_reached');
    await put(1);
    const first = await create('plan-1', body);
    await expectFirst(first);
    expectReplay(await create('plan-1', body), first);
    expectProblem(await create('plan-2', body), 'limit_reached');
    await put(0);
    expectReplay(await create('plan-1', body), first);
  });

  test('a failed transaction leaves neither a key nor an answer', async () => {
    await app.database.query('ALTER TABLE sealed_answers ADD CONSTRAINT never CHECK (mac IS NULL) NOT VALID');
    const name = `Failed ${randomUUID()}`;
    try {
      expectProblem(await create('failed-1', { ...BODY, name }), 'unavailable');
    } finally {
      await app.database.query('ALTER TABLE sealed_answers DROP CONSTRAINT never');
    }
    expect(await countKeys(name)).toBe(0);
    await expectFirst(await create('failed-1', { ...BODY, name }));
    expect(await countKeys(name)).toBe(1);
  });
});

describe('concurrent requests with one Idempotency-Key', () => {
  test('50 make one key: each is given the same answer, or told that it is being worked on', async () => {
    const name = `Concurrent ${randomUUID()}`;
    const answers = await Promise.all(
      Array.from({ length: 50 }, () => create('concurrent-1', { ...BODY, name })),
    );
    const made = answers.filter(({ status }) => status === 201);
    expect(made.length).toBeGreaterThan(0);
    expect(new Set(made.map(({ text }) => text)).size).toBe(1);
    const refused = answers.filter(({ status }) => status !== 201);
    expect(refused.length).toBeGreaterThan(0);
    for (const answer of refused) {
      expectProblem(answer, 'idempotency_in_flight');
      expect(answer.headers['retry-after']).toBe('1');
    }
    expect(await countKeys(name)).toBe(1);
    const again = await create('concurrent-1', { ...BODY, name });
    expect(again.headers['idempotent-replayed']).toBe('true');
    expect(made[0]?.text).toBe(again.text);
  });

  test('50 of one caller with an Idempotency-Key each make 50 keys', async () => {
    const name = `Apart ${randomUUID()}`;
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, index) => create(`apart-${index}`, { ...BODY, name })),
    );
    for (const answer of answers) await expectFirst(answer);
    expect(await countKeys(name)).toBe(50);
  });
});

describe('a rotation with an Idempotency-Key', () => {
  const rotate = (id: string, idempotencyKey: string, body: unknown = undefined, options: SendOptions = {}) =>
    app.post(`/v1/api-keys/${id}/rotate`, body, {
      ...options,
      headers: { 'idempotency-key': idempotencyKey },
    });

  function expectRotatedAgain(again: Answer, first: Answer): void {
    expect(again.status, again.text).toBe(201);
    expect(again.headers['idempotent-replayed']).toBe('true');
    expect(again.body.data).toEqual(first.body.data);
    // It waited by itself: whoever was first may have died before it had.
    expect(again.body.propagation).toMatchObject({ instances: 1, confirmed: 1, fenced: 0 });
  }

  test('is done once, and answered again with the same successor and token, also when that is over', async () => {
    const { id, token } = await app.createKey();
    const first = await rotate(id, 'rotated-1', { grace_period_seconds: 0 });
    await expectFirst(first);
    expect((await app.introspect(token)).body.reason.code).toBe('revoked');
    expectRotatedAgain(await rotate(id, 'rotated-1', { grace_period_seconds: 0 }), first);
    const successor = first.body.data;
    expect((await app.introspect(successor.key)).body).toMatchObject({ active: true, key_id: successor.id });
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.rotated_to).toBe(successor.id);
    // A chain goes on from the successor.
    await expectFirst(await rotate(successor.id, 'rotated-1-next', { grace_period_seconds: 0 }));
    await app.delete(`/v1/api-keys/${successor.id}`);
    expectRotatedAgain(await rotate(id, 'rotated-1', { grace_period_seconds: 0 }), first);
  });

  test('takes no body and an empty one for the same, and any other for another request', async () => {
    const { id } = await app.createKey();
    const first = await rotate(id, 'rotated-2');
    await expectFirst(first);
    expectRotatedAgain(await rotate(id, 'rotated-2', {}), first);
    expectRefusal(await rotate(id, 'rotated-2', { grace_period_seconds: 0 }), 'idempotency_mismatch');
  });

  test('is another request for another path: another key, or a creation', async () => {
    const [one, other] = [await app.createKey(), await app.createKey()];
    const first = await rotate(one.id, 'path-1');
    expectRefusal(await rotate(other.id, 'path-1'), 'idempotency_mismatch');
    expectRefusal(await create('path-1'), 'idempotency_mismatch');
    expect((await app.get(`/v1/api-keys/${other.id}`)).body.data.rotated_to).toBeNull();
    expectRotatedAgain(await rotate(one.id, 'path-1'), first);
    await create('path-2', {});
    await expectFirst(await create('path-2'));
    expectRefusal(await rotate(one.id, 'path-2'), 'idempotency_mismatch');
  });

  test('50 at once make one successor, and a second rotation under another Idempotency-Key is refused', async () => {
    const { id } = await app.createKey();
    const answers = await Promise.all(Array.from({ length: 50 }, () => rotate(id, 'rotated-3')));
    const made = answers.filter(({ status }) => status === 201);
    expect(new Set(made.map(({ body }) => body.data.key)).size).toBe(1);
    for (const answer of answers) if (answer.status !== 201) expectProblem(answer, 'idempotency_in_flight');
    expectProblem(await rotate(id, 'rotated-4'), 'key_not_active');
    const successors = await app.database.query(
      'SELECT 1 FROM api_keys WHERE rotated_from = (SELECT id FROM api_keys WHERE rotated_to IS NOT NULL AND last_characters = $1)',
      [(await app.get(`/v1/api-keys/${id}`)).body.data.hint.slice(-4)],
    );
    expect(successors).toHaveLength(1);
  });

  test('gives a caller that may not see the key any more nothing', async () => {
    const service = await app.createServiceKey(['keys:write']);
    const { id } = await app.createKey();
    const first = await rotate(id, 'rotated-5', {}, { as: service.token });
    await expectFirst(first);
    await app.patch(`/v1/api-keys/${service.id}`, { restrictions: { allowed_workspaces: ['ws_other'] } });
    const answer = await rotate(id, 'rotated-5', {}, { as: service.token });
    expectProblem(answer, 'not_found');
    expectSilentOn(answer, first.body.data.key);
  });
});
