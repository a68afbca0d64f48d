import { type AccessToken, holdsScope, narrowKey } from './access-token.ts';
import { type Key, statusOf } from './key.ts';
import type { RateLimitState } from './rate-limit.ts';
import type { CompiledRestrictions, RequestFacts } from './restriction.ts';
import type { Catalogue } from './scope-catalogue.ts';
import { isoDate } from './time.ts';
import { SYSTEM_WORKSPACE, type WorkspaceState } from './workspace.ts';

/** Why a key may not do what was asked, with the status that the asking service should answer its own client (contract §5). */
export const REFUSALS = {
  invalid: 401,
  revoked: 401,
  expired: 401,
  workspace_disabled: 403,
  wrong_workspace: 403,
  wrong_environment: 403,
  ip_not_allowed: 403,
  referrer_not_allowed: 403,
  endpoint_not_allowed: 403,
  insufficient_scope: 403,
  rate_limited: 429,
} as const;

export type RefusalCode = keyof typeof REFUSALS;

/** The `title` of the problem (RFC 9457 §3.1.3) where a refusal is the whole answer: the same for each code. */
export const REFUSAL_TITLES: Readonly<Record<RefusalCode, string>> = {
  invalid: 'A valid API key is required',
  revoked: 'The API key was revoked',
  expired: 'The API key has expired',
  workspace_disabled: 'The workspace of the API key is disabled',
  wrong_workspace: 'The API key belongs to another workspace',
  wrong_environment: 'The API key belongs to another environment',
  ip_not_allowed: 'The API key may not be used from this address',
  referrer_not_allowed: 'The API key may not be used from this web page',
  endpoint_not_allowed: 'The API key may not be used for this endpoint',
  insufficient_scope: 'The API key lacks a scope',
  rate_limited: 'Too many requests',
};

/** What an introspection can come to, as usage and logs name it. */
export type Outcome = 'active' | RefusalCode;
export const OUTCOMES = ['active', ...Object.keys(REFUSALS)] as readonly Outcome[];

/** What is held in memory to decide on a key: its row, its workspace's, and its restrictions, compiled. */
export interface KeyRecord {
  readonly key: Key;
  readonly workspace: WorkspaceState;
  readonly restrictions: CompiledRestrictions | undefined;
  /** Where an access token of the key was shown in place of its own. */
  readonly accessToken?: (AccessToken & { readonly isRevoked: boolean }) | undefined;
  /**
   * Which tally it was last counted in, for recording/tallies.ts alone: to look for it there would cost more. Absent from
   * a record that memory does not hold, and from what is made of one for a single use.
   */
  tally?: number;
}

/** What an API wants to know about a key that it was handed. */
export interface Question {
  /** The workspaces whose keys the asking service may see; `null` is all of them. */
  readonly visibleWorkspaces: readonly string[] | null;
  /** All of these are needed. */
  readonly scopes?: readonly string[] | undefined;
  readonly workspaceId?: string | undefined;
  readonly environment?: string | undefined;
  readonly request?: RequestFacts | undefined;
  /**
   * For who stands before every route, as a gateway does: once the catalogue grants routes, a request whose method or
   * path was not told is refused. Without it such a request is judged by `scopes` alone.
   */
  readonly needsRoute?: boolean | undefined;
  /** What this use counts against rate limits; default: 1. */
  readonly cost?: number | undefined;
}

export interface Refusal {
  readonly active: false;
  readonly code: RefusalCode;
  readonly detail: string;
  /** The genuine key that was refused. `invalid` is nobody's, and has neither this nor a time. */
  readonly record: KeyRecord | undefined;
  /** The database time that it was judged by, in milliseconds. */
  readonly nowMs: number | undefined;
  /** Of `rate_limited`: the limit that refused, and after how many seconds a repeat may pass. */
  readonly limited?: { readonly rateLimit: RateLimitState; readonly retryAfterSeconds: number };
}

export interface Allowance {
  readonly active: true;
  readonly record: KeyRecord;
  /** The database time that it was judged by, in milliseconds. */
  readonly nowMs: number;
  /** The tighter of its limits, after this use; absent where it has none, or was not charged yet. */
  readonly rateLimit?: RateLimitState | undefined;
}

export type Decision = Allowance | Refusal;

export function refuse(code: RefusalCode, detail: string): Refusal {
  return { active: false, code, detail, record: undefined, nowMs: undefined };
}

/** The same refusal, of this key at this time: what is recorded of it (recording/recorder.ts). */
export function refuseKey({ code, detail }: Refusal, record: KeyRecord, nowMs: number): Refusal {
  return { active: false, code, detail, record, nowMs };
}

const ROUTE_MISSING = 'The scope catalogue grants routes, and the request carried no method or no path.';

/** One answer for a string that we did not mint, an unknown key, a wrong secret and a foreign workspace: nothing can be probed. */
export const INVALID: Refusal = refuse('invalid', 'This is not a valid API key.');

/**
 * What can be told of a key before its secret is proved. The tag of the token has shown by now that we minted it,
 * so its owner may learn that it was revoked or has expired, and no argon2 is spent on that.
 */
export function refuseUnproved(key: Key, nowMs: number): Refusal | undefined {
  if (key.revokedAt !== null) {
    return refuse('revoked', `The key was revoked on ${isoDate(key.revokedAt)}.`);
  }
  if (key.expiresAt !== null && statusOf(key, nowMs) === 'expired') {
    return refuse('expired', `The key expired on ${isoDate(key.expiresAt)}.`);
  }
  return undefined;
}

/** What ends an access token before its key. */
function refuseAccessToken({ accessToken }: KeyRecord, nowMs: number): Refusal | undefined {
  if (accessToken === undefined) return undefined;
  if (accessToken.isRevoked) return refuse('revoked', 'The access token was revoked.');
  const expiresAtMs = accessToken.expiresAt * 1000;
  // RFC 7519 §4.1.4: not accepted on or after that time.
  return expiresAtMs <= nowMs
    ? refuse('expired', `The access token expired on ${isoDate(expiresAtMs)}.`)
    : undefined;
}

/** Whether the asking service may learn anything of this key at all. Keys of `system` call Claviger and nothing else. */
export function isVisible(key: Key, question: Question): boolean {
  return (
    key.workspaceId !== SYSTEM_WORKSPACE &&
    (question.visibleWorkspaces === null || question.visibleWorkspaces.includes(key.workspaceId))
  );
}

/**
 * The decision on a key whose secret has been proved. Pure, and monotone: taking a right away never turns a
 * refusal into an allowance. The checks run in the contract's order and the first failure is the reason.
 *
 * @param catalogue what scopes imply and grant, as of this request.
 * @param nowMs database time in milliseconds.
 */
export function decide(record: KeyRecord, question: Question, catalogue: Catalogue, nowMs: number): Decision {
  if (!isVisible(record.key, question)) return INVALID;
  const used =
    record.accessToken === undefined ? record : narrowRecord(record, record.accessToken, catalogue);
  const refusal = refusalOf(used, question, catalogue, nowMs);
  return refusal === undefined ? { active: true, record: used, nowMs } : refuseKey(refusal, used, nowMs);
}

/** The record as its access token has it: made anew for each use. */
function narrowRecord(
  { key, workspace, restrictions }: KeyRecord,
  accessToken: NonNullable<KeyRecord['accessToken']>,
  catalogue: Catalogue,
): KeyRecord {
  return { key: narrowKey(key, accessToken, catalogue), workspace, restrictions, accessToken };
}

function refusalOf(
  record: KeyRecord,
  question: Question,
  catalogue: Catalogue,
  nowMs: number,
): Refusal | undefined {
  const { key } = record;
  const over = refuseUnproved(key, nowMs) ?? refuseAccessToken(record, nowMs);
  if (over !== undefined) return over;
  if (record.workspace.disabled) {
    return refuse('workspace_disabled', 'The workspace of this key is disabled.');
  }

  if (question.workspaceId !== undefined && question.workspaceId !== key.workspaceId) {
    return refuse('wrong_workspace', 'The key belongs to another workspace than the one expected.');
  }
  if (question.environment !== undefined && question.environment !== key.environment) {
    return refuse('wrong_environment', 'The key belongs to another environment than the one expected.');
  }
  const restricted = record.restrictions?.check(question.request);
  if (restricted !== undefined) return refuse(restricted.code, restricted.detail);

  for (const scope of question.scopes ?? []) {
    if (!holdsScope(key.scopes, scope, catalogue)) {
      return refuse('insufficient_scope', `The key lacks the scope "${scope}".`);
    }
  }
  if (catalogue.routes !== undefined) {
    const { method, path } = question.request ?? {};
    // Without both there is no route to ask about: the scopes asked for say it all.
    if (method != null && path != null) {
      const ungranted = catalogue.routes.refuse(key.scopes, method, path);
      if (ungranted !== undefined) return refuse('insufficient_scope', ungranted);
    } else if (question.needsRoute === true) {
      return refuse('insufficient_scope', ROUTE_MISSING);
    }
  }
  return undefined;
}
