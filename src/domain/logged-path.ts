import { hideTokens } from './token-text.ts';

/** What a path is cut to in the request log. */
export const MAX_LOGGED_PATH_LENGTH = 512;

const ELLIPSIS = '…';
/** An escape of a character that needs none (RFC 3986 §2.3): a token is made of such. */
const UNRESERVED_ESCAPE = /%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])/g;

/**
 * The path of a request as it is logged: without its query, which is where clients put what is secret, without
 * anything that looks like a token, and not too long. `null` for what is no text that can be stored.
 */
export function loggedPath(path: string | null | undefined): string | null {
  if (path == null || !path.isWellFormed() || path.includes('\0')) return null;
  const end = path.search(/[?#]/);
  const whole = end < 0 ? path : path.slice(0, end);
  const plain = whole.includes('%') ? whole.replace(UNRESERVED_ESCAPE, decodeURIComponent) : whole;
  const clean = hideTokens(plain);
  return clean.length <= MAX_LOGGED_PATH_LENGTH
    ? clean
    : `${clean.slice(0, MAX_LOGGED_PATH_LENGTH - 1).toWellFormed()}${ELLIPSIS}`;
}

/** The method of a request as it is logged; `null` for what is none. */
export function loggedMethod(method: string | null | undefined): string | null {
  return method != null && /^[A-Z-]{1,32}$/.test(method) ? method : null;
}
