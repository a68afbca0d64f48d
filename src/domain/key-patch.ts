import { type InputFault, invalidInput } from './errors.ts';
import type { JsonObject, JsonValue, Key } from './key.ts';
import type { RateLimit } from './rate-limit.ts';
import type { Restrictions, RestrictionsInput } from './restriction.ts';

/** What PATCH may say: absent members stay as they are, `null` clears (RFC 7396). */
export interface KeyPatch {
  readonly name?: string | undefined;
  readonly scopes?: readonly string[] | null | undefined;
  /** Milliseconds since the epoch. */
  readonly expiresAt?: number | null | undefined;
  readonly restrictions?: RestrictionsInput | null | undefined;
  readonly rateLimit?: { readonly [Member in keyof RateLimit]?: number | undefined } | null | undefined;
  readonly metadata?: JsonObject | null | undefined;
}

/** The members of a key that PATCH may change. */
export type KeySettings = Pick<
  Key,
  'name' | 'scopes' | 'expiresAt' | 'restrictions' | 'rateLimit' | 'metadata'
>;

export const MAX_METADATA_BYTES = 4096;

/**
 * The settings of a key after a patch.
 * @throws Failure `invalid_request` where what comes of the merge is no valid setting.
 */
export function applyPatch(settings: KeySettings, patch: KeyPatch): KeySettings {
  const merged: KeySettings = {
    name: patch.name ?? settings.name,
    scopes: patch.scopes === undefined ? settings.scopes : [...new Set(patch.scopes)],
    expiresAt: patch.expiresAt === undefined ? settings.expiresAt : patch.expiresAt,
    restrictions: patchRestrictions(settings.restrictions, patch.restrictions),
    rateLimit: patchRateLimit(settings.rateLimit, patch.rateLimit),
    metadata: patchMetadata(settings.metadata, patch.metadata),
  };
  const fault = metadataFault(merged.metadata);
  if (fault !== undefined) throw invalidInput(fault);
  return merged;
}

/** Restrictions with every member present; `null` when none of them restricts. */
export function completeRestrictions(restrictions: RestrictionsInput | null): Restrictions | null {
  const complete: Restrictions = {
    allowed_ips: restrictions?.allowed_ips ?? null,
    allowed_referrers: restrictions?.allowed_referrers ?? null,
    allowed_endpoints: restrictions?.allowed_endpoints ?? null,
    allowed_workspaces: restrictions?.allowed_workspaces ?? null,
  };
  return Object.values(complete).every((list) => list === null) ? null : complete;
}

export function metadataFault(metadata: JsonObject | null): InputFault | undefined {
  if (metadata === null || Buffer.byteLength(JSON.stringify(metadata)) <= MAX_METADATA_BYTES)
    return undefined;
  return { path: 'metadata', message: `must be at most ${MAX_METADATA_BYTES} bytes as JSON` };
}

function patchRestrictions(
  before: Restrictions | null,
  patch: KeyPatch['restrictions'],
): Restrictions | null {
  if (patch === undefined) return before;
  if (patch === null) return null;
  const said = Object.entries(patch).filter(([, list]) => list !== undefined);
  return completeRestrictions({ ...before, ...Object.fromEntries(said) });
}

function patchRateLimit(before: RateLimit | null, patch: KeyPatch['rateLimit']): RateLimit | null {
  if (patch === undefined) return before;
  if (patch === null) return null;
  const limit = patch.limit ?? before?.limit;
  const windowSeconds = patch.window_seconds ?? before?.window_seconds;
  if (limit === undefined || windowSeconds === undefined) {
    throw invalidInput({
      path: 'rate_limit',
      message: 'the key has no limit yet: give `limit` and `window_seconds`',
    });
  }
  return { limit, window_seconds: windowSeconds };
}

function patchMetadata(before: JsonObject | null, patch: KeyPatch['metadata']): JsonObject | null {
  if (patch === undefined) return before;
  return patch === null ? null : mergeObject(before ?? {}, patch);
}

/** RFC 7396 §2 for a patch that is an object. */
function mergeObject(target: JsonObject, patch: JsonObject): JsonObject {
  const merged = new Map<string, JsonValue>(Object.entries(target));
  for (const [member, value] of Object.entries(patch)) {
    if (value === null) merged.delete(member);
    else if (isJsonObject(value)) {
      const inner = merged.get(member);
      merged.set(member, mergeObject(isJsonObject(inner) ? inner : {}, value));
    } else merged.set(member, value);
  }
  return Object.fromEntries(merged);
}

function isJsonObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
