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
 * Four things decide on a key: its version (set by a mutation each, version 0 by its creation), whether it is revoked,
 * whether its workspace is disabled, and what the catalogue's scopes imply. A mutation sets one of them, at some moment
 * between its first attempt's begin and its first 2xx answer; until it has answered instances may differ. So an answer
 * of a request [begin, end] is right if it is right by some setting of each whose mutation had begun by `end`, and
 * that no later mutation had replaced and answered before `begin`.
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

/** Which scopes each scope implies. */
export type Implications = Readonly<Record<string, readonly string[]>>;

/** One mutation of one key with all its attempts, on whatever instances; what befalls several keys is one for each. */
export interface Mutation {
  readonly key: string;
  readonly what:
    | 'revoke'
    /** By a successor, with no grace. */
    | 'rotate'
    | { readonly version: number; readonly scopes: readonly string[] }
    /** Its workspace. */
    | { readonly disabled: boolean }
    /** The catalogue. */
    | { readonly implies: Implications };
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

/** A value of one of the things that decide, for the time in which a request may see it. */
interface Setting<Value> {
  readonly value: Value;
  readonly begin: number;
  /** The first answer to a later mutation: from then on no request may see this setting. */
  over: number;
  endedBy: Mutation | undefined;
}

interface State {
  readonly version: { readonly number: number; readonly scopes: readonly string[] };
  readonly revoked: boolean;
  readonly disabled: boolean;
  readonly implies: Implications;
}

type Course = { readonly [Thing in keyof State]: readonly Setting<State[Thing]>[] };

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
  return {
    version: settingsOf(own, { number: 0, scopes }, (what) =>
      typeof what === 'object' && 'version' in what
        ? { number: what.version, scopes: what.scopes }
        : undefined,
    ),
    revoked: settingsOf(own, false, (what) => (what === 'revoke' || what === 'rotate' ? true : undefined)),
    disabled: settingsOf(own, false, (what) =>
      typeof what === 'object' && 'disabled' in what ? what.disabled : undefined,
    ),
    implies: settingsOf(own, {}, (what) =>
      typeof what === 'object' && 'implies' in what ? what.implies : undefined,
    ),
  };
}

/** The settings of one thing: the first one, then one for each mutation for which `read` finds any. */
function settingsOf<Value>(
  mutations: readonly Mutation[],
  first: Value,
  read: (what: Mutation['what']) => Value | undefined,
): Setting<Value>[] {
  const unended = { over: Number.POSITIVE_INFINITY, endedBy: undefined };
  const settings: Setting<Value>[] = [{ value: first, begin: 0, ...unended }];
  for (const mutation of mutations) {
    const value = read(mutation.what);
    if (value === undefined) continue;
    const answered = mutation.answered ?? Number.POSITIVE_INFINITY;
    for (const setting of settings) {
      if (answered >= setting.over) continue;
      setting.over = answered;
      setting.endedBy = mutation;
    }
    settings.push({ value, begin: mutation.begin, ...unended });
  }
  return settings;
}

type Fault = Pick<Violation, 'rule' | 'mutation'>;

function judge(look: Look, course: Course, disturbances: readonly Disturbance[]): Fault | undefined {
  const { verdict } = look;
  switch (verdict.kind) {
    case 'other':
      return { rule: 'fault', mutation: undefined };
    case 'lost':
    case 'unavailable':
      return isDisturbed(look, disturbances) ? undefined : { rule: 'no_answer', mutation: undefined };
    case 'active':
    case 'denied': {
      const explanation = explain(look, course);
      if (explanation === undefined) {
        return { rule: verdict.kind === 'active' ? 'wrong_allow' : 'wrong_denial', mutation: undefined };
      }
      const [endedBy] = explanation;
      return endedBy && { rule: 'stale', mutation: endedBy };
    }
  }
}

/**
 * What had ended before the request began of the settings by which its answer is right: nothing, where the answer is
 * right. Of several explanations the one with the least that had ended; `undefined` where there is none at all.
 */
function explain({ begin, end, scope, verdict }: Look, course: Course): Mutation[] | undefined {
  const begun = <Value>(settings: readonly Setting<Value>[]) =>
    settings.filter((setting) => setting.begin <= end);
  let best: Mutation[] | undefined;
  for (const version of begun(course.version)) {
    for (const revoked of begun(course.revoked)) {
      for (const disabled of begun(course.disabled)) {
        for (const implies of begun(course.implies)) {
          const state: State = {
            version: version.value,
            revoked: revoked.value,
            disabled: disabled.value,
            implies: implies.value,
          };
          if (!isSame(verdict, verdictBy(state, scope))) continue;
          // What outweighs the others explains an answer alone.
          const used = revoked.value
            ? [revoked]
            : disabled.value
              ? [revoked, disabled]
              : [revoked, disabled, version, implies];
          const ended = used.flatMap(({ over, endedBy }) =>
            over < begin && endedBy !== undefined ? [endedBy] : [],
          );
          if (best === undefined || ended.length < best.length) best = ended;
        }
      }
    }
  }
  return best;
}

/** The order of contract §5. */
function verdictBy({ version, revoked, disabled, implies }: State, scope: string): Verdict {
  if (revoked) return { kind: 'denied', code: 'revoked' };
  if (disabled) return { kind: 'denied', code: 'workspace_disabled' };
  const isHeld = version.scopes.some((held) => held === scope || implies[held]?.includes(scope));
  return isHeld
    ? { kind: 'active', version: version.number }
    : { kind: 'denied', code: 'insufficient_scope' };
}

function isSame(one: Verdict, other: Verdict): boolean {
  if (one.kind === 'active') return other.kind === 'active' && one.version === other.version;
  return one.kind === 'denied' && other.kind === 'denied' && one.code === other.code;
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
          `  mutation       ${at(begin)} .. ${at(answered)}  ${typeof what === 'string' ? what : JSON.stringify(what)}  (${notes.join('; ')})`,
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
