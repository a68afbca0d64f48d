import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { hammer, type Tally, type Verdict } from '../support/hammer.ts';
import { type Instance, startInstance } from '../support/instances.ts';
import { type Fleet, startFleet } from './fleet.ts';
import { needPackage } from './packages.ts';
import { type FaultPostgres, startFaultPostgres } from './postgres.ts';

/** Windows of a month: no test sees one turn that does not mean to. */
const MONTH = 2_678_400;
/** On a busy machine an instance may not answer a call within the second that GET waits for it. */
const PATIENCE = { timeout: 10_000, interval: 200 };

let postgres: FaultPostgres;
let fleet: Fleet;

beforeAll(async () => {
  postgres = await startFaultPostgres();
  // An outage that nobody means would refuse, and so be seen: `allow` would hide in it what is admitted too often.
  fleet = await startFleet({
    postgres,
    count: 4,
    leaseSeconds: 10,
    environment: () => ({ RATE_LIMIT_ON_OUTAGE: 'refuse' }),
  });
});
afterAll(async () => {
  await fleet?.close().finally(() => postgres.close());
});

interface LimitedKey {
  readonly id: string;
  readonly token: string;
}

async function send(method: string, path: string, body: unknown, instance = fleet.instances[0]) {
  const response = await fetch(`http://127.0.0.1:${instance?.port}${path}`, {
    method,
    headers: { authorization: `Bearer ${fleet.adminToken}`, 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  // biome-ignore lint/suspicious/noExplicitAny: a test looks at answers of every shape
  const answer: any = await response.json();
  if (!response.ok) throw new Error(`${method} ${path}: ${JSON.stringify(answer)}`);
  return answer.data;
}

async function limitedKey(
  limit: number | null,
  { window = MONTH, workspace = 'ws_limits' } = {},
): Promise<LimitedKey> {
  const rate_limit = limit === null ? null : { limit, window_seconds: window };
  const { id, key } = await send('POST', '/v1/api-keys', {
    workspace_id: workspace,
    name: 'Limited',
    rate_limit,
  });
  return { id, token: key };
}

const sumOf = (tallies: readonly Tally[]): Tally => ({
  active: tallies.reduce((sum, { active }) => sum + active, 0),
  refused: tallies.reduce((sum, { refused }) => sum + refused, 0),
  none: tallies.reduce((sum, { none }) => sum + none, 0),
});

/** So many uses of a key, spread over the instances, all at once. */
async function burst(
  { token }: LimitedKey,
  requests: number,
  {
    cost = 1,
    instances = fleet.instances,
    ...options
  }: {
    cost?: number;
    instances?: readonly Instance[];
    onVerdict?: (verdict: Verdict) => void;
    onAnswered?: (answered: number) => void;
    connections?: number;
    depth?: number;
  } = {},
): Promise<Tally> {
  const share = Math.ceil(requests / instances.length);
  const tallies = await Promise.all(
    instances.map(({ port }, index) =>
      hammer({
        port,
        as: fleet.adminToken,
        body: { key: token, cost },
        requests: Math.min(share, requests - share * index),
        ...options,
      }),
    ),
  );
  return sumOf(tallies);
}

describe('four instances, three times as many uses at once as the limit allows', () => {
  it.each([7, 100, 1_000, 10_000])('admit exactly %i', async (limit) => {
    const tally = await burst(await limitedKey(limit), limit * 3);
    expect(tally).toEqual({ active: limit, refused: limit * 2, none: 0 });
  });

  it('admit exactly 100,000', async () => {
    const limit = 100_000;
    const startedAt = performance.now();
    const tally = await burst(await limitedKey(limit), limit * 3);
    const seconds = (performance.now() - startedAt) / 1000;
    process.stdout.write(`300,000 uses of a limit of 100,000: ${seconds.toFixed(1)} s\n`);
    expect(tally).toEqual({ active: limit, refused: limit * 2, none: 0 });
  });

  it('admit exactly 20 uses of cost 5 under a limit of 100', async () => {
    expect(await burst(await limitedKey(100), 60, { cost: 5 })).toEqual({
      active: 20,
      refused: 40,
      none: 0,
    });
  });

  it('admit exactly 2,000 uses of cost 5 under a limit of 10,000', async () => {
    expect((await burst(await limitedKey(10_000), 6_000, { cost: 5 })).active).toBe(2_000);
  });
});

describe('an instance that goes midway', () => {
  let guest: Instance;
  const joinGuest = async () => {
    guest = await startInstance({
      name: 'guest',
      databaseUrl: postgres.url(fleet.database),
      leaseSeconds: 10,
      environment: { RATE_LIMIT_ON_OUTAGE: 'refuse' },
    });
    return [...fleet.instances.slice(0, 3), guest];
  };

  it.each([100, 1_000, 5_000])(
    'killed: of %i no more are admitted, and what it did not hold is',
    async (limit) => {
      const instances = await joinGuest();
      const key = await limitedKey(limit);
      let killed: Promise<void> | undefined;
      const tally = await burst(key, limit * 3, {
        instances,
        onAnswered(answered) {
          if (answered >= limit / 20) killed ??= guest.kill();
        },
      });
      await killed;
      await guest.close();
      expect(tally.active).toBeLessThanOrEqual(limit);
      // What was admitted and not heard of, and the chunk that it held: a quarter of what was left, at most.
      expect(tally.active).toBeGreaterThanOrEqual(Math.floor(limit * 0.6) - 300);
    },
  );

  it.each([100, 1_000, 5_000])('drained: of %i exactly as many are admitted', async (limit) => {
    const instances = await joinGuest();
    const key = await limitedKey(limit);
    let drained: Promise<unknown> | undefined;
    const tally = await burst(key, limit * 3, {
      instances,
      // A connection that is closed in good order loses nothing, unless more requests were written behind.
      connections: 60,
      depth: 1,
      onAnswered(answered) {
        if (answered >= limit / 20) drained ??= guest.drain();
      },
    });
    expect(await drained).toBe(0);
    await guest.close();
    // Requests that it did not take any more are its clients' to repeat: there is demand for all of the limit.
    const rest = await burst(key, 400, { instances: fleet.instances.slice(0, 3) });
    expect(tally.active + rest.active).toBe(limit);
  });
});

it('windows that turn under load admit exactly the limit each, from the first use to the last', async () => {
  const limit = 150;
  const key = await limitedKey(limit, { window: 2 });
  const admitted = new Map<number, number>();
  const refused = new Set<number>();
  const until = performance.now() + 7_000;
  while (performance.now() < until) {
    await burst(key, 400, {
      connections: 4,
      onVerdict({ active, rate_limit }) {
        const reset = rate_limit?.reset ?? 0;
        if (active) admitted.set(reset, (admitted.get(reset) ?? 0) + 1);
        else refused.add(reset);
      },
    });
  }
  expect(admitted.size).toBeGreaterThanOrEqual(3);
  for (const [reset, count] of admitted) {
    expect(reset % 2).toBe(0);
    expect(count).toBeLessThanOrEqual(limit);
    if (refused.has(reset)) expect(count).toBe(limit);
  }
  expect(refused.size).toBeGreaterThanOrEqual(3);
});

it('wall clocks that are hours apart change nothing', async () => {
  await needPackage('faketime', '/usr/bin/faketime');
  const library = await findLibrary('libfaketimeMT.so.1');
  const shifted = await Promise.all(
    ['+3600s', '-3600s'].map((offset) =>
      startInstance({
        name: `clock ${offset}`,
        databaseUrl: postgres.url(fleet.database),
        leaseSeconds: 10,
        environment: {
          RATE_LIMIT_ON_OUTAGE: 'refuse',
          LD_PRELOAD: library,
          FAKETIME: offset,
          FAKETIME_DONT_FAKE_MONOTONIC: '1',
          DONT_FAKE_MONOTONIC: '1',
        },
      }),
    ),
  );
  try {
    for (const { port } of shifted) {
      const { headers } = await fetch(`http://127.0.0.1:${port}/healthz`);
      expect(Math.abs(Date.parse(headers.get('date') ?? '') - Date.now())).toBeGreaterThan(3_000_000);
    }
    const instances = [...fleet.instances.slice(0, 2), ...shifted];
    for (const limit of [100, 1_500]) {
      // An hour ahead or back is another window.
      const key = await limitedKey(limit, { window: 3_600 });
      const resets = new Set<number>();
      const onVerdict = ({ rate_limit }: Verdict) => resets.add(rate_limit?.reset ?? 0);
      const tally = await burst(key, limit * 3, { instances, onVerdict });
      // At the turn of an hour there are two windows.
      if (resets.size === 1) expect(tally).toEqual({ active: limit, refused: limit * 2, none: 0 });
      else expect(tally.active).toBeLessThanOrEqual(limit * 2);
      for (const reset of resets) expect(Math.abs(reset - Date.now() / 1000)).toBeLessThanOrEqual(3_660);
    }
  } finally {
    for (const instance of shifted) await instance.close();
  }
});

describe('a limit that changes midway', () => {
  const change = (id: string, limit: number) =>
    send('PATCH', `/v1/api-keys/${id}`, { rate_limit: { limit } });

  it('lowered: from the answer on no instance admits beyond it', async () => {
    const key = await limitedKey(20_000);
    const before = await burst(key, 5_000);
    expect(before.active).toBe(5_000);
    const during = burst(key, 20_000);
    await sleep(30);
    await change(key.id, 6_000);
    const counted = await send('GET', `/v1/api-keys/${key.id}/rate-limit`, undefined);
    const after = await burst(key, 3_000);
    const { active } = await during;
    expect(counted.limit).toBe(6_000);
    // What the burst had taken when the change was made may be more; once that is over, nothing is.
    if (active < 1_000) expect(5_000 + active + after.active).toBe(6_000);
    expect(await burst(key, 300)).toEqual({ active: 0, refused: 300, none: 0 });
  });

  it('raised: from the answer on every instance admits what it allows, and exactly that', async () => {
    const key = await limitedKey(1_000);
    expect((await burst(key, 3_000)).active).toBe(1_000);
    await change(key.id, 2_500);
    expect(await burst(key, 4_500)).toEqual({ active: 1_500, refused: 3_000, none: 0 });
  });
});

describe('a limit of the key and one of its workspace', () => {
  const put = (workspace: string, limit: number | null) =>
    send('PUT', `/v1/workspaces/${workspace}`, {
      rate_limit: limit === null ? null : { limit, window_seconds: MONTH },
    });
  const remaining = async (key: LimitedKey) => {
    const { remaining: own, workspace } = await send('GET', `/v1/api-keys/${key.id}/rate-limit`, undefined);
    return { own, shared: workspace?.remaining ?? null };
  };

  it.each([
    ['the workspace is the tighter', 300, 100],
    ['the workspace is the tighter, with chunks', 9_000, 3_000],
    ['the key is the tighter', 100, 300],
    ['the key is the tighter, with chunks', 3_000, 9_000],
  ])('%s: it decides, and refusals spend nothing of the other', async (name, own, shared) => {
    const workspace = `ws_${name.replace(/[^a-z]+/g, '_')}`;
    await put(workspace, shared);
    const key = await limitedKey(own, { workspace });
    const least = Math.min(own, shared);
    const tally = await burst(key, 3 * Math.max(own, shared));
    expect(tally.active).toBe(least);
    await expect.poll(() => remaining(key), PATIENCE).toEqual({ own: own - least, shared: shared - least });
    const other = await limitedKey(null, { workspace });
    expect((await burst(other, 3 * shared)).active).toBe(shared - least);
  });

  it('of several keys at once: exactly what the workspace allows', async () => {
    await put('ws_many_keys', 1_200);
    const keys = await Promise.all(
      [500, 500, 500, 500].map((limit) => limitedKey(limit, { workspace: 'ws_many_keys' })),
    );
    const tally = sumOf(await Promise.all(keys.map((key) => burst(key, 1_000, { connections: 4 }))));
    expect(tally.active).toBe(1_200);
    expect(tally.none).toBe(0);
    const leftOfAll = async () => {
      const left = await Promise.all(keys.map(remaining));
      return left.reduce((sum, { own }) => sum + own, 0);
    };
    await expect.poll(leftOfAll, PATIENCE).toBe(2_000 - 1_200);
  });
});

describe('the database away', () => {
  let guest: Instance;
  const join = async (onOutage: 'allow' | 'refuse') => {
    guest = await startInstance({
      name: 'guest',
      databaseUrl: postgres.url(fleet.database),
      leaseSeconds: 60,
      environment: { RATE_LIMIT_ON_OUTAGE: onOutage },
    });
  };
  const metric = async (name: string) => {
    const text = await (await fetch(`http://127.0.0.1:${guest.port}/metrics`)).text();
    return Number(
      text
        .split('\n')
        .find((line) => line.startsWith(`claviger_${name} `))
        ?.split(' ')[1],
    );
  };
  const charges = (by: string) => metric(`rate_limit_charges_total{by="${by}"}`);
  /** Uses the key so much that the guest holds a chunk of it. */
  const warm = async (key: LimitedKey) => {
    expect((await burst(key, 600, { instances: [guest] })).active).toBe(600);
    await burst(key, 1, { instances: [guest] });
  };

  it.each(['allow', 'refuse'] as const)(
    'spends the quota at hand, then goes by RATE_LIMIT_ON_OUTAGE=%s; back again, nothing is granted twice',
    async (onOutage) => {
      await join(onOutage);
      const limit = 4_000;
      const key = await limitedKey(limit);
      await warm(key);
      expect(await metric('rate_limit_outage')).toBe(0);
      guest.proxy.cut('reset');
      const before = { fetched: await charges('fetched'), memory: await charges('memory') };
      const away = await burst(key, 3_000, { instances: [guest] });
      const held = (await charges('memory')) - before.memory;
      expect(held).toBeGreaterThan(0);
      expect(await metric('rate_limit_outage')).toBe(1);
      if (onOutage === 'allow') {
        expect(away).toEqual({ active: 3_000, refused: 0, none: 0 });
        expect(await charges('outage_allowed')).toBe(3_000 - held);
      } else {
        expect(away).toEqual({ active: held, refused: 3_000 - held, none: 0 });
        expect(await charges('outage_refused')).toBe(3_000 - held);
      }
      const lines = guest
        .log()
        .split('\n')
        .filter((line) => line.includes('the database is away: rate limits'));
      expect(lines).toHaveLength(1);
      expect(lines[0]).toContain(`RATE_LIMIT_ON_OUTAGE=${onOutage}`);

      guest.proxy.deliver();
      await expect.poll(() => metric('rate_limit_outage'), PATIENCE).toBe(0);
      expect(guest.log()).toContain('the database is back');
      const rest = await burst(key, 3 * limit, { instances: [...fleet.instances.slice(0, 2), guest] });
      // A statement that was cut off may have been done: what it granted is lost, and granted to nobody else.
      expect(601 + held + rest.active).toBeLessThanOrEqual(limit);
      expect(601 + held + rest.active).toBeGreaterThanOrEqual(limit - 1_000);
      expect((await burst(key, 100)).active).toBe(0);
      await guest.close();
    },
  );
});

it('windows of two lengths for one key count by themselves', async () => {
  const key = await limitedKey(200);
  expect((await burst(key, 150)).active).toBe(150);
  await send('PATCH', `/v1/api-keys/${key.id}`, { rate_limit: { window_seconds: 86_400 } });
  expect((await burst(key, 600)).active).toBe(200);
  await send('PATCH', `/v1/api-keys/${key.id}`, { rate_limit: { window_seconds: MONTH } });
  expect((await burst(key, 600)).active).toBe(50);
});

async function findLibrary(file: string): Promise<string> {
  for (const folder of await readdir('/usr/lib')) {
    const path = join('/usr/lib', folder, 'faketime');
    const files = await readdir(path).catch((): string[] => []);
    if (files.includes(file)) return join(path, file);
  }
  throw new Error(`${file} is not in /usr/lib/*/faketime`);
}
