/** What a request shows of a service key: nothing, one string, or more than one, which is refused. */
export type Credential =
  | { readonly kind: 'absent' }
  | { readonly kind: 'ambiguous' }
  | {
      readonly kind: 'presented';
      readonly token: string;
      /** The id that the service key is to have, where one was sent with it. */
      readonly keyId?: string;
    };

const ABSENT: Credential = { kind: 'absent' };
const AMBIGUOUS: Credential = { kind: 'ambiguous' };
const AUTHORIZATION = 'authorization';
const X_API_KEY = 'x-api-key';
const BEARER = /^bearer +(\S+)$/i;
/** The way that nearly all clients write it: told apart without a match to take apart. */
export const PLAIN_BEARER = /^Bearer [!-~]+$/;

/**
 * Reads `Authorization: Bearer` (RFC 6750 §2.1) and `X-Api-Key`.
 *
 * @param rawHeaders names and values in turn, as they came: Node drops a second `Authorization` from `headers`,
 *   and a proxy may believe the one that we do not see.
 */
export function readCredential(rawHeaders: readonly string[]): Credential {
  let token: string | undefined;
  let authorizations = 0;
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index] ?? '';
    // Most headers are told apart by their length, without a copy in lower case.
    const isAuthorization = name.length === AUTHORIZATION.length && name.toLowerCase() === AUTHORIZATION;
    if (!isAuthorization && !(name.length === X_API_KEY.length && name.toLowerCase() === X_API_KEY)) continue;
    if (isAuthorization && ++authorizations > 1) return AMBIGUOUS;
    const value = rawHeaders[index + 1] ?? '';
    const shown = isAuthorization ? readBearer(value) : value.trim();
    if (token !== undefined && token !== shown) return AMBIGUOUS;
    token = shown;
  }
  return token === undefined ? ABSENT : { kind: 'presented', token };
}

/** Another scheme than Bearer holds no service key, and the empty string is none. */
function readBearer(value: string): string {
  if (PLAIN_BEARER.test(value)) return value.slice('Bearer '.length);
  return BEARER.exec(value.trim())?.[1] ?? '';
}
