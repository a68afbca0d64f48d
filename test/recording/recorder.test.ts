import { expect, test } from 'vitest';
import { INVALID, type KeyRecord, refuse, refuseKey } from '../../src/domain/decision.ts';
import { createRecorder, type Keeper, type UsageReport } from '../../src/recording/recorder.ts';
import { createDatabase, type Database } from '../../src/storage/database.ts';
import { databaseOfTest } from '../support/database.ts';

const RECORD = { key: { id: 'key_1' }, restrictions: undefined } as KeyRecord;
const ASKING = { id: 'req_1', caller: null };
const REPORT: UsageReport = {
  keyId: 'key_1',
  workspaceId: 'ws_acme',
  at: 0,
  status: 200,
  durationMs: 1,
  method: null,
  path: null,
};

/** A keeper that notes what it is told. */
function notingKeeper(): Keeper & { readonly told: unknown[] } {
  const told: unknown[] = [];
  return {
    told,
    introspected: (decision, facts, asking) =>
      told.push([decision.active ? 'active' : decision.code, decision.record, decision.nowMs, facts, asking]),
    called: (_caller, address) => told.push(['called', address()]),
    refused: (address) => told.push(['refused', address]),
    reported: async (_executor, reports, asking) => void told.push(['reported', reports, asking]),
    close: async (withinMs) => void told.push(['close', withinMs]),
  };
}

const NO_DATABASE = { transaction: () => Promise.reject(new TypeError('not asked')) } as unknown as Database;

test('every keeper is told of every verdict, with the key and the time where there is a key', () => {
  const keepers = [notingKeeper(), notingKeeper()];
  const recorder = createRecorder({ database: NO_DATABASE, keepers, isOn: true });
  const facts = { ip: '203.0.113.9' };
  recorder.introspected({ active: true, record: RECORD, nowMs: 5 }, facts, ASKING);
  recorder.introspected(refuseKey(refuse('revoked', ''), RECORD, 6), undefined, ASKING);
  recorder.introspected(INVALID, undefined, ASKING);
  recorder.refused('203.0.113.9');
  for (const { told } of keepers) {
    expect(told).toEqual([
      ['active', RECORD, 5, facts, ASKING],
      ['revoked', RECORD, 6, undefined, ASKING],
      ['invalid', undefined, undefined, undefined, ASKING],
      ['refused', '203.0.113.9'],
    ]);
  }
});

test('switched off, keepers hear of reports alone', async () => {
  const keeper = notingKeeper();
  const database = { transaction: (run: (executor: object) => unknown) => run({}) } as unknown as Database;
  const recorder = createRecorder({ database, keepers: [keeper], isOn: false });
  recorder.introspected(INVALID, undefined, ASKING);
  recorder.refused('203.0.113.9');
  await recorder.report([REPORT], ASKING);
  expect(keeper.told).toEqual([['reported', [REPORT], ASKING]]);
});

test('reports are written by all keepers or by none', async () => {
  const { url, query } = await databaseOfTest();
  const database = createDatabase({
    url,
    poolSize: 1,
    applicationName: 'test',
    onConnectionLost: () => undefined,
  });
  const writing: Keeper = {
    ...notingKeeper(),
    reported: async (executor) =>
      void (await executor.execute(`INSERT INTO workspaces VALUES ('ws_report')`)),
  };
  const failing: Keeper = { ...notingKeeper(), reported: () => Promise.reject(new Error('full')) };
  const recorder = createRecorder({ database, keepers: [writing, failing], isOn: true });
  await expect(recorder.report([REPORT], ASKING)).rejects.toThrow('full');
  await database.close();
  expect(await query(`SELECT FROM workspaces WHERE id = 'ws_report'`)).toEqual([]);
});
