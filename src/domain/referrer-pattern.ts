import { parseAddress } from './address.ts';

/*
 * `scheme://host[:port]/path` (contract §5). `*` in the host is one or more whole labels, in the path anything.
 * Pattern and referrer are both read by the WHATWG URL parser, the browsers' own, and compared part by part: what
 * looks like an allowed host in the text (`https://app.example.com@evil.org/`) is never mistaken for one.
 *
 * Matching takes time linear in the referrer: `*` takes the first place where what follows it fits, which is enough,
 * and that place is searched without going back (Knuth, Morris and Pratt).
 */

/** Longest pattern, in characters. */
export const MAX_REFERRER_PATTERN_LENGTH = 512;
/** Longest host name (RFC 1035 §2.3.4), less the final dot. The URL parser knows no limit. */
const MAX_HOST_LENGTH = 253;

/** A referrer that has been read: what of it is compared. */
export interface Referrer {
  readonly protocol: string;
  readonly hostname: string;
  /** Empty for the scheme's default port. */
  readonly port: string;
  readonly pathname: string;
}

/** A pattern, ready to be compared. */
export interface ReferrerMatcher {
  readonly protocol: string;
  readonly port: string;
  readonly host: string | HostGlob;
  readonly path: string | PathGlob;
}

interface HostGlob {
  /** The labels before the first `*`, with a dot before and behind each: `.` or `.a.b.`. */
  readonly head: string;
  /** A number of `*` in a row, then the labels behind them, dotted likewise. */
  readonly rest: readonly { readonly wildcards: number; readonly labels: string }[];
}

interface PathGlob {
  readonly prefix: string;
  readonly middle: readonly Needle[];
  readonly suffix: string;
}

/** A text to search for. `fallback[n]`: how much of it still fits when it fitted for n characters and no further. */
interface Needle {
  readonly text: string;
  readonly fallback: Uint16Array;
}

/**
 * What a browser sends: `http` or `https`, two slashes, a host, and none of the characters that parsers drop or turn
 * (controls, spaces, backslash).
 */
const PLAIN_URL = /^https?:\/\/[^/\\\u0000-\u0020\u007f][^\\\u0000-\u0020\u007f]*$/i;
const DOT_SEGMENT = /\/(?:\.|%2e){1,2}(?:\/|$)/i;

/**
 * Reads a referrer once, to be compared with several patterns.
 *
 * @returns `undefined` for what no pattern matches: not an absolute http(s) URL, with a user name (which RFC 9110
 * §10.1.3 forbids), or with a host that has empty labels (`app.example.com.`) or is too long to be one.
 */
export function parseReferrer(text: string): Referrer | undefined {
  if (!PLAIN_URL.test(text)) return undefined;
  const url = parseUrl(text);
  if (url === undefined || url.username !== '' || url.password !== '') return undefined;
  const { protocol, hostname, port, pathname } = url;
  return isWholeHost(hostname) ? { protocol, hostname, port, pathname } : undefined;
}

/** Whether the pattern allows the referrer. Its query and fragment do not count. */
export function matchesReferrer(matcher: ReferrerMatcher, referrer: Referrer): boolean {
  return (
    matcher.protocol === referrer.protocol &&
    matcher.port === referrer.port &&
    (typeof matcher.host === 'string'
      ? matcher.host === referrer.hostname
      : matchesHost(matcher.host, referrer.hostname)) &&
    (typeof matcher.path === 'string'
      ? matcher.path === referrer.pathname
      : matchesPath(matcher.path, referrer.pathname))
  );
}

/**
 * Checks a pattern and makes it ready.
 *
 * @returns the matcher, or the fault as a sentence for the pattern's writer.
 */
export function compileReferrerPattern(pattern: string): ReferrerMatcher | { readonly fault: string } {
  const fault = textFault(pattern);
  if (fault !== undefined) return { fault };
  const url = parseUrl(pattern);
  if (url === undefined) {
    return {
      fault: 'The host or the port is not valid. `*` may stand for whole labels of the host, not for a port.',
    };
  }
  const { protocol, hostname, port, pathname } = url;
  if (!isWholeHost(hostname))
    return { fault: 'The host must not have empty labels, nor more than 253 characters.' };
  const labels = hostname.split('.');
  if (labels.some((label) => label !== '*' && label.includes('*'))) {
    return { fault: '`*` in the host must be a whole label, as in `*.example.com`.' };
  }
  const isNumeric =
    labels.some((label) => label !== '*') && labels.every((label) => /^(?:\*|\d+)$/.test(label));
  if (labels.includes('*') && isNumeric) {
    return { fault: '`*` cannot stand for a part of an IP address.' };
  }
  return {
    protocol,
    port,
    host: labels.includes('*') ? hostGlob(labels) : hostname,
    path: pathname.includes('*') ? pathGlob(pathname) : pathname,
  };
}

/** Faults that must be found in the text, since the URL parser would mend them. */
function textFault(pattern: string): string | undefined {
  if (pattern.length > MAX_REFERRER_PATTERN_LENGTH) {
    return `A referrer pattern has at most ${MAX_REFERRER_PATTERN_LENGTH} characters.`;
  }
  if (!/^https?:\/\//i.test(pattern)) return 'A referrer pattern begins with `https://` or `http://`.';
  if (/[\\\u0000-\u0020\u007f]/.test(pattern)) {
    return 'A referrer pattern has no spaces, control characters or backslashes.';
  }
  if (/[?#]/.test(pattern))
    return 'A referrer pattern has no query and no fragment: only the path is compared.';
  const start = pattern.indexOf('//') + 2;
  const slash = pattern.indexOf('/', start);
  if (slash < 0) return 'The path is missing: add `/*` for every page of the host.';
  const authority = pattern.slice(start, slash);
  if (authority === '') return 'The host is missing.';
  if (authority.includes('@')) return 'A referrer pattern has no user name or password.';
  if (authority.includes('%')) return 'The host must not be percent-encoded.';
  if (DOT_SEGMENT.test(pattern.slice(slash))) return 'The path must not have `.` or `..` as a segment.';
  return undefined;
}

function parseUrl(text: string): URL | undefined {
  try {
    return new URL(text);
  } catch {
    return undefined;
  }
}

function isWholeHost(hostname: string): boolean {
  return (
    hostname.length <= MAX_HOST_LENGTH &&
    !hostname.startsWith('.') &&
    !hostname.endsWith('.') &&
    !hostname.includes('..')
  );
}

function hostGlob(labels: readonly string[]): HostGlob {
  const first = labels.indexOf('*');
  const rest: { wildcards: number; labels: string }[] = [];
  for (let i = first; i < labels.length; ) {
    let wildcards = 0;
    for (; labels[i] === '*'; i++) wildcards++;
    const next = labels.indexOf('*', i);
    const end = next < 0 ? labels.length : next;
    rest.push({ wildcards, labels: dotted(labels.slice(i, end)) });
    i = end;
  }
  return { head: dotted(labels.slice(0, first)), rest };
}

function dotted(labels: readonly string[]): string {
  return labels.length === 0 ? '.' : `.${labels.join('.')}.`;
}

function matchesHost(glob: HostGlob, hostname: string): boolean {
  // An IP address has no labels that a `*` could stand for.
  if (hostname.startsWith('[') || parseAddress(hostname) !== undefined) return false;
  const host = `.${hostname}.`;
  if (!host.startsWith(glob.head)) return false;
  // The dot behind what has been matched.
  let dot = glob.head.length - 1;
  let left = glob.rest.length;
  for (const { wildcards, labels } of glob.rest) {
    for (let i = 0; i < wildcards; i++) {
      dot = host.indexOf('.', dot + 1);
      if (dot < 0) return false;
    }
    left--;
    if (left === 0) return host.length - labels.length >= dot && host.endsWith(labels);
    const start = host.indexOf(labels, dot);
    if (start < 0) return false;
    dot = start + labels.length - 1;
  }
  return false;
}

function pathGlob(pathname: string): PathGlob {
  const pieces = pathname.split('*');
  const middle = pieces.slice(1, -1).filter((piece) => piece !== '');
  return { prefix: pieces[0] ?? '', middle: middle.map(needleOf), suffix: pieces.at(-1) ?? '' };
}

function matchesPath({ prefix, middle, suffix }: PathGlob, pathname: string): boolean {
  const end = pathname.length - suffix.length;
  if (end < prefix.length || !pathname.startsWith(prefix) || !pathname.endsWith(suffix)) return false;
  let from = prefix.length;
  for (const needle of middle) {
    from = endOfFirst(needle, pathname, from, end);
    if (from < 0) return false;
  }
  return true;
}

function needleOf(text: string): Needle {
  const fallback = new Uint16Array(text.length + 1);
  let fits = 0;
  for (let i = 1; i < text.length; i++) {
    while (fits > 0 && text.charCodeAt(i) !== text.charCodeAt(fits)) fits = fallback[fits] ?? 0;
    if (text.charCodeAt(i) === text.charCodeAt(fits)) fits++;
    fallback[i + 1] = fits;
  }
  return { text, fallback };
}

/** @returns the index behind the first occurrence that lies between `from` and `end`, or -1. */
function endOfFirst({ text, fallback }: Needle, haystack: string, from: number, end: number): number {
  let fits = 0;
  for (let i = from; i < end; i++) {
    const code = haystack.charCodeAt(i);
    while (fits > 0 && code !== text.charCodeAt(fits)) fits = fallback[fits] ?? 0;
    if (code === text.charCodeAt(fits)) fits++;
    if (fits === text.length) return i + 1;
  }
  return -1;
}
