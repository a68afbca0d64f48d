import { setTimeout as sleep } from 'node:timers/promises';
import { keyIdToUuid } from '../../src/domain/key-id.ts';
import type { BrokenRule } from '../../src/verification/membership.ts';
import { findViolations, type History, type Mutation, type Violation } from '../support/history.ts';
import type { Instance } from '../support/instances.ts';
import type { Fleet, TestKey } from './fleet.ts';
import {
  type Confirmed,
  fillCatalogue,
  NARROW,
  revoke,
  setDisabled,
  setImplied,
  setScopes,
} from './mutator.ts';

/*
 * For each rule of the engine the shortest story in which nothing but that rule stands between a revocation that has
 * answered and the old answer. Each tells what must be seen besides if it failed for that reason and no other.
 */

export interface Outcome {
  readonly history: History;
  readonly violations: readonly Violation[];
  /** The key and the instance on which the rule must fail. */
  readonly key: TestKey;
  readonly at: Instance;
  /** Whether all else went as it had to for the failure to be this rule's. */
  readonly reason: { readonly [what: string]: boolean };
}

export type Scenario = (fleet: Fleet) => Promise<Outcome>;

/** What PostgreSQL has executed needs so long to come as far as the proxy holds it. */
const READ_BY_NOW_MS = 100;

export const SCENARIOS: Readonly<Record<BrokenRule, Scenario>> = {
  /** A member that the change cannot reach is waited out; then only its own deadline keeps it from answering. */
  async deadline(fleet) {
    const [a, b] = partsOf(fleet);
    const key = await warmKey(fleet, a);
    a.proxy.stall({ kind: 'listener' });
    a.stop();
    const { propagation } = await revoke(fleet, [b], key);
    await fleet.queue(a, [key]);
    a.wake();
    await fleet.settled();
    await fleet.look(a, key, 'read');
    a.proxy.deliver();
    return conclude(fleet, a, key, { 'it was fenced and waited out': propagation?.fenced === 1 });
  },

  /** A load that began in one membership lands in the next, after a change that neither of them heard of. */
  async epoch(fleet) {
    const [a, b] = partsOf(fleet);
    const key = await fleet.createKey(b, 'ws_scenarios');
    const former = a.registeredAs;
    await heldLoad(fleet, a, key);
    const deliverListener = a.proxy.stall({ kind: 'listener' });
    const { propagation } = await revoke(fleet, [b], key);
    deliverListener();
    await fleet.healthy();
    const renamed = a.registeredAs !== former;
    a.proxy.deliver();
    await fleet.settled();
    await fleet.look(a, key, 'read');
    return conclude(fleet, a, key, {
      'it was fenced and waited out': propagation?.fenced === 1,
      'it had joined under another id when the load landed': renamed,
    });
  },

  /** A load that read before the change lands after its acknowledgement; requests begun in between must not share it. */
  async detach(fleet) {
    const [a, b] = partsOf(fleet);
    const key = await fleet.createKey(b, 'ws_scenarios');
    const former = a.registeredAs;
    await heldLoad(fleet, a, key);
    const { propagation } = await revoke(fleet, [b], key);
    const during = fleet.look(a, key, 'read');
    await sleep(READ_BY_NOW_MS);
    a.proxy.deliver();
    await during;
    await fleet.look(a, key, 'read');
    return conclude(fleet, a, key, {
      'it acknowledged': propagation?.confirmed === fleet.instances.length,
      'it stayed a member': a.registeredAs === former,
    });
  },

  /** The notification is late. */
  async acknowledgement(fleet) {
    const [a, b] = partsOf(fleet);
    const key = await warmKey(fleet, a);
    const lateMs = 350;
    a.proxy.delay(lateMs, { kind: 'listener', direction: 'down' });
    const { propagation } = await revoke(fleet, [b], key);
    await fleet.look(a, key, 'read');
    a.proxy.deliver();
    return conclude(fleet, a, key, {
      'nobody was waited for': propagation !== undefined && propagation.waited_ms < lateMs,
    });
  },

  /** One change has fenced a member and still waits for it; another change finds it fenced already. */
  async fence(fleet) {
    const [a, b, c] = partsOf(fleet);
    const [first, key] = [await warmKey(fleet, a), await warmKey(fleet, a)];
    const id = a.registeredAs;
    a.proxy.stall({ kind: 'listener' });
    const firstDone = revoke(fleet, [b], first);
    while (!(await isFenced(fleet, id))) await sleep(10);
    const { propagation } = await revoke(fleet, [c], key);
    await fleet.look(a, key, 'read');
    const { propagation: firstPropagation } = await firstDone;
    a.proxy.deliver();
    return conclude(fleet, a, key, {
      'the first change waited for it': firstPropagation?.fenced === 1,
      'the second did not count it': propagation?.instances === fleet.instances.length - 1,
    });
  },

  /** Who revokes dies after COMMIT, while a member that holds the key hears nothing; its client repeats elsewhere. */
  async repeat(fleet) {
    const [a, b, c] = partsOf(fleet);
    const key = await warmKey(fleet, a);
    a.proxy.stall({ kind: 'listener' });
    const committing = b.proxy.holdAnswersTo('COMMIT', 'update "api_keys"');
    const lost = fleet.send(b, 'DELETE', `/v1/api-keys/${key.id}`);
    await committing;
    while (!(await isRevoked(fleet, key))) await sleep(10);
    const down = fleet.disturb(b, 'killed');
    await b.kill();
    const { kind } = await lost;
    const { propagation } = await revoke(fleet, [c], key);
    await fleet.look(a, key, 'read');
    a.proxy.deliver();
    b.proxy.deliver();
    await b.restart();
    down.end();
    return conclude(fleet, a, key, {
      'the first attempt was not answered': kind === 'lost',
      'the repetition waited for nobody': propagation?.instances === 0,
    });
  },
};

/** Rules once more, where what they guard is not a key: each with the mutation that is then ignored. */
export const OTHER_SUBJECTS: readonly {
  readonly subject: string;
  readonly rule: BrokenRule;
  readonly ignored: Mutation['what'];
  readonly play: Scenario;
}[] = [
  {
    subject: 'a workspace that is disabled',
    rule: 'acknowledgement',
    ignored: { disabled: true },
    async play(fleet) {
      const [a, b] = partsOf(fleet);
      const workspace = 'ws_disabled';
      const key = await warmKey(fleet, a, workspace);
      return lateAt(fleet, a, key, () => setDisabled(fleet, [b], { workspace, keys: [key], disabled: true }));
    },
  },
  {
    subject: 'an implication that is taken back',
    rule: 'acknowledgement',
    ignored: { implies: {} },
    async play(fleet) {
      const [a, b] = partsOf(fleet);
      const key = await impliedKey(fleet, a, b);
      return lateAt(fleet, a, key, () => setImplied(fleet, [b], { keys: [key], implied: false }));
    },
  },
  {
    subject: 'an implication that is taken back',
    rule: 'detach',
    ignored: { implies: {} },
    async play(fleet) {
      const [a, b] = partsOf(fleet);
      const key = await impliedKey(fleet, a, b);
      const former = a.registeredAs;
      await heldCatalogue(fleet, a, b, key);
      const { propagation } = await setImplied(fleet, [b], { keys: [key], implied: false });
      const during = fleet.look(a, key, 'write');
      await sleep(READ_BY_NOW_MS);
      a.proxy.deliver();
      await during;
      await fleet.look(a, key, 'write');
      return conclude(fleet, a, key, {
        'it acknowledged': propagation?.confirmed === fleet.instances.length,
        'it stayed a member': a.registeredAs === former,
      });
    },
  },
  {
    subject: 'an implication that is taken back',
    rule: 'epoch',
    ignored: { implies: {} },
    async play(fleet) {
      const [a, b] = partsOf(fleet);
      const key = await impliedKey(fleet, a, b);
      const former = a.registeredAs;
      await heldCatalogue(fleet, a, b, key);
      const deliverListener = a.proxy.stall({ kind: 'listener' });
      const { propagation } = await setImplied(fleet, [b], { keys: [key], implied: false });
      deliverListener();
      await fleet.healthy();
      const renamed = a.registeredAs !== former;
      a.proxy.deliver();
      await fleet.settled();
      await fleet.look(a, key, 'write');
      return conclude(fleet, a, key, {
        'it was fenced and waited out': propagation?.fenced === 1,
        'it had joined under another id when the load landed': renamed,
      });
    },
  },
];

/** A change whose notification is late at a member that holds the key. */
async function lateAt(
  fleet: Fleet,
  at: Instance,
  key: TestKey,
  change: () => Promise<Confirmed>,
): Promise<Outcome> {
  const lateMs = 350;
  at.proxy.delay(lateMs, { kind: 'listener', direction: 'down' });
  const { propagation } = await change();
  await fleet.look(at, key, 'write');
  at.proxy.deliver();
  return conclude(fleet, at, key, {
    'nobody was waited for': propagation !== undefined && propagation.waited_ms < lateMs,
  });
}

/** A warm key that holds one scope, which implies the other. */
async function impliedKey(fleet: Fleet, at: Instance, other: Instance): Promise<TestKey> {
  await fillCatalogue(fleet, other);
  const key = await warmKey(fleet, at);
  await setScopes(fleet, [other], key, { version: 1, scopes: NARROW });
  await untilAnswered(fleet, at, key, 'denied');
  await setImplied(fleet, [other], { keys: [key], implied: true });
  await untilAnswered(fleet, at, key, 'active');
  await fleet.settled();
  return key;
}

/** Where a rule is off, a change has answered before the instance has heard of it: the story begins when it has. */
async function untilAnswered(
  fleet: Fleet,
  at: Instance,
  key: TestKey,
  kind: 'active' | 'denied',
): Promise<void> {
  while ((await fleet.look(at, key, 'write')).verdict.kind !== kind) await sleep(10);
}

/** Begins to load the catalogue, which a change that means nothing has dropped; PostgreSQL's answer is held on its way. */
async function heldCatalogue(fleet: Fleet, at: Instance, other: Instance, key: TestKey): Promise<void> {
  const description = `changed at ${performance.now()}`;
  await fleet.send(other, 'PUT', '/v1/scopes/write', { body: { description } });
  const asked = at.proxy.holdAnswersTo('from "scopes"');
  void fleet.look(at, key, 'write');
  await asked;
  await sleep(READ_BY_NOW_MS);
}

function partsOf({ instances }: Fleet): [Instance, Instance, Instance] {
  const [a, b, c] = instances;
  if (a === undefined || b === undefined || c === undefined) throw new Error('three instances are needed');
  return [a, b, c];
}

/** A key that this instance, and no other for sure, answers from memory. */
async function warmKey(fleet: Fleet, at: Instance, workspace = 'ws_scenarios'): Promise<TestKey> {
  const key = await fleet.createKey(at, workspace);
  for (const scope of ['read', 'write', 'read'] as const) await fleet.look(at, key, scope);
  return key;
}

/** Begins to load a key that the instance does not hold yet; PostgreSQL has answered, but that is held on its way. */
async function heldLoad(fleet: Fleet, at: Instance, key: TestKey): Promise<void> {
  const asked = at.proxy.holdAnswersTo(keyIdToUuid(key.id));
  void fleet.look(at, key, 'read');
  await asked;
  await sleep(READ_BY_NOW_MS);
}

async function isFenced(fleet: Fleet, id: string | undefined): Promise<boolean> {
  const rows = await fleet.query(fleet.database, 'SELECT FROM instances WHERE id = $1 AND fenced', [id]);
  return rows.length > 0;
}

export async function isRevoked(fleet: Fleet, key: TestKey): Promise<boolean> {
  const sql = 'SELECT FROM api_keys WHERE id = $1 AND revoked_at IS NOT NULL';
  return (await fleet.query(fleet.database, sql, [keyIdToUuid(key.id)])).length > 0;
}

async function conclude(
  fleet: Fleet,
  at: Instance,
  key: TestKey,
  reason: Outcome['reason'],
): Promise<Outcome> {
  await fleet.settled();
  await fleet.healthy();
  const history = fleet.takeHistory([key]);
  return { history, violations: findViolations(history), key, at, reason };
}
