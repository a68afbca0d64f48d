import { createPrivateKey, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { readCertificate } from '../../src/certificate.ts';
import { StartError } from '../../src/core.ts';
import { TEST_KEY_SECRET } from '../support/app.ts';
import { type Authority, createAuthority, type Issued } from '../support/certificates.ts';
import { databaseOfTest } from '../support/database.ts';
import { runCli, type Service, startService } from '../support/service.ts';
import { type LoadRequest, type Outcome, startLoad } from './load.ts';

/** SIGTERM to exit, at most (contract §9). */
const DRAIN_LIMIT_MS = 10_000;

let authority: Authority;
let first: Issued;
let second: Issued;

beforeAll(async () => {
  authority = await createAuthority('Test authority');
  [first, second] = await Promise.all([authority.issue(['127.0.0.1']), authority.issue(['127.0.0.1'])]);
});

interface CertificateFiles {
  readonly TLS_CERT_FILE: string;
  readonly TLS_KEY_FILE: string;
}

async function filesOfTest({ cert, key }: Issued): Promise<CertificateFiles> {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-tls-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  const files = { TLS_CERT_FILE: join(folder, 'tls.crt'), TLS_KEY_FILE: join(folder, 'tls.key') };
  await write(files, { cert, key });
  return files;
}

async function write(files: CertificateFiles, { cert, key }: Issued): Promise<void> {
  await writeFile(files.TLS_CERT_FILE, cert);
  await writeFile(files.TLS_KEY_FILE, key);
}

async function startSecure() {
  const database = await databaseOfTest({ empty: true });
  const files = await filesOfTest(first);
  const service = await startService({
    database,
    ca: authority.cert,
    environment: { CALLER_RATE_LIMIT: 'off', ...files },
  });
  const { token } = await service.createServiceKey(['admin']);
  return { database, service, files, token };
}

/** A connection whose handshake is over. */
async function connectTo(service: Service, options: tls.ConnectionOptions = {}): Promise<tls.TLSSocket> {
  const { hostname: host, port } = new URL(service.url);
  const socket = tls.connect({ host, port: Number(port), ca: authority.cert, ...options });
  socket.on('error', () => undefined);
  onTestFinished(() => void socket.destroy());
  await new Promise<void>((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject));
  return socket;
}

/** One request on a connection that stays, and its answer. */
async function ask(socket: tls.TLSSocket, head = 'GET /healthz HTTP/1.1\r\nHost: claviger\r\n\r\n') {
  socket.write(head);
  const [data] = await once(socket, 'data');
  return String(data);
}

async function servedBy(service: Service): Promise<string> {
  const socket = await connectTo(service);
  const { fingerprint256 } = socket.getPeerCertificate();
  socket.destroy();
  return fingerprint256;
}

const fingerprintOf = ({ cert }: Issued) => new X509Certificate(cert).fingerprint256;

/** Has it read its files again, and waits for the line of its log that says what came of it. */
async function reread(service: Service, outcome: RegExp): Promise<string> {
  const before = service.output().stderr.length;
  service.process.kill('SIGHUP');
  const lines = () => service.output().stderr.slice(before).split('\n');
  await expect.poll(() => lines().some((line) => outcome.test(line)), { timeout: 10_000 }).toBe(true);
  return lines().find((line) => outcome.test(line)) ?? '';
}

const faultsOf = (outcomes: readonly Outcome[]) =>
  outcomes.flatMap((outcome) => {
    if (!outcome.answered) return [outcome.code];
    return outcome.status >= 400 ? [`${outcome.status} ${outcome.text}`] : [];
  });

function startMixedLoad(service: Service, { token, key }: { token: string; key: string }) {
  const request = (index: number): LoadRequest =>
    index % 3 === 0
      ? { method: 'POST', path: '/v1/api-keys', body: { workspace_id: 'ws_load', name: `Key ${index}` } }
      : { method: 'POST', path: '/v1/introspect', body: { key } };
  const common = { url: service.url, token, ca: authority.cert, clients: 3, request };
  return [startLoad({ ...common, keepAlive: true }), startLoad({ ...common, keepAlive: false })] as const;
}

describe('with TLS_CERT_FILE and TLS_KEY_FILE', () => {
  test('it serves HTTPS, says so, speaks TLS 1.2 and 1.3 and nothing older, also after a SIGHUP', async () => {
    const { service } = await startSecure();
    expect(service.url).toMatch(/^https:\/\/127\.0\.0\.1:\d+$/);
    const { token } = await service.createKey();
    expect((await service.introspect(token)).body).toMatchObject({ active: true });
    for (const _ of ['as it started', 'read again']) {
      expect(await servedBy(service)).toBe(fingerprintOf(first));
      for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
        const socket = await connectTo(service, { minVersion: version, maxVersion: version });
        expect(socket.getProtocol()).toBe(version);
        expect(await ask(socket)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
      }
      for (const version of ['TLSv1', 'TLSv1.1'] as const) {
        const old = { minVersion: version, maxVersion: version, ciphers: 'DEFAULT:@SECLEVEL=0' };
        // The version is what it refuses, and not the cipher.
        await expect(connectTo(service, old)).rejects.toMatchObject({
          code: 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION',
        });
      }
      await reread(service, /the certificate was read again/);
    }
  });

  test('bytes that are no TLS get no answer, and bytes within it that are no request get their problem', async () => {
    const { service } = await startSecure();
    for (const bytes of ['GET /healthz HTTP/1.1\r\nHost: claviger\r\n\r\n', '\x16\x03\x01\x00\x05nonsense']) {
      const socket = net.connect(Number(new URL(service.url).port), '127.0.0.1').setEncoding('latin1');
      let received = '';
      socket.on('data', (data: string) => {
        received += data;
      });
      socket.on('error', () => undefined);
      socket.write(bytes);
      await once(socket, 'close');
      expect(received).not.toContain('HTTP/');
    }
    for (const [bytes, status] of [
      ['HELLO\r\n\r\n', 400],
      ['CONNECT claviger:443 HTTP/1.1\r\nHost: claviger\r\n\r\n', 404],
      ['GET /healthz HTTP/1.1\r\n\r\n', 400],
    ] as const) {
      const answer = await ask(await connectTo(service), bytes);
      expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
      expect(answer).toContain('application/problem+json');
    }
    expect((await service.get('/healthz')).status).toBe(200);
  });
});

describe('on SIGHUP', () => {
  test('new connections get the new certificate, old ones go on, and no request fails', async () => {
    const { service, files, token } = await startSecure();
    const { token: key } = await service.createKey();
    const kept = await connectTo(service);
    await ask(kept);
    const loads = startMixedLoad(service, { token, key });
    await Promise.all(loads.map((load) => load.reached(30)));
    for (const issued of [second, first, second]) {
      await write(files, issued);
      await reread(service, /the certificate was read again/);
      expect(await servedBy(service)).toBe(fingerprintOf(issued));
      const before = loads.map((load) => load.outcomes.length);
      await Promise.all(loads.map((load, index) => load.reached((before[index] ?? 0) + 15)));
    }
    const outcomes = (await Promise.all(loads.map((load) => load.stop()))).flat();
    expect(faultsOf(outcomes)).toEqual([]);
    expect(await ask(kept)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(kept.getPeerCertificate().fingerprint256).toBe(fingerprintOf(first));
  });

  test('a certificate that cannot be served leaves the former in place, and the next good one is taken', async () => {
    const { service, files } = await startSecure();
    for (const broken of [
      { ...second, key: first.key },
      { ...second, cert: second.cert.slice(0, 200) },
      { cert: '', key: '' },
    ]) {
      await write(files, broken);
      const line = await reread(service, /could not be read again/);
      expect(JSON.parse(line)).toMatchObject({ level: 50 });
      expect(await servedBy(service)).toBe(fingerprintOf(first));
    }
    await rm(files.TLS_KEY_FILE);
    expect(await reread(service, /could not be read again/)).toContain('ENOENT');
    expect(await servedBy(service)).toBe(fingerprintOf(first));
    await write(files, second);
    // The log tells which one it is, and until when it is good.
    const { serialNumber: serial, validTo, subject } = new X509Certificate(second.cert);
    expect(JSON.parse(await reread(service, /was read again/))).toMatchObject({
      certificate: { serial, valid_to: validTo, subject },
    });
    expect(await servedBy(service)).toBe(fingerprintOf(second));
    const secrets = [first.key, second.key].map((key) => key.split('\n')[1] ?? '');
    for (const secret of secrets) expect(service.output().stderr).not.toContain(secret);
  });

  test('without a certificate it is the end of the terminal, and of the service', async () => {
    const service = await startService({ database: await databaseOfTest(), token: 'none' });
    expect(await service.end('SIGHUP')).toBe(0);
  });
});

describe('the drain of TLS connections', () => {
  test('drops no request under load, and ends with 0 within 10 s', async () => {
    const { service, token } = await startSecure();
    const { token: key } = await service.createKey();
    const loads = startMixedLoad(service, { token, key });
    await Promise.all(loads.map((load) => load.reached(30)));
    const startedMs = performance.now();
    expect(await service.end('SIGTERM')).toBe(0);
    expect(performance.now() - startedMs).toBeLessThan(DRAIN_LIMIT_MS);
    await Promise.all(loads.map((load) => load.ended));
    const outcomes = loads.flatMap((load) => load.outcomes);
    // Connections that the kernel had queued when the port closed, as without TLS: at most one for each client.
    const lost = outcomes.filter((outcome) => !outcome.answered);
    expect(lost.length).toBeLessThanOrEqual(6);
    for (const outcome of lost) {
      expect(outcome).toMatchObject({ code: 'ECONNRESET', reused: false, receivedBytes: 0 });
      expect(service.output().stderr).not.toContain(outcome.id);
    }
    expect(faultsOf(outcomes.filter((outcome) => outcome.answered))).toEqual([]);
  });

  test('is not held up by idle ones, unused ones, or ones that never shake hands', async () => {
    const { service } = await startSecure();
    const idle = await connectTo(service);
    await ask(idle);
    const unused = await connectTo(service);
    const silent = net.connect(Number(new URL(service.url).port), '127.0.0.1');
    silent.on('error', () => undefined);
    await once(silent, 'connect');
    // As a later connection was answered, the silent one has been accepted.
    await ask(await connectTo(service));
    const closed = Promise.all([idle, unused, silent].map((socket) => once(socket, 'close')));
    const startedMs = performance.now();
    expect(await service.end('SIGTERM')).toBe(0);
    expect(performance.now() - startedMs).toBeLessThan(5_000);
    await closed;
  });

  test('is over within 10 s also with a handshake that stops half-way', async () => {
    const { service } = await startSecure();
    const half = net.connect(Number(new URL(service.url).port), '127.0.0.1');
    half.on('error', () => undefined);
    // A ClientHello of 512 bytes is announced, and 6 of them are sent.
    half.write(Buffer.from('160301020001000001fc0303', 'hex'));
    await ask(await connectTo(service));
    const startedMs = performance.now();
    expect(await service.end('SIGTERM')).toBe(0);
    expect(performance.now() - startedMs).toBeLessThan(DRAIN_LIMIT_MS);
  });
});

describe('a start fails', () => {
  test('in one line, before it asks anything of the database', async () => {
    const result = await runCli(['serve'], {
      DATABASE_URL: 'postgres://nobody@127.0.0.1:1/none',
      KEY_SECRET: TEST_KEY_SECRET,
      ...(await filesOfTest({ ...first, key: second.key })),
    });
    expect(result).toEqual({
      code: 1,
      stdout: '',
      stderr: 'claviger: TLS_KEY_FILE is not the key of the certificate in TLS_CERT_FILE.\n',
    });
  });

  const faultOf = async (issued: Issued, prepare?: (files: CertificateFiles) => Promise<void>) => {
    const files = await filesOfTest(issued);
    await prepare?.(files);
    try {
      readCertificate({ certFile: files.TLS_CERT_FILE, keyFile: files.TLS_KEY_FILE });
    } catch (error) {
      expect(error).toBeInstanceOf(StartError);
      return (error as StartError).message;
    }
    return undefined;
  };

  test('where one of the files is not there', async () => {
    for (const name of ['TLS_CERT_FILE', 'TLS_KEY_FILE'] as const)
      expect(await faultOf(first, (files) => rm(files[name]))).toBe(`${name} cannot be read (ENOENT).`);
  });

  test('where they are not what they should be, and the message quotes none of it', async () => {
    const encrypted = createPrivateKey(first.key).export({
      type: 'pkcs8',
      format: 'pem',
      cipher: 'aes-256-cbc',
      passphrase: 'word of pass',
    });
    const noCertificate = /^TLS_CERT_FILE holds no certificate in PEM \(ERR_OSSL_\w+\)\.$/;
    const noKey = /^TLS_KEY_FILE holds no private key in PEM, or an encrypted one \(ERR_\w+\)\.$/;
    expect(await faultOf(first)).toBeUndefined();
    expect(await faultOf({ ...first, cert: `${first.cert}\n${authority.cert}` })).toBeUndefined();
    expect(await faultOf({ ...first, cert: 'none' })).toMatch(noCertificate);
    expect(await faultOf({ ...first, cert: '' })).toMatch(noCertificate);
    expect(await faultOf({ cert: first.key, key: first.cert })).toMatch(noCertificate);
    expect(await faultOf({ ...first, key: first.cert })).toMatch(noKey);
    expect(await faultOf({ ...first, key: String(encrypted) })).toMatch(noKey);
    const nonsense = '-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n';
    expect(await faultOf({ ...first, cert: `${first.cert}\n${nonsense}` })).toMatch(
      /^TLS_CERT_FILE and TLS_KEY_FILE cannot be served \(ERR_OSSL_\w+\)\.$/,
    );
  });
});
