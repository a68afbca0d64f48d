import type { Key } from '../domain/key.ts';
import type { RateLimit } from '../domain/rate-limit.ts';

/**
 * Makes a key cheap to hold a million times: what many keys have in common is one object for all of them, and text is
 * copied out of the larger strings that a driver cuts it from, which it would keep alive.
 */
export interface Sharing {
  compact(key: Key, workspaceId: string): Key;
}

/** Far more than there are prefixes, environments, lists of scopes and limits in use at a time. */
const MAX_SHARED = 10_000;
/** No scope holds it. */
const SEPARATOR = ' ';

export function createSharing(): Sharing {
  const shared = new Map<string, unknown>();

  /** The first of equal values. Once there are too many, it starts over: what was handed out lives in its records. */
  function one<T>(name: string, make: () => T): T {
    const held = shared.get(name);
    // A name holds the kind of its value.
    if (held !== undefined) return held as T;
    if (shared.size >= MAX_SHARED) shared.clear();
    const made = make();
    shared.set(name, made);
    return made;
  }

  const text = (value: string) => one(`text ${value}`, () => flat(value));
  const texts = (values: readonly string[]) =>
    one(`texts ${values.join(SEPARATOR)}`, () => values.map(flat)) as readonly string[];
  const rateLimit = (limit: RateLimit | null) =>
    limit && one(`limit ${limit.limit}/${limit.window_seconds}`, () => limit);

  return {
    compact: (key, workspaceId) => ({
      ...key,
      id: flat(key.id),
      workspaceId,
      environment: text(key.environment),
      prefix: text(key.prefix),
      scopes: texts(key.scopes),
      rateLimit: rateLimit(key.rateLimit),
      rotatedFrom: key.rotatedFrom && flat(key.rotatedFrom),
      rotatedTo: key.rotatedTo && flat(key.rotatedTo),
    }),
  };
}

/** A string of its own, neither put together from others nor cut from another. */
export function flat(value: string): string {
  return Buffer.from(value).toString();
}
