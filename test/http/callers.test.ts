import { Agent, get } from 'node:http';
import type { Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { PERMISSIONS } from '../../src/domain/scope.ts';
import { appOfTest, createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { listen } from './listen.ts';
import { expectProblem } from './problem.ts';
import { request } from './raw.ts';
import { pathTo, ROUTES } from './routes.ts';

let app: TestApp;
let port: number;

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
});
afterAll(() => app.close());

const UNKNOWN_ID = 'key_01k00000000000000000000000';

/** What tells one refusal from another: everything but the request's own id, and the length that it gives the text. */
function faceOf({ status, headers, text }: Answer) {
  const { 'x-request-id': id, date: _, 'content-length': _length, ...others } = headers;
  return { status, others, text: text.replaceAll(id ?? '', 'ID') };
}

describe('each permission', () => {
  test.each(PERMISSIONS)('opens its own routes and no other: %s', async (permission) => {
    const { token } = await app.createServiceKey([permission]);
    for (const route of ROUTES) {
      const { id } = await app.createKey({ workspace_id: 'ws_permissions' });
      await app.put('/v1/scopes/read', {});
      const path = pathTo(route, { keyId: id, workspaceId: 'ws_permissions' });
      const answer = await app.send(route.method, path, { as: token, body: route.body });
      const may = route.permission === null || permission === 'admin' || permission === route.permission;
      if (may) expect(answer.status, `${route.method} ${path}: ${answer.text}`).toBeLessThan(300);
      else expectProblem(answer, 'forbidden');
    }
    // Once it holds an entry, keys are given no other scope.
    await app.delete('/v1/scopes/read');
  });

  test('adds to the others', async () => {
    const { token } = await app.createServiceKey(['keys:read', 'introspect']);
    expect((await app.get('/v1/api-keys', { as: token })).status).toBe(200);
    expect((await app.introspect('x', {}, { as: token })).status).toBe(200);
    expectProblem(await app.post('/v1/api-keys', {}, { as: token }), 'forbidden');
  });

  test('is needed by HEAD as by GET', async () => {
    const { token } = await app.createServiceKey([]);
    const head = (path: string) =>
      request({
        port,
        line: `HEAD ${path} HTTP/1.1`,
        headers: [`X-Api-Key: ${token}`],
        method: 'HEAD',
      });
    expect((await head('/v1/api-keys')).status).toBe(403);
    expect((await head('/v1/me')).status).toBe(200);
  });
});

describe('a caller without a permission', () => {
  test('learns nothing of what exists, nor of what a body should look like', async () => {
    const { token } = await app.createServiceKey([]);
    const { id } = await app.createKey();
    const admin = (await app.get('/v1/me')).body.data.id;
    // Of one length: those made by the service grow with their count.
    const headers = { 'x-request-id': 'probe' };
    for (const route of ROUTES) {
      if (route.permission === null) continue;
      const faces = new Set<string>();
      for (const name of [id, admin, UNKNOWN_ID, 'nonsense', 'system', '%00', 'x'.repeat(900)]) {
        for (const body of [route.body, {}, '{', '[]', 'null', '{"a":1,"a":2}', undefined]) {
          const path = route.path.replace(/\{\w+\}/, name);
          const answer = await app.send(route.method, path, { as: token, headers, body });
          expectProblem(answer, 'forbidden');
          faces.add(JSON.stringify(faceOf(answer)));
        }
      }
      for (const query of ['limit=0', 'cursor=x', 'workspace_id=..', 'what=1', 'limit=1&limit=2']) {
        const answer = await app.send(route.method, `${pathTo(route, { keyId: id })}?${query}`, {
          as: token,
          headers,
        });
        faces.add(JSON.stringify(faceOf(answer)));
      }
      expect(faces.size, `${route.method} ${route.path}: ${[...faces]}`).toBe(1);
    }
  });

  test('is answered by GET /v1/me with itself', async () => {
    const { id, token } = await app.createServiceKey([], {
      name: 'Nobody',
      expires_at: '2090-01-02T03:04:05.678Z',
      restrictions: { allowed_ips: ['127.0.0.0/8'], allowed_workspaces: ['ws_a', 'ws_b'] },
    });
    const answer = await app.get('/v1/me', { as: token });
    expect(answer.body).toEqual({
      success: true,
      data: {
        id,
        name: 'Nobody',
        permissions: [],
        restrictions: { allowed_ips: ['127.0.0.0/8'], allowed_workspaces: ['ws_a', 'ws_b'] },
        expires_at: '2090-01-02T03:04:05.678Z',
      },
    });
  });
});

describe('a service key that is narrowed to workspaces', () => {
  let mine: { id: string; token: string };
  let other: { id: string; token: string };
  let narrow: string;
  let narrowAdmin: string;

  beforeAll(async () => {
    mine = await app.createKey({ workspace_id: 'ws_mine', name: 'Mine' });
    other = await app.createKey({ workspace_id: 'ws_other', name: 'Other' });
    const restrictions = { allowed_workspaces: ['ws_mine', 'ws_mine_too'] };
    narrow = (await app.createServiceKey(['keys:read', 'keys:write', 'introspect'], { restrictions })).token;
    narrowAdmin = (await app.createServiceKey(['admin'], { restrictions })).token;
  });

  test('reads, changes and revokes keys of its own workspaces', async () => {
    for (const as of [narrow, narrowAdmin]) {
      const { id, token } = await app.createKey({ workspace_id: 'ws_mine_too' }, { as });
      expect((await app.get(`/v1/api-keys/${id}`, { as })).status).toBe(200);
      expect((await app.patch(`/v1/api-keys/${id}`, { name: 'New' }, { as })).status).toBe(200);
      expect((await app.introspect(token, { workspace_id: 'ws_mine_too' }, { as })).body.active).toBe(true);
      expect((await app.delete(`/v1/api-keys/${id}`, undefined, { as })).status).toBe(200);
      expect((await app.post('/v1/workspaces/ws_mine_too/revoke-keys', {}, { as })).status).toBe(200);
    }
  });

  test('gets for a key of another workspace, of system too, what it gets for one that does not exist', async () => {
    const service = await app.createServiceKey([]);
    for (const as of [narrow, narrowAdmin]) {
      for (const route of ROUTES.filter(({ path }) => path.startsWith('/v1/api-keys/{id}'))) {
        const faces = [];
        for (const id of [UNKNOWN_ID, other.id, service.id]) {
          const answer = await app.send(route.method, pathTo(route, { keyId: id }), { as, body: route.body });
          expectProblem(answer, 'not_found');
          faces.push(faceOf(answer));
        }
        expect(faces[1]).toEqual(faces[0]);
        expect(faces[2]).toEqual(faces[0]);
      }
    }
    expect((await app.get(`/v1/api-keys/${other.id}`)).body.data).toMatchObject({
      status: 'active',
      name: 'Other',
    });
  });

  test('finds out nothing of them by a bad body either', async () => {
    for (const body of [
      {},
      { name: 'x' },
      { name: '' },
      { expires_at: '2000-01-01T00:00:00Z' },
      { rate_limit: {} },
    ]) {
      const [unknown, foreign] = [
        await app.patch(`/v1/api-keys/${UNKNOWN_ID}`, body, { as: narrow }),
        await app.patch(`/v1/api-keys/${other.id}`, body, { as: narrow }),
      ];
      expect(faceOf(foreign)).toEqual(faceOf(unknown));
    }
  });

  test('cannot bulk-revoke another workspace, and is told the same of one that never was', async () => {
    for (const workspace of ['ws_other', 'ws_never']) {
      expectProblem(
        await app.post(`/v1/workspaces/${workspace}/revoke-keys`, {}, { as: narrow }),
        'not_found',
      );
    }
    expect((await app.get(`/v1/api-keys/${other.id}`)).body.data.status).toBe('active');
  });

  test('is told of a token of another workspace what it is told of garbage', async () => {
    const revoked = await app.createKey({ workspace_id: 'ws_other' });
    await app.delete(`/v1/api-keys/${revoked.id}`);
    const garbage = await app.introspect('garbage', {}, { as: narrow });
    expect(garbage.body).toMatchObject({ active: false, reason: { code: 'invalid', status: 401 } });
    for (const token of [other.token, revoked.token, narrow, app.adminToken]) {
      for (const as of [narrow, narrowAdmin]) {
        expect((await app.introspect(token, {}, { as })).body).toEqual(garbage.body);
      }
      const form = await app.post('/v1/introspect', `token=${token}`, {
        as: narrow,
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
      });
      expect(form.text).toBe('{"active":false}');
    }
    expect((await app.introspect(mine.token, {}, { as: narrow })).body).toMatchObject({
      active: true,
      key_id: mine.id,
    });
  });

  test('is refused where it names another workspace in a body or a query', async () => {
    for (const workspace_id of ['ws_other', 'ws_never', 'system', 'WS_MINE', 'ws_min']) {
      for (const as of [narrow, narrowAdmin]) {
        for (const answer of [
          await app.post('/v1/api-keys', { workspace_id, name: 'x' }, { as }),
          await app.get(`/v1/api-keys?workspace_id=${workspace_id}`, { as }),
          await app.introspect(mine.token, { workspace_id }, { as }),
          await app.introspect('garbage', { workspace_id }, { as }),
        ]) {
          expectProblem(answer, 'forbidden');
        }
      }
    }
  });

  test('lists its own alone, by every filter and over every page', async () => {
    for (let index = 0; index < 5; index++) {
      await app.createKey({
        workspace_id: index % 2 === 0 ? 'ws_mine' : 'ws_mine_too',
        name: `Listed ${index}`,
      });
      await app.createKey({ workspace_id: 'ws_other', name: `Listed ${index}` });
    }
    await app.createServiceKey([], { name: 'Listed service key' });
    for (const as of [narrow, narrowAdmin]) {
      for (const query of [
        '',
        'name=Listed',
        'status=active',
        'environment=live',
        'environment=svc',
        'name=L&limit=1',
      ]) {
        const found: string[] = [];
        let cursor: string | null = '';
        while (cursor !== null) {
          const after: string = cursor === '' ? '' : `&cursor=${cursor}`;
          const page: Answer = await app.get(
            `/v1/api-keys?limit=2&${query.replace('&limit=1', '')}${after}`,
            { as },
          );
          expect(page.status, page.text).toBe(200);
          found.push(...page.body.data.map((key: { workspace_id: string }) => key.workspace_id));
          cursor = page.body.pagination.next_cursor;
        }
        expect(found.filter((workspace) => !workspace.startsWith('ws_mine'))).toEqual([]);
        if (query === 'environment=svc') expect(found).toEqual([]);
        else expect(found).toEqual(expect.arrayContaining(['ws_mine', 'ws_mine_too']));
      }
    }
  });

  test('sees nothing of others through the cursor of a caller that does', async () => {
    await app.createKey({ workspace_id: 'ws_other' });
    await app.createKey({ workspace_id: 'ws_mine' });
    const wide = await app.get('/v1/api-keys?limit=1');
    const page = await app.get(`/v1/api-keys?limit=100&cursor=${wide.body.pagination.next_cursor}`, {
      as: narrow,
    });
    expect(page.status).toBe(200);
    expect(
      page.body.data.filter((key: { workspace_id: string }) => !key.workspace_id.startsWith('ws_mine')),
    ).toEqual([]);
  });
});

describe('the workspace system', () => {
  test('is touched by admins alone', async () => {
    const service = await app.createServiceKey(['keys:read']);
    const others = PERMISSIONS.filter((permission) => permission !== 'admin');
    const { token: as } = await app.createServiceKey(others);
    const create = await app.post('/v1/api-keys', { workspace_id: 'system', name: 'x', scopes: [] }, { as });
    expectProblem(create, 'forbidden');
    expect(create.headers['www-authenticate']).toContain('error="insufficient_scope", scope="admin"');
    expectProblem(await app.get('/v1/api-keys?workspace_id=system', { as }), 'forbidden');
    for (const route of ROUTES.filter(({ path }) => path.startsWith('/v1/api-keys/{id}'))) {
      const answer = await app.send(route.method, pathTo(route, { keyId: service.id }), {
        as,
        body: route.body,
      });
      expectProblem(answer, 'not_found');
    }
    const listed = await app.get('/v1/api-keys?limit=100', { as });
    expect(listed.body.data.filter((key: { workspace_id: string }) => key.workspace_id === 'system')).toEqual(
      [],
    );
    expect((await app.get('/v1/me', { as: service.token })).status).toBe(200);
  });

  test('is seen by an admin', async () => {
    const { id } = await app.createServiceKey(['keys:read']);
    expect((await app.get(`/v1/api-keys/${id}`)).body.data).toMatchObject({
      workspace_id: 'system',
      environment: 'svc',
    });
    const listed = await app.get('/v1/api-keys?workspace_id=system&limit=1');
    expect(listed.body.data[0].id).toBe(id);
  });

  test('is not bulk-revoked, by an admin neither', async () => {
    expectProblem(await app.post('/v1/workspaces/system/revoke-keys', {}), 'forbidden');
    expect((await app.get('/v1/me')).status).toBe(200);
  });

  test('has no keys of another environment, nor has another workspace keys of its', async () => {
    for (const body of [
      { workspace_id: 'system', environment: 'live' },
      { workspace_id: 'ws_acme', environment: 'svc' },
    ]) {
      const answer = await app.post('/v1/api-keys', { name: 'x', ...body });
      expectProblem(answer, 'invalid_request');
      expect(answer.body.errors).toEqual([{ path: 'environment', message: expect.any(String) }]);
    }
  });

  test('takes scopes of the closed list alone, and none for keys of workspaces', async () => {
    for (const scope of ['read', 'keys:delete', 'admin2', 'adm', 'keys']) {
      expectProblem(
        await app.post('/v1/api-keys', { workspace_id: 'system', name: 'x', scopes: [scope] }),
        'invalid_request',
      );
    }
    // In a workspace the same words are scopes of the caller's own, and open nothing here.
    const { token } = await app.createKey({ scopes: ['admin', 'keys:write'] });
    expectProblem(await app.get('/v1/me', { as: token }), 'unauthorized');
  });

  test('keeps the restrictions of the one kind of key away from the other', async () => {
    for (const [workspace_id, restrictions] of [
      ['ws_acme', { allowed_workspaces: ['ws_acme'] }],
      ['system', { allowed_referrers: ['https://example.com/*'] }],
      ['system', { allowed_endpoints: [{ path: '/*' }] }],
      ['system', { allowed_workspaces: ['system'] }],
    ] as const) {
      expectProblem(
        await app.post('/v1/api-keys', { workspace_id, name: 'x', restrictions }),
        'invalid_request',
      );
    }
  });
});

describe('nobody grants more than they hold', () => {
  /** An admin with bounds, and what it tries. */
  async function boundAdmin(settings: Record<string, unknown>) {
    return app.createServiceKey(['admin'], settings);
  }
  const IPS = { restrictions: { allowed_ips: ['127.0.0.0/8'] } };
  const DAY = { expires_at: '2090-01-01T00:00:00Z' };

  test.each([
    ['any address', {}],
    ['all addresses as networks', { restrictions: { allowed_ips: ['0.0.0.0/0', '::/0'] } }],
    ['a wider network', { restrictions: { allowed_ips: ['126.0.0.0/7'] } }],
    ['one more address', { restrictions: { allowed_ips: ['127.0.0.1', '10.0.0.1'] } }],
    ['the mapped form of a wider network', { restrictions: { allowed_ips: ['::ffff:126.0.0.0/103'] } }],
    ['a narrowing to workspaces instead', { restrictions: { allowed_workspaces: ['ws_a'] } }],
  ])('an admin bound to addresses makes no key for %s', async (_what, settings) => {
    const { id, token: as } = await boundAdmin(IPS);
    const body = { workspace_id: 'system', name: 'x', scopes: ['keys:read'], ...settings };
    expectProblem(await app.post('/v1/api-keys', body, { as }), 'forbidden');
    if (Object.keys(settings).length > 0) {
      const restrictions = { allowed_ips: null, ...(settings as { restrictions: object }).restrictions };
      expectProblem(await app.patch(`/v1/api-keys/${id}`, { restrictions }, { as }), 'forbidden');
    }
    expectProblem(await app.patch(`/v1/api-keys/${id}`, { restrictions: null }, { as }), 'forbidden');
    expectProblem(
      await app.patch(`/v1/api-keys/${id}`, { restrictions: { allowed_ips: null } }, { as }),
      'forbidden',
    );
  });

  test.each([
    ['the same addresses', IPS],
    ['fewer', { restrictions: { allowed_ips: ['127.0.0.1'] } }],
    ['two halves of them', { restrictions: { allowed_ips: ['127.0.0.0/9', '127.128.0.0/9'] } }],
    ['the mapped form of them', { restrictions: { allowed_ips: ['::ffff:127.0.0.0/104'] } }],
  ])('an admin bound to addresses makes a key for %s', async (_what, settings) => {
    const { token: as } = await boundAdmin(IPS);
    const { token } = await app.createKey({ workspace_id: 'system', scopes: ['admin'], ...settings }, { as });
    expect((await app.get('/v1/me', { as: token })).status).toBe(200);
  });

  test.each([
    ['for ever', null, false],
    ['a millisecond longer', '2090-01-01T00:00:00.001Z', false],
    ['longer by an offset', '2090-01-01T00:00:00-00:01', false],
    ['just as long', '2090-01-01T00:00:00.000Z', true],
    ['as long by an offset', '2090-01-01T01:00:00+01:00', true],
    ['shorter', '2089-12-31T23:59:59.999Z', true],
  ])('an admin that expires makes no key that lives longer than it: %s', async (_what, expires_at, may) => {
    const { id, token: as } = await boundAdmin(DAY);
    const made = await app.post(
      '/v1/api-keys',
      { workspace_id: 'system', name: 'x', scopes: ['admin'], expires_at },
      { as },
    );
    const changed = await app.patch(`/v1/api-keys/${id}`, { expires_at }, { as });
    if (may) {
      expect([made.status, changed.status]).toEqual([201, 200]);
    } else {
      expectProblem(made, 'forbidden');
      expectProblem(changed, 'forbidden');
      const { id: otherId } = await app.createServiceKey(['keys:read'], {
        expires_at: '2080-01-01T00:00:00Z',
      });
      expectProblem(await app.patch(`/v1/api-keys/${otherId}`, { expires_at }, { as }), 'forbidden');
    }
  });

  test('an expiry left out is for ever too', async () => {
    const { token: as } = await boundAdmin(DAY);
    expectProblem(await app.post('/v1/api-keys', { workspace_id: 'system', name: 'x' }, { as }), 'forbidden');
  });

  test('an admin narrowed to workspaces cannot touch service keys, itself among them', async () => {
    const { id, token: as } = await boundAdmin({ restrictions: { allowed_workspaces: ['ws_a'] } });
    for (const restrictions of [
      null,
      { allowed_workspaces: null },
      { allowed_workspaces: ['ws_a', 'ws_b'] },
    ]) {
      expectProblem(await app.patch(`/v1/api-keys/${id}`, { restrictions }, { as }), 'not_found');
    }
    expectProblem(await app.post('/v1/api-keys', { workspace_id: 'system', name: 'x' }, { as }), 'forbidden');
    expect((await app.get('/v1/me', { as })).body.data.restrictions.allowed_workspaces).toEqual(['ws_a']);
  });

  test('no permission but admin lets a service key change itself', async () => {
    const { id, token: as } = await app.createServiceKey(
      PERMISSIONS.filter((permission) => permission !== 'admin'),
    );
    expectProblem(await app.patch(`/v1/api-keys/${id}`, { scopes: ['admin'] }, { as }), 'not_found');
    expectProblem(await app.delete(`/v1/api-keys/${id}`, undefined, { as }), 'not_found');
  });

  test('keys of workspaces are outside of that: they call nothing here', async () => {
    const { token: as } = await boundAdmin({ ...IPS, ...DAY });
    expect(
      (await app.post('/v1/api-keys', { workspace_id: 'ws_acme', name: 'x', scopes: ['any'] }, { as }))
        .status,
    ).toBe(201);
  });
});

describe('the last active admin', () => {
  async function alone() {
    const fresh = await appOfTest();
    const id: string = (await fresh.get('/v1/me')).body.data.id;
    return { fresh, id, path: `/v1/api-keys/${id}` };
  }

  test('is not revoked, expired or narrowed', async () => {
    const { fresh, path } = await alone();
    // None of these is an admin that could stand in.
    await fresh.createServiceKey(['keys:read', 'keys:write']);
    await fresh.createServiceKey(['admin'], { restrictions: { allowed_workspaces: ['ws_a'] } });
    await fresh.createKey({ scopes: ['admin'] });
    const { id: revoked } = await fresh.createServiceKey(['admin']);
    expect((await fresh.delete(`/v1/api-keys/${revoked}`)).status).toBe(200);

    expectProblem(await fresh.delete(path), 'last_admin');
    expectProblem(await fresh.post(`${path}/revoke`), 'last_admin');
    for (const patch of [
      { scopes: [] },
      { scopes: null },
      { scopes: ['keys:read', 'keys:write'] },
      { expires_at: '2090-01-01T00:00:00Z' },
      { restrictions: { allowed_workspaces: ['ws_a'] } },
      { restrictions: { allowed_ips: ['127.0.0.1'] } },
      { restrictions: { allowed_ips: ['0.0.0.0/0', '::/0'] } },
    ]) {
      expectProblem(await fresh.patch(path, patch), 'last_admin');
    }
    expect((await fresh.get('/v1/me')).body.data).toMatchObject({
      permissions: ['admin'],
      restrictions: null,
      expires_at: null,
    });
  });

  test('may change whatever does not narrow it', async () => {
    const { fresh, path } = await alone();
    for (const patch of [
      { name: 'New name' },
      { scopes: ['admin', 'keys:read'] },
      { metadata: { a: 1 } },
      { rate_limit: { limit: 5, window_seconds: 5 } },
      { restrictions: { allowed_ips: null } },
      { expires_at: null },
      {},
    ]) {
      expect((await fresh.patch(path, patch)).status, JSON.stringify(patch)).toBe(200);
    }
  });

  test('may go once there is another', async () => {
    const { fresh, path } = await alone();
    const { token: as } = await fresh.createServiceKey(['admin']);
    expect((await fresh.delete(path)).status).toBe(200);
    expectProblem(await fresh.get('/v1/me'), 'unauthorized');
    const { id } = (await fresh.get('/v1/me', { as })).body.data;
    expectProblem(await fresh.delete(`/v1/api-keys/${id}`, undefined, { as }), 'last_admin');
  });

  test.each([
    ['revoking', { method: 'DELETE', body: undefined }],
    ['narrowing', { method: 'PATCH', body: { restrictions: { allowed_workspaces: ['ws_a'] } } }],
    ['taking admin from', { method: 'PATCH', body: { scopes: [] } }],
  ] as const)('remains when two admins are at once %s each other', async (_what, { method, body }) => {
    const { fresh } = await alone();
    let survivor = fresh.adminToken;
    for (let round = 0; round < 8; round++) {
      const { id } = (await fresh.get('/v1/me', { as: survivor })).body.data;
      const second = await fresh.createKey({ workspace_id: 'system', scopes: ['admin'] }, { as: survivor });
      const [first, other] = await Promise.all([
        fresh.send(method, `/v1/api-keys/${second.id}`, { as: survivor, body }),
        fresh.send(method, `/v1/api-keys/${id}`, { as: second.token, body }),
      ]);
      const loser = first.status === 200 ? other : first;
      expect([first.status, other.status].filter((status) => status === 200)).toEqual([200]);
      // The slower one finds the other to be the last, or itself no admin any more.
      expect(['last_admin', 'unauthorized', 'forbidden', 'not_found']).toContain(loser.body.code);
      expectProblem(loser);
      if (loser === first) survivor = second.token;
    }
  });
});

test('on one connection, each request is judged by the key that it shows and by what has become of that', async () => {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const sockets = new Set<Socket>();
  const ask = (token: string) =>
    new Promise<number | undefined>((resolve, reject) => {
      const options = { host: '127.0.0.1', port, path: '/v1/me', agent, headers: { 'x-api-key': token } };
      get(options, (response) => {
        sockets.add(response.socket);
        response.resume().on('end', () => resolve(response.statusCode));
      }).on('error', reject);
    });
  const first = await app.createServiceKey([]);
  const second = await app.createServiceKey([]);
  const statuses: (number | undefined)[] = [];
  for (const token of [first.token, first.token, `${first.token}x`, second.token, first.token])
    statuses.push(await ask(token));
  expect(statuses).toEqual([200, 200, 401, 200, 200]);
  await app.delete(`/v1/api-keys/${first.id}`);
  expect(await ask(first.token)).toBe(401);
  expect(await ask(second.token)).toBe(200);
  expect(sockets.size).toBe(1);
  agent.destroy();
});
