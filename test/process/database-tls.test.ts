import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { ConnectionError } from '../../src/storage/connection.ts';
import { migrateDatabase } from '../../src/storage/migrations.ts';
import { type FaultPostgres, startFaultPostgres } from '../faults/postgres.ts';
import { CHEAP_ARGON2, TEST_KEY_SECRET } from '../support/app.ts';
import { type Authority, createAuthority, type Issued } from '../support/certificates.ts';
import { runCli, startService } from '../support/service.ts';

/*
 * TLS on the way to PostgreSQL, with certificates made on the spot and a server of its own that speaks it. Its
 * certificate is for 127.0.0.1, where it listens, unless a test gives it another one.
 */

let postgres: FaultPostgres;
let authority: Authority;
let stranger: Authority;
let folder: string;
/** The authority's certificate, as a file. */
let ca: string;
let good: Issued;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'claviger-database-tls-'));
  [authority, stranger] = await Promise.all([createAuthority('Ours'), createAuthority('A stranger')]);
  ca = join(folder, 'ca.crt');
  await writeFile(ca, authority.cert);
  good = await authority.issue(['127.0.0.1']);
  postgres = await startFaultPostgres();
  await serve(good);
});
afterAll(async () => {
  await postgres.close();
  await rm(folder, { recursive: true, force: true });
});

/** Has PostgreSQL show this certificate to new connections; `undefined`: it speaks no TLS. */
async function serve(issued: Issued | undefined): Promise<void> {
  if (issued !== undefined) {
    // The server writes them itself, so that they are its own, wherever it runs and as whomever.
    for (const [name, text] of [
      ['server.crt', issued.cert],
      ['server.key', issued.key],
    ] as const) {
      const program = pg.escapeLiteral(`umask 077; cat > ${name}`);
      const lines = pg.escapeLiteral(text);
      await sql(`COPY (SELECT regexp_split_to_table(${lines}, E'\\\\r?\\\\n')) TO PROGRAM ${program}`);
    }
  }
  await sql(`ALTER SYSTEM SET ssl = ${issued === undefined ? 'off' : 'on'}`);
  await sql('SELECT pg_reload_conf()');
  await vi.waitFor(async () =>
    expect(await shown()).toBe(issued && new X509Certificate(issued.cert).fingerprint256),
  );
}

/** The fingerprint of the certificate that a new connection is shown. */
async function shown(): Promise<string | undefined> {
  const socket = net.connect(Number(new URL(postgres.url()).port), '127.0.0.1');
  try {
    // SSLRequest; the answer is one byte.
    socket.write(Buffer.from('0000000804d2162f', 'hex'));
    const [answer] = await once(socket, 'data');
    if (String(answer) !== 'S') return undefined;
    const secure = tls.connect({ socket, rejectUnauthorized: false });
    await once(secure, 'secureConnect');
    return secure.getPeerCertificate().fingerprint256;
  } finally {
    socket.destroy();
  }
}

const sql = <Row extends pg.QueryResultRow>(text: string) => postgres.query<Row>('claviger', text);

let databases = 0;
async function freshDatabase(): Promise<string> {
  const name = `tls_${databases++}`;
  await postgres.createDatabase(name);
  return name;
}

/** Its address, by which TLS is asked for. */
function urlOf(database: string, parameters: Readonly<Record<string, string>> = {}): string {
  const url = new URL(postgres.url(database));
  for (const [name, value] of Object.entries({ sslmode: 'verify-full', sslrootcert: ca, ...parameters }))
    url.searchParams.set(name, value);
  return url.href;
}

async function startOn(database: string, environment: Readonly<Record<string, string>> = {}) {
  return startService({
    database: {
      url: urlOf(database),
      query: (text, parameters) => postgres.query(database, text, parameters),
      drop: async () => undefined,
    },
    environment: { LEASE_SECONDS: '1', ...environment },
  });
}

/** Every connection of the service, and whether it is encrypted. */
async function connectionsOf(database: string) {
  return postgres.query<{ name: string; ssl: boolean; version: string }>(
    database,
    `SELECT application_name AS name, ssl, version FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
      WHERE datname = current_database() AND application_name LIKE 'claviger%'`,
  );
}

const cutConnections = (database: string) =>
  postgres.query(
    database,
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND application_name LIKE 'claviger%'`,
  );

describe('with sslmode=verify-full and sslrootcert in DATABASE_URL', () => {
  test('every connection is encrypted, that of the listener too, and made anew without the file', async () => {
    const database = await freshDatabase();
    const service = await startOn(database);
    const { token, id } = await service.createKey();
    expect((await service.introspect(token)).body.active).toBe(true);
    const check = async () => {
      const connections = await connectionsOf(database);
      expect(new Set(connections.map(({ name }) => name))).toEqual(
        new Set(['claviger', 'claviger listener']),
      );
      for (const { ssl, version } of connections)
        expect({ ssl, version }).toEqual({ ssl: true, version: 'TLSv1.3' });
    };
    await check();

    await rename(ca, `${ca}.away`);
    try {
      await cutConnections(database);
      await expect
        .poll(async () => (await service.delete(`/v1/api-keys/${id}`)).status, { timeout: 20_000 })
        .toBe(200);
      await expect
        .poll(async () => (await connectionsOf(database)).length, { timeout: 20_000 })
        .toBeGreaterThan(1);
      await check();
    } finally {
      await rename(`${ca}.away`, ca);
    }
  });

  test('a server that comes to show a certificate of somebody else is told nothing', async () => {
    const database = await freshDatabase();
    const service = await startOn(database);
    const { token } = await service.createKey();
    try {
      await serve(await stranger.issue(['127.0.0.1']));
      await cutConnections(database);
      // Warm keys verify until the lease is over.
      await expect.poll(async () => (await service.introspect(token)).status, { timeout: 20_000 }).toBe(503);
      expect(await connectionsOf(database)).toEqual([]);
      expect(service.output().stderr).toMatch(/SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_VERIFY_LEAF_SIGNATURE/);
    } finally {
      await serve(good);
    }
    await expect
      .poll(async () => (await service.introspect(token)).body.active, { timeout: 20_000 })
      .toBe(true);
  });
});

describe('a start fails with one line', () => {
  const start = async (urls: Readonly<Record<string, string>>) => {
    const { code, stdout, stderr } = await runCli(['serve'], {
      KEY_SECRET: TEST_KEY_SECRET,
      PORT: '0',
      ...CHEAP_ARGON2,
      ...urls,
    });
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^claviger: [^\n]+\n$/);
    expect(stderr).not.toContain(new URL(postgres.url()).password);
    return stderr;
  };
  /** The first thing that a start does with the database. */
  const faultOf = (url: string): Promise<string> =>
    migrateDatabase(url).then(
      () => 'none',
      (error: unknown) => {
        expect(error).toBeInstanceOf(ConnectionError);
        return String(error);
      },
    );
  const distrusted = async (database: string) => {
    const sslrootcert = join(folder, 'stranger.crt');
    await writeFile(sslrootcert, stranger.cert);
    return urlOf(database, { sslrootcert });
  };

  test('that names the setting whose URL it is, of DATABASE_URL and DATABASE_LISTEN_URL', async () => {
    const database = await freshDatabase();
    const [trusting, distrusting] = [urlOf(database), await distrusted(database)];
    expect(await start({ DATABASE_URL: distrusting })).toMatch(
      /The certificate of PostgreSQL is not trusted \(\w+\)\. Is sslrootcert of DATABASE_URL the CA/,
    );
    expect(await start({ DATABASE_URL: trusting, DATABASE_LISTEN_URL: distrusting })).toMatch(
      /Is sslrootcert of DATABASE_LISTEN_URL the CA/,
    );
    expect(await start({ DATABASE_URL: distrusting, DATABASE_LISTEN_URL: trusting })).toMatch(
      /Is sslrootcert of DATABASE_URL the CA/,
    );
    const service = await startOn(database, { DATABASE_LISTEN_URL: trusting });
    expect((await service.get('/v1/me')).status).toBe(200);
  });

  test('where the certificate is for another host', async () => {
    const database = await freshDatabase();
    expect(await faultOf(urlOf(database))).toBe('none');
    await serve(await authority.issue(['localhost', 'db.example', '127.0.0.2']));
    try {
      expect(await faultOf(urlOf(database))).toMatch(
        /is for another host than DATABASE_URL names \(ERR_TLS_CERT_ALTNAME_INVALID\)/,
      );
    } finally {
      await serve(good);
    }
  });

  test('where the file of the CA is not there', async () => {
    const url = urlOf(await freshDatabase(), { sslrootcert: join(folder, 'none.crt') });
    expect(await faultOf(url)).toMatch(/DATABASE_URL cannot be used \(ENOENT\)\.$/);
  });

  test('where the server speaks no TLS', async () => {
    const database = await freshDatabase();
    await serve(undefined);
    try {
      expect(await faultOf(urlOf(database))).toMatch(
        /PostgreSQL does not speak TLS, which DATABASE_URL asks for\.$/,
      );
    } finally {
      await serve(good);
    }
  });
});
