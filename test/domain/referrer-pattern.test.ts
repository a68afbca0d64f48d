import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  compileReferrerPattern,
  MAX_REFERRER_PATTERN_LENGTH,
  matchesReferrer,
  parseReferrer,
  type ReferrerMatcher,
} from '../../src/domain/referrer-pattern.ts';

function matcher(pattern: string): ReferrerMatcher {
  const compiled = compileReferrerPattern(pattern);
  if ('fault' in compiled) throw new Error(`${pattern}: ${compiled.fault}`);
  return compiled;
}

function allows(pattern: string, text: string): boolean {
  const referrer = parseReferrer(text);
  return referrer !== undefined && matchesReferrer(matcher(pattern), referrer);
}

function faultOf(pattern: string): string | undefined {
  const compiled = compileReferrerPattern(pattern);
  return 'fault' in compiled ? compiled.fault : undefined;
}

describe('a referrer pattern allows', () => {
  test.each([
    ['https://example.com/*', 'https://example.com/'],
    ['https://example.com/*', 'https://example.com'],
    ['https://example.com/*', 'https://example.com/a/b?c=d#e'],
    ['https://example.com/', 'https://example.com/?x'],
    ['https://example.com/app', 'https://example.com/app?next=/other'],
    ['https://example.com/*', 'HTTPS://EXAMPLE.COM/A'],
    ['HTTPS://EXAMPLE.com/*', 'https://example.com/'],
    ['https://example.com:443/*', 'https://example.com/'],
    ['https://example.com/*', 'https://example.com:443/'],
    ['http://example.com/*', 'http://example.com:80/'],
    ['http://localhost:3000/*', 'http://localhost:3000/x'],
    ['http://127.0.0.1:3000/*', 'http://127.0.0.1:3000/x'],
    ['http://[::1]:3000/*', 'http://[0:0::1]:3000/x'],
    ['https://*.example.com/*', 'https://app.example.com/x'],
    ['https://*.example.com/*', 'https://a.b.c.example.com/x'],
    ['https://*.*.example.com/*', 'https://a.b.example.com/x'],
    ['https://*.*.example.com/*', 'https://a.b.c.example.com/x'],
    ['https://app.*.com/*', 'https://app.a.b.com/x'],
    ['https://*.a.*.com/*', 'https://x.a.a.com/x'],
    ['https://*.a.b.*.com/*', 'https://x.a.a.b.y.com/x'],
    ['https://app.*/*', 'https://app.example/x'],
    ['https://*/*', 'https://example.com/x'],
    ['https://bücher.example/*', 'https://xn--bcher-kva.example/'],
    ['https://*.bücher.example/*', 'https://www.BÜCHER.example/'],
    ['https://example.com/é/*', 'https://example.com/%C3%A9/x'],
    ['https://example.com/*/edit', 'https://example.com/a/b/edit'],
    ['https://example.com/a*b*c', 'https://example.com/abbc'],
    ['https://example.com/*', 'https://ex%61mple.com/'],
    ['https://example.com/app/*', 'https://example.com/x/../app/y'],
  ])('%s: %s', (pattern, text) => {
    expect(allows(pattern, text)).toBe(true);
  });
});

describe('a referrer pattern does not allow', () => {
  test.each([
    ['another scheme', 'https://example.com/*', 'http://example.com/'],
    ['a scheme that is not the web', 'https://example.com/*', 'ftp://example.com/'],
    ['a script', 'https://*/*', 'javascript:alert(1)'],
    ['a blob of the host', 'https://example.com/*', 'blob:https://example.com/x'],
    ['another port', 'https://example.com/*', 'https://example.com:8443/'],
    ['the other default port', 'https://example.com/*', 'https://example.com:80/'],
    ['no port where one is named', 'https://example.com:8443/*', 'https://example.com/'],
    ['the bare domain for a wildcard', 'https://*.example.com/*', 'https://example.com/'],
    ['a host that ends alike', 'https://*.example.com/*', 'https://evil-example.com/'],
    ['a host that ends alike, with a label', 'https://*.example.com/*', 'https://a.evil-example.com/'],
    ['a host that begins alike', 'https://*.example.com/*', 'https://app.example.com.evil.org/'],
    [
      'a host that begins alike, without a wildcard',
      'https://example.com/*',
      'https://example.com.evil.org/',
    ],
    ['a subdomain without a wildcard', 'https://example.com/*', 'https://app.example.com/'],
    ['too few labels', 'https://*.*.example.com/*', 'https://a.example.com/'],
    ['a wildcard for no label', 'https://app.*.com/*', 'https://app.com/'],
    ['overlapping labels', 'https://a.*.a.com/*', 'https://a.a.com/'],
    ['labels in another order', 'https://*.a.*.b.com/*', 'https://x.b.y.a.com/'],
    ['the host as user name', 'https://app.example.com/*', 'https://app.example.com@evil.org/'],
    ['the host as user name and port', 'https://app.example.com/*', 'https://app.example.com:443@evil.org/'],
    ['any user name', 'https://example.com/*', 'https://user@example.com/'],
    ['any password', 'https://example.com/*', 'https://:secret@example.com/'],
    ['the host behind a backslash', 'https://app.example.com/*', 'https://evil.org\\@app.example.com/'],
    ['the host before a backslash', 'https://app.example.com/*', 'https://app.example.com\\.evil.org/'],
    ['backslashes for slashes', 'https://app.example.com/*', 'https:\\\\app.example.com\\'],
    ['no slashes', 'https://app.example.com/*', 'https:app.example.com/'],
    ['three slashes', 'https://app.example.com/*', 'https:///app.example.com/'],
    ['a trailing dot', 'https://example.com/*', 'https://example.com./'],
    ['a trailing dot behind a wildcard', 'https://*.example.com/*', 'https://app.example.com./'],
    ['an empty label', 'https://*.example.com/*', 'https://.example.com/'],
    ['an empty label within', 'https://*.example.com/*', 'https://a..example.com/'],
    ['an encoded dot that leads elsewhere', 'https://example.com/*', 'https://example.com%2eevil.org/'],
    ['an encoded slash in the host', 'https://example.com/*', 'https://example.com%2f.evil.org/'],
    ['an encoded at sign', 'https://example.com/*', 'https://example.com%40evil.org/'],
    ['a homograph', 'https://example.com/*', 'https://\u0435xample.com/'],
    ['an IPv4 address for a wildcard', 'https://*/*', 'https://127.0.0.1/'],
    ['a number for a wildcard', 'https://*/*', 'https://2130706433/'],
    ['an IPv6 address for a wildcard', 'https://*/*', 'https://[::1]/'],
    ['a space before', 'https://example.com/*', ' https://example.com/'],
    ['a tab in the host', 'https://example.com/*', 'https://exam\tple.com/'],
    ['a newline in the scheme', 'https://example.com/*', 'ht\ntps://example.com/'],
    ['a NUL', 'https://example.com/*', 'https://example.com/\0'],
    ['nothing', 'https://*/*', ''],
    ['a path alone', 'https://example.com/*', '/app'],
    ['no scheme', 'https://example.com/*', '//example.com/'],
    ['a host of 254 characters', 'https://*/*', `https://${'a.'.repeat(126)}aa/`],
    ['another path', 'https://example.com/app', 'https://example.com/application'],
    ['the path in another case', 'https://example.com/app/*', 'https://example.com/App/'],
    ['the folder without its slash', 'https://example.com/app/*', 'https://example.com/app'],
    ['the path in the query', 'https://example.com/app/*', 'https://example.com/?/app/'],
    ['the path in the fragment', 'https://example.com/app/*', 'https://example.com/#/app/'],
    ['dot segments', 'https://example.com/app/*', 'https://example.com/app/../admin'],
    ['encoded dot segments', 'https://example.com/app/*', 'https://example.com/app/%2E%2e/admin'],
    ['prefix and suffix that overlap', 'https://example.com/ab*ba', 'https://example.com/aba'],
    ['a piece within the suffix', 'https://example.com/a*bc*c', 'https://example.com/abc'],
  ])('%s', (_, pattern, text) => {
    expect(allows(pattern, text)).toBe(false);
  });

  test('a host of 253 characters is still a host', () => {
    expect(allows('https://*/*', `https://${'a.'.repeat(126)}a/`)).toBe(true);
  });
});

describe('a referrer pattern is refused', () => {
  test.each([
    ['without a path, suggesting one', 'https://example.com', /`\/\*`/],
    ['without a path but with a port', 'https://example.com:8443', /`\/\*`/],
    ['without a scheme', 'example.com/*', /begins with/],
    ['with a wildcard scheme', '*://example.com/*', /begins with/],
    ['with another scheme', 'ftp://example.com/*', /begins with/],
    ['with a user name', 'https://user@example.com/*', /user name/],
    ['with a query', 'https://example.com/*?a=b', /query/],
    ['with a fragment', 'https://example.com/#top', /fragment/],
    ['with a query for a path', 'https://example.com?/*', /query/],
    ['with a wildcard within a label', 'https://app*.example.com/*', /whole label/],
    ['with a doubled wildcard', 'https://**.example.com/*', /whole label/],
    ['with a wildcard port', 'https://example.com:*/*', /port/],
    ['with a port over 65535', 'https://example.com:65536/*', /port/],
    ['with a wildcard in an address', 'https://10.0.0.*/*', /IP address/],
    ['with a wildcard before numbers', 'https://*.0.0.1/*', /not valid/],
    ['with an empty label', 'https://a..example.com/*', /empty labels/],
    ['with a trailing dot', 'https://example.com./*', /empty labels/],
    ['without a host', 'https:///*', /host is missing/],
    ['with a port but no host', 'https://:80/*', /not valid/],
    ['with an encoded host', 'https://%2a.example.com/*', /percent-encoded/],
    ['with a backslash', 'https://example.com\\/*', /backslashes/],
    ['with a space', 'https://example.com/ *', /spaces/],
    ['with a newline', 'https://exam\nple.com/*', /control/],
    ['with dot segments', 'https://example.com/a/../*', /segment/],
    ['with encoded dot segments', 'https://example.com/a/%2e%2E', /segment/],
    ['with a broken IPv6 address', 'https://[::1/*', /not valid/],
    ['when it is empty', '', /begins with/],
  ])('%s', (_, pattern, message) => {
    expect(faultOf(pattern)).toMatch(message);
  });

  test('beyond its longest length, and not at it', () => {
    const start = 'https://example.com/';
    const longest = start + 'a'.repeat(MAX_REFERRER_PATTERN_LENGTH - start.length);
    expect(faultOf(longest)).toBeUndefined();
    expect(faultOf(`${longest}a`)).toContain('512');
  });

  test('with a fault that never repeats it', () => {
    fc.assert(
      fc.property(fc.string({ minLength: 1 }), (noise) => {
        const secret = `S3CR3T${noise}`;
        for (const pattern of [secret, `https://${secret}`, `https://example.com/${secret}`]) {
          expect(faultOf(pattern) ?? '').not.toContain('S3CR3T');
        }
      }),
    );
  });
});

describe('the glob', () => {
  /** The plain model: exponential, and obviously right. */
  function globModel(pattern: string, text: string): boolean {
    if (pattern === '') return text === '';
    if (pattern.startsWith('*')) {
      return globModel(pattern.slice(1), text) || (text !== '' && globModel(pattern, text.slice(1)));
    }
    return text.startsWith(pattern.charAt(0)) && text !== '' && globModel(pattern.slice(1), text.slice(1));
  }

  function hostModel(labels: readonly string[], host: readonly string[]): boolean {
    const [label, ...labelsLeft] = labels;
    const [first, ...hostLeft] = host;
    if (label === undefined) return first === undefined;
    if (first === undefined) return false;
    if (label !== '*') return label === first && hostModel(labelsLeft, hostLeft);
    return hostModel(labelsLeft, hostLeft) || hostModel(labels, hostLeft);
  }

  test('of a path agrees with a plain recursive model', () => {
    const piece = fc.constantFrom('a', 'b', 'ab', 'aab', '/', '*', '*', '**');
    const pathOf = (pieces: readonly string[]): string => pieces.join('').replaceAll(/\/+/g, '/');
    fc.assert(
      fc.property(
        fc.array(piece, { maxLength: 8 }),
        fc.array(fc.constantFrom('a', 'b', '/'), { maxLength: 12 }),
        (pattern, text) => {
          expect(
            allows(`https://example.com/${pathOf(pattern)}`, `https://example.com/${pathOf(text)}`),
          ).toBe(globModel(pathOf(pattern), pathOf(text)));
        },
      ),
      { numRuns: 10_000 },
    );
  });

  test('of a host agrees with a plain recursive model', () => {
    const label = fc.constantFrom('a', 'b', 'ab', '*', '*');
    fc.assert(
      fc.property(
        fc.array(label, { minLength: 1, maxLength: 6 }),
        fc.array(fc.constantFrom('a', 'b', 'ab'), { minLength: 1, maxLength: 8 }),
        (labels, host) => {
          expect(allows(`https://${labels.join('.')}/*`, `https://${host.join('.')}/`)).toBe(
            hostModel(labels, host),
          );
        },
      ),
      { numRuns: 10_000 },
    );
  });

  test('of a path takes linear time where backtracking would never end', () => {
    const longPath = 'a'.repeat(1_000_000);
    const manyStars = `https://example.com/${'*a'.repeat(200)}*b`;
    const longNeedle = `https://example.com/*${'a'.repeat(400)}b*${'a'.repeat(80)}`;
    expect(allows(manyStars, `https://example.com/${longPath}`)).toBe(false);
    expect(allows(`${manyStars}*`, `https://example.com/${longPath}`)).toBe(false);
    expect(allows(longNeedle, `https://example.com/${longPath}`)).toBe(false);
    expect(allows(manyStars, `https://example.com/${longPath}b`)).toBe(true);
  });

  test('of a host looks at no more than a host may hold', () => {
    const pattern = `https://${'*.a.'.repeat(60)}b/*`;
    expect(allows(pattern, `https://${'a.'.repeat(125)}c/`)).toBe(false);
    expect(allows(pattern, `https://${'a.'.repeat(500_000)}b/`)).toBe(false);
    expect(allows(pattern, `https://${'a.'.repeat(120)}b/`)).toBe(true);
  });
});

test('an allowed referrer is always on an allowed host, whatever its text looks like', () => {
  const noise = fc.constantFrom(
    'https://',
    'http://',
    'app.example.com',
    'example.com',
    'evil.org',
    '@',
    ':',
    '/',
    '\\',
    '.',
    '%2e',
    '%40',
    '%2f',
    '#',
    '?',
    '443',
    '//',
    '\t',
    ' ',
    '\u3002',
    '\u2044',
    '*',
    '[',
    ']',
    ';',
    '-',
  );
  fc.assert(
    fc.property(fc.array(noise, { maxLength: 10 }), (pieces) => {
      const text = `https://${pieces.join('')}`;
      if (!allows('https://*.example.com/*', text)) return;
      expect(new URL(text).hostname).toMatch(/[^.]\.example\.com$/);
      expect(new URL(text).username).toBe('');
    }),
    { numRuns: 20_000 },
  );
});
