import { beforeAll, describe, expect, test } from 'vitest';
import { appOfTest } from '../support/app.ts';
import { type Answer, createClient } from '../support/client.ts';
import { loadResponseCheck, type ResponseCheck } from '../support/response-check.ts';

/*
 * Who watches the watchman: the check that every client of the tests carries, fed with answers that are wrong.
 */

const REQUEST_ID = 'req_1';

let check: ResponseCheck;

beforeAll(async () => {
  check = await loadResponseCheck();
});

const me = {
  success: true,
  data: {
    id: 'key_01ke6c2y6pfyc8m3q0v7rt5x4n',
    name: 'n',
    permissions: [],
    restrictions: null,
    expires_at: null,
  },
};
const problem = {
  type: 'urn:claviger:error:unauthorized',
  title: 'A valid service key is required',
  status: 401,
  detail: 'Send a service key.',
  instance: `urn:claviger:request:${REQUEST_ID}`,
  success: false,
  code: 'unauthorized',
  request_id: REQUEST_ID,
};

function answer(status: number, body: unknown, headers: Record<string, string> = {}): Answer {
  const type = status < 400 ? 'application/json; charset=utf-8' : 'application/problem+json';
  const all = { 'content-type': type, 'x-request-id': REQUEST_ID, ...headers };
  const present = Object.entries(all).filter(([, value]) => value !== '');
  return { status, body, text: JSON.stringify(body), headers: Object.fromEntries(present) };
}

const refused = (body: object, headers?: Record<string, string>) =>
  answer(401, body, { 'www-authenticate': 'Bearer realm="claviger"', ...headers });

describe('the check of responses', () => {
  test('accepts what the document says', () => {
    check('GET', '/v1/me', answer(200, me));
    check('GET', '/v1/me?x=1', answer(200, me));
    check('GET', '/v1/%6de', answer(200, me));
    check('HEAD', '/v1/me', answer(200, '', { 'content-type': '' }));
    check('GET', '/v1/me', refused(problem));
  });

  test.each<[string, RegExp, () => Answer]>([
    ['a status that is not declared', /status 418 is not declared/, () => answer(418, problem)],
    ['a success of another status', /status 201 is not declared/, () => answer(201, me)],
    [
      'a member that is not declared',
      /additional properties \(extra\)/,
      () => answer(200, { ...me, extra: 1 }),
    ],
    [
      'one deep in the body',
      /body\/data.*\(hash\)/,
      () => answer(200, { ...me, data: { ...me.data, hash: 'x' } }),
    ],
    ['a member that is missing', /required property 'data'/, () => answer(200, { success: true })],
    [
      'a value of another type',
      /body\/data\/name/,
      () => answer(200, { ...me, data: { ...me.data, name: 1 } }),
    ],
    [
      'a time that is none',
      /body\/data\/expires_at must match format/,
      () => answer(200, { ...me, data: { ...me.data, expires_at: 'soon' } }),
    ],
    [
      'another media type',
      /"text\/html" is not declared/,
      () => answer(200, me, { 'content-type': 'text/html' }),
    ],
    ['a missing request id', /X-Request-Id is missing/, () => answer(200, me, { 'x-request-id': '' })],
    [
      'a count that is none',
      /X-RateLimit-Limit is no integer/,
      () => answer(200, me, { 'x-ratelimit-limit': 'x' }),
    ],
    [
      'a code that the route does not have',
      /code "forbidden" is not declared/,
      () => refused({ ...problem, code: 'forbidden' }),
    ],
    ['a status in the body of its own', /"status" is 403/, () => refused({ ...problem, status: 403 })],
    [
      'another request id in the body',
      /not that of the header/,
      () => refused({ ...problem, request_id: 'r' }),
    ],
    ['a 401 that asks for nothing', /WWW-Authenticate is missing/, () => answer(401, problem)],
    [
      'a 503 that does not say when',
      /Retry-After is missing/,
      () => answer(503, { ...problem, status: 503, code: 'unavailable' }),
    ],
  ])('refuses %s', (_name, fault, wrong) => {
    expect(() => check('GET', '/v1/me', wrong())).toThrow(fault);
  });

  test('of a route that is not there, accepts the problem alone', () => {
    const missing = answer(404, { ...problem, status: 404, code: 'not_found' });
    for (const [method, path] of [
      ['GET', '/nowhere'],
      ['PUT', '/v1/me'],
      ['GET', '/v1/me/'],
      ['POST', '/v1/api-keys/a/b/c'],
    ] as const) {
      check(method, path, missing);
      expect(() => check(method, path, answer(200, me))).toThrow(/no such route/);
    }
    expect(() => check('GET', '/nowhere', answer(404, { error: 'no' }))).toThrow(/required property/);
    expect(() => check('GET', '/nowhere', answer(404, {}, { 'content-type': 'text/html' }))).toThrow(
      /not a problem/,
    );
  });

  test('tells the answers to a form from those to JSON', () => {
    check('POST', '/v1/introspect', answer(200, { active: false }));
    check(
      'POST',
      '/v1/introspect',
      answer(200, { active: false, reason: { code: 'expired', status: 401, detail: 'd' } }),
    );
    expect(() => check('POST', '/v1/introspect', answer(200, { active: false, key_id: 'key_1' }))).toThrow();
  });

  test('is what the client of every test carries', async () => {
    const app = await appOfTest();
    const client = createClient(async () => answer(200, { ...me, extra: 1 }), {
      token: app.adminToken,
      check,
    });
    await expect(client.get('/v1/me')).rejects.toThrow(/extra/);
    app.app.addHook('onSend', async (_request, reply, payload) => {
      reply.removeHeader('x-request-id');
      return payload;
    });
    await expect(app.get('/v1/me')).rejects.toThrow(/X-Request-Id is missing/);
  });
});
