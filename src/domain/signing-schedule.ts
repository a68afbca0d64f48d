/*
 * When which key signs access tokens. A key's life:
 *
 *   published   made, and in the key set, so that every instance and every client has it before it is met
 *     │ a day
 *   signing     from `signsFrom` on, until that of its successor
 *     │ OAUTH_KEY_ROTATION_DAYS
 *   retired     in the key set until the last token that it signed has expired
 *     │ a day
 *   gone
 *
 * The first key signs at once: nobody holds a key set that it could be missing from.
 */

const DAY_MS = 86_400_000;
/** How long a key is published before it signs: longer than clients keep a key set, and than instances are deaf. */
export const LEAD_MS = DAY_MS;
/** The longest `OAUTH_TOKEN_SECONDS` may be: how long a retired key is kept does not ask what the setting was. */
export const MAX_ACCESS_TOKEN_SECONDS = 86_400;
/** Past the last expiry: for clocks of clients that are late, and a signature that was begun before its turn ended. */
const GRACE_MS = 3_600_000;

export interface ScheduledKey {
  /** Database time in milliseconds. */
  readonly signsFrom: number;
}

/** The key whose turn it is; `keys` in the order of their turns. A clock that is a little late finds the first. */
export function signerAt<Key extends ScheduledKey>(keys: readonly Key[], nowMs: number): Key | undefined {
  return keys.findLast(({ signsFrom }) => signsFrom <= nowMs) ?? keys[0];
}

export interface ScheduleChange<Key> {
  /** When a key that is to be made now signs; `undefined`: none is due. */
  readonly next: number | undefined;
  /** Keys of which no token is valid any more. */
  readonly gone: readonly Key[];
}

/** What is to be done about the keys now; `keys` in the order of their turns. */
export function dueChange<Key extends ScheduledKey>(
  keys: readonly Key[],
  { nowMs, periodMs }: { readonly nowMs: number; readonly periodMs: number },
): ScheduleChange<Key> {
  const newest = keys.at(-1);
  if (newest === undefined) return { next: nowMs, gone: [] };
  const turn = newest.signsFrom + periodMs;
  return {
    // Whatever was missed, while no instance ran: no key signs that was not published.
    next: nowMs >= turn - LEAD_MS ? Math.max(turn, nowMs + LEAD_MS) : undefined,
    gone: keys.filter((_key, index) => {
      const successor = keys[index + 1];
      return (
        successor !== undefined && nowMs >= successor.signsFrom + MAX_ACCESS_TOKEN_SECONDS * 1000 + GRACE_MS
      );
    }),
  };
}
