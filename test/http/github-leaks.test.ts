import { createHash, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { createGithubKeys, readGithubKeys } from '../../src/http/github-keys.ts';
import { placeOf } from '../../src/http/github-leaks.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import type { Answer } from '../support/client.ts';
import { expectProblem } from './problem.ts';

interface Signer {
  readonly id: string;
  readonly pem: string;
  readonly privateKey: KeyObject;
}

function signerOf(id: string, namedCurve = 'P-256'): Signer {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve });
  return { id, pem: publicKey.export({ type: 'spki', format: 'pem' }).toString(), privateKey };
}

const listOf = (...signers: readonly Signer[]) =>
  JSON.stringify({
    public_keys: signers.map(({ id, pem }) => ({ key_identifier: id, key: pem, is_current: true })),
  });

const GITHUB = signerOf('bcb53661c06b4728e59d897fb6165d5c9cda0fd9cdf9d09ead458168deb7518c');
const OTHER = signerOf('0'.repeat(64));
const OTHER_CURVE = signerOf('1'.repeat(64), 'P-384');

let app: TestApp;
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'claviger-github-'));
  const file = join(folder, 'keys.json');
  await writeFile(file, listOf(GITHUB, OTHER_CURVE));
  app = await createTestApp({
    GITHUB_KEYS_FILE: file,
    FAILED_AUTH_RATE_LIMIT: '1000',
    TRUSTED_PROXY_CIDRS: '127.0.0.1',
  });
});
afterAll(async () => {
  await app.close();
  await rm(folder, { recursive: true, force: true });
});

interface SendOptions {
  readonly signer?: Signer;
  readonly signed?: string;
  readonly headers?: Record<string, string>;
}

/** As GitHub sends it: the signature is over `signed`, which is the body unless told otherwise. */
function send(
  to: TestApp,
  body: string,
  { signer = GITHUB, signed = body, headers = {} }: SendOptions = {},
): Promise<Answer> {
  return to.post('/v1/leaks/github', body, {
    as: null,
    headers: {
      'github-public-key-identifier': signer.id,
      'github-public-key-signature': sign('sha256', Buffer.from(signed), signer.privateKey).toString(
        'base64',
      ),
      ...headers,
    },
  });
}

const matchOf = (token: string, more: object = {}) => ({
  token,
  type: 'claviger_api_key',
  url: 'https://github.com/octocat/Hello-World/blob/12345600b9cbe38a219f39a9941c9319b600c002/foo/bar.txt',
  source: 'content',
  ...more,
});
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

describe('a report that GitHub signed', () => {
  test('revokes the keys of genuine tokens, and labels each match in its order', async () => {
    const [one, other, revoked] = [await app.createKey(), await app.createKey(), await app.createKey()];
    await app.delete(`/v1/api-keys/${revoked.id}`);
    const bogus = `${one.token.slice(0, -1)}${one.token.endsWith('a') ? 'b' : 'a'}`;
    const tokens = [one.token, bogus, other.token, revoked.token, one.token];
    const answer = await send(app, JSON.stringify(tokens.map((token) => matchOf(token))), {
      headers: { 'x-request-id': 'req-github', 'x-forwarded-for': '140.82.112.1' },
    });
    expect(answer.status, answer.text).toBe(200);
    expect(answer.body).toEqual(
      tokens.map((token) => ({
        token_hash: sha256(token),
        token_type: 'claviger_api_key',
        label: token === bogus ? 'false_positive' : 'true_positive',
      })),
    );
    for (const { id, token } of [one, other]) {
      expect((await app.introspect(token)).body.reason.code).toBe('revoked');
      const { body } = await app.get(`/v1/audit-events?key_id=${id}&actor=github`);
      expect(body.data).toMatchObject([
        {
          action: 'key.revoked',
          actor: 'github',
          address: '140.82.112.1',
          request_id: 'req-github',
          after: {
            revoked_reason: 'leaked',
            found_at:
              'https://github.com/octocat/Hello-World/blob/12345600b9cbe38a219f39a9941c9319b600c002/foo/bar.txt',
          },
        },
      ]);
    }
    expect(answer.text).not.toContain(one.token);
  });

  test('is taken whatever it holds besides, and however its JSON is written', async () => {
    const { token } = await app.createKey();
    const body = `[ {"source":"commit",\n "token":"${token}", "type":"t", "url":"", "new":{"member":1}},
      {"token":"x","type":"t"}, {"token":"","type":"","url":null,"source":null} ]\n`;
    const answer = await send(app, body);
    expect(answer.body.map(({ label }: { label: string }) => label)).toEqual([
      'true_positive',
      'false_positive',
      'false_positive',
    ]);
  });

  test('may be larger than other bodies', async () => {
    const { token } = await app.createKey();
    const many = [...Array.from({ length: 900 }, (_, index) => matchOf(`nothing-${index}`)), matchOf(token)];
    const body = JSON.stringify(many);
    expect(body.length).toBeGreaterThan(128 * 1024);
    const answer = await send(app, body);
    expect(answer.body).toHaveLength(901);
    expect(answer.body[900].label).toBe('true_positive');
    expectProblem(await send(app, JSON.stringify([matchOf('x'.repeat(1024 * 1024))])), 'payload_too_large');
  });

  test.each([
    '{}',
    '[]',
    '[{"token":"x"}]',
    '[{"token":5,"type":"t"}]',
    'no JSON',
    '[{"token":"x","type":"t"},]',
  ])('of another shape is refused: %s', async (body) => {
    expectProblem(await send(app, body), 'invalid_request');
  });
});

describe('a report that GitHub did not sign', () => {
  test.each<[string, SendOptions]>([
    ['with another key of the same id', { signer: { ...OTHER, id: GITHUB.id } }],
    ['with a key that is not known', { signer: OTHER }],
    ['with a key of another curve', { signer: OTHER_CURVE }],
    ['with the signature of another body', { signed: '[]' }],
    ['without a signature', { headers: { 'github-public-key-signature': '' } }],
    ['with a signature that is none', { headers: { 'github-public-key-signature': 'AAAAAAAAAAAAAAAA' } }],
    ['with one that is no Base64', { headers: { 'github-public-key-signature': '*'.repeat(96) } }],
    ['without the id of a key', { headers: { 'github-public-key-identifier': '' } }],
    [
      'with the name of a member of every object',
      { headers: { 'github-public-key-identifier': '__proto__' } },
    ],
  ])('%s is refused and ends nothing', async (_, options) => {
    const { id, token } = await app.createKey();
    const answer = await send(app, JSON.stringify([matchOf(token)]), options);
    expectProblem(answer, 'unauthorized');
    expect((await app.get(`/v1/api-keys/${id}`)).body.data.status).toBe('active');
  });

  test('is refused where a single space of the body differs', async () => {
    const { token } = await app.createKey();
    const body = JSON.stringify([matchOf(token)]);
    expectProblem(await send(app, `${body} `, { signed: body }), 'unauthorized');
    expect((await send(app, `${body} `)).status).toBe(200);
  });

  test('counts as failed authentication of its address', async () => {
    const file = join(folder, 'keys.json');
    const own = await createTestApp({ GITHUB_KEYS_FILE: file, FAILED_AUTH_RATE_LIMIT: '2' });
    onTestFinished(() => own.close());
    const { token } = await own.createKey();
    const body = JSON.stringify([matchOf(token)]);
    for (let count = 0; count < 2; count++)
      expect((await send(own, body, { signer: OTHER })).status).toBe(401);
    expectProblem(await send(own, body, { signed: '' }), 'rate_limited');
    // What is signed is no failure.
    expect((await send(own, body)).body).toMatchObject([{ label: 'true_positive' }]);
  });
});

test('without keys of GitHub there is no such endpoint', async () => {
  const own = await createTestApp();
  onTestFinished(() => own.close());
  expectProblem(await send(own, '[]'), 'not_found');
});

describe('where a leak was found', () => {
  test.each([
    ['https://github.com/o/r/blob/abc/f.txt', 'https://github.com/o/r/blob/abc/f.txt'],
    ['https://github.com/o/r?token=secret#L1', 'https://github.com/o/r'],
    ['https://user:secret@github.com/o/r', 'https://github.com/o/r'],
    [`https://github.com/o/r/${'0'.repeat(64)}`, `https://github.com/o/r/${'0'.repeat(64)}`],
    [`https://github.com/o/ck_live_${'a'.repeat(66)}`, null],
    [`https://github.com/o/ck_live_${'a'.repeat(40)}%61${'a'.repeat(25)}`, null],
    ['https://github.com/%ff', null],
    ['http://github.com/o/r', null],
    ['javascript:alert(1)', null],
    ['not an address', null],
    ['', null],
    [undefined, null],
    [`https://github.com/${'a/'.repeat(300)}`, null],
  ])('of %s is kept as %s', (url, place) => {
    expect(placeOf(url)).toBe(place);
  });
});

/** A place that publishes keys, as GitHub does, and what it was asked. */
async function publish(
  answer: () => { status?: number; text: string },
): Promise<{ url: string; asked(): number }> {
  let asked = 0;
  const server: Server = createServer((request, response) => {
    asked++;
    expect(request.headers['user-agent']).toBe('claviger');
    const { status = 200, text } = answer();
    response.writeHead(status, { 'content-type': 'application/json' }).end(text);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    server.close();
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`, asked: () => asked };
}

const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;

describe('keys that are fetched', () => {
  test('verify a report, end to end', async () => {
    const { url, asked } = await publish(() => ({ text: listOf(GITHUB) }));
    const own = await createTestApp({ GITHUB_KEYS_URL: url });
    onTestFinished(() => own.close());
    const { token } = await own.createKey();
    const body = JSON.stringify([matchOf(token)]);
    expect((await send(own, body, { signer: { ...OTHER, id: GITHUB.id } })).status).toBe(401);
    expect((await send(own, body)).body).toMatchObject([{ label: 'true_positive' }]);
    expect(asked()).toBe(1);
  });

  test('are fetched once for all who wait, and again for an id that is new, but not at once', async () => {
    let text = listOf(GITHUB);
    const { url, asked } = await publish(() => ({ text }));
    let time = 0;
    const keys = createGithubKeys({ listed: new Map(), url, report: () => undefined, now: () => time });
    const found = await Promise.all(Array.from({ length: 20 }, () => keys.find(GITHUB.id)));
    expect(found.every((key) => key !== undefined)).toBe(true);
    expect(asked()).toBe(1);

    text = listOf(GITHUB, OTHER);
    time = 2 * MINUTE_MS - 1;
    for (let count = 0; count < 50; count++) expect(await keys.find(`unknown-${count}`)).toBeUndefined();
    expect(await keys.find(OTHER.id)).toBeUndefined();
    expect(asked()).toBe(1);
    time = 2 * MINUTE_MS;
    expect(await keys.find(OTHER.id)).toBeDefined();
    expect(asked()).toBe(2);
  });

  test('are good for a day, then fetched anew: one that GitHub withdrew is refused', async () => {
    let text = listOf(GITHUB, OTHER);
    const { url, asked } = await publish(() => ({ text }));
    let time = 0;
    const keys = createGithubKeys({ listed: new Map(), url, report: () => undefined, now: () => time });
    expect(await keys.find(OTHER.id)).toBeDefined();
    text = listOf(GITHUB);
    time = DAY_MS - 1;
    expect(await keys.find(OTHER.id)).toBeDefined();
    expect(asked()).toBe(1);
    time = DAY_MS;
    expect(await keys.find(OTHER.id)).toBeUndefined();
    expect(await keys.find(GITHUB.id)).toBeDefined();
    expect(asked()).toBe(2);
  });

  test('stay what they were while newer ones cannot be had, and that is told', async () => {
    let answer: { status?: number; text: string } = { text: listOf(GITHUB) };
    const { url } = await publish(() => answer);
    let time = 0;
    const reports: string[] = [];
    const report = ({ message }: { message: string }) => void reports.push(message);
    const keys = createGithubKeys({ listed: new Map(), url, report, now: () => time });
    expect(await keys.find(GITHUB.id)).toBeDefined();
    for (const bad of [
      { status: 403, text: '{}' },
      { text: 'no JSON' },
      { text: '{"public_keys":[]}' },
      { text: `{"public_keys":[],"x":"${'x'.repeat(300_000)}"}` },
    ]) {
      answer = bad;
      time += DAY_MS;
      expect(await keys.find(GITHUB.id)).toBeDefined();
    }
    expect(reports).toHaveLength(4);
  });

  test('are not to be had from where nobody listens', async () => {
    const server = createTcpServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    server.close();
    await once(server, 'close');
    const keys = createGithubKeys({
      listed: readGithubKeys(listOf(OTHER)),
      url: `http://127.0.0.1:${port}/`,
      report: () => undefined,
    });
    expect(await keys.find(GITHUB.id)).toBeUndefined();
    expect(await keys.find(OTHER.id)).toBeDefined();
  });
});
