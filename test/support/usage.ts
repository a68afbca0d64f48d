import { type KeyId, keyIdToBytes } from '../../src/domain/key-id.ts';
import { startOf } from '../../src/domain/usage.ts';
import type { UsageBatch } from '../../src/storage/usage.ts';

/** A use of a key that was not counted. */
export function useOf(id: KeyId, atMs: number): UsageBatch {
  return {
    workspaceIds: [''],
    keyIds: keyIdToBytes(id),
    hoursMs: [startOf('hour', atMs)],
    codes: ['active'],
    counts: [0],
    usedMs: [atMs],
    ips: [null],
  };
}
