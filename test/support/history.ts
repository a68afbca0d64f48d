/*
 * What was observed of several instances, on the one monotonic clock of the test, and the rules that it must keep:
 *
 *   stale         an answer by a state that a mutation had ended, whose request began after that mutation answered
 *   wrong_denial  a refusal that no state of the key since the request began explains
 *   wrong_allow   the same for an allowance
 *   no_answer     an instance that nothing disturbed gave no answer
 *   fault         an answer that is never right, such as 500
 *   unconfirmed   a mutation that nobody confirmed, though its client repeated it for long enough
 *
 * A key goes through versions, each set by one mutation (version 0 by its creation), and may at last be revoked. A
 * mutation takes effect at some moment between its first attempt's begin and its first 2xx answer; until it has
 * answered instances may differ. So an answer of a request [begin, end] is right if it is right by some version
 * whose mutation had begun by `end`, and that no later mutation had replaced and answered before `begin`.
 */

/** What an introspection said. */
export type Verdict =
  | { readonly kind: 'active'; readonly version: number }
  /** 200 with `active: false`. */
  | { readonly kind: 'denied'; readonly code: string }
  | { readonly kind: 'unavailable' }
  /** The connection ended, or nothing came for very long. */
  | { readonly kind: 'lost' }
  | { readonly kind: 'other'; readonly status: number; readonly text: string };

/** One introspection. */
export interface Look {
  readonly key: string;
  readonly instance: string;
  /** Milliseconds: when it was written to its socket, and when its answer was read. */
  readonly begin: number;
  readonly end: number;
  readonly scope: string;
  readonly verdict: Verdict;
}

/** One mutation of one key with all its attempts, on whatever instances; a bulk revocation is one for each key. */
export interface Mutation {
  readonly key: string;
  readonly what: 'revoke' | { readonly version: number; readonly scopes: readonly string[] };
  /** When the first attempt was written. */
  readonly begin: number;
  /** When the first 2xx answer was read. */
  answered: number | undefined;
  /** For people: which instances were asked, and what they said. */
  readonly notes: string[];
}

/** A time in which an instance was disturbed, and may fail to answer, but not answer wrongly. */
export interface Disturbance {
  readonly instance: string;
  readonly what: string;
  readonly begin: number;
  end: number | undefined;
}

export interface History {
  readonly looks: readonly Look[];
  /** Those of one key in the order of their begin. */
  readonly mutations: readonly Mutation[];
  readonly disturbances: readonly Disturbance[];
  /** The scopes that each key was made with. */
  readonly keys: ReadonlyMap<string, readonly string[]>;
}

export type Rule = 'stale' | 'wrong_denial' | 'wrong_allow' | 'no_answer' | 'fault' | 'unconfirmed';

export interface Violation {
  readonly rule: Rule;
  readonly key: string;
  readonly look: Look | undefined;
  /** The mutation that the answer ignored, or that nobody confirmed. */
  readonly mutation: Mutation | undefined;
}

interface Version {
  readonly number: number;
  readonly scopes: readonly string[];
  readonly begin: number;
  /** The mutation that set it; `undefined` is the key's creation. */
  readonly mutation: Mutation | undefined;
  /** The first answer to a later mutation: from then on no request may see this version. */
  over: number;
  endedBy: Mutation | undefined;
}

interface Course {
  readonly versions: readonly Version[];
  readonly revocation: Mutation | undefined;
}

/** All that is wrong with a history. */
export function findViolations(history: History): Violation[] {
  const courses = new Map<string, Course>();
  function courseOfKey(key: string): Course {
    let course = courses.get(key);
    if (course === undefined) {
      const scopes = history.keys.get(key);
      if (scopes === undefined) throw new Error(`the history does not know the key ${key}`);
      course = courseOf(key, scopes, history);
      courses.set(key, course);
    }
    return course;
  }
  const violations: Violation[] = history.mutations
    .filter(({ answered }) => answered === undefined)
    .map((mutation) => ({ rule: 'unconfirmed', key: mutation.key, look: undefined, mutation }));
  for (const look of history.looks) {
    const fault = judge(look, courseOfKey(look.key), history.disturbances);
    if (fault !== undefined) violations.push({ key: look.key, look, ...fault });
  }
  return violations;
}

function courseOf(key: string, scopes: readonly string[], { mutations }: History): Course {
  const own = mutations.filter((mutation) => mutation.key === key);
  const versions: Version[] = [
    { number: 0, scopes, begin: 0, mutation: undefined, over: Number.POSITIVE_INFINITY, endedBy: undefined },
  ];
  for (const mutation of own) {
    if (mutation.what === 'revoke') continue;
    const answered = mutation.answered ?? Number.POSITIVE_INFINITY;
    for (const version of versions) {
      if (answered >= version.over) continue;
      version.over = answered;
      version.endedBy = mutation;
    }
    const { version, scopes: granted } = mutation.what;
    versions.push({
      number: version,
      scopes: granted,
      begin: mutation.begin,
      mutation,
      over: Number.POSITIVE_INFINITY,
      endedBy: undefined,
    });
  }
  return { versions, revocation: revocationOf(own) };
}

/** Several may revoke a key, alone or in bulk: it is revoked when the first has begun, for sure when one has answered. */
function revocationOf(own: readonly Mutation[]): Mutation | undefined {
  const all = own.filter(({ what }) => what === 'revoke');
  const [first] = all;
  if (first === undefined) return undefined;
  const answers = all.flatMap(({ answered }) => answered ?? []);
  return {
    ...first,
    begin: Math.min(...all.map(({ begin }) => begin)),
    answered: answers.length === 0 ? undefined : Math.min(...answers),
    notes: all.flatMap(({ notes }) => notes),
  };
}

type Fault = Pick<Violation, 'rule' | 'mutation'>;

function judge(
  look: Look,
  { versions, revocation }: Course,
  disturbances: readonly Disturbance[],
): Fault | undefined {
  const { verdict, begin, end } = look;
  const revokedForSure = revocation?.answered !== undefined && revocation.answered < begin;
  const revokedPerhaps = revocation !== undefined && revocation.begin <= end;
  const possible = versions.filter((version) => version.begin <= end && version.over >= begin);

  switch (verdict.kind) {
    case 'other':
      return { rule: 'fault', mutation: undefined };
    case 'lost':
    case 'unavailable':
      return isDisturbed(look, disturbances) ? undefined : { rule: 'no_answer', mutation: undefined };
    case 'active': {
      if (revokedForSure) return { rule: 'stale', mutation: revocation };
      const version = versions.find(({ number }) => number === verdict.version);
      if (version === undefined || version.begin > end) return { rule: 'wrong_allow', mutation: undefined };
      if (version.over < begin) return { rule: 'stale', mutation: version.endedBy };
      return version.scopes.includes(look.scope) ? undefined : { rule: 'wrong_allow', mutation: undefined };
    }
    case 'denied': {
      if (verdict.code === 'revoked')
        return revokedPerhaps ? undefined : { rule: 'wrong_denial', mutation: undefined };
      if (verdict.code !== 'insufficient_scope') return { rule: 'wrong_denial', mutation: undefined };
      if (revokedForSure) return { rule: 'stale', mutation: revocation };
      if (possible.some(({ scopes }) => !scopes.includes(look.scope))) return undefined;
      const former = versions.findLast(({ over, scopes }) => over < begin && !scopes.includes(look.scope));
      return former === undefined
        ? { rule: 'wrong_denial', mutation: undefined }
        : { rule: 'stale', mutation: former.endedBy };
    }
  }
}

function isDisturbed(look: Look, disturbances: readonly Disturbance[]): boolean {
  return disturbances.some(
    ({ instance, begin, end = Number.POSITIVE_INFINITY }) =>
      instance === look.instance && begin <= look.end && look.begin <= end,
  );
}

/** A violation and what happened around it, for a person to read: times in milliseconds from the request's begin. */
export function describeViolation(violation: Violation, history: History): string {
  const { look, mutation } = violation;
  const origin = look?.begin ?? mutation?.begin ?? 0;
  const at = (time: number | undefined) =>
    time === undefined ? 'never' : `${time < origin ? '-' : '+'}${Math.abs(time - origin).toFixed(1)}`;
  const tell = ({ instance, begin, end, scope, verdict }: Look) =>
    `${at(begin)} .. ${at(end)}  ${instance} asked for "${scope}": ${JSON.stringify(verdict)}`;
  const near = (time: number) => Math.abs(time - origin) < 3_000;
  const lines = [
    `${violation.rule}: key ${violation.key}${look === undefined ? '' : ` at ${look.instance}`}`,
    ...(look === undefined ? [] : [`  the request    ${tell(look)}`]),
    ...history.mutations
      .filter(({ key }) => key === violation.key)
      .map(
        ({ what, begin, answered, notes }) =>
          `  mutation       ${at(begin)} .. ${at(answered)}  ${what === 'revoke' ? what : `version ${what.version} [${what.scopes}]`}  (${notes.join('; ')})`,
      ),
    ...history.disturbances
      .filter(({ begin, end }) => near(begin) || near(end ?? begin))
      .map(
        ({ instance, what, begin, end }) =>
          `  disturbance    ${at(begin)} .. ${at(end)}  ${instance}: ${what}`,
      ),
  ];
  const others = history.looks
    .filter((other) => other.key === violation.key && other !== look && near(other.begin))
    .sort((one, other) => Math.abs(one.begin - origin) - Math.abs(other.begin - origin))
    .slice(0, 20)
    .sort((one, other) => one.begin - other.begin)
    .map((other) => `  other request  ${tell(other)}`);
  return [...lines, ...others].join('\n');
}
