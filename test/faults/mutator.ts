import { setTimeout as sleep } from 'node:timers/promises';
import type { Mutation } from '../support/history.ts';
import type { Instance } from '../support/instances.ts';
import { ALL_SCOPES, type Fleet, type Scope, type TestKey } from './fleet.ts';
import type { Reply } from './requests.ts';

/*
 * Clients that change keys, workspaces and the catalogue, and repeat elsewhere what was not confirmed. A revocation may
 * be given up on at any time, since repeating it changes nothing. What puts a state may not: forgotten at a stopped
 * instance and done after the next one it would put that back, so that its client waits for the answer or for the
 * connection's end.
 */

/** What a mutation was for, and what confirmed it. */
export interface Confirmed {
  readonly mutation: Mutation;
  /** The `propagation` of the first 2xx answer; `undefined` where none came. */
  readonly propagation:
    | { instances: number; confirmed: number; fenced: number; waited_ms: number }
    | undefined;
}

/** No fault of these tests lasts nearly as long. */
const CONFIRMED_WITHIN_MS = 40_000;

/** What one attempt came to, for people, with its time. */
function noteOf(instance: Instance, began: number, reply: Reply): string {
  const what =
    reply.kind === 'lost'
      ? `lost: ${reply.why}`
      : `${reply.status} ${reply.status === 200 ? '' : reply.text}`;
  return `${instance.name} ${what} in ${Math.round(reply.endedAt - began)} ms`;
}

/** Sends one attempt and writes its success into each mutation. */
async function attempt(
  fleet: Fleet,
  instance: Instance,
  request: { method: string; path: string; body?: unknown },
  mutations: readonly Mutation[],
): Promise<Reply> {
  const began = performance.now();
  const reply = await fleet.send(instance, request.method, request.path, request.body);
  const succeeded = reply.kind === 'answer' && reply.status === 200;
  for (const mutation of mutations) {
    mutation.notes.push(noteOf(instance, began, reply));
    if (succeeded) mutation.answered = Math.min(mutation.answered ?? Number.POSITIVE_INFINITY, reply.endedAt);
  }
  if (reply.kind === 'answer' && reply.status !== 200 && reply.status !== 503)
    throw new Error(`${request.method} ${request.path} at ${instance.name}: ${reply.status} ${reply.text}`);
  return reply;
}

function isConfirmed(reply: Reply | 'late'): reply is Extract<Reply, { kind: 'answer' }> {
  return reply !== 'late' && reply.kind === 'answer' && reply.status === 200;
}

async function confirm(
  fleet: Fleet,
  route: readonly Instance[],
  request: { method: string; path: string; body?: unknown },
  keys: readonly TestKey[],
  { what, patienceMs }: { what: Mutation['what']; patienceMs: number | undefined },
): Promise<Confirmed> {
  const begin = performance.now();
  const mutations = keys.map((key) =>
    fleet.record({ key: key.id, what, begin, answered: undefined, notes: [] }),
  );
  const [mutation] = mutations;
  if (mutation === undefined) throw new Error('a mutation of no key');
  for (let turn = 0; performance.now() - begin < CONFIRMED_WITHIN_MS; turn++) {
    const instance = route[turn % route.length];
    if (instance === undefined) throw new Error('a mutation by way of no instance');
    const answer = attempt(fleet, instance, request, mutations);
    const reply = await (patienceMs === undefined
      ? answer
      : Promise.race([answer, sleep(patienceMs).then(() => 'late' as const)]));
    if (reply === 'late') {
      // It goes on, and counts if it is answered; its client asks elsewhere meanwhile.
      answer.catch(() => undefined);
    } else if (isConfirmed(reply)) {
      for (const key of keys) fleet.probe(key);
      return { mutation, propagation: JSON.parse(reply.text).propagation };
    } else {
      await sleep(20);
    }
    if (mutation.answered !== undefined) break;
  }
  return { mutation, propagation: undefined };
}

/** Revokes a key at the first instance of the route; where that does not confirm in time, at the next. */
export function revoke(fleet: Fleet, route: readonly Instance[], key: TestKey, patienceMs?: number) {
  return confirm(fleet, route, { method: 'DELETE', path: `/v1/api-keys/${key.id}` }, [key], {
    what: 'revoke',
    patienceMs,
  });
}

/** Revokes all keys of a workspace, which must be those given. */
export function revokeAll(
  fleet: Fleet,
  route: readonly Instance[],
  workspace: string,
  keys: readonly TestKey[],
  patienceMs?: number,
) {
  const path = `/v1/workspaces/${workspace}/revoke-keys`;
  return confirm(fleet, route, { method: 'POST', path, body: {} }, keys, { what: 'revoke', patienceMs });
}

/** Gives a key its next version: these scopes, and the version's number in its metadata. */
export function setScopes(
  fleet: Fleet,
  route: readonly Instance[],
  key: TestKey,
  { version, scopes }: { version: number; scopes: readonly Scope[] },
) {
  const body = { scopes, metadata: { version } };
  return confirm(fleet, route, { method: 'PATCH', path: `/v1/api-keys/${key.id}`, body }, [key], {
    what: { version, scopes },
    patienceMs: undefined,
  });
}

/** Disables a workspace or enables it again; `keys` are all that it has. */
export function setDisabled(
  fleet: Fleet,
  route: readonly Instance[],
  { workspace, keys, disabled }: { workspace: string; keys: readonly TestKey[]; disabled: boolean },
) {
  const request = { method: 'PUT', path: `/v1/workspaces/${workspace}`, body: { disabled } };
  return confirm(fleet, route, request, keys, { what: { disabled }, patienceMs: undefined });
}

const IMPLIED = { read: ['write'] } as const;
const ALONE = {} as const;

/** Lets the scope `read` imply `write`, or stand alone again. `keys` are all that may hold the one without the other. */
export function setImplied(
  fleet: Fleet,
  route: readonly Instance[],
  { keys, implied }: { keys: readonly TestKey[]; implied: boolean },
) {
  const implies = implied ? IMPLIED : ALONE;
  const request = { method: 'PUT', path: '/v1/scopes/read', body: { implies: implied ? IMPLIED.read : [] } };
  return confirm(fleet, route, request, keys, { what: { implies }, patienceMs: undefined });
}

/** Puts both scopes into the catalogue, each standing alone; before anything disturbs. */
export async function fillCatalogue(fleet: Fleet, instance: Instance): Promise<void> {
  for (const scope of ALL_SCOPES) {
    const reply = await fleet.send(instance, 'PUT', `/v1/scopes/${scope}`, {});
    if (!isConfirmed(reply)) throw new Error(`no catalogue: ${JSON.stringify(reply)}`);
  }
}

export const NARROW: readonly Scope[] = ['read'];
export const WIDE = ALL_SCOPES;
