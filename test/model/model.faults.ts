import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { needPackage } from '../faults/packages.ts';

/*
 * revocation.pml is the protocol of src/verification/membership.ts as a model. Broken on purpose, each of these
 * rules must make Spin find an old answer. Rules whose violation takes Spin minutes or gigabytes are left to
 * check.sh, as is the unbroken protocol, whose search takes a large machine.
 */

const run = promisify(execFile);
const MODEL = fileURLToPath(new URL('./revocation.pml', import.meta.url));
/** Found in less than a second of search; most of the time goes to gcc. */
const FOUND_AT_ONCE = [
  'DEADLINE_IGNORED',
  'DEADLINE_FROM_ANSWER',
  'SHORT_WAIT',
  'RENEWAL_UPSERT',
  'DETACH_OFF',
  'JOIN_DETACHED',
  'ACK_BEFORE_EVICT',
  'NO_ACK_WAIT',
  'REPEAT_ANSWERS',
  'READ_BEFORE_COMMIT',
  'FENCED_IGNORED',
  'FENCED_DELETED',
  'RELEASE_UNWATCHED',
  'RELEASE_BEFORE_DROP',
];
/** These take up to a minute, EPOCH_OFF the longest. */
const FOUND_SOON = ['EPOCH_OFF', 'RECORDS_KEPT', 'LOAD_BEFORE_REGISTERED'];
/** Two holders of records, nobody registers anew. */
const FOUND_WITH_TWO_HOLDERS = ['WATERMARK'];
const TAKES_MINUTES = ['BULK_SPARES_LOADS'];

let folder: string;
beforeAll(async () => {
  await needPackage('spin', '/usr/bin/spin');
  await needPackage('gcc', '/usr/bin/gcc');
  folder = await mkdtemp(join(tmpdir(), 'claviger-spin-'));
});
afterAll(async () => {
  if (folder !== undefined) await rm(folder, { recursive: true, force: true });
});

/** How many violations Spin reports before it stops at the first: 0 or 1. */
async function countErrors(rule: string, { holders, ids, depth }: Record<string, number>): Promise<number> {
  const cwd = await mkdtemp(join(folder, `${rule}-`));
  const defines = ['-DINSTANCES=2', `-DHOLDERS=${holders}`, `-DIDS=${ids}`, `-DBROKEN=${rule}`];
  await run('spin', ['-a', ...defines, MODEL], { cwd });
  await run('gcc', ['-O1', '-DSAFETY', '-DMEMLIM=2000', '-o', 'pan', 'pan.c'], { cwd });
  const { stdout } = await run(join(cwd, 'pan'), ['-E', `-m${depth}`, '-w22'], { cwd, timeout: 240_000 });
  const found = /errors: (\d+)/.exec(stdout)?.[1];
  if (found === undefined) throw new Error(`Spin did not finish: ${stdout.slice(0, 500)}`);
  return Number(found);
}

describe('the model', () => {
  it('has no rule that is not checked here or listed as too slow', async () => {
    const source = await readFile(MODEL, 'utf8');
    const [, rules = ''] = /-DBROKEN=<rule>([\s\S]*?)#ifndef BROKEN/.exec(source) ?? [];
    const names = [...rules.matchAll(/^#define ([A-Z_]+)/gm)].map(([, name]) => name);
    const listed = [...FOUND_AT_ONCE, ...FOUND_SOON, ...FOUND_WITH_TWO_HOLDERS, ...TAKES_MINUTES];
    expect(listed.sort()).toEqual(names.sort());
  });

  it.concurrent.each(FOUND_AT_ONCE)('does not hold with %s', async (rule) => {
    expect(await countErrors(rule, { holders: 1, ids: 3, depth: 200_000 })).toBe(1);
  });

  it.concurrent.each(FOUND_SOON)('does not hold with %s', async (rule) => {
    expect(await countErrors(rule, { holders: 1, ids: 3, depth: 200_000 })).toBe(1);
  });

  it.concurrent.each(FOUND_WITH_TWO_HOLDERS)('does not hold with %s', async (rule) => {
    expect(await countErrors(rule, { holders: 2, ids: 2, depth: 60 })).toBe(1);
  });
});
