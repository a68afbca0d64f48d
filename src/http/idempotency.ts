import type { FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import { invalidInput } from '../domain/errors.ts';
import type { Idempotency } from '../lifecycle/idempotency.ts';
import type { CreatedKey } from '../lifecycle/key-maker.ts';
import type { Around } from '../lifecycle/rotation.ts';
import { callerOf } from './callers.ts';
import { readCredential } from './credential.ts';
import { keyWithTokenOutput } from './schemas.ts';

declare module 'fastify' {
  interface FastifySchema {
    /** The route takes an Idempotency-Key, which document.ts then tells of. */
    readonly idempotent?: boolean;
  }
}

type KeyWithToken = z.input<typeof keyWithTokenOutput>;

const IDEMPOTENCY_KEY = 'idempotency-key';
const MAX_LENGTH = 255;
/** VCHAR of RFC 5234. */
const VISIBLE = /^[\x21-\x7e]*$/;

/** What a route that takes an Idempotency-Key may answer besides. */
export const IDEMPOTENCY_PROBLEMS = {
  409: 'The same is being worked on (`idempotency_in_flight`).',
  422: 'The Idempotency-Key was used for another request (`idempotency_mismatch`).',
} as const;

/**
 * Reads `Idempotency-Key`, which is a quoted string (draft-ietf-httpapi-idempotency-key-header) or, as most send it,
 * the same without quotes; `undefined` where there is none.
 *
 * @param rawHeaders names and values in turn, as they came: Node joins two of them into one.
 * @throws Failure `invalid_request`, which does not repeat it.
 */
export function readIdempotencyKey(rawHeaders: readonly string[]): string | undefined {
  const values = rawHeaders.filter(
    (_value, index) => index % 2 === 1 && rawHeaders[index - 1]?.toLowerCase() === IDEMPOTENCY_KEY,
  );
  const [value] = values;
  if (value === undefined) return undefined;
  if (values.length > 1) throw invalidKey('must be sent once');
  const key = /^"(.*)"$/.exec(value.trim())?.[1] ?? value.trim();
  if (!VISIBLE.test(key) || key.length < 1 || key.length > MAX_LENGTH) {
    throw invalidKey(`must be 1 to ${MAX_LENGTH} visible ASCII characters, in quotes or not`);
  }
  return key;
}

/**
 * Makes a key once for each Idempotency-Key of a caller, and each time for a request without one. `view` is how the
 * answer shows the key and its token: what a retry is given, too, as it was then.
 */
export async function makeKeyOnce<Rest extends object>(
  idempotency: Idempotency,
  { request, reply }: { request: FastifyRequest; reply: FastifyReply },
  {
    first,
    again,
    view,
  }: {
    first(around?: Around): Promise<CreatedKey & Rest>;
    /** Before an answer is given again: throws where this caller may not have it, waits where the first had to. */
    again(): Promise<Rest>;
    view(created: CreatedKey): KeyWithToken;
  },
): Promise<{ readonly data: KeyWithToken; readonly rest: Rest }> {
  const idempotencyKey = readIdempotencyKey(request.raw.rawHeaders);
  if (idempotencyKey === undefined) {
    const made = await first();
    return { data: view(made), rest: made };
  }
  const credential = readCredential(request.raw.rawHeaders);
  if (credential.kind !== 'presented') throw new TypeError('a caller without a credential was let in');
  return idempotency.once<{ data: KeyWithToken; rest: Rest }>(
    {
      callerId: callerOf(request).keyId,
      callerToken: credential.token,
      idempotencyKey,
      // The route and its parameters: a path has more than one spelling.
      content: [request.method, request.routeOptions.url, request.params, request.body ?? {}],
    },
    {
      async first({ claim, keep }) {
        const made = await first({
          before: claim,
          after: (executor, created) => keep(executor, JSON.stringify(view(created))),
        });
        return { data: view(made), rest: made };
      },
      async again(answer) {
        const rest = await again();
        reply.header('idempotent-replayed', 'true');
        return { data: keyWithTokenOutput.parse(JSON.parse(answer)), rest };
      },
    },
  );
}

function invalidKey(message: string) {
  return invalidInput({ path: 'Idempotency-Key', message });
}
