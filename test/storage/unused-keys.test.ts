import { afterAll, beforeAll, expect, test } from 'vitest';
import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import { createTestApp, type TestApp } from '../support/app.ts';
import { BIG_WORKSPACE, fillWithKeys } from './many-keys.ts';

/*
 * unused_since among 20,000 keys, whichever of the three ways it goes (storage/keys.ts): many unused keys are near,
 * few are named by their own index, and many that are far are walked to.
 */

const MANY = 20_000;
const HOUR_MS = 3_600_000;

let app: TestApp;

beforeAll(async () => {
  app = await createTestApp({ CALLER_RATE_LIMIT: 'off' });
  await fillWithKeys(app.database, MANY, Date.now(), { serviceKeys: false });
}, 120_000);
afterAll(() => app.close());

/** Notes that all keys were used just now, but for those that are `unused`, by the number of their age. */
async function useAllBut(unused: string): Promise<void> {
  await app.database.query(
    `UPDATE key_uses SET idle_since = now(), last_used = now() FROM
       (SELECT id, created_at, row_number() OVER (ORDER BY id DESC) AS n, workspace_id FROM api_keys) AS keys
     WHERE key_id = id AND NOT (${unused})`,
  );
  await app.database.query(
    `UPDATE key_uses SET idle_since = created_at, last_used = NULL FROM
       (SELECT id, created_at, row_number() OVER (ORDER BY id DESC) AS n, workspace_id FROM api_keys) AS keys
     WHERE key_id = id AND (${unused})`,
  );
  await app.database.query('ANALYZE key_uses');
}

async function unusedIds(query: string, { pages, as }: { pages: number; as?: string }): Promise<string[]> {
  // The same for all pages, or their cursors would not be taken.
  const since = new Date(Date.now() - HOUR_MS).toISOString();
  const ids: string[] = [];
  let cursor = '';
  for (let page = 0; page < pages; page++) {
    const { body, text } = await app.get(
      `/v1/api-keys?limit=100&unused_since=${since}&${query}${cursor}`,
      as === undefined ? {} : { as },
    );
    if (body.data === undefined) throw new Error(text);
    ids.push(...body.data.map((key: { id: string }) => key.id));
    if (!body.pagination.has_more) break;
    cursor = `&cursor=${body.pagination.next_cursor}`;
  }
  return ids;
}

/** What the table itself says, newest first. */
async function expectedIds(where: string, limit: number): Promise<string[]> {
  const rows = await app.database.query<{ id: string }>(
    `SELECT id FROM api_keys JOIN key_uses ON key_id = id
     WHERE idle_since < now() - interval '1 hour' AND ${where} ORDER BY id DESC LIMIT ${limit}`,
  );
  return rows.map(({ id }) => keyIdFromUuid(id));
}

test('a key is unused to the millisecond, within an hour too', async () => {
  await useAllBut('false');
  const usedAt = Math.floor(Date.now() / HOUR_MS) * HOUR_MS - HOUR_MS / 2;
  const [{ id } = { id: '' }] = await app.database.query<{ id: string }>(
    `UPDATE key_uses SET idle_since = $1, last_used = $1
     WHERE key_id = (SELECT id FROM api_keys WHERE workspace_id = '${BIG_WORKSPACE}' LIMIT 1) RETURNING key_id AS id`,
    [new Date(usedAt)],
  );
  const unusedSince = async (atMs: number) => {
    const { body } = await app.get(`/v1/api-keys?unused_since=${new Date(atMs).toISOString()}`);
    return body.data.map((key: { id: string }) => key.id);
  };
  expect(await unusedSince(usedAt)).toEqual([]);
  expect(await unusedSince(usedAt + 1)).toEqual([keyIdFromUuid(id)]);
});

test.each([
  ['many and near', 'n % 3 = 0'],
  ['few', 'n % 701 = 0'],
  ['many and far', 'n > 6000'],
  ['none', 'false'],
])(
  'unused keys that are %s are listed newest first, page by page',
  async (_, unused) => {
    await useAllBut(unused);
    const { token } = await app.createServiceKey(['keys:read'], {
      restrictions: { allowed_workspaces: [BIG_WORKSPACE, 'ws_17'] },
    });
    for (const [query, where, as] of [
      ['', "workspace_id <> 'system'"],
      [`workspace_id=${BIG_WORKSPACE}`, `workspace_id = '${BIG_WORKSPACE}'`],
      ['status=revoked', "workspace_id <> 'system' AND revoked_at IS NOT NULL"],
      ['', `workspace_id IN ('${BIG_WORKSPACE}', 'ws_17')`, token],
    ] as const) {
      const listed = await unusedIds(query, { pages: 3, ...(as === undefined ? {} : { as }) });
      expect(listed, where).toEqual(await expectedIds(where, 300));
    }
  },
  60_000,
);
