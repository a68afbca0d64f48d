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
  /** The bodies of all 2xx answers; attempts that were given up on may still add to them. */
  readonly answers: readonly string[];
}

interface Request {
  readonly method: string;
  readonly path: string;
  readonly body?: unknown;
  readonly idempotencyKey?: string;
}

/** No fault of these tests lasts nearly as long. */
const CONFIRMED_WITHIN_MS = 40_000;
const SUCCEEDED = [200, 201];

/** What one attempt came to, for people, with its time. */
function noteOf(instance: Instance, began: number, reply: Reply): string {
  const what =
    reply.kind === 'lost'
      ? `lost: ${reply.why}`
      : `${reply.status} ${SUCCEEDED.includes(reply.status) ? '' : reply.text}`;
  return `${instance.name} ${what} in ${Math.round(reply.endedAt - began)} ms`;
}

/** What all attempts at one request came to, also those that their client gave up on. */
interface Attempts {
  readonly mutations: readonly Mutation[];
  /** The bodies of all answers that were a success. */
  readonly answers: string[];
}

/** Sends one attempt, keeps its answer, and writes its success into each mutation. */
async function attempt(
  fleet: Fleet,
  instance: Instance,
  request: Request,
  { mutations, answers }: Attempts,
): Promise<Reply> {
  const began = performance.now();
  const reply = await fleet.send(instance, request.method, request.path, request);
  const succeeded = reply.kind === 'answer' && SUCCEEDED.includes(reply.status);
  for (const mutation of mutations) {
    mutation.notes.push(noteOf(instance, began, reply));
    if (succeeded) mutation.answered = Math.min(mutation.answered ?? Number.POSITIVE_INFINITY, reply.endedAt);
  }
  if (succeeded) answers.push(reply.text);
  else if (reply.kind === 'answer' && !mayBeRepeated(reply))
    throw new Error(`${request.method} ${request.path} at ${instance.name}: ${reply.status} ${reply.text}`);
  return reply;
}

function isConfirmed(reply: Reply): boolean {
  return reply.kind === 'answer' && SUCCEEDED.includes(reply.status);
}

function mayBeRepeated({ status, text }: Extract<Reply, { kind: 'answer' }>): boolean {
  return status === 503 || (status === 409 && JSON.parse(text).code === 'idempotency_in_flight');
}

/** Sends a request to one instance after the other until one has confirmed it; answers with what that said. */
async function persist(
  fleet: Fleet,
  route: readonly Instance[],
  request: Request,
  { patienceMs, ...attempts }: Attempts & { patienceMs: number | undefined },
): Promise<string | undefined> {
  const begin = performance.now();
  for (let turn = 0; performance.now() - begin < CONFIRMED_WITHIN_MS; turn++) {
    const instance = route[turn % route.length];
    if (instance === undefined) throw new Error('a mutation by way of no instance');
    const answer = attempt(fleet, instance, request, attempts);
    const reply = await (patienceMs === undefined
      ? answer
      : Promise.race([answer, sleep(patienceMs).then(() => 'late' as const)]));
    // What is late goes on, and counts if it is answered; its client asks elsewhere meanwhile.
    if (reply === 'late') answer.catch(() => undefined);
    else if (!isConfirmed(reply)) await sleep(20);
    const [text] = attempts.answers;
    if (text !== undefined) return text;
  }
  return undefined;
}

async function confirm(
  fleet: Fleet,
  route: readonly Instance[],
  request: Request,
  keys: readonly TestKey[],
  { what, patienceMs }: { what: Mutation['what']; patienceMs: number | undefined },
): Promise<Confirmed> {
  const begin = performance.now();
  const mutations = keys.map((key) =>
    fleet.record({ key: key.id, what, begin, answered: undefined, notes: [] }),
  );
  const [mutation] = mutations;
  if (mutation === undefined) throw new Error('a mutation of no key');
  const answers: string[] = [];
  const text = await persist(fleet, route, request, { mutations, answers, patienceMs });
  if (text === undefined) return { mutation, propagation: undefined, answers };
  for (const key of keys) fleet.probe(key);
  return { mutation, propagation: JSON.parse(text).propagation, answers };
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

/**
 * Makes a key by a request with an Idempotency-Key, which may be given up on and repeated at any time. Where the answers
 * to all attempts are in, `tokensOf` them is one.
 */
export async function createOnce(
  fleet: Fleet,
  route: readonly Instance[],
  { workspace, name }: { workspace: string; name: string },
  patienceMs: number,
): Promise<{ readonly key: TestKey; readonly answers: readonly string[] }> {
  const answers: string[] = [];
  const request: Request = {
    method: 'POST',
    path: '/v1/api-keys',
    body: { workspace_id: workspace, name, scopes: ALL_SCOPES, rate_limit: null, metadata: { version: 0 } },
    idempotencyKey: name,
  };
  const text = await persist(fleet, route, request, { mutations: [], answers, patienceMs });
  if (text === undefined) throw new Error(`nobody made the key "${name}"`);
  const { data } = JSON.parse(text);
  return { key: fleet.adopt({ id: data.id, token: data.key, workspace }), answers };
}

/**
 * Rotates a key without grace by a request with an Idempotency-Key, which may be given up on and repeated as a creation
 * may. Answers with the successor.
 */
export async function rotate(fleet: Fleet, route: readonly Instance[], key: TestKey, patienceMs: number) {
  const request: Request = {
    method: 'POST',
    path: `/v1/api-keys/${key.id}/rotate`,
    body: { grace_period_seconds: 0 },
    idempotencyKey: `rotation-${key.id}`,
  };
  const confirmed = await confirm(fleet, route, request, [key], { what: 'rotate', patienceMs });
  const { answers } = confirmed;
  const [answer] = answers;
  if (answer === undefined) throw new Error(`nobody rotated the key ${key.id}`);
  const { data } = JSON.parse(answer);
  return { ...confirmed, successor: fleet.adopt({ ...key, id: data.id, token: data.key }) };
}

/** The tokens that these answers hand out. */
export function tokensOf(answers: readonly string[]): ReadonlySet<string> {
  return new Set(answers.map((answer) => JSON.parse(answer).data.key));
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
    const reply = await fleet.send(instance, 'PUT', `/v1/scopes/${scope}`, { body: {} });
    if (!isConfirmed(reply)) throw new Error(`no catalogue: ${JSON.stringify(reply)}`);
  }
}

export const NARROW: readonly Scope[] = ['read'];
export const WIDE = ALL_SCOPES;
