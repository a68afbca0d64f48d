import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  addressesWithin,
  type CompiledRestrictions,
  compileRestrictions,
  MAX_RESTRICTION_ENTRIES,
  type RequestFacts,
  type Restrictions,
  restrictionFaults,
} from '../../src/domain/restriction.ts';

const NONE: Restrictions = {
  allowed_ips: null,
  allowed_referrers: null,
  allowed_endpoints: null,
  allowed_workspaces: null,
};

const ALL_THREE: Restrictions = {
  ...NONE,
  allowed_ips: ['203.0.113.0/24', '2001:db8::/32'],
  allowed_referrers: ['https://*.example.com/*'],
  allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }, { path: '/ping' }],
};

const GOOD: RequestFacts = {
  ip: '203.0.113.9',
  method: 'GET',
  path: '/contacts/17',
  referrer: 'https://app.example.com/x',
};

function compile(restrictions: Partial<Restrictions>): CompiledRestrictions {
  const compiled = compileRestrictions({ ...NONE, ...restrictions });
  if (compiled === undefined) throw new Error('nothing is restricted');
  return compiled;
}

function codeOf(restrictions: Partial<Restrictions>, facts: RequestFacts | undefined): string | undefined {
  return compile(restrictions).check(facts)?.code;
}

describe('restrictions', () => {
  test('that restrict no request compile to nothing', () => {
    expect(compileRestrictions(null)).toBeUndefined();
    expect(compileRestrictions({})).toBeUndefined();
    expect(compileRestrictions(NONE)).toBeUndefined();
    expect(compileRestrictions({ ...NONE, allowed_workspaces: ['ws_acme'] })).toBeUndefined();
  });

  test('allow a request that keeps them all', () => {
    expect(compile(ALL_THREE).check(GOOD)).toBeUndefined();
    expect(compile(ALL_THREE).check({ ...GOOD, ip: '::ffff:203.0.113.9' })).toBeUndefined();
    expect(compile(ALL_THREE).check({ ...GOOD, ip: '2001:db8::1', method: 'HEAD' })).toBeUndefined();
  });

  test.each([
    ['address', { ip: '203.0.114.1' }, 'ip_not_allowed'],
    ['referrer', { referrer: 'https://example.com/' }, 'referrer_not_allowed'],
    ['path', { path: '/contacts' }, 'endpoint_not_allowed'],
    ['method', { method: 'DELETE' }, 'endpoint_not_allowed'],
  ])('refuse another %s', (_, facts, code) => {
    expect(codeOf(ALL_THREE, { ...GOOD, ...facts })).toBe(code);
  });

  test('are checked in the order address, referrer, endpoint', () => {
    const bad = { ip: '192.0.2.1', referrer: 'https://evil.org/', method: 'GET', path: '/admin' };
    expect(codeOf(ALL_THREE, bad)).toBe('ip_not_allowed');
    expect(codeOf(ALL_THREE, { ...bad, ip: GOOD.ip })).toBe('referrer_not_allowed');
    expect(codeOf(ALL_THREE, { ...bad, ip: GOOD.ip, referrer: GOOD.referrer })).toBe('endpoint_not_allowed');
  });

  test.each([
    ['request.ip', { allowed_ips: ['0.0.0.0/0', '::/0'] }, 'ip_not_allowed'],
    ['request.referrer', { allowed_referrers: ['https://*/*'] }, 'referrer_not_allowed'],
    ['request.path', { allowed_endpoints: [{ path: '/*' }] }, 'endpoint_not_allowed'],
  ])('fail closed and name %s when it was not sent', (input, restrictions, code) => {
    for (const facts of [undefined, null, {}, { ip: null, referrer: null, path: null, method: null }]) {
      const refusal = compile(restrictions).check(facts);
      expect(refusal).toEqual({ code, detail: expect.stringContaining(`carried no "${input}".`) });
    }
  });

  test.each([
    ['request.ip', { allowed_ips: ['0.0.0.0/0'] }, { ip: '203.0.113.9:443' }],
    ['request.ip', { allowed_ips: ['0.0.0.0/0'] }, { ip: '' }],
    ['request.referrer', { allowed_referrers: ['https://*/*'] }, { referrer: 'app.example.com' }],
    ['request.referrer', { allowed_referrers: ['https://*/*'] }, { referrer: '' }],
    ['request.path', { allowed_endpoints: [{ path: '/*' }] }, { path: '/a/../b' }],
    ['request.path', { allowed_endpoints: [{ path: '/*' }] }, { path: '' }],
  ])('fail closed and name %s when it cannot be read', (input, restrictions, facts) => {
    expect(compile(restrictions).check(facts)?.detail).toContain(`"${input}" is not a plain`);
  });

  test('name a missing method only where a method could have helped', () => {
    const mixed = { allowed_endpoints: [{ methods: ['GET'], path: '/a' }, { path: '/b' }] };
    expect(compile(mixed).check({ path: '/a' })?.detail).toContain('carried no "request.method".');
    expect(compile(mixed).check({ path: '/a', method: 'PUT' })?.detail).not.toContain('carried no');
    expect(compile(mixed).check({ path: '/b' })).toBeUndefined();
    expect(compile({ allowed_endpoints: [{ path: '/b' }] }).check({ path: '/a' })?.detail).not.toContain(
      'carried no',
    );
  });

  test('leave inputs alone that they do not restrict', () => {
    expect(codeOf({ allowed_ips: ['203.0.113.9'] }, { ip: '203.0.113.9', path: '/../x' })).toBeUndefined();
    expect(codeOf({ allowed_endpoints: [{ path: '/*' }] }, { path: '/x', ip: 'nonsense' })).toBeUndefined();
  });

  test('allow nothing by an empty list', () => {
    expect(codeOf({ allowed_ips: [] }, GOOD)).toBe('ip_not_allowed');
    expect(codeOf({ allowed_referrers: [] }, GOOD)).toBe('referrer_not_allowed');
    expect(codeOf({ allowed_endpoints: [] }, GOOD)).toBe('endpoint_not_allowed');
    expect(codeOf({ allowed_endpoints: [{ methods: [], path: '/*' }] }, GOOD)).toBe('endpoint_not_allowed');
  });

  test('allow nothing by an entry that does not compile', () => {
    expect(codeOf({ allowed_ips: ['203.0.113.9/24'] }, GOOD)).toBe('ip_not_allowed');
    expect(codeOf({ allowed_referrers: ['*'] }, GOOD)).toBe('referrer_not_allowed');
    expect(codeOf({ allowed_endpoints: [{ path: '*' }] }, GOOD)).toBe('endpoint_not_allowed');
    expect(codeOf({ allowed_endpoints: [{ methods: ['get'], path: '/*' }] }, GOOD)).toBe(
      'endpoint_not_allowed',
    );
    expect(codeOf({ allowed_ips: ['nonsense', '203.0.113.9'] }, GOOD)).toBeUndefined();
  });

  test('tell of the address restriction alone, for callers of Claviger', () => {
    expect(compile(ALL_THREE).allowsAddress('203.0.113.9')).toBe(true);
    expect(compile(ALL_THREE).allowsAddress('::ffff:203.0.113.9')).toBe(true);
    expect(compile(ALL_THREE).allowsAddress('203.0.114.9')).toBe(false);
    expect(compile(ALL_THREE).allowsAddress(undefined)).toBe(false);
    expect(compile({ allowed_endpoints: [{ path: '/' }] }).allowsAddress(undefined)).toBe(true);
  });

  test('are never repeated in a detail, nor is the input', () => {
    const listed = /203\.0|2001:|example|contacts|ping/;
    fc.assert(
      fc.property(fc.string(), fc.constantFrom('ip', 'method', 'path', 'referrer'), (noise, member) => {
        const refusal = compile(ALL_THREE).check({ ...GOOD, [member]: `S3CR3T${noise}` });
        expect(refusal?.detail).not.toMatch(listed);
        expect(refusal?.detail).not.toContain('S3CR3T');
      }),
    );
  });

  const ips = fc.subarray(['203.0.113.0/24', '203.0.113.9', '10.0.0.0/8', '2001:db8::/32', 'nonsense']);
  const referrers = fc.subarray([
    'https://*.example.com/*',
    'https://app.example.com/x',
    'http://*/*',
    'nonsense',
  ]);
  const endpoints = fc.subarray([
    { methods: ['GET'], path: '/contacts/:id' },
    { methods: ['POST'], path: '/contacts/*' },
    { path: '/contacts' },
    { path: 'nonsense' },
  ]);
  const facts = fc.record(
    {
      ip: fc.constantFrom('203.0.113.9', '203.0.113.10', '10.1.1.1', '2001:db8::1', '192.0.2.1', 'nonsense'),
      method: fc.constantFrom('GET', 'HEAD', 'POST', 'DELETE', 'get'),
      path: fc.constantFrom(
        '/contacts',
        '/contacts/17',
        '/contacts/17/notes',
        '/contacts/../x',
        '/contacts//17',
      ),
      referrer: fc.constantFrom(
        'https://app.example.com/x',
        'https://app.example.com/y',
        'http://evil.org/',
        '',
      ),
    },
    { requiredKeys: [] },
  );
  const lists = fc.record({
    allowed_ips: fc.option(ips),
    allowed_referrers: fc.option(referrers),
    allowed_endpoints: fc.option(endpoints),
  });

  test('never allow more with an entry less', () => {
    fc.assert(
      fc.property(lists, facts, fc.nat(3), (restrictions, request, index) => {
        const less = {
          allowed_ips: restrictions.allowed_ips?.filter((_, i) => i !== index) ?? null,
          allowed_referrers: restrictions.allowed_referrers?.filter((_, i) => i !== index) ?? null,
          allowed_endpoints: restrictions.allowed_endpoints?.filter((_, i) => i !== index) ?? null,
        };
        const before = compileRestrictions(restrictions)?.check(request);
        const after = compileRestrictions(less)?.check(request);
        if (before !== undefined) expect(after).toBeDefined();
      }),
      { numRuns: 5_000 },
    );
  });

  test('never allow more with a restriction more, or with an input less', () => {
    fc.assert(
      fc.property(
        lists,
        facts,
        fc.constantFrom('ip', 'method', 'path', 'referrer'),
        (restrictions, request, gone) => {
          const refusal = compileRestrictions(restrictions)?.check(request);
          const { [gone]: _, ...fewer } = request;
          if (refusal !== undefined) expect(compileRestrictions(restrictions)?.check(fewer)).toBeDefined();

          for (const list of ['allowed_ips', 'allowed_referrers', 'allowed_endpoints'] as const) {
            const lifted = { ...restrictions, [list]: null };
            if (compileRestrictions(lifted)?.check(request) !== undefined) expect(refusal).toBeDefined();
          }
        },
      ),
      { numRuns: 5_000 },
    );
  });
});

describe('faults of restrictions', () => {
  test('are none for what the contract shows', () => {
    expect(restrictionFaults(ALL_THREE)).toEqual([]);
    expect(restrictionFaults({ ...NONE, allowed_workspaces: ['ws_acme', 'a.b:c-d'] })).toEqual([]);
    expect(restrictionFaults(NONE)).toEqual([]);
    expect(restrictionFaults({ allowed_ips: undefined })).toEqual([]);
    expect(restrictionFaults({})).toEqual([]);
  });

  test('are told of each entry at its place', () => {
    const faults = restrictionFaults({
      allowed_ips: ['203.0.113.0/24', '203.0.113.7/24', 'x'],
      allowed_referrers: ['https://example.com'],
      allowed_endpoints: [{ path: '/ok' }, { methods: ['GET', 'get'], path: 'x' }],
      allowed_workspaces: ['..', 'a b'],
    });
    expect(faults.map((fault) => fault.path)).toEqual([
      ['allowed_ips', 1],
      ['allowed_ips', 2],
      ['allowed_referrers', 0],
      ['allowed_endpoints', 1, 'methods', 1],
      ['allowed_endpoints', 1, 'path'],
      ['allowed_workspaces', 0],
      ['allowed_workspaces', 1],
    ]);
    expect(faults[0]?.message).toContain('203.0.113.0/24');
    expect(faults[2]?.message).toContain('`/*`');
  });

  test.each(['allowed_ips', 'allowed_referrers', 'allowed_endpoints', 'allowed_workspaces'] as const)(
    'are told of %s when it is empty',
    (list) => {
      expect(restrictionFaults({ [list]: [] })).toEqual([
        { path: [list], message: expect.stringContaining('all or nothing') },
      ]);
    },
  );

  test('are told of a list beyond its most entries, and not at it', () => {
    const most = Array.from({ length: MAX_RESTRICTION_ENTRIES }, (_, i) => `10.0.0.${i}`);
    expect(restrictionFaults({ allowed_ips: most })).toEqual([]);
    expect(restrictionFaults({ allowed_ips: [...most, '10.0.1.0'] })).toEqual([
      { path: ['allowed_ips'], message: 'At most 100 entries.' },
    ]);
  });

  test('are found in an entry exactly if it allows nothing', () => {
    const text = fc.oneof(
      fc.constantFrom(
        '10.0.0.0/8',
        '10.0.0.1/8',
        '::/0',
        '/a',
        '/:a/*',
        '/*/a',
        'https://a.b/*',
        'https://a.b',
      ),
      fc.string(),
    );
    fc.assert(
      fc.property(text, (entry) => {
        const ipFaults = restrictionFaults({ allowed_ips: [entry] });
        expect(addressesWithin([entry], ['0.0.0.0/0', '::/0'])).toBe(ipFaults.length === 0);
      }),
    );
  });
});

describe('addressesWithin', () => {
  test.each([
    ['anything within no restriction', ['10.0.0.0/8'], null, true],
    ['no restriction within no restriction', null, null, true],
    ['no restriction within a list', null, ['10.0.0.0/8'], false],
    ['no restriction within a list of all addresses', null, ['0.0.0.0/0', '::/0'], false],
    ['a network within itself', ['10.0.0.0/8'], ['10.0.0.0/8'], true],
    ['an address within a network', ['10.1.2.3'], ['10.0.0.0/8'], true],
    ['a network within a smaller one', ['10.0.0.0/8'], ['10.0.0.0/9'], false],
    ['a network within its two halves', ['10.0.0.0/8'], ['10.0.0.0/9', '10.128.0.0/9'], true],
    ['one address too many', ['10.1.2.3', '11.0.0.0'], ['10.0.0.0/8'], false],
    ['an IPv4 address within all of IPv6', ['10.1.2.3'], ['::/0'], false],
    ['a mapped address within its IPv4 network', ['::ffff:10.1.2.3'], ['10.0.0.0/8'], true],
    ['an entry that does not parse within all', ['nonsense'], ['0.0.0.0/0', '::/0'], false],
    ['an address within an entry that does not parse', ['10.1.2.3'], ['10.0.0.1/8'], false],
    ['an address within an empty list', ['10.1.2.3'], [], false],
  ])('%s', (_, inner, outer, expected) => {
    expect(addressesWithin(inner, outer)).toBe(expected);
  });

  test('means that whatever the inner list allows, the outer one allows', () => {
    const entry = fc
      .tuple(fc.nat(255), fc.integer({ min: 24, max: 32 }))
      .map(([last, length]) => `10.0.0.${(last >> (32 - length)) << (32 - length)}/${length}`);
    const list = fc.array(entry, { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(
        list,
        list,
        fc.array(fc.nat(255), { minLength: 20, maxLength: 20 }),
        (inner, outer, hosts) => {
          if (!addressesWithin(inner, outer)) return;
          for (const host of hosts) {
            const facts = { ip: `10.0.0.${host}` };
            if (codeOf({ allowed_ips: inner }, facts) !== undefined) continue;
            expect(codeOf({ allowed_ips: outer }, facts)).toBeUndefined();
          }
        },
      ),
      { numRuns: 2_000 },
    );
  });
});
