import { METHODS } from 'node:http';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestApp, type TestApp } from '../support/app.ts';
import { listen } from './listen.ts';
import { expectProblem, expectRefusal, expectSilentOn } from './problem.ts';
import { exchange, request } from './raw.ts';

/*
 * What may come over a socket: everything that is no request of HTTP/1.1, or hardly one. Whatever it is, it is
 * answered by one problem that blames the caller, and the service lives on.
 */

let app: TestApp;
let port: number;

beforeAll(async () => {
  app = await createTestApp({ FAILED_AUTH_RATE_LIMIT: 'off', CALLER_RATE_LIMIT: 'off' });
  port = await listen(app);
});
afterAll(async () => {
  expect((await app.get('/v1/me')).status).toBe(200);
  expect(app.logLines.filter((line) => JSON.parse(line).level >= 50)).toEqual([]);
  await app.close();
});

const HOST = 'Host: claviger.test\r\n';
const auth = () => `Authorization: Bearer ${app.adminToken}\r\n`;
const JSON_TYPE = 'Content-Type: application/json\r\n';
const NEW_KEY = JSON.stringify({ workspace_id: 'ws_wire', name: 'Wire' });

describe('bytes that are no HTTP request get one problem and the end of the connection', () => {
  test.each([
    ['a word', 'HELLO\r\n\r\n'],
    ['no path', 'GET\r\n\r\n'],
    ['no version number', `GET /healthz HTTP\r\n${HOST}\r\n`],
    ['HTTP/9.9', `GET /healthz HTTP/9.9\r\n${HOST}\r\n`],
    ['HTTP/2 in clear text', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['another protocol', 'SSH-2.0-OpenSSH_9.6\r\n'],
    ['a TLS hello', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03'],
    ['a method in lower case', `get /healthz HTTP/1.1\r\n${HOST}\r\n`],
    ['a method that nobody knows', `FROB /healthz HTTP/1.1\r\n${HOST}\r\n`],
    ['a space in the path', `GET /heal thz HTTP/1.1\r\n${HOST}\r\n`],
    ['a NUL in the path', `GET /heal\0thz HTTP/1.1\r\n${HOST}\r\n`],
    ['a space before the request', ` GET /healthz HTTP/1.1\r\n${HOST}\r\n`],
    ['a header without a colon', `GET /healthz HTTP/1.1\r\n${HOST}nonsense\r\n\r\n`],
    ['a header without a name', `GET /healthz HTTP/1.1\r\n${HOST}: x\r\n\r\n`],
    ['a space in a header name', `GET /healthz HTTP/1.1\r\n${HOST}X Y: x\r\n\r\n`],
    ['a space before the colon', `GET /healthz HTTP/1.1\r\nHost : claviger.test\r\n\r\n`],
    ['a NUL in a header', `GET /healthz HTTP/1.1\r\n${HOST}X: a\0b\r\n\r\n`],
    ['a bare CR in a header', `GET /healthz HTTP/1.1\r\n${HOST}X: a\rb\r\n\r\n`],
    ['a bare CR as the end of a line', `GET /healthz HTTP/1.1\r${HOST}\r\r`],
    ['a folded header in front', `GET /healthz HTTP/1.1\r\n X: y\r\n${HOST}\r\n`],
    ['two lengths', `POST /v1/api-keys HTTP/1.1\r\n${HOST}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}`],
    [
      'a length and chunks',
      `POST /v1/api-keys HTTP/1.1\r\n${HOST}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
    ],
    [
      'chunks and a length',
      `POST /v1/api-keys HTTP/1.1\r\n${HOST}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n`,
    ],
    ['a negative length', `POST /v1/api-keys HTTP/1.1\r\n${HOST}Content-Length: -1\r\n\r\n`],
    ['a length with a sign', `POST /v1/api-keys HTTP/1.1\r\n${HOST}Content-Length: +2\r\n\r\n{}`],
    ['a length in hexadecimal', `POST /v1/api-keys HTTP/1.1\r\n${HOST}Content-Length: 0x2\r\n\r\n{}`],
    [
      'a length beyond any',
      `POST /v1/api-keys HTTP/1.1\r\n${HOST}Content-Length: 99999999999999999999\r\n\r\n{}`,
    ],
    ['a list of lengths', `POST /v1/api-keys HTTP/1.1\r\n${HOST}Content-Length: 2, 2\r\n\r\n{}`],
    [
      'chunks that are coded further',
      `POST /v1/api-keys HTTP/1.1\r\n${HOST}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n`,
    ],
    [
      'a coding that nobody knows',
      `POST /v1/api-keys HTTP/1.1\r\n${HOST}Transfer-Encoding: frob\r\n\r\n0\r\n\r\n`,
    ],
    ['a header beyond 16 KiB', `GET /healthz HTTP/1.1\r\n${HOST}X: ${'x'.repeat(20_000)}\r\n\r\n`],
    ['headers beyond 16 KiB', `GET /healthz HTTP/1.1\r\n${HOST}${'X: 0123456789\r\n'.repeat(2_000)}\r\n`],
    ['a path beyond 16 KiB', `GET /${'x'.repeat(20_000)} HTTP/1.1\r\n${HOST}\r\n`],
    ['a query beyond 16 KiB', `GET /v1/api-keys?name=${'x'.repeat(20_000)} HTTP/1.1\r\n${HOST}\r\n`],
  ])('%s', async (_what, bytes) => {
    const { answers, closed } = await exchange(bytes, { port });
    expect(answers).toHaveLength(1);
    for (const answer of answers) {
      expectRefusal(answer, 'invalid_request');
      expect(answer.headers.connection).toBe('close');
    }
    expect(closed).toBe(true);
  });

  test.each([
    ['a chunk without a size', 'ZZ\r\n{}\r\n0\r\n\r\n'],
    ['a chunk that is shorter than it says', '5\r\n{}\r\n0\r\n\r\n'],
    ['a chunk that is longer than it says', '1\r\n{}\r\n0\r\n\r\n'],
    ['a chunk of a size beyond any', 'fffffffffffffffff\r\n{}\r\n0\r\n\r\n'],
    ['a chunk of a negative size', '-1\r\n{}\r\n0\r\n\r\n'],
    ['an extension of a chunk beyond any', `2;${'x'.repeat(20_000)}\r\n{}\r\n0\r\n\r\n`],
    ['a trailer without a colon', '2\r\n{}\r\n0\r\nnonsense\r\n\r\n'],
    ['a trailer beyond 16 KiB', `2\r\n{}\r\n0\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`],
  ])('%s', async (_what, chunks) => {
    const bytes = `POST /v1/api-keys HTTP/1.1\r\n${HOST}${auth()}${JSON_TYPE}Transfer-Encoding: chunked\r\n\r\n${chunks}`;
    const { answers, closed } = await exchange(bytes, { port });
    expect(answers).toHaveLength(1);
    for (const answer of answers) expectRefusal(answer, 'invalid_request');
    expect(closed).toBe(true);
  });

  test('a refusal repeats nothing of them', async () => {
    const token = app.adminToken;
    for (const bytes of [
      `${token}\r\n\r\n`,
      `GET /${token} HTTP/9.9\r\n\r\n`,
      `GET / HTTP/1.1\r\n${HOST}${token}\r\n\r\n`,
      `GET / HTTP/1.1\r\n${HOST}X-Request-Id: ${token}\r\nbad header\r\n\r\n`,
    ]) {
      const { answers } = await exchange(bytes, { port });
      expect(answers).toHaveLength(1);
      for (const answer of answers) expectSilentOn(answer, token);
    }
    expect(app.logLines.join('\n')).not.toContain(token.slice(10, 40));
  });
});

describe('a fault behind a request', () => {
  const create = () =>
    `POST /v1/api-keys HTTP/1.1\r\n${HOST}${auth()}${JSON_TYPE}Content-Length: ${NEW_KEY.length}\r\n\r\n${NEW_KEY}`;

  test('does not take the place of the answer to it', async () => {
    for (const garbage of [
      'nonsense\r\n\r\n',
      'GET / HTTP/9.9\r\n\r\n',
      '\0\0\0\0',
      'CONNECT x:1 HTTP/1.1\r\n\r\n',
    ]) {
      const { answers, closed } = await exchange(create() + garbage, { port });
      expect(answers.map(({ status }) => status)).toEqual([201, garbage.startsWith('CONNECT') ? 404 : 400]);
      expect(closed).toBe(true);
    }
  });

  test('does not take the place of the answers to several', async () => {
    const { answers, closed } = await exchange(`${create()}${create()}${create()}nonsense\r\n\r\n`, { port });
    expect(answers.map(({ status }) => status)).toEqual([201, 201, 201, 400]);
    expect(new Set(answers.map(({ body }) => body.data?.id)).size).toBe(4);
    expect(closed).toBe(true);
  });

  test('in the body of the second does not take the place of the answer to the first', async () => {
    const second = `POST /v1/api-keys HTTP/1.1\r\n${HOST}${auth()}${JSON_TYPE}Transfer-Encoding: chunked\r\n\r\nZZ\r\n`;
    const { answers, closed } = await exchange(create() + second, { port });
    expect(answers.map(({ status }) => status)).toEqual([201, 400]);
    expect(closed).toBe(true);
  });

  test('in a body that was answered already gets no second answer', async () => {
    const head = `POST /v1/api-keys HTTP/1.1\r\n${HOST}${JSON_TYPE}Transfer-Encoding: chunked\r\n\r\n`;
    const { answers, closed } = await exchange(head, { port, afterFirst: 'ZZ\r\n' });
    expect(answers.map(({ status }) => status)).toEqual([401]);
    expect(closed).toBe(true);
  });

  test('that lies in more bytes than its length says is the next request', async () => {
    const { answers } = await exchange(`${create()}}}}`, { port });
    expect(answers.map(({ status }) => status)).toEqual([201, 400]);
  });
});

describe('a client that goes away', () => {
  test('in the middle of a body leaves nothing behind', async () => {
    const before = app.logLines.length;
    const head = `POST /v1/api-keys HTTP/1.1\r\n${HOST}${auth()}${JSON_TYPE}Content-Length: 5000\r\n\r\n{"workspace_id":`;
    for (let index = 0; index < 5; index++) {
      await new Promise<void>((resolve, reject) => {
        import('node:net').then(({ connect }) => {
          const socket = connect({ port, host: '127.0.0.1' }, () => {
            socket.write(head, () => socket.destroy());
          });
          socket.on('close', () => resolve());
          socket.on('error', reject);
        }, reject);
      });
    }
    expect((await app.get('/v1/me')).status).toBe(200);
    const grave = app.logLines.slice(before).filter((line) => JSON.parse(line).level >= 50);
    expect(grave).toEqual([]);
  });
});

describe('requests that are unusual', () => {
  const served = ['GET', 'HEAD', 'POST', 'PATCH', 'DELETE'];

  test.each(METHODS.filter((method) => !served.includes(method) && method !== 'CONNECT'))(
    'a method that no route has is 404: %s',
    async (method) => {
      for (const path of ['/v1/api-keys', '/v1/me', '/healthz', '/docs/']) {
        const answer = await request({
          port,
          line: `${method} ${path} HTTP/1.1`,
          headers: [
            `Authorization: Bearer ${app.adminToken}`,
            `X-Secret: ${app.adminToken}`,
            'Content-Type: application/json',
          ],
          body: '{}',
        });
        expectRefusal(answer, 'not_found');
        expectSilentOn(answer, app.adminToken);
      }
    },
  );

  test('CONNECT is answered too', async () => {
    const { answers, closed } = await exchange(`CONNECT ${'db.internal:5432'} HTTP/1.1\r\n${HOST}\r\n`, {
      port,
    });
    expect(answers).toHaveLength(1);
    for (const answer of answers) expectRefusal(answer, 'not_found');
    expect(closed).toBe(true);
  });

  test('a method of another name by a header is none', async () => {
    const answer = await request({
      port,
      line: 'POST /v1/me HTTP/1.1',
      headers: [`Authorization: Bearer ${app.adminToken}`, 'X-HTTP-Method-Override: GET'],
    });
    expectRefusal(answer, 'not_found');
  });

  test.each([
    ['no Host', `GET /healthz HTTP/1.1\r\n\r\n`],
    ['no version and no Host', 'GET /healthz\r\n\r\n'],
    ['no Host on an unknown route', `GET /nothing HTTP/1.1\r\n\r\n`],
    ['two Hosts', `GET /healthz HTTP/1.1\r\n${HOST}Host: other.test\r\n\r\n`],
    ['two equal Hosts', `GET /healthz HTTP/1.1\r\n${HOST}${HOST}\r\n`],
    ['two Hosts of HTTP/1.0', `GET /healthz HTTP/1.0\r\n${HOST}${HOST}\r\n`],
    ['two Hosts far apart', `GET /healthz HTTP/1.1\r\n${HOST}${'a:\r\n'.repeat(2_100)}${HOST}\r\n`],
  ])('%s is 400', async (_what, bytes) => {
    const { answers } = await exchange(bytes, { port, responses: 1 });
    for (const answer of answers) expectRefusal(answer, 'invalid_request');
    expect(answers).toHaveLength(1);
  });

  test('HTTP/1.0 without a Host is served, and the connection ends', async () => {
    const { answers, closed } = await exchange('GET /healthz HTTP/1.0\r\n\r\n', { port });
    expect(answers.map(({ status }) => status)).toEqual([200]);
    expect(closed).toBe(true);
    const refused = await exchange('GET /v1/me HTTP/1.0\r\n\r\n', { port });
    for (const answer of refused.answers) expectProblem(answer, 'unauthorized');
    expect(refused.answers).toHaveLength(1);
  });

  test('an absolute path in the request line is the path alone', async () => {
    const answer = await request({
      port,
      line: 'GET http://other.test/v1/me HTTP/1.1',
      headers: [`Authorization: Bearer ${app.adminToken}`],
    });
    expect(answer.status).toBe(200);
  });

  test.each(['websocket', 'h2c', 'TLS/1.0'])(
    'an upgrade is not taken up, and the request is answered: %s',
    async (protocol) => {
      const answer = await request({
        port,
        line: 'GET /v1/me HTTP/1.1',
        headers: [`Upgrade: ${protocol}`, 'Connection: Upgrade', 'HTTP2-Settings: AAMAAABkAAQAAP__'],
      });
      expectRefusal(answer, 'unauthorized');
    },
  );

  test.each(['100-continue', 'nonsense', '200-ok', ''])(
    'whatever it expects, it is answered: %j',
    async (expected) => {
      const send = (headers: string[], body: string) =>
        request({
          port,
          line: 'POST /v1/api-keys HTTP/1.1',
          headers: [`Expect: ${expected}`, 'Content-Type: application/json', ...headers],
          body,
        });
      expectRefusal(await send([], NEW_KEY), 'unauthorized');
      expectRefusal(await send([`Authorization: Bearer ${app.adminToken}`], '{'), 'invalid_request');
      expect((await send([`Authorization: Bearer ${app.adminToken}`], NEW_KEY)).status).toBe(201);
    },
  );
});

describe('paths', () => {
  test.each([
    '*',
    '?',
    '/?',
    '//',
    '//v1/me',
    '/v1//me',
    '/v1/me//',
    '/v1/./me',
    '/v1/../v1/me',
    '/v1/x/../me',
    '/v1/%2e%2e/v1/me',
    '/v1/me/..',
    '/V1/ME',
    '/v1/me;x=1',
    '/v1%2fme',
    '/v1/m%65%00',
    '/v1/me%20',
    '/v1/me.json',
    '/v1/api-keys/',
    '/v1/api-keys//revoke',
    '/v1/api-keys/./revoke',
    '/v1/api-keys/%2e%2e',
    '/v1/api-keys/%00',
    '/v1/api-keys/a%2fb',
    '/v1/api-keys/a%5cb',
    '/v1/api-keys/%ef%bf%bf',
    '/v1/api-keys/%f0%9f%94%91',
    '/v1/api-keys/%ed%a0%80',
    '/v1/api-keys/%c0%ae',
    '/v1/api-keys/%ff',
    '/v1/api-keys/%',
    '/v1/api-keys/%2',
    '/v1/api-keys/%zz',
    '/v1/api-keys/%u0041',
    '/%',
    '/%ff/x',
    '/v1/api-keys/\xff\xfe',
    '/v1/api-keys/{id}',
    '/v1/api-keys/:id',
    '/v1/api-keys/constructor',
    '/v1/api-keys/__proto__',
    "/v1/api-keys/' OR 1=1 --".replaceAll(' ', '%20'),
    `/v1/api-keys/${'x'.repeat(999)}`,
    `/v1/api-keys/${'x'.repeat(1_001)}`,
    `/v1/api-keys/${'x'.repeat(15_000)}`,
    `/${'a/'.repeat(7_000)}`,
    'http://',
    'http://other.test',
    'https://other.test/nothing',
    'ftp://other.test/v1/me',
    'v1/me',
    '/v1/api-keys/key_00000000000000000000000000',
    '/v1/api-keys/key_7zzzzzzzzzzzzzzzzzzzzzzzzz',
    '/v1/api-keys/key_80000000000000000000000000',
    '/v1/api-keys/key_zzzzzzzzzzzzzzzzzzzzzzzzzz',
    '/v1/api-keys/key_0000000000000000000000000i',
    '/v1/api-keys/00000000-0000-0000-0000-000000000000',
  ])('that lead nowhere are refused: %.60s', async (path) => {
    for (const method of ['GET', 'PATCH', 'DELETE', 'POST']) {
      const answer = await request({
        port,
        line: `${method} ${path} HTTP/1.1`,
        headers: [`Authorization: Bearer ${app.adminToken}`, 'Content-Type: application/json'],
        body: '{}',
      });
      expectRefusal(answer);
      expect(['not_found', 'invalid_request'], answer.text).toContain(answer.body.code);
    }
  });

  test('of key ids lead to a key or to none, whatever their 128 bits are', async () => {
    const digits = [...'0123456789abcdefghjkmnpqrstvwxyz'];
    const id = fc
      .tuple(
        fc.constantFrom(...'01234567'),
        fc.array(fc.constantFrom(...digits), { minLength: 25, maxLength: 25 }),
      )
      .map(([first, rest]) => `key_${first}${rest.join('')}`);
    await fc.assert(
      fc.asyncProperty(id, fc.constantFrom('GET', 'PATCH', 'DELETE'), async (name, method) => {
        expectProblem(
          await app.send(method, `/v1/api-keys/${name}`, { body: method === 'PATCH' ? {} : undefined }),
          'not_found',
        );
      }),
      { numRuns: 60 },
    );
  });

  test('of any bytes never lead to a fault', async () => {
    const piece = fc.oneof(
      fc.constantFrom(
        '/',
        '.',
        '..',
        '%',
        '%2',
        '%2f',
        '%00',
        '%ff',
        '?',
        '#',
        ';',
        '&',
        '=',
        'v1',
        'api-keys',
        'me',
        'docs',
        'static',
        '*',
        ':',
        '\\',
        '[',
        ']',
        '~',
      ),
      fc.string({ unit: 'grapheme-ascii', maxLength: 4 }).map((text) => text.replaceAll(/\s/g, '')),
      fc.integer({ min: 0x80, max: 0xff }).map((byte) => String.fromCharCode(byte)),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 12 }), async (pieces) => {
        const answer = await request({
          port,
          line: `POST /${pieces.join('')} HTTP/1.1`,
          headers: [`Authorization: Bearer ${app.adminToken}`],
        });
        expectRefusal(answer);
      }),
      { numRuns: 200 },
    );
  });
});

test('headers of any bytes never lead to a fault', async () => {
  const names = [
    'Authorization',
    'X-Api-Key',
    'X-Request-Id',
    'X-Forwarded-For',
    'Content-Type',
    'Content-Encoding',
    'Accept',
    'Accept-Encoding',
    'Connection',
    'Expect',
    'If-Match',
    'Range',
    'Cookie',
    'TE',
    'Trailer',
    'Origin',
    'Referer',
    'Idempotency-Key',
    'Content-Length',
    'Transfer-Encoding',
    'Host',
    'Upgrade',
    'Forwarded',
    '__proto__',
    'constructor',
  ];
  const value = fc.oneof(
    fc.string({ unit: 'binary-ascii', maxLength: 30 }),
    fc.constantFrom('chunked', 'bearer', 'gzip', '0', '-1', 'close', 'application/json', '*/*', 'bytes=0-1'),
    fc
      .array(fc.integer({ min: 0x20, max: 0xff }), { maxLength: 30 })
      .map((bytes) => String.fromCharCode(...bytes)),
  );
  const lines = fc.array(fc.tuple(fc.constantFrom(...names), value), { maxLength: 5 });
  await fc.assert(
    fc.asyncProperty(
      lines,
      fc.constantFrom('GET /v1/me', 'POST /v1/api-keys', 'GET /nothing'),
      async (headers, line) => {
        const head = headers.map(([name, text]) => `${name}: ${text}\r\n`).join('');
        // A last request ends the connection, so that there is always an end to wait for.
        const bytes = `${line} HTTP/1.1\r\n${HOST}Connection: close\r\n${head}\r\n{}\r\n\r\n\r\n\r\n`;
        const { answers } = await exchange(bytes, { port, responses: 1 });
        expect(answers.length).toBeGreaterThanOrEqual(1);
        for (const answer of answers) expectRefusal(answer);
      },
    ),
    { numRuns: 300 },
  );
});
