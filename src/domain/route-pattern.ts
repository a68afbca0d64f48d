/*
 * Routes of an API, as a key's endpoint restriction names them (contract §5): `/contacts/:id`, `/files/*`.
 *
 * A request path is brought into one normal form first, and refused where servers are known to read it in different
 * ways; a pattern's literal segments are brought into the same form. So comparing is comparing strings, and a path that
 * was let through as one route is not served as another.
 */

/** Longest route pattern, in characters. */
export const MAX_ROUTE_PATTERN_LENGTH = 256;
/** An HTTP method in a rule: upper-case, as the registered ones are (RFC 9110 §16.1). */
export const METHOD_PATTERN = /^[A-Z][A-Z-]{0,31}$/;
/** More than there are registered methods in use. */
export const MAX_METHODS = 32;

/** A rule as it is written: a route, and the methods it holds for. No methods: all of them. */
export interface RouteRuleText {
  readonly methods?: readonly string[] | null | undefined;
  readonly path: string;
}

/** A route pattern, ready to be compared with normal paths. */
export interface RoutePattern {
  /** Runs of literal segments, each with its slash (`/v1/contacts`), and `null` for one segment of any value. */
  readonly parts: readonly (string | null)[];
  /** Whether any rest may follow, also none. */
  readonly takesRest: boolean;
}

/** A rule, ready to be compared. */
export interface RouteRule {
  readonly pattern: RoutePattern;
  /** `undefined`: all methods. GET brings HEAD along. */
  readonly methods: ReadonlySet<string> | undefined;
}

const SLASH = 0x2f;
const PERCENT = 0x25;
const SEMICOLON = 0x3b;
const DOT = 0x2e;

/*
 * What an ASCII character means in a request path. RFC 3986 §3.3: a segment has unreserved characters, sub-delimiters,
 * `:` and `@`. The others have to be escaped, and count as their escapes, except those that are refused.
 */
const REFUSED = 0;
const UNRESERVED = 1;
const RESERVED = 2;
const TO_ESCAPE = 3;
const END = 4;
const classOf = new Uint8Array(128);
for (let code = 0x21; code < 0x7f; code++) classOf[code] = TO_ESCAPE;
for (const char of 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~') {
  classOf[char.charCodeAt(0)] = UNRESERVED;
}
for (const char of "!$&'()*+,;=:@/%") classOf[char.charCodeAt(0)] = RESERVED;
for (const char of '\\#') classOf[char.charCodeAt(0)] = REFUSED;
classOf[0x3f] = END;

/*
 * What is known of a segment so far, up to its first `;`: nothing, one dot (1), two dots (2), or a name. Anything below
 * `NAMED` may not end a segment.
 */
const EMPTY = 0;
const NAMED = 3;

/**
 * Brings a request path into its normal form: without query, without a trailing slash, escapes of unreserved
 * characters decoded (once), other escapes with upper-case digits, and what a URL may not hold unescaped (non-ASCII
 * characters, `{`, `"`) escaped as UTF-8. Case counts. A normal path is its own normal form.
 *
 * @returns `undefined` for a path that is refused, because servers read it in different ways: not beginning with `/`;
 * with empty or dot segments, also where they come to light by decoding or by dropping path parameters (`..;x`,
 * RFC 3986 §3.3, as some servers do); with encoded separators (`%2F`, `%5C`), backslash, NUL, `#`, space or raw control
 * characters; with malformed escapes, or escapes that are not UTF-8 (`%C0%AF` is a slash to a careless decoder); with
 * unpaired surrogates.
 */
export function normalizeRequestPath(path: string): string | undefined {
  if (path.charCodeAt(0) !== SLASH) return undefined;
  let normal = '';
  // path.slice(copied, i) is normal as it stands, and not yet in `normal`.
  let copied = 0;
  let segment = EMPTY;
  let inParameters = false;
  let hasHighEscapes = false;
  let i = 1;

  for (; i < path.length; i++) {
    let code = path.charCodeAt(i);
    const kind = code < 0x80 ? classOf[code] : TO_ESCAPE;
    if (kind === END) break;
    if (kind === REFUSED) return undefined;

    if (code === SLASH) {
      if (segment !== NAMED) return undefined;
      segment = EMPTY;
      inParameters = false;
      continue;
    }
    if (kind === TO_ESCAPE) {
      const escaped = escapeAt(path, i);
      if (escaped === undefined) return undefined;
      normal += path.slice(copied, i) + escaped;
      // A character beyond the BMP is two units long.
      if (code >= 0xd800 && code <= 0xdbff) i++;
      copied = i + 1;
    } else if (code === PERCENT) {
      code = byteAt(path, i + 1);
      if (code <= 0 || code === SLASH || code === 0x5c) return undefined;
      hasHighEscapes ||= code >= 0x80;
      const decoded = code < 0x80 && classOf[code] === UNRESERVED;
      const escaped = decoded ? String.fromCharCode(code) : path.slice(i, i + 3).toUpperCase();
      normal += path.slice(copied, i) + escaped;
      i += 2;
      copied = i + 1;
    }

    // `code` is now the character meant, escaped or not.
    if (code === SEMICOLON) inParameters = true;
    else if (!inParameters) segment = code === DOT && segment < NAMED ? segment + 1 : NAMED;
    if (inParameters && segment !== NAMED) return undefined;
  }

  const endsInSlash = segment === EMPTY;
  if (segment !== NAMED && !endsInSlash) return undefined;
  normal = copied === 0 ? path.slice(0, i) : normal + path.slice(copied, i);
  if (hasHighEscapes && !isEscapedUtf8(normal)) return undefined;
  return endsInSlash && normal.length > 1 ? normal.slice(0, -1) : normal;
}

/**
 * Checks a route pattern and makes it ready.
 *
 * Segments; `:name` for exactly one segment; a final `*` for any rest, also none. A trailing slash is ignored.
 *
 * @returns the pattern, or the fault as a sentence for its writer.
 */
export function compileRoutePattern(pattern: string): RoutePattern | { readonly fault: string } {
  const fault = textFault(pattern);
  if (fault !== undefined) return { fault };
  const segments = pattern.split('/').slice(1);
  if (segments.at(-1) === '') segments.pop();
  const takesRest = segments.at(-1) === '*';
  if (takesRest) segments.pop();

  const parts: (string | null)[] = [];
  const names = new Set<string>();
  for (const segment of segments) {
    if (segment.includes('*'))
      return { fault: '`*` may only be the whole last segment; use `:name` for one segment.' };
    if (segment.startsWith(':')) {
      if (!/^:[A-Za-z_][A-Za-z0-9_]*$/.test(segment)) {
        return { fault: 'After `:` a name is needed, of letters, digits and `_`, that fills the segment.' };
      }
      if (names.has(segment)) return { fault: 'A `:name` may occur only once.' };
      names.add(segment);
      parts.push(null);
      continue;
    }
    const literal = normalizeRequestPath(`/${segment}`);
    if (literal === undefined || segment === '') return { fault: segmentFault(segment) };
    const before = parts.at(-1);
    if (typeof before === 'string') parts[parts.length - 1] = before + literal;
    else parts.push(literal);
  }
  return { parts, takesRest };
}

/**
 * Whether the pattern is the route of the path.
 *
 * A `:name` that is not the end of the pattern takes no segment with parameters (`;`): some servers cut the whole path
 * at the first `;`, and `/users/17;/avatar` must not be let through as `/users/:id/avatar` to be served as `/users/17`.
 *
 * @param normalPath what `normalizeRequestPath` gave.
 */
export function matchesRoute(pattern: RoutePattern, normalPath: string): boolean {
  // The root has no segments.
  const end = normalPath.length === 1 ? 0 : normalPath.length;
  let at = 0;
  let left = pattern.parts.length;
  for (const part of pattern.parts) {
    left--;
    if (at >= end) return false;
    if (part === null) {
      const start = at + 1;
      const slash = normalPath.indexOf('/', start);
      at = slash < 0 ? end : slash;
      if (left > 0 && hasParameters(normalPath, start, at)) return false;
    } else {
      if (!normalPath.startsWith(part, at)) return false;
      at += part.length;
      if (at < end && normalPath.charCodeAt(at) !== SLASH) return false;
    }
  }
  return pattern.takesRest || at === end;
}

/** Makes a rule ready. @returns the first fault where `routeRuleFaults` has any. */
export function compileRouteRule(rule: RouteRuleText): RouteRule | { readonly fault: string } {
  const methods = rule.methods ?? undefined;
  const [fault] = methodFaults(methods);
  if (fault !== undefined) return { fault: fault.message };
  const pattern = compileRoutePattern(rule.path);
  if ('fault' in pattern) return pattern;
  if (methods === undefined) return { pattern, methods };
  // RFC 9110 §9.3.2: HEAD is GET without the content, so it tells nothing that GET does not.
  return { pattern, methods: new Set(methods.includes('GET') ? [...methods, 'HEAD'] : methods) };
}

/**
 * Whether the rule allows the method on the path. Methods are compared as they are: `get` is not `GET` (RFC 9110 §9.1).
 *
 * @param method `undefined` where it is not known; then only a rule for all methods allows it.
 * @param normalPath what `normalizeRequestPath` gave.
 */
export function matchesRule(rule: RouteRule, method: string | undefined, normalPath: string): boolean {
  const { methods } = rule;
  if (methods !== undefined && (method === undefined || !methods.has(method))) return false;
  return matchesRoute(rule.pattern, normalPath);
}

/** A fault of a rule, with its place in the rule. */
interface RuleFault {
  readonly path: (string | number)[];
  readonly message: string;
}

/** Every fault of a rule, with its place in the rule. */
export function routeRuleFaults(rule: RouteRuleText): RuleFault[] {
  const faults = methodFaults(rule.methods ?? undefined);
  const pattern = compileRoutePattern(rule.path);
  if ('fault' in pattern) faults.push({ path: ['path'], message: pattern.fault });
  return faults;
}

function methodFaults(methods: readonly string[] | undefined): RuleFault[] {
  if (methods === undefined) return [];
  if (methods.length === 0) {
    const message = 'An empty list could mean all or nothing; leave it out for all methods.';
    return [{ path: ['methods'], message }];
  }
  if (methods.length > MAX_METHODS)
    return [{ path: ['methods'], message: `At most ${MAX_METHODS} methods.` }];
  return methods.flatMap((method, index) =>
    METHOD_PATTERN.test(method)
      ? []
      : [
          {
            path: ['methods', index],
            message: 'A method is upper-case letters and hyphens, at most 32.',
          },
        ],
  );
}

function textFault(pattern: string): string | undefined {
  if (pattern.length > MAX_ROUTE_PATTERN_LENGTH) {
    return `A route pattern has at most ${MAX_ROUTE_PATTERN_LENGTH} characters.`;
  }
  if (!pattern.startsWith('/')) return 'A route pattern begins with `/`.';
  if (/[?#]/.test(pattern)) return 'A route pattern has no query and no fragment: only the path is compared.';
  if (/[\\\u0000-\u0020\u007f-\u009f]/.test(pattern)) {
    return 'A route pattern has no spaces, control characters or backslashes.';
  }
  // Else it would be a literal that no request has, and the writer's mistake would show as refusals.
  if (/[{}]/.test(pattern)) return 'Write `:name`, not `{name}`, for one segment.';
  return undefined;
}

function segmentFault(segment: string): string {
  if (segment === '') return 'A route pattern has no empty segments (`//`).';
  if (/^(?:\.|%2e){0,2}(?:$|;|%3b)/i.test(segment)) {
    return 'A segment must not be `.` or `..`, nor begin with `;`.';
  }
  if (/%(?:2f|5c|00)/i.test(segment)) return 'A route pattern has no encoded slashes, backslashes or NUL.';
  return 'A segment has a malformed escape: `%` needs two hexadecimal digits, and escapes together UTF-8.';
}

/** Whether a segment of a normal path has path parameters (`;`, also escaped). */
export function hasParameters(normalPath: string, start: number, end: number): boolean {
  for (let i = start; i < end; i++) {
    const code = normalPath.charCodeAt(i);
    if (code === SEMICOLON || (code === PERCENT && normalPath.startsWith('3B', i + 1))) return true;
  }
  return false;
}

/** The value of two hexadecimal digits, or -1. */
function byteAt(text: string, start: number): number {
  const high = hexDigit(text.charCodeAt(start));
  const low = hexDigit(text.charCodeAt(start + 1));
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}

/** The character at an index as percent-encoded UTF-8; `undefined` for unpaired surrogates and C1 controls. */
function escapeAt(text: string, index: number): string | undefined {
  const code = text.codePointAt(index) ?? 0;
  if ((code >= 0x80 && code < 0xa0) || (code >= 0xd800 && code <= 0xdfff)) return undefined;
  return encodeURIComponent(String.fromCodePoint(code));
}

function isEscapedUtf8(text: string): boolean {
  try {
    decodeURIComponent(text);
    return true;
  } catch {
    return false;
  }
}
