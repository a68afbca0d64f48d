import {
  type Cidr,
  cidrFault,
  cidrWithinUnion,
  containsAddress,
  parseAddress,
  parseCidr,
} from './address.ts';
import {
  compileReferrerPattern,
  matchesReferrer,
  parseReferrer,
  type ReferrerMatcher,
} from './referrer-pattern.ts';
import {
  compileRouteRule,
  matchesRule,
  normalizeRequestPath,
  type RouteRule,
  type RouteRuleText,
  routeRuleFaults,
} from './route-pattern.ts';
import { WORKSPACE_ID_PATTERN } from './workspace.ts';

/*
 * From where and for what a key may be used (contract §4, §5). Each list allows; `null` does not restrict. Everything
 * fails closed: an input that was not sent, one that cannot be read, an entry that does not compile.
 */

/** Entries of one list: as many as are scanned without being felt on each request. */
export const MAX_RESTRICTION_ENTRIES = 100;

/** A route that a key may call, and its methods; absent or `null`: all methods. */
export type EndpointRestriction = RouteRuleText;

/** A key's restrictions as they are stored and shown. `null`: not restricted. */
export interface Restrictions {
  readonly allowed_ips: readonly string[] | null;
  readonly allowed_referrers: readonly string[] | null;
  readonly allowed_endpoints: readonly EndpointRestriction[] | null;
  /** Of service keys only. What it allows is decided elsewhere (caller.ts); here its form is checked. */
  readonly allowed_workspaces: readonly string[] | null;
}

/** Restrictions as a caller sends them: absent, `undefined` and `null` members are all "not restricted" here. */
export type RestrictionsInput = { readonly [List in keyof Restrictions]?: Restrictions[List] | undefined };

/** What the asking service tells of its client's request. Absent, `undefined` and `null` all mean "not sent". */
export interface RequestFacts {
  readonly ip?: string | null | undefined;
  readonly method?: string | null | undefined;
  /** With or without its query. */
  readonly path?: string | null | undefined;
  readonly referrer?: string | null | undefined;
}

export type RestrictionReason = 'ip_not_allowed' | 'referrer_not_allowed' | 'endpoint_not_allowed';

/** The `detail` is for developers of the asking service. It repeats neither their input nor the key's lists. */
export interface RestrictionRefusal {
  readonly code: RestrictionReason;
  readonly detail: string;
}

/** Restrictions made ready once for a key that is held in memory. */
export interface CompiledRestrictions {
  /** The first restriction that the request breaks, in the contract's order: address, referrer, endpoint. */
  check(facts: RequestFacts | null | undefined): RestrictionRefusal | undefined;
  /** The address restriction alone, for callers of Claviger itself. */
  allowsAddress(ip: string | null | undefined): boolean;
}

/** A fault of one entry: `path` from the restrictions down (`['allowed_ips', 0]`), and what to do about it. */
export interface RestrictionFault {
  readonly path: (string | number)[];
  readonly message: string;
}

const REFUSED = {
  ipMissing: refusal(
    'ip_not_allowed',
    'This key may only be used from certain addresses, and the request carried no "request.ip".',
  ),
  ipMalformed: refusal(
    'ip_not_allowed',
    'This key may only be used from certain addresses, and "request.ip" is not a plain IP address.',
  ),
  ip: refusal('ip_not_allowed', 'This key may not be used from the address in "request.ip".'),
  referrerMissing: refusal(
    'referrer_not_allowed',
    'This key may only be used from certain web pages, and the request carried no "request.referrer".',
  ),
  referrerMalformed: refusal(
    'referrer_not_allowed',
    'This key may only be used from certain web pages, and "request.referrer" is not a plain http or https URL.',
  ),
  referrer: refusal(
    'referrer_not_allowed',
    'This key may not be used from the web page in "request.referrer".',
  ),
  pathMissing: refusal(
    'endpoint_not_allowed',
    'This key may only be used for certain endpoints, and the request carried no "request.path".',
  ),
  pathMalformed: refusal(
    'endpoint_not_allowed',
    'This key may only be used for certain endpoints, and "request.path" is not a plain absolute path: ' +
      'dot segments, empty segments, encoded separators, backslashes and malformed escapes are refused.',
  ),
  methodMissing: refusal(
    'endpoint_not_allowed',
    'This key may only be used for certain endpoints, and the request carried no "request.method".',
  ),
  endpoint: refusal(
    'endpoint_not_allowed',
    'This key may not be used for the method and path of this request.',
  ),
} as const;

/**
 * Makes restrictions ready to be checked on each request. An entry that does not compile (stored before a rule was
 * made stricter) allows nothing.
 *
 * @returns `undefined` when no request is restricted, so that the hot path tests one field.
 */
export function compileRestrictions(
  restrictions: RestrictionsInput | null,
): CompiledRestrictions | undefined {
  const cidrs = compileList(restrictions?.allowed_ips, (text) => parseCidr(text));
  const referrers = compileList(restrictions?.allowed_referrers, (text) =>
    sound(compileReferrerPattern(text)),
  );
  const rules = compileList(restrictions?.allowed_endpoints, (rule) => sound(compileRouteRule(rule)));
  if (cidrs === undefined && referrers === undefined && rules === undefined) return undefined;
  return {
    check(facts) {
      return (
        (cidrs && checkAddress(cidrs, facts?.ip)) ??
        (referrers && checkReferrer(referrers, facts?.referrer)) ??
        (rules && checkEndpoint(rules, facts?.method ?? undefined, facts?.path))
      );
    },
    allowsAddress(ip) {
      return cidrs === undefined || checkAddress(cidrs, ip) === undefined;
    },
  };
}

/**
 * Every fault of restrictions that a caller sent, for the `errors` of `invalid_request`. Types have been checked
 * before. A list holds 1 to 100 entries: an empty one could mean all or nothing (contract §3).
 */
export function restrictionFaults(restrictions: RestrictionsInput): RestrictionFault[] {
  return [
    ...listFaults('allowed_ips', restrictions.allowed_ips, (text) => textFaults(cidrFault(text))),
    ...listFaults('allowed_referrers', restrictions.allowed_referrers, (text) => {
      const matcher = compileReferrerPattern(text);
      return textFaults('fault' in matcher ? matcher.fault : undefined);
    }),
    ...listFaults('allowed_endpoints', restrictions.allowed_endpoints, routeRuleFaults),
    ...listFaults('allowed_workspaces', restrictions.allowed_workspaces, (id) =>
      textFaults(WORKSPACE_ID_PATTERN.test(id) ? undefined : 'This is not a workspace id.'),
    ),
  ];
}

/**
 * Whether every address that `inner` allows is allowed by `outer`; `null` allows everything. No list holds `null`, not
 * even one of all addresses, since `null` allows requests whose address is unknown. An entry that does not parse counts
 * as any address in `inner` and as none in `outer`.
 */
export function addressesWithin(inner: readonly string[] | null, outer: readonly string[] | null): boolean {
  if (outer === null) return true;
  if (inner === null) return false;
  const outerCidrs = compileList(outer, (text) => parseCidr(text)) ?? [];
  return inner.every((text) => {
    const cidr = parseCidr(text);
    return cidr !== undefined && cidrWithinUnion(cidr, outerCidrs);
  });
}

function checkAddress(cidrs: readonly Cidr[], ip: string | null | undefined): RestrictionRefusal | undefined {
  if (ip === undefined || ip === null) return REFUSED.ipMissing;
  const address = parseAddress(ip);
  if (address === undefined) return REFUSED.ipMalformed;
  for (const cidr of cidrs) {
    if (containsAddress(cidr, address)) return undefined;
  }
  return REFUSED.ip;
}

function checkReferrer(
  matchers: readonly ReferrerMatcher[],
  text: string | null | undefined,
): RestrictionRefusal | undefined {
  if (text === undefined || text === null) return REFUSED.referrerMissing;
  const referrer = parseReferrer(text);
  if (referrer === undefined) return REFUSED.referrerMalformed;
  for (const matcher of matchers) {
    if (matchesReferrer(matcher, referrer)) return undefined;
  }
  return REFUSED.referrer;
}

function checkEndpoint(
  rules: readonly RouteRule[],
  method: string | undefined,
  path: string | null | undefined,
): RestrictionRefusal | undefined {
  if (path === undefined || path === null) return REFUSED.pathMissing;
  const normalPath = normalizeRequestPath(path);
  if (normalPath === undefined) return REFUSED.pathMalformed;
  for (const rule of rules) {
    if (matchesRule(rule, method, normalPath)) return undefined;
  }
  // Without a method only rules for all methods were asked: say so where another rule might have allowed it.
  const wantsMethod = method === undefined && rules.some((rule) => rule.methods !== undefined);
  return wantsMethod ? REFUSED.methodMissing : REFUSED.endpoint;
}

/** The entries that compile; `undefined` for a list that does not restrict. */
function compileList<Text, Compiled>(
  list: readonly Text[] | null | undefined,
  compile: (text: Text) => Compiled | undefined,
): readonly Compiled[] | undefined {
  return list?.flatMap((text) => compile(text) ?? []);
}

function sound<Compiled extends object>(
  compiled: Compiled | { readonly fault: string },
): Compiled | undefined {
  return 'fault' in compiled ? undefined : compiled;
}

function listFaults<Text>(
  name: keyof Restrictions,
  list: readonly Text[] | null | undefined,
  faultsOf: (text: Text) => readonly RestrictionFault[],
): RestrictionFault[] {
  if (list === undefined || list === null) return [];
  if (list.length === 0) {
    return [
      { path: [name], message: 'An empty list could mean all or nothing; use null for no restriction.' },
    ];
  }
  if (list.length > MAX_RESTRICTION_ENTRIES) {
    return [{ path: [name], message: `At most ${MAX_RESTRICTION_ENTRIES} entries.` }];
  }
  return list.flatMap((text, index) =>
    faultsOf(text).map(({ path, message }) => ({ path: [name, index, ...path], message })),
  );
}

function textFaults(message: string | undefined): RestrictionFault[] {
  return message === undefined ? [] : [{ path: [], message }];
}

function refusal(code: RestrictionReason, detail: string): RestrictionRefusal {
  return Object.freeze({ code, detail });
}
