import { describe, expect, it } from 'vitest';
import {
  type Disturbance,
  describeViolation,
  findViolations,
  type History,
  type Look,
  type Mutation,
  type Verdict,
} from '../support/history.ts';

const ACTIVE = (version = 0): Verdict => ({ kind: 'active', version });
const DENIED = (code: string): Verdict => ({ kind: 'denied', code });

const look = (begin: number, end: number, verdict: Verdict, rest: Partial<Look> = {}): Look => ({
  key: 'k',
  instance: 'a',
  scope: 'read',
  begin,
  end,
  verdict,
  ...rest,
});
const revoke = (begin: number, answered: number | undefined, key = 'k'): Mutation => ({
  key,
  what: 'revoke',
  begin,
  answered,
  notes: [],
});
const change = (
  version: number,
  scopes: string[],
  begin: number,
  answered: number | undefined,
): Mutation => ({ key: 'k', what: { version, scopes }, begin, answered, notes: [] });
const set = (what: Mutation['what'], begin: number, answered: number | undefined): Mutation => ({
  key: 'k',
  what,
  begin,
  answered,
  notes: [],
});
const disturbance = (begin: number, end: number | undefined, instance = 'a'): Disturbance => ({
  instance,
  what: 'cut',
  begin,
  end,
});

function history(looks: Look[], mutations: Mutation[] = [], disturbances: Disturbance[] = []): History {
  return {
    looks,
    mutations,
    disturbances,
    keys: new Map([
      ['k', ['read', 'write']],
      ['other', ['read', 'write']],
    ]),
  };
}

const rulesOf = (...parts: Parameters<typeof history>) =>
  findViolations(history(...parts)).map(({ rule }) => rule);

describe('the checker on revocations', () => {
  const REVOKED = [revoke(100, 200)];

  it('finds a request that began after the revocation answered and was allowed', () => {
    expect(rulesOf([look(200.1, 201, ACTIVE())], REVOKED)).toEqual(['stale']);
  });

  it('allows what began before the answer, however late its own answer came', () => {
    expect(rulesOf([look(199.9, 900, ACTIVE())], REVOKED)).toEqual([]);
  });

  it('allows a denial from the moment the revocation began, and not before', () => {
    expect(rulesOf([look(90, 100, DENIED('revoked'))], REVOKED)).toEqual([]);
    expect(rulesOf([look(90, 99.9, DENIED('revoked'))], REVOKED)).toEqual(['wrong_denial']);
  });

  it('does not mistake one key for another', () => {
    expect(rulesOf([look(300, 301, ACTIVE(), { key: 'other' })], REVOKED)).toEqual([]);
    expect(rulesOf([look(300, 301, DENIED('revoked'), { key: 'other' })], REVOKED)).toEqual(['wrong_denial']);
  });

  it('takes the first 2xx of several revocations of a key as binding', () => {
    const repeated = [revoke(100, 900), revoke(300, 400)];
    expect(rulesOf([look(401, 402, ACTIVE())], repeated)).toEqual(['stale']);
    expect(rulesOf([look(399, 402, ACTIVE())], repeated)).toEqual([]);
  });

  it('lets an unanswered revocation explain both answers, and reports that nobody confirmed it', () => {
    const looks = [look(500, 501, ACTIVE()), look(502, 503, DENIED('revoked'))];
    expect(rulesOf(looks, [revoke(100, undefined)])).toEqual(['unconfirmed']);
  });

  it('finds an old state behind a refusal too: a scope denied where the key was revoked', () => {
    const mutations = [change(1, ['read'], 10, 20), ...REVOKED];
    expect(rulesOf([look(300, 301, DENIED('insufficient_scope'), { scope: 'write' })], mutations)).toEqual([
      'stale',
    ]);
  });

  it('names the instance, the key and the mutation that was ignored', () => {
    const found = history([look(300, 301, ACTIVE(), { instance: 'c' })], REVOKED);
    const [violation] = findViolations(found);
    expect(violation).toMatchObject({ rule: 'stale', key: 'k', look: { instance: 'c' } });
    expect(violation?.mutation?.what).toBe('revoke');
    expect(violation && describeViolation(violation, found)).toMatch(
      /stale: key k at c\n[\s\S]*mutation +-200\.0 \.\. -100\.0 +revoke/,
    );
  });
});

describe('the checker on changes of scopes', () => {
  const NARROWED = [change(1, ['read'], 100, 200)];
  const WIDENED = [...NARROWED, change(2, ['read', 'write'], 300, 400)];

  it('finds the old version after the change answered, though the scope asked for is held by both', () => {
    expect(rulesOf([look(201, 202, ACTIVE(0))], NARROWED)).toEqual(['stale']);
    expect(rulesOf([look(199, 202, ACTIVE(0))], NARROWED)).toEqual([]);
    expect(rulesOf([look(201, 202, ACTIVE(1))], NARROWED)).toEqual([]);
  });

  it('allows the new version from the moment its change began, and not before', () => {
    expect(rulesOf([look(50, 100, ACTIVE(1))], NARROWED)).toEqual([]);
    expect(rulesOf([look(50, 99, ACTIVE(1))], NARROWED)).toEqual(['wrong_allow']);
  });

  it('finds a version that nobody set, and a scope that the version lacks', () => {
    expect(rulesOf([look(500, 501, ACTIVE(7))], WIDENED)).toEqual(['wrong_allow']);
    expect(rulesOf([look(250, 251, ACTIVE(1), { scope: 'write' })], NARROWED)).toEqual(['wrong_allow']);
  });

  it('finds a scope still denied after widening answered, and allows it until then', () => {
    const denied = DENIED('insufficient_scope');
    expect(rulesOf([look(401, 402, denied, { scope: 'write' })], WIDENED)).toEqual(['stale']);
    expect(rulesOf([look(399, 402, denied, { scope: 'write' })], WIDENED)).toEqual([]);
    expect(rulesOf([look(401, 402, denied, { scope: 'read' })], WIDENED)).toEqual(['wrong_denial']);
  });

  it('counts a version as over once any later change answered, also where its own never did', () => {
    const lost = [change(1, ['read'], 100, undefined), change(2, ['read', 'write'], 300, 400)];
    expect(rulesOf([look(350, 351, ACTIVE(1))], lost)).toEqual(['unconfirmed']);
    expect(rulesOf([look(401, 402, ACTIVE(1))], lost)).toEqual(['unconfirmed', 'stale']);
    expect(rulesOf([look(401, 402, ACTIVE(0))], lost)).toEqual(['unconfirmed', 'stale']);
  });
});

describe('the checker on a workspace that is disabled and enabled', () => {
  const DISABLED = [set({ disabled: true }, 100, 200)];
  const ENABLED = [...DISABLED, set({ disabled: false }, 300, 400)];
  const denied = DENIED('workspace_disabled');

  it('finds a request that began after disabling answered and was allowed', () => {
    expect(rulesOf([look(200.1, 201, ACTIVE())], DISABLED)).toEqual(['stale']);
    expect(rulesOf([look(199.9, 900, ACTIVE())], DISABLED)).toEqual([]);
    expect(rulesOf([look(201, 202, denied)], DISABLED)).toEqual([]);
  });

  it('allows the denial from the moment that disabling began, and not before', () => {
    expect(rulesOf([look(90, 100, denied)], DISABLED)).toEqual([]);
    expect(rulesOf([look(90, 99.9, denied)], DISABLED)).toEqual(['wrong_denial']);
    expect(rulesOf([look(90, 100, denied)])).toEqual(['wrong_denial']);
  });

  it('finds a key still denied after enabling answered, and allows both until then', () => {
    expect(rulesOf([look(401, 402, denied)], ENABLED)).toEqual(['stale']);
    expect(rulesOf([look(399, 402, denied)], ENABLED)).toEqual([]);
    expect(rulesOf([look(399, 402, ACTIVE())], ENABLED)).toEqual([]);
    expect(rulesOf([look(250, 299, ACTIVE())], ENABLED)).toEqual(['stale']);
  });

  it('knows that a revoked key is told so, disabled or not, and that a scope is not looked at', () => {
    const both = [...DISABLED, revoke(300, 400)];
    expect(rulesOf([look(401, 402, DENIED('revoked'))], both)).toEqual([]);
    expect(rulesOf([look(401, 402, denied)], both)).toEqual(['stale']);
    const narrowed = [change(1, ['read'], 10, 20), ...DISABLED];
    expect(rulesOf([look(201, 202, DENIED('insufficient_scope'), { scope: 'write' })], narrowed)).toEqual([
      'stale',
    ]);
    expect(rulesOf([look(201, 202, denied, { scope: 'write' })], narrowed)).toEqual([]);
  });

  it('names what was ignored', () => {
    const found = history([look(401, 402, denied)], ENABLED);
    const [violation] = findViolations(found);
    expect(violation?.mutation).toBe(ENABLED[1]);
    expect(violation && describeViolation(violation, found)).toContain('{"disabled":false}');
  });
});

describe('the checker on the catalogue', () => {
  const NARROW = change(1, ['read'], 10, 20);
  const IMPLIED = [NARROW, set({ implies: { read: ['write'] } }, 100, 200)];
  const ALONE = [...IMPLIED, set({ implies: {} }, 300, 400)];
  const write = { scope: 'write' };
  const denied = DENIED('insufficient_scope');

  it('finds a scope still denied after an implication of it answered, and allows both until then', () => {
    expect(rulesOf([look(201, 202, denied, write)], IMPLIED)).toEqual(['stale']);
    expect(rulesOf([look(199, 202, denied, write)], IMPLIED)).toEqual([]);
    expect(rulesOf([look(199, 202, ACTIVE(1), write)], IMPLIED)).toEqual([]);
    expect(rulesOf([look(201, 202, ACTIVE(1), write)], IMPLIED)).toEqual([]);
  });

  it('finds a scope still allowed after its implication was taken back, and one that never was implied', () => {
    expect(rulesOf([look(401, 402, ACTIVE(1), write)], ALONE)).toEqual(['stale']);
    expect(rulesOf([look(399, 402, ACTIVE(1), write)], ALONE)).toEqual([]);
    expect(rulesOf([look(90, 99, ACTIVE(1), write)], ALONE)).toEqual(['wrong_allow']);
    const other = [NARROW, set({ implies: { write: ['read'] } }, 100, 200)];
    expect(rulesOf([look(201, 202, ACTIVE(1), write)], other)).toEqual(['wrong_allow']);
  });
});

describe('the checker on rotations without grace', () => {
  const ROTATED = [set('rotate', 100, 200)];

  it('takes the old key for revoked, and its successor for another key', () => {
    expect(rulesOf([look(200.1, 201, ACTIVE())], ROTATED)).toEqual(['stale']);
    expect(rulesOf([look(150, 151, DENIED('revoked'))], ROTATED)).toEqual([]);
    expect(rulesOf([look(90, 99, DENIED('revoked'))], ROTATED)).toEqual(['wrong_denial']);
    expect(rulesOf([look(300, 301, ACTIVE(), { key: 'other' })], ROTATED)).toEqual([]);
    expect(rulesOf([look(300, 301, DENIED('expired'))], ROTATED)).toEqual(['wrong_denial']);
  });
});

describe('the checker on answers that are no verdict', () => {
  const UNAVAILABLE: Verdict = { kind: 'unavailable' };

  it('excuses a disturbed instance, for as long as it was disturbed', () => {
    expect(rulesOf([look(100, 110, UNAVAILABLE)], [], [disturbance(50, 100)])).toEqual([]);
    expect(rulesOf([look(100, 110, UNAVAILABLE)], [], [disturbance(110, 120)])).toEqual([]);
    expect(rulesOf([look(100, 110, { kind: 'lost' })], [], [disturbance(90, undefined)])).toEqual([]);
    expect(rulesOf([look(100.1, 110, UNAVAILABLE)], [], [disturbance(50, 100)])).toEqual(['no_answer']);
    expect(rulesOf([look(100, 110, { kind: 'lost' })], [], [disturbance(50, 200, 'b')])).toEqual([
      'no_answer',
    ]);
  });

  it('excuses no wrong answer of a disturbed instance', () => {
    const disturbed = [disturbance(0, undefined)];
    expect(rulesOf([look(300, 301, ACTIVE())], [revoke(100, 200)], disturbed)).toEqual(['stale']);
    expect(rulesOf([look(1, 2, DENIED('invalid'))], [], disturbed)).toEqual(['wrong_denial']);
    expect(rulesOf([look(1, 2, DENIED('revoked'))], [], disturbed)).toEqual(['wrong_denial']);
    expect(rulesOf([look(1, 2, DENIED('expired'))], [], disturbed)).toEqual(['wrong_denial']);
    expect(rulesOf([look(1, 2, { kind: 'other', status: 500, text: '' })], [], disturbed)).toEqual(['fault']);
  });

  it('refuses a history that asks of a key it does not know', () => {
    expect(() => rulesOf([look(1, 2, ACTIVE(), { key: 'unheard of' })])).toThrow('unheard of');
  });
});
