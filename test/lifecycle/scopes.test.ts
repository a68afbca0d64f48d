import { describe, expect, test } from 'vitest';
import { PERMISSIONS } from '../../src/domain/scope.ts';
import { MAX_CATALOGUE_ENTRIES } from '../../src/domain/scope-catalogue.ts';
import { expectProblem } from '../http/problem.ts';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { databaseOfTest } from '../support/database.ts';

const READ = { description: 'Read contacts', grants: [{ methods: ['GET'], path: '/*' }] };
const WRITE = {
  description: 'Change contacts',
  implies: ['read'],
  grants: [{ methods: ['POST', 'PATCH', 'DELETE'], path: '/*' }],
};
const TIME = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
const PROPAGATION = { instances: 1, confirmed: 1, fenced: 0, waited_ms: expect.any(Number) };

function expectFault(answer: Answer, path: string, message = /./): void {
  expectProblem(answer, 'invalid_request');
  expect(answer.body.errors).toEqual([{ path, message: expect.stringMatching(message) }]);
}

const reasonOf = (answer: Answer): string | undefined => answer.body.reason?.code;

async function put(app: TestApp, name: string, body: unknown = {}): Promise<void> {
  const answer = await app.put(`/v1/scopes/${name}`, body);
  if (answer.status !== 200) throw new Error(answer.text);
}

describe('an entry of the catalogue', () => {
  test('is put, read, replaced as a whole and deleted, and each change tells how it came to hold', async () => {
    const app = await appOfTest();
    const made = await app.put('/v1/scopes/write', WRITE);
    expect(made.status).toBe(200);
    expect(made.body).toEqual({
      success: true,
      data: { name: 'write', ...WRITE, created_at: TIME, updated_at: TIME },
      propagation: PROPAGATION,
    });
    expect((await app.get('/v1/scopes/write')).body).toEqual({ success: true, data: made.body.data });

    const replaced = await app.put('/v1/scopes/write', { implies: ['list'] });
    expect(replaced.body).toMatchObject({
      data: {
        name: 'write',
        description: null,
        implies: ['list'],
        grants: [],
        created_at: made.body.data.created_at,
      },
      propagation: PROPAGATION,
    });
    expect(replaced.body.data.updated_at >= made.body.data.updated_at).toBe(true);

    const deleted = await app.delete('/v1/scopes/write');
    expect(deleted.status).toBe(200);
    expect(deleted.body).toEqual({ success: true, data: replaced.body.data, propagation: PROPAGATION });
    expectProblem(await app.get('/v1/scopes/write'), 'not_found');
    expectProblem(await app.delete('/v1/scopes/write'), 'not_found');
  });

  test('that was read can be put as it is', async () => {
    const app = await appOfTest();
    await put(app, 'read', { grants: [{ path: '/a' }, { path: '/b', methods: null }] });
    const { name: _, created_at, updated_at, ...body } = (await app.get('/v1/scopes/read')).body.data;
    expect(body).toEqual({ description: null, implies: [], grants: [{ path: '/a' }, { path: '/b' }] });
    expect((await app.put('/v1/scopes/read', body)).body.data).toMatchObject({ created_at, updated_at });
    expect((await app.put('/v1/scopes/read', { implies: null, grants: null })).body.data).toMatchObject({
      implies: [],
      grants: [],
    });
  });

  test('has one spelling: what is said twice counts once', async () => {
    const app = await appOfTest();
    const answer = await app.put('/v1/scopes/a', {
      implies: ['b', 'c', 'b'],
      grants: [{ methods: ['GET', 'GET'], path: '/' }],
    });
    expect(answer.body.data).toMatchObject({
      implies: ['b', 'c'],
      grants: [{ methods: ['GET'], path: '/' }],
    });
  });

  test('may have any name that a scope may have, also in a path', async () => {
    const app = await appOfTest();
    for (const name of ['a', 'validate:offers', 'a.b-c_d:e', '0', 'a'.repeat(64)]) {
      await put(app, name);
      expect((await app.get(`/v1/scopes/${encodeURIComponent(name)}`)).body.data.name).toBe(name);
      expect((await app.delete(`/v1/scopes/${name}`)).status).toBe(200);
    }
  });

  test('has no name that no scope has, and none of a permission', async () => {
    const app = await appOfTest();
    for (const name of ['A', 'a b', '*', 'a:', '-a', 'a'.repeat(65), 'a/b', '%00', 'ä', ...PERMISSIONS]) {
      const path = `/v1/scopes/${encodeURIComponent(name)}`;
      expectFault(await app.put(path, {}), 'name');
      expectProblem(await app.get(path), 'not_found');
      expectProblem(await app.delete(path), 'not_found');
    }
    expectFault(await app.put('/v1/scopes/a', { implies: ['b', 'admin'] }), 'implies.1', /permission/);
    expect((await app.get('/v1/scopes')).body.data).toEqual([]);
  });

  test('that is put without a body is refused, since that would empty it', async () => {
    const app = await appOfTest();
    expectProblem(await app.put('/v1/scopes/read'), 'invalid_request');
    expect((await app.put('/v1/scopes/read', {})).status).toBe(200);
  });

  test('closes no circle, whether with itself, with another or at several removes', async () => {
    const app = await appOfTest();
    expectFault(await app.put('/v1/scopes/a', { implies: ['a'] }), 'implies.0', /itself/);
    await put(app, 'a', { implies: ['b'] });
    expectFault(await app.put('/v1/scopes/b', { implies: ['x', 'a'] }), 'implies.1', /circle/);
    await put(app, 'b', { implies: ['c'] });
    expectFault(await app.put('/v1/scopes/c', { implies: ['a'] }), 'implies.0', /circle/);
    // Once the way is cut, the other direction is free.
    await put(app, 'a', {});
    await put(app, 'c', { implies: ['a'] });
  });

  test('closes no circle with another that is put at the same moment', async () => {
    const app = await appOfTest();
    for (let round = 0; round < 10; round++) {
      const [a, b] = [`a${round}`, `b${round}`];
      const statuses = await Promise.all([
        app.put(`/v1/scopes/${a}`, { implies: [b] }),
        app.put(`/v1/scopes/${b}`, { implies: [a] }),
      ]);
      expect(statuses.map(({ status }) => status).sort()).toEqual([200, 400]);
    }
  });

  test('is refused where the catalogue is full, while another may still be replaced', async () => {
    const app = await appOfTest();
    await app.database.query(
      `INSERT INTO scopes (name, id, implies, grants, created_at, updated_at)
       SELECT 's' || n, gen_random_uuid(), '{}', '[]', now(), now() FROM generate_series(1, $1) AS n`,
      [MAX_CATALOGUE_ENTRIES],
    );
    expectFault(await app.put('/v1/scopes/one-more', {}), 'name', /1000/);
    await put(app, 's1', READ);
  });
});

describe('the catalogue', () => {
  test('is listed newest first, page by page', async () => {
    const app = await appOfTest();
    const names = Array.from({ length: 25 }, (_, index) => `s${index}`);
    for (const name of names) await put(app, name);
    // Replacing does not make it newer.
    await put(app, 's0', READ);
    const first = (await app.get('/v1/scopes')).body;
    expect(first.pagination).toEqual({ next_cursor: expect.any(String), has_more: true });
    const second = (await app.get(`/v1/scopes?limit=100&cursor=${first.pagination.next_cursor}`)).body;
    expect(second.pagination).toEqual({ next_cursor: null, has_more: false });
    const listed = [...first.data, ...second.data].map(({ name }: { name: string }) => name);
    expect(first.data).toHaveLength(20);
    expect(listed).toEqual([...names].reverse());
    expect((await app.get('/v1/scopes?limit=25')).body.pagination.has_more).toBe(false);
  });

  test('takes no cursor of another list, and no other parameter', async () => {
    const app = await appOfTest();
    for (const scope of ['a', 'b']) await put(app, scope);
    await Promise.all([app.createKey(), app.createKey()]);
    const { next_cursor: ofKeys } = (await app.get('/v1/api-keys?limit=1')).body.pagination;
    const { next_cursor: ofScopes } = (await app.get('/v1/scopes?limit=1')).body.pagination;
    expectFault(await app.get(`/v1/scopes?cursor=${ofKeys}`), 'cursor');
    expectFault(await app.get(`/v1/api-keys?cursor=${ofScopes}`), 'cursor');
    expectFault(await app.get('/v1/scopes?limit=0'), 'limit');
    expectFault(await app.get('/v1/scopes?limit=101'), 'limit');
    expectFault(await app.get('/v1/scopes?name=a'), 'name');
  });

  test('is read by who may read keys, and written by who may write scopes and is bound to no workspace', async () => {
    const app = await appOfTest();
    await put(app, 'read');
    const reader = (await app.createServiceKey(['keys:read'])).token;
    const writer = (await app.createServiceKey(['scopes:write'])).token;
    const narrowed = (
      await app.createServiceKey(['keys:read', 'scopes:write'], {
        restrictions: { allowed_workspaces: ['ws_acme'] },
      })
    ).token;
    for (const as of [reader, narrowed]) {
      expect((await app.get('/v1/scopes', { as })).body.data).toHaveLength(1);
      expect((await app.get('/v1/scopes/read', { as })).status).toBe(200);
      expectProblem(await app.put('/v1/scopes/read', {}, { as }), 'forbidden');
      expectProblem(await app.put('/v1/scopes/new', {}, { as }), 'forbidden');
      expectProblem(await app.delete('/v1/scopes/read', undefined, { as }), 'forbidden');
      expectProblem(await app.delete('/v1/scopes/none', undefined, { as }), 'forbidden');
    }
    expectProblem(await app.get('/v1/scopes', { as: writer }), 'forbidden');
    expect((await app.put('/v1/scopes/write', WRITE, { as: writer })).status).toBe(200);
    expect((await app.delete('/v1/scopes/write', undefined, { as: writer })).status).toBe(200);
  });

  test('tells the audit trail what an entry was and became, and nothing where nothing changed', async () => {
    const app = await appOfTest();
    const { id, token } = await app.createServiceKey(['scopes:write']);
    const as = { as: token };
    await app.put('/v1/scopes/read', READ, as);
    await app.put('/v1/scopes/read', READ, as);
    await app.put('/v1/scopes/read', { description: READ.description }, as);
    await app.delete('/v1/scopes/read', undefined, as);
    await app.delete('/v1/scopes/read', undefined, as);
    const { body } = await app.get(`/v1/audit-events?actor=${id}`);
    const { description, grants } = READ;
    const common = { actor: id, target: { type: 'scope', id: 'read' }, workspace_id: null, key_id: null };
    const emptied = { name: 'read', description, implies: [], grants: [] };
    expect(body.data).toMatchObject([
      { ...common, action: 'scope.deleted', before: emptied, after: null },
      { ...common, action: 'scope.updated', before: { grants }, after: { grants: [] } },
      {
        ...common,
        action: 'scope.created',
        before: null,
        after: { name: 'read', description, implies: [], grants },
      },
    ]);
    expect(Object.keys(body.data[1].after)).toEqual(['grants']);
  });
});

describe('a key', () => {
  test('is given any scope while the catalogue is empty, and from then on only what it knows', async () => {
    const app = await appOfTest();
    const early = await app.createKey({ scopes: ['anything', 'goes'] });
    await put(app, 'read');
    const key = { workspace_id: 'ws_acme', name: 'A key' };
    const refused = await app.post('/v1/api-keys', { ...key, scopes: ['read', 'raed', 'read', 'wirte'] });
    expectProblem(refused, 'invalid_request');
    expect(refused.body.errors).toEqual([
      { path: 'scopes.1', message: expect.stringContaining('"raed"') },
      { path: 'scopes.3', message: expect.stringContaining('"wirte"') },
    ]);
    const { id } = await app.createKey({ scopes: ['read'] });
    await app.createKey({ scopes: [] });

    expectFault(await app.patch(`/v1/api-keys/${id}`, { scopes: ['raed'] }), 'scopes.0', /"raed"/);
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.scopes).toEqual(['read']);
    for (const scopes of [['read'], [], null]) {
      expect((await app.patch(`/v1/api-keys/${id}`, { scopes })).status).toBe(200);
    }

    // What a key held before stays with it; only what is said anew is looked at.
    expect((await app.patch(`/v1/api-keys/${early.id}`, { name: 'Renamed' })).body.data.scopes).toEqual([
      'anything',
      'goes',
    ]);
    expectFault(await app.patch(`/v1/api-keys/${early.id}`, { scopes: ['goes', 'read'] }), 'scopes.0');

    await app.delete('/v1/scopes/read');
    await app.createKey({ scopes: ['anything'] });
  });

  test('is rotated as long as the catalogue knows what its successor would be given', async () => {
    const app = await appOfTest();
    const { id } = await app.createKey({ scopes: ['read', 'legacy'] });
    await put(app, 'read');
    expectFault(await app.post(`/v1/api-keys/${id}/rotate`, {}), 'scopes.1', /"legacy"/);
    expect((await app.get(`/v1/api-keys/${id}`)).body.data).toMatchObject({
      rotated_to: null,
      expires_at: null,
    });
    await app.patch(`/v1/api-keys/${id}`, { scopes: ['read'] });
    const rotated = await app.post(`/v1/api-keys/${id}/rotate`, {});
    expect(rotated.body.data).toMatchObject({ scopes: ['read'], rotated_from: id });
  });

  test('of the workspace system has permissions, which the catalogue has no say in', async () => {
    const app = await appOfTest();
    await put(app, 'read', READ);
    const { id, token } = await app.createServiceKey(['keys:read', 'introspect']);
    expect((await app.patch(`/v1/api-keys/${id}`, { scopes: ['introspect'] })).status).toBe(200);
    expect((await app.introspect('x', {}, { as: token })).status).toBe(200);
    // Nor does an implication reach them.
    await put(app, 'introspectors', { implies: ['read'] });
    expect((await app.post(`/v1/api-keys/${id}/rotate`, {})).status).toBe(201);
    expectProblem(await app.get('/v1/api-keys', { as: token }), 'forbidden');
  });
});

test('a change that has answered holds on every other instance, whoever of them made it', async () => {
  const database = await databaseOfTest();
  const apps = [await createTestApp({}, database), await createTestApp({}, database)];
  try {
    const [one, two] = apps as [TestApp, TestApp];
    const { token } = await one.createKey({ scopes: ['write'] });
    const request = { method: 'GET', path: '/contacts' };
    const asks = async (app: TestApp) => reasonOf(await app.introspect(token, { scopes: ['read'], request }));
    for (let round = 0; round < 10; round++) {
      for (const [author, other] of [
        [one, two],
        [two, one],
      ] as const) {
        const made = await author.put('/v1/scopes/write', { implies: ['read'], grants: [{ path: '/*' }] });
        expect(made.body.propagation).toMatchObject({ instances: 2, confirmed: 2, fenced: 0 });
        expect(await asks(other)).toBeUndefined();
        await put(author, 'write', { implies: ['read'], grants: [{ path: '/other' }] });
        expect(await asks(other)).toBe('insufficient_scope');
        await author.delete('/v1/scopes/write');
        expect(await asks(other)).toBe('insufficient_scope');
      }
    }
  } finally {
    for (const app of apps) await app.close();
  }
});

test('a change that finds everything as it is to be waits all the same: who made it may have died half-way', async () => {
  const database = await databaseOfTest();
  const apps = [await createTestApp({}, database), await createTestApp({}, database)];
  try {
    const [one, two] = apps as [TestApp, TestApp];
    const { token } = await one.createKey({ scopes: ['write'] });
    const asks = async () => reasonOf(await two.introspect(token, { scopes: ['read'] }));
    await put(one, 'write', { implies: ['read'] });
    expect(await asks()).toBeUndefined();
    // Committed, and told to nobody.
    await database.query("UPDATE scopes SET implies = '{}'");
    expect(await asks()).toBeUndefined();
    const repeated = await one.put('/v1/scopes/write', {});
    expect(repeated.body.propagation).toMatchObject({ instances: 2, confirmed: 2 });
    expect(await asks()).toBe('insufficient_scope');

    await put(one, 'write', { implies: ['read'] });
    expect(await asks()).toBeUndefined();
    await database.query('DELETE FROM scopes');
    expect(await asks()).toBeUndefined();
    expectProblem(await one.delete('/v1/scopes/write'), 'not_found');
    expect(await asks()).toBe('insufficient_scope');
  } finally {
    for (const app of apps) await app.close();
  }
});

describe('an introspection', () => {
  test('goes by what scopes imply, at any remove, from the answer to each change on', async () => {
    const app = await appOfTest();
    const { token } = await app.createKey({ scopes: ['write'] });
    const asks = async (scope: string) => reasonOf(await app.introspect(token, { scopes: [scope] }));
    expect(await asks('read')).toBe('insufficient_scope');
    await put(app, 'write', { implies: ['read'] });
    expect(await asks('read')).toBeUndefined();
    expect(await asks('list')).toBe('insufficient_scope');
    await put(app, 'read', { implies: ['list'] });
    expect(await asks('list')).toBeUndefined();
    await app.delete('/v1/scopes/read');
    expect(await asks('list')).toBe('insufficient_scope');
    expect(await asks('read')).toBeUndefined();
    await put(app, 'write', {});
    expect(await asks('read')).toBe('insufficient_scope');
    expect(await asks('write')).toBeUndefined();
  });

  test('needs a scope that grants the method and path, once some entry grants any', async () => {
    const app = await appOfTest();
    const reader = await app.createKey({ scopes: ['read'] });
    const writer = await app.createKey({ scopes: ['write'] });
    const nobody = await app.createKey();
    const ask = (token: string, method?: string | null, path?: string | null) =>
      app.introspect(token, { request: { method, path } });
    expect(reasonOf(await ask(nobody.token, 'DELETE', '/x'))).toBeUndefined();
    await put(app, 'read');
    expect(reasonOf(await ask(nobody.token, 'DELETE', '/x'))).toBeUndefined();

    await put(app, 'read', READ);
    await put(app, 'write', WRITE);
    expect(reasonOf(await ask(reader.token, 'GET', '/contacts?x=1'))).toBeUndefined();
    expect(reasonOf(await ask(reader.token, 'HEAD', '/contacts/'))).toBeUndefined();
    expect(reasonOf(await ask(writer.token, 'GET', '/contacts'))).toBeUndefined();
    expect(reasonOf(await ask(writer.token, 'POST', '/contacts'))).toBeUndefined();
    expect((await ask(reader.token, 'POST', '/contacts')).body).toEqual({
      active: false,
      reason: {
        code: 'insufficient_scope',
        status: 403,
        detail: 'The method and path of this request need the scope "write"; the key has none that gives it.',
      },
    });
    expect((await ask(nobody.token, 'GET', '/contacts')).body.reason.detail).toContain('"read"');
    expect((await ask(writer.token, 'PUT', '/contacts')).body.reason).toMatchObject({
      code: 'insufficient_scope',
      detail: 'No scope of the catalogue grants the method and path of this request.',
    });
    expect((await ask(writer.token, 'GET', '/a/../b')).body.reason).toMatchObject({
      code: 'insufficient_scope',
      detail: expect.stringContaining('not a plain absolute path'),
    });
  });

  test('is not asked for a route where method or path was not sent', async () => {
    const app = await appOfTest();
    await put(app, 'read', READ);
    const { token } = await app.createKey();
    for (const request of [undefined, {}, { method: 'GET' }, { path: '/x' }, { method: null, path: '/x' }]) {
      expect(reasonOf(await app.introspect(token, { request }))).toBeUndefined();
    }
    expect(reasonOf(await app.introspect(token, { request: { method: '', path: '' } }))).toBe(
      'insufficient_scope',
    );
    expect(reasonOf(await app.introspect(token, { request: { method: 'GET', path: '/x' } }))).toBe(
      'insufficient_scope',
    );
  });

  test('asks for both: the scopes that are wanted, and one for the route', async () => {
    const app = await appOfTest();
    const { token } = await app.createKey({ scopes: ['write'] });
    await put(app, 'write', WRITE);
    const request = { method: 'POST', path: '/contacts' };
    expect(reasonOf(await app.introspect(token, { scopes: ['read'], request }))).toBeUndefined();
    expect((await app.introspect(token, { scopes: ['export'], request })).body.reason.detail).toBe(
      'The key lacks the scope "export".',
    );
  });

  test('comes to the catalogue last: restrictions are told first', async () => {
    const app = await appOfTest();
    const { token } = await app.createKey({ restrictions: { allowed_endpoints: [{ path: '/a' }] } });
    await put(app, 'read', READ);
    const ask = async (path: string) =>
      reasonOf(await app.introspect(token, { request: { method: 'GET', path } }));
    expect(await ask('/b')).toBe('endpoint_not_allowed');
    expect(await ask('/a')).toBe('insufficient_scope');
  });

  test('by RFC 7662 asks for nothing, and shows the scopes that the key was given', async () => {
    const app = await appOfTest();
    const { token } = await app.createKey({ scopes: ['write'] });
    await put(app, 'write', WRITE);
    const answer = await app.post('/v1/introspect', `token=${token}`, {
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
    });
    expect(answer.body).toMatchObject({ active: true, scope: 'write' });
  });

  test('lets through what no entry grants where CATALOGUE_UNMATCHED says so', async () => {
    const database = await databaseOfTest();
    const app = await createTestApp({ CATALOGUE_UNMATCHED: 'allow' }, database);
    try {
      await put(app, 'write', { grants: [{ methods: ['POST'], path: '/contacts/*' }] });
      const { token } = await app.createKey();
      const ask = async (method: string, path: string) =>
        reasonOf(await app.introspect(token, { request: { method, path } }));
      expect(await ask('GET', '/contacts')).toBeUndefined();
      expect(await ask('POST', '/other')).toBeUndefined();
      expect(await ask('POST', '/contacts/17')).toBe('insufficient_scope');
      expect(await ask('POST', '/other/%2e%2e/contacts/17')).toBe('insufficient_scope');
    } finally {
      await app.close();
    }
  });
});
