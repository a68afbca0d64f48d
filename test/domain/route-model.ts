import fc from 'fast-check';
import { compileRoutePattern } from '../../src/domain/route-pattern.ts';

/*
 * The plain model: split, decode, compare. And the readings of a path that servers are known to have.
 */

export const routePattern = fc
  .tuple(
    fc.array(fc.constantFrom('contacts', 'public', 'a', 'A', '%41', ':x', ':y', ':z', 'a%20b', '...'), {
      maxLength: 4,
    }),
    fc.constantFrom('', '', '/', '/*', '/*'),
  )
  .map(([segments, end]) => `/${segments.join('/')}`.replace(/\/$/, '') + end || '/')
  .filter((pattern) => !('fault' in compileRoutePattern(pattern)));

export const hostilePath = fc
  .array(
    fc.oneof(
      { weight: 8, arbitrary: fc.constantFrom('/contacts', '/public', '/a', '/A', '/17', '/') },
      {
        weight: 3,
        arbitrary: fc.constantFrom(
          ...[
            'a',
            '.',
            '..',
            '%2e',
            '%2E',
            ';',
            '%3b',
            '%41',
            '%61',
            '%20',
            '%252e',
            '%c3%a9',
            '\u00e9',
            '{',
            '"',
          ],
          ...['x=1', '%3f', '%23', '%7e', '\u{1f511}', '...', ':x', '*'],
        ),
      },
      {
        weight: 1,
        arbitrary: fc.constantFrom(
          ...[
            '%2f',
            '%5C',
            '\\',
            '%00',
            '\0',
            '#',
            '?',
            ' ',
            '%',
            '%4',
            '%c3',
            '\ud83d',
            '\udd11',
            '\u0085',
            '%ff',
          ],
          ...['\u007f', '%C0%AF'],
        ),
      },
    ),
    { maxLength: 7 },
  )
  .map((pieces) => pieces.join(''));

export function segmentsModel(path: string): string[] | undefined {
  const [beforeQuery = ''] = path.split('?');
  if (!beforeQuery.startsWith('/')) return undefined;
  if (/[\\#\p{Cc}\p{Cs} ]|%2f|%5c|%00/iu.test(beforeQuery)) return undefined;
  const segments = beforeQuery.split('/').slice(1);
  if (segments.at(-1) === '') segments.pop();
  for (const segment of segments) {
    let decoded: string;
    try {
      decoded = decodeURIComponent(segment);
    } catch {
      return undefined;
    }
    const [name = ''] = decoded.split(';');
    if (name === '' || name === '.' || name === '..') return undefined;
  }
  return segments.map((segment) =>
    segment
      .replace(/[^\w\-.~!$&'()*+,;=:@%]/gu, (char) => encodeURIComponent(char))
      .replace(/%[0-9a-f]{2}/gi, (octet) => {
        const char = String.fromCharCode(Number.parseInt(octet.slice(1), 16));
        return /^[A-Za-z0-9\-._~]$/.test(char) ? char : octet.toUpperCase();
      }),
  );
}

export function matchesModel(pattern: string, segments: readonly string[]): boolean {
  const wanted = pattern.split('/').slice(1);
  if (wanted.at(-1) === '') wanted.pop();
  return matchesFrom(wanted, segments);
}

function matchesFrom(wanted: readonly string[], segments: readonly string[]): boolean {
  const [first, ...wantedLeft] = wanted;
  const [segment, ...segmentsLeft] = segments;
  if (first === '*') return true;
  if (first === undefined || segment === undefined) return first === segment;
  if (first.startsWith(':')) {
    const mayEndHere = wantedLeft.length === 0 || wantedLeft[0] === '*';
    return (mayEndHere || !/;|%3B/.test(segment)) && matchesFrom(wantedLeft, segmentsLeft);
  }
  return decodeURIComponent(first) === decodeURIComponent(segment) && matchesFrom(wantedLeft, segmentsLeft);
}

/** Decoded segments, as servers come to them: each is a reading by which some server in use has been seen to route. */
export function servedAs(path: string): Record<string, string[]> {
  const [beforeQuery = ''] = path.split('?');
  const resolve = (text: string): string[] => {
    const resolved: string[] = [];
    for (const segment of text.split('/')) {
      if (segment === '..') resolved.pop();
      else if (segment !== '' && segment !== '.') resolved.push(segment);
    }
    return resolved;
  };
  return {
    'decodes, then resolves dot segments and merges slashes (nginx)': resolve(
      decodeURIComponent(beforeQuery),
    ),
    'resolves, then decodes (WHATWG)': new URL(`http://host${beforeQuery}`).pathname
      .split('/')
      .filter((segment) => segment !== '')
      .map(decodeURIComponent),
    'drops parameters, then decodes and resolves (Tomcat)': resolve(
      decodeURIComponent(beforeQuery.replaceAll(/;[^/]*/g, '')),
    ),
    'decodes, then drops parameters and resolves': resolve(
      decodeURIComponent(beforeQuery).replaceAll(/;[^/]*/g, ''),
    ),
    'cuts at the first semicolon (find-my-way)': resolve(decodeURIComponent(beforeQuery.split(';')[0] ?? '')),
    'turns backslashes': resolve(decodeURIComponent(beforeQuery).replaceAll('\\', '/')),
    'cuts at NUL': resolve(decodeURIComponent(beforeQuery).split('\0')[0] ?? ''),
  };
}

/** Whether the pattern's writer meant to allow the route that a server came to. */
export function grantsServed(pattern: string, served: readonly string[]): boolean {
  const [first, ...wantedLeft] = pattern.split('/').filter((segment) => segment !== '');
  const [segment, ...servedLeft] = served;
  if (first === '*') return true;
  if (first === undefined || segment === undefined) return first === segment;
  if (!first.startsWith(':') && decodeURIComponent(first) !== segment) return false;
  return grantsServed(`/${wantedLeft.join('/')}`, servedLeft);
}
