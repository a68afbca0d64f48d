import type { InputFault } from './errors.ts';
import { createRouteIndex } from './route-index.ts';
import {
  compileRouteRule,
  normalizeRequestPath,
  type RouteRule,
  type RouteRuleText,
  routeRuleFaults,
} from './route-pattern.ts';
import { isPermission } from './scope.ts';

/*
 * What the scopes of an API mean (contract §6): which other scopes one implies, and which routes it grants. The
 * catalogue says it once for all keys, and a change of it changes what every key may do. Service keys are apart: their
 * permissions are a closed list.
 */

/** Entries of a catalogue, which is read at once. */
export const MAX_CATALOGUE_ENTRIES = 1_000;
/** Grants of one entry; and of all together: making these ready takes some ten milliseconds, once after a change. */
export const MAX_GRANTS = 100;
export const MAX_CATALOGUE_GRANTS = 5_000;

export interface ScopeEntry {
  readonly name: string;
  readonly description: string | null;
  /** Who holds this scope holds these too, and what they imply. A name here needs no entry of its own. */
  readonly implies: readonly string[];
  /** The routes that this scope opens. */
  readonly grants: readonly RouteRuleText[];
}

/** What becomes of a method and path that no entry grants, once some entry grants any (`CATALOGUE_UNMATCHED`). */
export type Unmatched = 'refuse' | 'allow';

/** A catalogue made ready to decide by. */
export interface Catalogue {
  /** Whether one of the scopes held implies the one wanted, at any remove. Holding it directly is not asked here. */
  implies(held: readonly string[], wanted: string): boolean;
  /** What the scopes held do not allow of a request, as a sentence; absent while no entry grants anything. */
  readonly routes:
    | { refuse(held: readonly string[], method: string, path: string): string | undefined }
    | undefined;
}

/** While there are no entries, a scope means just itself. */
export const EMPTY_CATALOGUE: Catalogue = { implies: () => false, routes: undefined };

/** How many scopes a `detail` names. */
const MOST_NAMED = 5;
const NOBODY: ReadonlySet<string> = new Set();
const PATH_MALFORMED =
  'The scope catalogue grants routes, and "request.path" is not a plain absolute path: ' +
  'dot segments, empty segments, encoded separators, backslashes and malformed escapes are refused.';
const UNGRANTED = 'No scope of the catalogue grants the method and path of this request.';

/**
 * Makes a catalogue ready. A grant that does not compile (stored before a rule was made stricter) opens nothing.
 * More `implies` and more scopes held never turn an allowance into a refusal.
 */
export function compileCatalogue(entries: readonly ScopeEntry[], unmatched: Unmatched): Catalogue {
  if (entries.length === 0) return EMPTY_CATALOGUE;
  const holdersOf = compileImplications(entries);
  const implies = (held: readonly string[], wanted: string) => {
    const holders = holdersOf(wanted);
    return holders.size > 0 && held.some((scope) => holders.has(scope));
  };
  if (entries.every(({ grants }) => grants.length === 0)) return { implies, routes: undefined };

  const index = createRouteIndex(entries.flatMap(soundGrants));
  return {
    implies,
    routes: {
      refuse(held, method, path) {
        const normalPath = normalizeRequestPath(path);
        if (normalPath === undefined) return PATH_MALFORMED;
        const granting = index.find(method, normalPath);
        if (granting.size === 0) return unmatched === 'allow' ? undefined : UNGRANTED;
        for (const scope of granting) if (held.includes(scope) || implies(held, scope)) return undefined;
        return missing(granting);
      },
    },
  };
}

/**
 * Who implies a scope, at any remove, itself included once somebody does. Found out when it is first asked, since
 * few of the pairs ever are; names that nobody implies are not remembered, so that what is asked fills no memory.
 */
function compileImplications(entries: readonly ScopeEntry[]): (wanted: string) => ReadonlySet<string> {
  const direct = new Map<string, string[]>();
  for (const { name, implies } of entries) {
    for (const implied of implies) {
      const impliers = direct.get(implied);
      if (impliers === undefined) direct.set(implied, [name]);
      else impliers.push(name);
    }
  }
  const found = new Map<string, ReadonlySet<string>>();
  return (wanted) => {
    const known = found.get(wanted);
    if (known !== undefined) return known;
    if (!direct.has(wanted)) return NOBODY;
    // A Set's loop comes to what is added during it.
    const holders = new Set([wanted]);
    for (const scope of holders) for (const implier of direct.get(scope) ?? []) holders.add(implier);
    found.set(wanted, holders);
    return holders;
  };
}

function soundGrants({ name, grants }: ScopeEntry): { rule: RouteRule; value: string }[] {
  return grants.flatMap((grant) => {
    const rule = compileRouteRule(grant);
    return 'fault' in rule ? [] : [{ rule, value: name }];
  });
}

function missing(granting: ReadonlySet<string>): string {
  const names = [...granting].sort();
  const named = names.slice(0, MOST_NAMED).map((name) => `"${name}"`);
  const others = names.length > MOST_NAMED ? ', or another that grants it' : '';
  return `The method and path of this request need the scope ${named.join(' or ')}${others}; the key has none that gives it.`;
}

/** Every fault of an entry that a caller sent, on its own. Types, forms of names and counts have been checked before. */
export function scopeEntryFaults(entry: ScopeEntry): InputFault[] {
  const faults: InputFault[] = [];
  if (isPermission(entry.name)) {
    faults.push({ path: 'name', message: 'is a permission of service keys, which are no scopes' });
  }
  for (const [index, implied] of entry.implies.entries()) {
    if (!isPermission(implied)) continue;
    faults.push({
      path: `implies.${index}`,
      message: 'is a permission of service keys, which are no scopes',
    });
  }
  for (const [index, grant] of entry.grants.entries()) {
    for (const { path, message } of routeRuleFaults(grant)) {
      faults.push({ path: ['grants', index, ...path].join('.'), message });
    }
  }
  return faults;
}

/** What is wrong with an entry beside those of all other names: a cycle, or more than a catalogue holds. */
export function catalogueFaults(entry: ScopeEntry, others: readonly ScopeEntry[]): InputFault[] {
  const faults: InputFault[] = [];
  if (others.length >= MAX_CATALOGUE_ENTRIES) {
    faults.push({ path: 'name', message: `the catalogue holds ${MAX_CATALOGUE_ENTRIES} scopes at most` });
  }
  const granted = others.reduce((sum, { grants }) => sum + grants.length, entry.grants.length);
  if (granted > MAX_CATALOGUE_GRANTS) {
    faults.push({ path: 'grants', message: `the catalogue holds ${MAX_CATALOGUE_GRANTS} grants at most` });
  }
  const impliedBy = new Map(others.map(({ name, implies }) => [name, implies]));
  for (const [index, implied] of entry.implies.entries()) {
    if (!leadsTo(entry.name, implied, impliedBy)) continue;
    faults.push({
      path: `implies.${index}`,
      message:
        implied === entry.name
          ? 'must not be the scope itself'
          : `would close a circle: "${implied}" implies "${entry.name}", directly or by others`,
    });
  }
  return faults;
}

function leadsTo(goal: string, from: string, implications: ReadonlyMap<string, readonly string[]>): boolean {
  // A Set's loop comes to what is added during it.
  const reached = new Set([from]);
  for (const scope of reached) {
    if (scope === goal) return true;
    for (const implied of implications.get(scope) ?? []) reached.add(implied);
  }
  return false;
}
