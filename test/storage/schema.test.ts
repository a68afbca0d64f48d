import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.ts';
import { collectOutput, ROOT } from '../support/service.ts';

const HASH =
  '$argon2id$v=19$m=1024,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g';
const SQL_INTEGRITY = /^23/;

/** A row that all constraints allow. */
const VALID: Readonly<Record<string, unknown>> = {
  id: '019b76da-a800-7000-8000-000000000001',
  workspace_id: 'ws_acme',
  environment: 'live',
  name: 'A key',
  prefix: 'ck_live_',
  last_characters: 'x7Qa',
  hash: HASH,
  secret_id: 1,
  scopes: ['read'],
  restrictions: null,
  rate_limit: 1000,
  rate_limit_window_seconds: 3600,
  metadata: null,
  created_by: null,
  created_at: '2026-01-01T00:00:00.000Z',
  expires_at: null,
  revoked_at: null,
  revoked_reason: null,
};

let database: TestDatabase;
let serial = 1;

beforeAll(async () => {
  database = await createTestDatabase();
  await database.query("INSERT INTO key_secrets (fingerprint) VALUES ('\\x00'), ('\\x01')");
  await database.query("INSERT INTO workspaces VALUES ('ws_acme'), ('ws_other')");
});
afterAll(() => database.drop());

async function insert(values: Readonly<Record<string, unknown>>): Promise<void> {
  const row = { ...VALID, id: nextId(), ...values };
  await database.query(
    `INSERT INTO api_keys (${Object.keys(row).join(', ')}) VALUES (${Object.keys(row).map((_, i) => `$${i + 1}`)})`,
    Object.values(row),
  );
}

function nextId(): string {
  serial += 1;
  return `019b76da-a800-7000-8000-${serial.toString(16).padStart(12, '0')}`;
}

/** The SQLSTATE and the constraint that a statement fails with. */
async function failureOf(statement: Promise<unknown>): Promise<{ code: string; constraint?: string }> {
  try {
    await statement;
  } catch (error) {
    return error as { code: string; constraint?: string };
  }
  throw new Error('the database allowed it');
}

describe('the table of keys', () => {
  test.each<[string, Record<string, unknown>]>([
    ['a key without a rate limit', { rate_limit: null, rate_limit_window_seconds: null }],
    ['the largest rate limit', { rate_limit: 2_147_483_647, rate_limit_window_seconds: 2_678_400 }],
    ['the smallest rate limit', { rate_limit: 1, rate_limit_window_seconds: 1 }],
    ['a service key', { workspace_id: 'system', environment: 'svc', prefix: 'ck_svc_' }],
    ['a name of 120 characters outside of the basic plane', { name: '𝄞'.repeat(120) }],
    ['64 scopes', { scopes: Array.from({ length: 64 }, (_, i) => `s${i}`) }],
    ['no scope', { scopes: [] }],
    ['a revoked key without a reason', { revoked_at: '2026-02-01T00:00:00Z' }],
    ['a hash with a salt and a tag of other lengths', { hash: `${HASH}AAAA` }],
  ])('takes %s', async (_, values) => {
    await expect(insert(values)).resolves.toBeUndefined();
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['half a rate limit', { rate_limit: 5, rate_limit_window_seconds: null }, 'api_keys_rate_limit_form'],
    ['the other half', { rate_limit: null }, 'api_keys_rate_limit_form'],
    ['a rate limit of 0', { rate_limit: 0 }, 'api_keys_rate_limit_form'],
    ['a window of 0', { rate_limit_window_seconds: 0 }, 'api_keys_rate_limit_form'],
    ['a window beyond 31 days', { rate_limit_window_seconds: 2_678_401 }, 'api_keys_rate_limit_form'],
    ['a service key in another environment', { workspace_id: 'system' }, 'api_keys_service_environment'],
    ['a key of a tenant in svc', { environment: 'svc' }, 'api_keys_service_environment'],
    ['an environment in capitals', { environment: 'Live' }, 'api_keys_environment_form'],
    ['an empty name', { name: '' }, 'api_keys_name_length'],
    ['a name of 121 characters', { name: 'n'.repeat(121) }, 'api_keys_name_length'],
    ['a token for a prefix', { prefix: `ck_live_${'a'.repeat(66)}` }, 'api_keys_prefix_form'],
    ['five last characters', { last_characters: 'ax7Qa' }, 'api_keys_last_characters_form'],
    ['a token for a hash', { hash: `ck_live_${'a'.repeat(66)}` }, 'api_keys_hash_form'],
    ['a token in PHC clothing', { hash: `$argon2id$ck_live_${'a'.repeat(66)}` }, 'api_keys_hash_form'],
    ['a hash of another algorithm', { hash: HASH.replace('argon2id', 'argon2i') }, 'api_keys_hash_form'],
    ['a hash without its tag', { hash: HASH.slice(0, HASH.lastIndexOf('$')) }, 'api_keys_hash_form'],
    ['65 scopes', { scopes: Array.from({ length: 65 }, (_, i) => `s${i}`) }, 'api_keys_scopes_count'],
    ['a scope that is null', { scopes: ['read', null] }, 'api_keys_scopes_count'],
    ['a reason without a revocation', { revoked_reason: 'leaked' }, 'api_keys_reason_of_revoked'],
    [
      'a creation time that the id contradicts',
      { created_at: '2026-01-01T00:00:00.001Z' },
      'api_keys_created_at_of_id',
    ],
    ['an unknown workspace', { workspace_id: 'nobody' }, 'api_keys_workspace_id_workspaces_id_fk'],
    ['an unknown secret', { secret_id: 999 }, 'api_keys_secret_id_key_secrets_id_fk'],
  ])('refuses %s', async (_, values, constraint) => {
    const failure = await failureOf(insert(values));
    expect(failure.code).toMatch(SQL_INTEGRITY);
    expect(failure.constraint).toBe(constraint);
  });

  test.each([
    'id',
    'workspace_id',
    'environment',
    'name',
    'prefix',
    'hash',
    'secret_id',
    'scopes',
    'created_at',
  ])('refuses a key without %s', async (column) => {
    expect(await failureOf(insert({ [column]: null }))).toMatchObject({ code: '23502' });
  });
});

describe('a stored key', () => {
  let id: string;
  beforeEach(async () => {
    id = nextId();
    await insert({ id });
  });
  const update = (assignment: string) =>
    database.query(`UPDATE api_keys SET ${assignment} WHERE id = $1`, [id]);
  const revoke = () => update("revoked_at = '2026-02-01T00:00:00Z', revoked_reason = 'leaked'");

  test('can be renamed, limited, rehashed and revoked', async () => {
    await update("name = 'Another', rate_limit = 5, expires_at = '2030-01-01T00:00:00Z'");
    await update(`hash = '${HASH.replace('t=1', 't=2')}'`);
    await revoke();
    expect(await database.query('SELECT name, revoked_reason FROM api_keys WHERE id = $1', [id])).toEqual([
      { name: 'Another', revoked_reason: 'leaked' },
    ]);
  });

  test('that is revoked can still have its hash strengthened', async () => {
    await revoke();
    await expect(update(`hash = '${HASH.replace('t=1', 't=2')}'`)).resolves.toEqual([]);
  });

  test.each([
    'revoked_at = NULL, revoked_reason = NULL',
    "revoked_at = revoked_at + interval '1 ms'",
    "revoked_at = revoked_at - interval '1 day'",
    "revoked_reason = 'another'",
    'revoked_reason = NULL',
  ])('that is revoked refuses %s', async (assignment) => {
    await revoke();
    expect((await failureOf(update(assignment))).code).toMatch(SQL_INTEGRITY);
  });

  test.each([
    "id = '019b76da-a800-7000-8000-00000000ffff'",
    "workspace_id = 'ws_other'",
    "workspace_id = 'system', environment = 'svc'",
    "environment = 'test'",
    "prefix = 'ck_test_'",
    "last_characters = 'abcd'",
    'secret_id = 2',
    "created_at = created_at + interval '1 day'",
  ])('refuses %s', async (assignment) => {
    expect((await failureOf(update(assignment))).code).toMatch(SQL_INTEGRITY);
  });

  test('has one successor, for ever', async () => {
    const [successor, other] = [nextId(), nextId()];
    await insert({ id: successor, rotated_from: id });
    await insert({ id: other });
    await update(`rotated_to = '${successor}', expires_at = '2030-01-01T00:00:00Z'`);
    for (const assignment of [`rotated_to = '${other}'`, 'rotated_to = NULL', `rotated_from = '${other}'`]) {
      expect((await failureOf(update(assignment))).code, assignment).toMatch(SQL_INTEGRITY);
    }
    expect(await failureOf(insert({ rotated_from: id }))).toMatchObject({
      constraint: 'api_keys_rotated_from',
    });
    // It has an end, so that what no plan counts does not last.
    expect(await failureOf(update('expires_at = NULL'))).toMatchObject({
      constraint: 'api_keys_rotated_to_end',
    });
    expect(await failureOf(insert({ rotated_from: nextId() }))).toMatchObject({ code: '23503' });
  });

  test.each([
    'DELETE FROM api_keys',
    'DELETE FROM api_keys WHERE false',
    'TRUNCATE api_keys',
    'TRUNCATE api_keys CASCADE',
    'TRUNCATE workspaces CASCADE',
    'TRUNCATE key_secrets CASCADE',
    "DELETE FROM workspaces WHERE id = 'ws_acme'",
    'DELETE FROM key_secrets WHERE id = 1',
  ])('outlives %s, run by the owner of the table', async (statement) => {
    expect((await failureOf(database.query(statement))).code).toMatch(SQL_INTEGRITY);
    expect(await ownsTable('api_keys')).toBe(true);
  });

  test('refuses another key with its id by any spelling of INSERT', async () => {
    expect(await failureOf(insert({ id }))).toMatchObject({ code: '23505' });
    const { code } = await failureOf(
      database.query(
        `INSERT INTO api_keys SELECT * FROM api_keys WHERE id = $1
         ON CONFLICT (id) DO UPDATE SET workspace_id = 'ws_other'`,
        [id],
      ),
    );
    expect(code).toMatch(SQL_INTEGRITY);
  });
});

describe('an audit event', () => {
  beforeAll(async () => {
    await database.query(
      "INSERT INTO audit_events (id, at, action, workspace_id) VALUES ('019b76da-a800-7000-8000-000000000001', now(), 'key.created', 'ws_acme')",
    );
  });

  test.each([
    "UPDATE audit_events SET action = 'key.revoked'",
    "UPDATE audit_events SET action = 'key.revoked' WHERE false",
    'DELETE FROM audit_events',
    'TRUNCATE audit_events',
    'TRUNCATE audit_events CASCADE',
    "INSERT INTO audit_events SELECT * FROM audit_events ON CONFLICT (id) DO UPDATE SET action = 'key.revoked'",
  ])('outlives %s, run by the owner of the table', async (statement) => {
    expect((await failureOf(database.query(statement))).code).toMatch(SQL_INTEGRITY);
    expect(await ownsTable('audit_events')).toBe(true);
    expect(await database.query('SELECT action FROM audit_events')).toEqual([{ action: 'key.created' }]);
  });
});

describe('a stored workspace', () => {
  test.each([
    ['max_active_keys = -1', 'workspaces_limits_form'],
    ['max_key_lifetime_days = 0', 'workspaces_limits_form'],
    ["allowed_scopes = '{}'", 'workspaces_limits_form'],
    ["allowed_scopes = '{read,NULL}'", 'workspaces_limits_form'],
    ["name = ''", 'workspaces_name_length'],
    ['rate_limit = 5', 'workspaces_rate_limit_form'],
    ['rate_limit = 0, rate_limit_window_seconds = 60', 'workspaces_rate_limit_form'],
  ])('refuses %s', async (assignment, constraint) => {
    const change = database.query(`UPDATE workspaces SET ${assignment} WHERE id = 'ws_acme'`);
    expect(await failureOf(change)).toMatchObject({ constraint });
  });

  test('takes a plan without API keys, and none of anything', async () => {
    await database.query(
      "UPDATE workspaces SET max_active_keys = 0, allowed_scopes = '{read}', max_key_lifetime_days = 1, rate_limit = 1, rate_limit_window_seconds = 1 WHERE id = 'ws_acme'",
    );
    await database.query(
      "UPDATE workspaces SET max_active_keys = NULL, allowed_scopes = NULL, max_key_lifetime_days = NULL, rate_limit = NULL, rate_limit_window_seconds = NULL WHERE id = 'ws_acme'",
    );
  });
});

describe('a stored scope', () => {
  beforeAll(async () => {
    await database.query(
      `INSERT INTO scopes (name, id, implies, grants, created_at, updated_at)
       VALUES ('read', gen_random_uuid(), '{}', '[]', now(), now())`,
    );
  });

  test.each([
    ["name = 'Read'", 'scopes_name_form'],
    ["name = 'a:'", 'scopes_name_form'],
    ["name = ''", 'scopes_name_form'],
    ["name = repeat('a', 65)", 'scopes_name_form'],
    ["implies = '{list,read}'", 'scopes_implies_others'],
    ["implies = '{list,NULL}'", 'scopes_implies_others'],
    ["implies = array_fill('list'::text, ARRAY[65])", 'scopes_implies_others'],
    ["grants = '{}'", 'scopes_grants_form'],
  ])('refuses %s', async (assignment, constraint) => {
    const change = database.query(`UPDATE scopes SET ${assignment} WHERE name = 'read'`);
    expect(await failureOf(change)).toMatchObject({ constraint });
  });

  test('takes the longest name, and as many implied scopes as a key may hold', async () => {
    await database.query(
      "UPDATE scopes SET name = repeat('a', 64), implies = array_fill('list'::text, ARRAY[64]) WHERE name = 'read'",
    );
  });
});

test.each(['.', '..', '', 'a b', 'a/b', 'ä', 'w'.repeat(101)])(
  'the workspace id "%s" is refused',
  async (id) => {
    const failure = await failureOf(database.query('INSERT INTO workspaces VALUES ($1)', [id]));
    expect(failure.constraint).toBe('workspaces_id_form');
  },
);

async function ownsTable(name: string): Promise<boolean> {
  const [row] = await database.query<{ owns: boolean }>(
    'SELECT pg_has_role(relowner, $2) AS owns FROM pg_class WHERE oid = $1::regclass',
    [name, 'USAGE'],
  );
  return row?.owns === true;
}

test('the migrations are what drizzle-kit makes of the schema: it finds no difference', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'claviger-drizzle-'));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  await cp(join(ROOT, 'migrations'), join(folder, 'migrations'), { recursive: true });
  const child = spawn(
    process.execPath,
    [
      join(ROOT, 'node_modules/drizzle-kit/bin.cjs'),
      'generate',
      '--dialect=postgresql',
      '--schema=./src/storage/schema.ts',
      // drizzle-kit takes a relative folder only.
      `--out=${relative(ROOT, join(folder, 'migrations'))}`,
    ],
    { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const printed = collectOutput(child);
  const [code] = await once(child, 'close');
  expect(code, printed.stderr).toBe(0);
  expect(printed.stdout).toContain('No schema changes');
  expect(await readdir(join(folder, 'migrations'))).toEqual(await readdir(join(ROOT, 'migrations')));
}, 60_000);

test('each migration of the journal has its file, and each file is in the journal', async () => {
  const journal = JSON.parse(await readFile(join(ROOT, 'migrations/meta/_journal.json'), 'utf8'));
  const files = (await readdir(join(ROOT, 'migrations'))).filter((name) => name.endsWith('.sql'));
  expect(files.sort()).toEqual(journal.entries.map(({ tag }: { tag: string }) => `${tag}.sql`).sort());
});
