import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type Decision,
  decide,
  INVALID,
  isVisible,
  type KeyRecord,
  type Question,
  REFUSALS,
  refuseUnproved,
} from '../../src/domain/decision.ts';
import { type Key, statusOf } from '../../src/domain/key.ts';
import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import { compileRestrictions, type Restrictions } from '../../src/domain/restriction.ts';
import type { RouteRuleText } from '../../src/domain/route-pattern.ts';
import { compileCatalogue, EMPTY_CATALOGUE, type Unmatched } from '../../src/domain/scope-catalogue.ts';
import type { WorkspaceState } from '../../src/domain/workspace.ts';

const NOW = Date.UTC(2026, 0, 2, 12, 0, 0);
const NONE: Restrictions = {
  allowed_ips: null,
  allowed_referrers: null,
  allowed_endpoints: null,
  allowed_workspaces: null,
};

const KEY: Key = {
  id: keyIdFromUuid('01890a5d-ac96-774b-bcce-b302099a8057'),
  workspaceId: 'ws_acme',
  environment: 'live',
  name: 'A key',
  prefix: 'ck_live_',
  lastCharacters: 'x7Qa',
  scopes: ['read', 'write'],
  restrictions: {
    ...NONE,
    allowed_ips: ['203.0.113.0/24'],
    allowed_referrers: ['https://*.example.com/*'],
    allowed_endpoints: [{ methods: ['GET'], path: '/contacts/:id' }],
  },
  rateLimit: null,
  metadata: null,
  createdBy: null,
  createdAt: NOW - 1_000,
  expiresAt: null,
  revokedAt: null,
  revokedReason: null,
  rotatedFrom: null,
  rotatedTo: null,
};

const QUESTION: Question = {
  visibleWorkspaces: null,
  scopes: ['read'],
  workspaceId: 'ws_acme',
  environment: 'live',
  request: {
    ip: '203.0.113.9',
    method: 'GET',
    path: '/contacts/17',
    referrer: 'https://app.example.com/x',
  },
};

function recordOf(key: Partial<Key> = {}, workspace: Partial<WorkspaceState> = {}): KeyRecord {
  const whole = { ...KEY, ...key };
  return {
    key: whole,
    workspace: { disabled: false, rateLimit: null, ...workspace },
    restrictions: compileRestrictions(whole.restrictions),
  };
}

function codeOf(decision: Decision): string {
  return decision.active ? 'active' : decision.code;
}

function ask(
  key: Partial<Key> = {},
  question: Partial<Question> = {},
  { nowMs = NOW, workspace = {} }: { nowMs?: number; workspace?: Partial<WorkspaceState> } = {},
): string {
  return codeOf(decide(recordOf(key, workspace), { ...QUESTION, ...question }, EMPTY_CATALOGUE, nowMs));
}

describe('the status of a key', () => {
  test('turns from active to expired at the very millisecond of its expiry', () => {
    const key = { revokedAt: null, expiresAt: NOW };
    expect(statusOf(key, NOW - 1)).toBe('active');
    expect(statusOf(key, NOW - 0.001)).toBe('active');
    expect(statusOf(key, NOW)).toBe('expired');
    expect(statusOf({ revokedAt: null, expiresAt: null }, Number.MAX_SAFE_INTEGER)).toBe('active');
  });

  test('is revoked for ever, whatever the expiry says', () => {
    expect(statusOf({ revokedAt: NOW, expiresAt: NOW - 1 }, NOW)).toBe('revoked');
    expect(statusOf({ revokedAt: NOW, expiresAt: null }, NOW - 1)).toBe('revoked');
  });
});

describe('the decision', () => {
  test('allows what passes every check, and gives the record', () => {
    const record = recordOf();
    expect(decide(record, QUESTION, EMPTY_CATALOGUE, NOW)).toEqual({ active: true, record, nowMs: NOW });
  });

  test('has the statuses of the contract', () => {
    expect(REFUSALS).toMatchObject({
      invalid: 401,
      revoked: 401,
      expired: 401,
      workspace_disabled: 403,
      wrong_workspace: 403,
      wrong_environment: 403,
      ip_not_allowed: 403,
      referrer_not_allowed: 403,
      endpoint_not_allowed: 403,
      insufficient_scope: 403,
    });
  });

  // Each row breaks one more thing, from the last check to the first: the earliest broken one is the reason.
  interface Wrong {
    readonly key?: Partial<Key>;
    readonly workspace?: Partial<WorkspaceState>;
    readonly question?: Partial<Question>;
    readonly request?: object;
  }
  const broken: [string, Wrong][] = [
    ['insufficient_scope', { question: { scopes: ['read', 'delete'] } }],
    ['endpoint_not_allowed', { request: { path: '/admin' } }],
    ['referrer_not_allowed', { request: { referrer: 'https://evil.org/' } }],
    ['ip_not_allowed', { request: { ip: '192.0.2.1' } }],
    ['wrong_environment', { question: { environment: 'test' } }],
    ['wrong_workspace', { question: { workspaceId: 'ws_other' } }],
    ['workspace_disabled', { workspace: { disabled: true } }],
    ['expired', { key: { expiresAt: NOW } }],
    ['revoked', { key: { revokedAt: NOW } }],
    ['invalid', { question: { visibleWorkspaces: ['ws_other'] } }],
  ];

  test.each(broken)(
    'refuses with %s when that alone is wrong',
    (code, { key, question, request, workspace }) => {
      const asked = { ...question, request: { ...QUESTION.request, ...request } };
      expect(ask(key, asked, { workspace: workspace ?? {} })).toBe(code);
    },
  );

  test('names the first failure in the order of the contract, whatever else is wrong', () => {
    fc.assert(
      fc.property(fc.subarray(broken, { minLength: 1 }), (chosen) => {
        const key = Object.assign({}, ...chosen.map(([, wrong]) => wrong.key ?? {}));
        const workspace = Object.assign({}, ...chosen.map(([, wrong]) => wrong.workspace ?? {}));
        const question = Object.assign({}, ...chosen.map(([, wrong]) => wrong.question ?? {}));
        const request = Object.assign(
          {},
          QUESTION.request,
          ...chosen.map(([, wrong]) => wrong.request ?? {}),
        );
        expect(ask(key, { ...question, request }, { workspace })).toBe(chosen.at(-1)?.[0]);
      }),
    );
  });

  test('asks for all of the scopes, and names one that is missing', () => {
    expect(ask({}, { scopes: [] })).toBe('active');
    expect(ask({}, { scopes: ['write', 'read'] })).toBe('active');
    expect(
      decide(recordOf(), { ...QUESTION, scopes: ['read', 'delete', 'drop'] }, EMPTY_CATALOGUE, NOW),
    ).toMatchObject({
      detail: 'The key lacks the scope "delete".',
    });
    expect(ask({ scopes: [] }, { scopes: ['read'] })).toBe('insufficient_scope');
  });

  test('takes a scope for itself alone: no prefix, no wildcard, no permission', () => {
    expect(ask({ scopes: ['validate'] }, { scopes: ['validate:offers'] })).toBe('insufficient_scope');
    expect(ask({ scopes: ['validate:offers'] }, { scopes: ['validate'] })).toBe('insufficient_scope');
    expect(ask({ scopes: ['admin'] }, { scopes: ['read'] })).toBe('insufficient_scope');
  });

  test('fails closed when a restricted key is asked about without the request', () => {
    expect(ask({}, { request: undefined })).toBe('ip_not_allowed');
    expect(ask({ restrictions: null }, { request: undefined })).toBe('active');
  });

  test('shows a key to those who may see its workspace, and service keys to nobody', () => {
    expect(isVisible(KEY, { visibleWorkspaces: null })).toBe(true);
    expect(isVisible(KEY, { visibleWorkspaces: ['ws_other', 'ws_acme'] })).toBe(true);
    expect(isVisible(KEY, { visibleWorkspaces: ['ws_acme2', 'ws_'] })).toBe(false);
    expect(isVisible(KEY, { visibleWorkspaces: [] })).toBe(false);
    for (const visibleWorkspaces of [null, ['system']]) {
      expect(isVisible({ ...KEY, workspaceId: 'system' }, { visibleWorkspaces })).toBe(false);
    }
    expect(
      decide(recordOf({ workspaceId: 'system' }), { visibleWorkspaces: null }, EMPTY_CATALOGUE, NOW),
    ).toBe(INVALID);
  });

  test('says the day of a revocation and of an expiry, in UTC', () => {
    const lastMoment = Date.UTC(2026, 0, 2, 23, 59, 59, 999);
    expect(refuseUnproved({ ...KEY, revokedAt: lastMoment }, NOW)).toEqual({
      active: false,
      code: 'revoked',
      detail: 'The key was revoked on 2026-01-02.',
    });
    expect(refuseUnproved({ ...KEY, expiresAt: NOW }, NOW)).toEqual({
      active: false,
      code: 'expired',
      detail: 'The key expired on 2026-01-02.',
    });
    expect(refuseUnproved({ ...KEY, expiresAt: NOW + 1 }, NOW)).toBeUndefined();
    expect(refuseUnproved(KEY, NOW)).toBeUndefined();
  });
});

describe('taking a right away never turns a refusal into an allowance', () => {
  const ips = ['203.0.113.0/24', '203.0.113.9', '192.0.2.0/24', '2001:db8::/32'];
  const referrers = ['https://*.example.com/*', 'https://app.example.com/x', 'https://other.org/*'];
  const endpoints = [
    { methods: ['GET'], path: '/contacts/:id' },
    { path: '/contacts/*' },
    { methods: ['DELETE', 'POST'], path: '/*' },
  ];
  const scopes = ['read', 'write', 'delete'];
  const list = <T>(values: T[]) => fc.option(fc.subarray(values, { minLength: 1 }));
  const times = fc.option(fc.integer({ min: NOW - 2, max: NOW + 2 }));

  const keys = fc
    .record({
      scopes: fc.subarray(scopes),
      allowed_ips: list(ips),
      allowed_referrers: list(referrers),
      allowed_endpoints: list(endpoints),
      expiresAt: times,
    })
    .map(({ scopes: held, expiresAt, ...lists }) => ({
      scopes: held,
      expiresAt,
      restrictions: { ...NONE, ...lists },
    }));
  const questions: fc.Arbitrary<Question> = fc.record({
    visibleWorkspaces: fc.constantFrom(null, ['ws_acme'], ['ws_other']),
    scopes: fc.option(fc.subarray(scopes), { nil: undefined }),
    workspaceId: fc.constantFrom(undefined, 'ws_acme', 'ws_other'),
    environment: fc.constantFrom(undefined, 'live', 'test'),
    request: fc.option(
      fc.record({
        ip: fc.constantFrom(undefined, '203.0.113.9', '192.0.2.1', '::1', 'nonsense'),
        method: fc.constantFrom(undefined, 'GET', 'HEAD', 'POST', 'get'),
        path: fc.constantFrom(undefined, '/contacts/17', '/contacts', '/x', '/../x'),
        referrer: fc.constantFrom(undefined, 'https://app.example.com/x', 'https://evil.org/', 'x'),
      }),
      { nil: undefined },
    ),
  });

  /** One way to hold less, chosen by `pick`. */
  function narrow(key: Pick<Key, 'scopes' | 'restrictions' | 'expiresAt'>, pick: number) {
    const restrictions = key.restrictions ?? NONE;
    const fewer = <T>(values: readonly T[] | null, all: readonly T[]) =>
      values === null ? [...all] : values.slice(1);
    switch (pick % 6) {
      case 0:
        return { ...key, scopes: key.scopes.slice(1) };
      case 1:
        return {
          ...key,
          restrictions: { ...restrictions, allowed_ips: fewer(restrictions.allowed_ips, ips) },
        };
      case 2:
        return {
          ...key,
          restrictions: {
            ...restrictions,
            allowed_referrers: fewer(restrictions.allowed_referrers, referrers),
          },
        };
      case 3:
        return {
          ...key,
          restrictions: {
            ...restrictions,
            allowed_endpoints: fewer(restrictions.allowed_endpoints, endpoints),
          },
        };
      case 4:
        return { ...key, expiresAt: Math.min(key.expiresAt ?? NOW + 2, NOW + 2) - 1 };
      default:
        return { ...key, revokedAt: NOW };
    }
  }

  test('whichever right it is, and however often', () => {
    let refused = 0;
    fc.assert(
      fc.property(keys, questions, fc.array(fc.nat(5), { maxLength: 4 }), (key, question, picks) => {
        if (decide(recordOf(key), question, EMPTY_CATALOGUE, NOW).active) return;
        refused++;
        let narrowed = key;
        for (const pick of picks) narrowed = narrow(narrowed, pick) as typeof key;
        expect(decide(recordOf(narrowed), question, EMPTY_CATALOGUE, NOW).active).toBe(false);
      }),
      { numRuns: 2_000 },
    );
    expect(refused).toBeGreaterThan(0);
  });

  test('and asking for more never does either', () => {
    fc.assert(
      fc.property(keys, questions, fc.subarray(scopes), (key, question, more) => {
        const asked = { ...question, scopes: [...(question.scopes ?? []), ...more] };
        if (decide(recordOf(key), asked, EMPTY_CATALOGUE, NOW).active) {
          expect(decide(recordOf(key), question, EMPTY_CATALOGUE, NOW).active).toBe(true);
        }
      }),
      { numRuns: 1_000 },
    );
  });

  test('nor does it where a catalogue says what scopes imply and grant, and implying less is less', () => {
    const grants = [
      { methods: ['GET'], path: '/contacts/*' },
      { path: '/contacts/:id' },
      { methods: ['POST'], path: '/*' },
    ];
    // Each implies later ones alone, so that no circle is among them.
    const catalogues = fc.tuple(
      ...scopes.map((_, index) =>
        fc.record({ implies: fc.subarray(scopes.slice(index + 1)), grants: fc.subarray(grants) }),
      ),
    );
    type Settings = readonly { readonly implies: string[]; readonly grants: RouteRuleText[] }[];
    const catalogueOf = (settings: Settings, unmatched: Unmatched) =>
      compileCatalogue(
        settings.map((entry, index) => ({ name: scopes[index] ?? '', description: null, ...entry })),
        unmatched,
      );
    const asked = questions.map((question) => ({ ...question, visibleWorkspaces: null }));
    const held = fc.subarray(scopes);
    const seen = { refused: 0, allowed: 0, turned: 0 };
    fc.assert(
      fc.property(
        asked,
        fc.constantFrom<Unmatched>('refuse', 'allow'),
        held,
        held,
        catalogues,
        fc.array(held, { minLength: scopes.length, maxLength: scopes.length }),
        (question, unmatched, before, kept, settings, implied) => {
          const narrower = settings.map((entry, index) => ({
            ...entry,
            implies: entry.implies.filter((scope) => implied[index]?.includes(scope)),
          }));
          const isActive = (names: string[], catalogue: Settings) =>
            decide(
              recordOf({ scopes: names, restrictions: null }),
              question,
              catalogueOf(catalogue, unmatched),
              NOW,
            ).active;
          const wide = isActive(before, settings);
          const narrow = isActive(
            before.filter((scope) => kept.includes(scope)),
            narrower,
          );
          seen[wide ? 'allowed' : 'refused']++;
          if (wide && !narrow) seen.turned++;
          if (!wide) expect(narrow).toBe(false);
        },
      ),
      { numRuns: 5_000 },
    );
    for (const count of Object.values(seen)) expect(count).toBeGreaterThan(50);
  });

  test('while one that is allowed may become refused: narrowing does something', () => {
    expect(ask()).toBe('active');
    for (let pick = 0; pick < 6; pick++) {
      const narrowed = narrow({ ...KEY, expiresAt: NOW + 1 }, pick);
      expect(ask(narrowed)).not.toBe('active');
    }
  });
});
