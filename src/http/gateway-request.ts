import type { IncomingHttpHeaders } from 'node:http';
import type { RequestFacts } from '../domain/restriction.ts';

/*
 * What a gateway tells of its client's request (contract §7). Each fact has one place, and no other is looked at: what
 * a client sends there of its own is the gateway's to replace, and what it sends elsewhere changes nothing. A fact that
 * is not told, or told twice, is unknown, and what needs it is refused.
 */

export const AUTHORIZE_PATH = '/v1/authorize';
/** Where method and path are taken from: two pairs of headers, or the request line itself. */
export type AuthorizeSource = 'forwarded' | 'original' | 'path';

/** RFC 9112 §3.2.2: a proxy may send its target with scheme and authority. */
const ABSOLUTE = /^https?:\/\/[^/?#]*/i;
/** RFC 9110 §9.1: a token. Of two methods Node makes one text with a comma, which is none. */
const METHOD = /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}$/;
/** Longer than any address. */
const MAX_ADDRESS_LENGTH = 64;
const HIGH = /[\x80-\xff]/;

/**
 * What stands behind `/v1/authorize` in a request target: nothing, a query, or a path with or without one. `undefined`
 * for the target of another route. Escapes are not decoded: what a client wrote may be malformed.
 */
export function behindAuthorize(target: string): string | undefined {
  const from = target.charCodeAt(0) === 0x2f ? target : target.replace(ABSOLUTE, '');
  if (!from.startsWith(AUTHORIZE_PATH)) return undefined;
  const behind = from.slice(AUTHORIZE_PATH.length);
  // `*` is the target of `OPTIONS *` behind a prefix.
  return behind === '' || /^[/?*]/.test(behind) ? behind : undefined;
}

/** A request to `/v1/authorize`, as it came. */
export interface GatewayRequest {
  readonly method: string;
  /** As `behindAuthorize` gave it. */
  readonly behind: string;
  readonly headers: IncomingHttpHeaders;
}

/** What is told of the client's request. */
export function factsOf(
  request: GatewayRequest,
  { source, forwardedForHops }: { readonly source: AuthorizeSource; readonly forwardedForHops: number },
): RequestFacts {
  const { method, behind, headers } = request;
  const ip = forwardedFor(textOf(headers['x-forwarded-for']), forwardedForHops);
  const referrer = textOf(headers.referer);
  switch (source) {
    case 'forwarded':
      return {
        ip,
        referrer,
        method: methodOf(textOf(headers['x-forwarded-method'])),
        path: textOf(headers['x-forwarded-uri']),
      };
    case 'original':
      return {
        ip,
        referrer,
        method: methodOf(textOf(headers['x-original-method'])),
        path: textOf(headers['x-original-uri']),
      };
    case 'path':
      return {
        ip,
        referrer,
        method: methodOf(method),
        // RFC 9110 §4.2.3: an empty path is `/`.
        path: /^[/*]/.test(behind) ? utf8(behind) : `/${utf8(behind)}`,
      };
  }
}

function methodOf(text: string | undefined): string | undefined {
  return text !== undefined && METHOD.test(text) ? text : undefined;
}

/** The entry so many hops from the right: each proxy appends the address that it was called from (1 is the nearest). */
function forwardedFor(list: string | undefined, hops: number): string | undefined {
  if (list === undefined) return undefined;
  let end = list.length;
  for (let hop = 1; ; hop++) {
    const comma = end === 0 ? -1 : list.lastIndexOf(',', end - 1);
    if (hop === hops) {
      const entry = list.slice(comma + 1, end).trim();
      return entry === '' || entry.length > MAX_ADDRESS_LENGTH ? undefined : entry;
    }
    if (comma < 0) return undefined;
    end = comma;
  }
}

/** The text of a header of which there is one; `undefined` for none, and for one without a value. */
export function textOf(value: IncomingHttpHeaders[string]): string | undefined {
  return typeof value === 'string' && value !== '' ? utf8(value) : undefined;
}

/** Node reads the bytes of a head as Latin-1; clients that do not escape write UTF-8. */
function utf8(text: string): string {
  return HIGH.test(text) ? Buffer.from(text, 'latin1').toString('utf8') : text;
}
