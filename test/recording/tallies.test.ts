import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type KeyRecord, OUTCOMES, type Outcome } from '../../src/domain/decision.ts';
import { keyIdFromUuid, keyIdToUuid } from '../../src/domain/key-id.ts';
import { createTallies, type Tallies, type TallyBatch } from '../../src/recording/tallies.ts';

const HOUR_MS = 3_600_000;

function recordOf(number: number, isHeld: boolean): KeyRecord {
  const id = keyIdFromUuid(`019b76da-a800-7000-8000-${number.toString(16).padStart(12, '0')}`);
  const key = { id, workspaceId: `ws_${number % 3}` };
  return { key, ...(isHeld ? { tally: 0 } : {}) } as unknown as KeyRecord;
}

interface Use {
  readonly record: KeyRecord;
  readonly hour: number;
  readonly outcome: Outcome;
}

function add(tallies: Tallies, { record, hour, outcome }: Use): void {
  const hourMs = hour * HOUR_MS;
  const slot = tallies.find(record, hourMs, outcome) ?? tallies.open(record, hourMs, outcome);
  tallies.count(slot);
  if (outcome === 'active') tallies.use(slot, hour * HOUR_MS + 1, '2001:DB8::1');
}

const lineOf = ({ record, hour, outcome }: Use) =>
  [
    record.key.workspaceId,
    keyIdToUuid(record.key.id),
    hour,
    outcome,
    outcome === 'active' ? hour * HOUR_MS + 1 : 0,
    outcome === 'active' ? '2001:db8::1' : null,
  ].join(' ');

/** What batches tell, added up: how often by line. */
function linesOf(batches: readonly TallyBatch[]): Map<string, number> {
  const lines = new Map<string, number>();
  for (const { workspaceIds, keyIds, hoursMs, codes, counts, usedMs, ips } of batches.map((b) => b.usage())) {
    for (const [index, workspaceId] of workspaceIds.entries()) {
      const hex = Buffer.from(keyIds.subarray(index * 16, index * 16 + 16)).toString('hex');
      const uuid = hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
      const hour = (hoursMs[index] ?? 0) / HOUR_MS;
      const line = [workspaceId, uuid, hour, codes[index], usedMs[index], ips[index] ?? null].join(' ');
      lines.set(line, (lines.get(line) ?? 0) + (counts[index] ?? 0));
    }
  }
  return lines;
}

test('whatever is counted is handed over once, however often the places are used again', () => {
  const held = Array.from({ length: 6 }, (_, number) => recordOf(number, true));
  // The same keys, read anew, and others that memory does not hold.
  const records = [...held, recordOf(0, true), recordOf(1, false), recordOf(7, false)];
  const step = fc.oneof(
    {
      weight: 20,
      arbitrary: fc.record({
        index: fc.nat(records.length - 1),
        hour: fc.nat(2),
        outcome: fc.constantFrom(...OUTCOMES.slice(0, 3)),
      }),
    },
    { weight: 1, arbitrary: fc.constant('take' as const) },
    { weight: 1, arbitrary: fc.constant('release' as const) },
  );
  const tallies = createTallies();
  fc.assert(
    fc.property(fc.nat(4_200), fc.array(step, { maxLength: 200 }), (others, steps) => {
      const expected = new Map<string, number>();
      const found: Map<string, number>[] = [];
      const kept: TallyBatch[] = [];
      const count = (use: Use) => {
        add(tallies, use);
        expected.set(lineOf(use), (expected.get(lineOf(use)) ?? 0) + 1);
      };
      const take = () => {
        const sum = tallies.sum();
        const size = tallies.size();
        const taken = tallies.take();
        expect(taken.reduce((all, batch) => all + batch.sum(), 0)).toBe(sum);
        expect(taken.reduce((all, batch) => all + batch.size, 0)).toBe(size);
        expect([tallies.size(), tallies.sum()]).toEqual([0, 0]);
        kept.push(...taken);
      };
      const release = () => {
        found.push(linesOf(kept));
        for (const batch of kept.splice(0)) batch.release();
      };
      // So that the steps begin in one chunk and end in the next.
      for (let number = 100; number < 100 + others; number++)
        count({ record: recordOf(number, false), hour: 0, outcome: 'active' });
      for (const one of steps) {
        if (one === 'take') take();
        else if (one === 'release') release();
        else count({ record: records[one.index] as KeyRecord, hour: one.hour, outcome: one.outcome });
      }
      take();
      release();
      const all = new Map<string, number>();
      for (const lines of found)
        for (const [line, times] of lines) all.set(line, (all.get(line) ?? 0) + times);
      expect(all).toEqual(expected);
    }),
  );
});

test('a key has one tally for each hour and outcome while memory holds it', () => {
  const tallies = createTallies();
  const record = recordOf(1, true);
  for (let times = 0; times < 3; times++) {
    for (const hour of [5, 6]) for (const outcome of OUTCOMES) add(tallies, { record, hour, outcome });
  }
  expect(tallies.size()).toBe(2 * OUTCOMES.length);
  expect(tallies.sum()).toBe(3 * 2 * OUTCOMES.length);
});

test('a use that is noted counts nothing', () => {
  const tallies = createTallies();
  const { key } = recordOf(1, true);
  tallies.note(key, { at: 5 * HOUR_MS + 7, ip: '192.0.2.1' });
  expect(tallies.sum()).toBe(0);
  const lines = linesOf(tallies.take());
  expect([...lines]).toEqual([[`ws_1 ${keyIdToUuid(key.id)} 5 active ${5 * HOUR_MS + 7} 192.0.2.1`, 0]]);
});

test('the latest use stands, with its address', () => {
  const tallies = createTallies();
  const record = recordOf(1, true);
  const slot = tallies.open(record, 5 * HOUR_MS, 'active');
  tallies.use(slot, 5 * HOUR_MS + 9, '192.0.2.9');
  tallies.use(slot, 5 * HOUR_MS + 3, '192.0.2.3');
  const [batch] = tallies.take();
  expect(batch?.usage()).toMatchObject({ ips: ['192.0.2.9'] });
  expect(Array.from(batch?.usage().usedMs ?? [])).toEqual([5 * HOUR_MS + 9]);
});

test('what is no id of a key has no tally', () => {
  const tallies = createTallies();
  const record = { key: { id: 'key_8zzzzzzzzzzzzzzzzzzzzzzzzz', workspaceId: 'ws_1' } } as KeyRecord;
  expect(() => tallies.open(record, 0, 'active')).toThrow(TypeError);
  expect(tallies.size()).toBe(0);
});
