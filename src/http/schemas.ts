import { z } from 'zod';
import { type JsonObject, KEY_STATUSES } from '../domain/key.ts';
import { KEY_ID_PATTERN } from '../domain/key-id.ts';
import { MAX_METADATA_BYTES } from '../domain/key-patch.ts';
import { MAX_LIMIT, MAX_WINDOW_SECONDS } from '../domain/rate-limit.ts';
import type { RouteRuleText } from '../domain/route-pattern.ts';
import {
  MAX_SCOPE_LENGTH,
  MAX_SCOPES,
  PERMISSIONS,
  type Permission,
  SCOPE_PATTERN,
} from '../domain/scope.ts';
import { isoTime } from '../domain/time.ts';
import { holdsToken, LABEL_PATTERN } from '../domain/token.ts';
import { WORKSPACE_ID_PATTERN } from '../domain/workspace.ts';
import type { Propagation } from '../verification/membership.ts';
import { PROBLEM_TYPE, problemSchema } from './problem.ts';

/*
 * The shapes that requests and responses share. Inputs are strict: an unknown member is a fault that names it.
 * What `meta` and `describe` say appears in the OpenAPI document (document.ts) and changes nothing else.
 */

const MAX_LIST_ENTRIES = 100;
const MAX_PATTERN_LENGTH = 512;
const MAX_TEXT_LENGTH = 200;
/** The last millisecond that RFC 3339 can write. */
const LAST_TIME_MS = Date.UTC(9999, 11, 31, 23, 59, 59, 999);

/** A text of a caller's own. NUL and unpaired surrogates are refused with the body; a query is checked here. */
/** A token is shown once and never written anywhere, also not where somebody put it by mistake. */
const HOLDS_TOKEN = 'must not hold a token';

export const text = (most: number) =>
  z
    .string()
    .min(1, `must have 1 to ${most} characters`)
    .max(most, `must have 1 to ${most} characters`)
    .refine(
      (value) => value.isWellFormed() && !value.includes('\0'),
      'must hold no NUL and no unpaired surrogate',
    )
    .refine((value) => !holdsToken(value), HOLDS_TOKEN);

export const workspaceId = z
  .string()
  .regex(WORKSPACE_ID_PATTERN, 'must be 1 to 100 of A-Z a-z 0-9 _ . : - and neither "." nor ".."')
  .refine((value) => !holdsToken(value), HOLDS_TOKEN)
  .describe("The caller's own id of the tenant.");
export const environment = z
  .string()
  .regex(LABEL_PATTERN, 'must be the name of an environment')
  .describe(
    'One of the environments that this deployment knows; `live` and `test` unless configured otherwise.',
  );
export const keyName = text(120).describe('What people call the key.');
export const workspaceName = text(120).describe('What people call the workspace.');
export const scopeDescription = text(500).describe('What the scope is for, for people to read.');
export const createdBy = text(MAX_TEXT_LENGTH).describe('Who asked for the key, in the words of the caller.');
export const reason = text(MAX_TEXT_LENGTH).describe('Why, for whoever looks at the key later.');
export const scope = z
  .string()
  .max(MAX_SCOPE_LENGTH, `must have at most ${MAX_SCOPE_LENGTH} characters`)
  .regex(SCOPE_PATTERN, 'must be a scope such as read or validate:offers')
  .describe('A scope, such as `read` or `validate:offers`.');
export const scopes = z
  .array(scope)
  .max(MAX_SCOPES, `must be at most ${MAX_SCOPES} scopes`)
  .describe(
    `What the key may do: scopes of the catalogue, as long as that has any entry. For a service key (workspace \`system\`), its permissions: ${PERMISSIONS.map((name) => `\`${name}\``).join(', ')}.`,
  );

/** RFC 3339 with any offset; `toTime` makes it milliseconds. */
export const timeInput = z.iso
  .datetime({ offset: true, abort: true, error: 'must be an RFC 3339 time such as 2030-01-31T12:00:00Z' })
  .refine((value) => {
    const time = Date.parse(value);
    return time >= 0 && time <= LAST_TIME_MS;
  }, 'must be an RFC 3339 time from 1970 to 9999')
  .describe('An RFC 3339 time with `Z` or an offset, from 1970 to 9999.');
export const timeOutput = z
  .string()
  .meta({ format: 'date-time', description: 'RFC 3339, UTC, with milliseconds.' });

export function toTime(value: string): number;
export function toTime(value: string | undefined): number | undefined;
export function toTime(value: string | undefined): number | undefined {
  return value === undefined ? undefined : Date.parse(value);
}

export function fromTime(timeMs: number): string;
export function fromTime(timeMs: number | null): string | null;
export function fromTime(timeMs: number | null): string | null {
  return timeMs === null ? null : isoTime(timeMs);
}

// Which entries are well-formed is domain/restriction.ts's to say; here are only shape and size.
const pattern = z.string().max(MAX_PATTERN_LENGTH, `must have at most ${MAX_PATTERN_LENGTH} characters`);
const IPS = 'Addresses and CIDRs of both families, such as `203.0.113.0/24`.';
const REFERRERS =
  '`scheme://host[:port]/path`; `*` in the host stands for one or more labels, in the path for anything.';
const ENDPOINTS = 'The routes that the key may call.';
const METHODS = 'Upper-case; absent means all; `GET` includes `HEAD`.';
const PATH = 'Segments, `:name` for one segment, a final `*` for any rest: `/contacts/:id`, `/reports/*`.';
const WORKSPACES = 'Service keys only: the workspaces whose keys it may see and touch.';
const restrictionList = <T extends z.ZodType>(entry: T) =>
  z
    .array(entry)
    .min(1, 'must not be empty: leave it out or send null for no restriction')
    .max(MAX_LIST_ENTRIES, `must have at most ${MAX_LIST_ENTRIES} entries`)
    .nullable();

export const endpointInput = z
  .strictObject({
    methods: z
      .array(z.string().max(32))
      .min(1, 'must not be empty: leave it out for all methods')
      .max(16)
      .nullable()
      .optional()
      .describe(METHODS),
    path: pattern.describe(PATH),
  })
  .meta({ id: 'NewEndpoint', description: 'A route and its methods.' });

export const restrictionsInput = z
  .strictObject({
    allowed_ips: restrictionList(pattern).describe(IPS),
    allowed_referrers: restrictionList(pattern).describe(REFERRERS),
    allowed_endpoints: restrictionList(endpointInput).describe(ENDPOINTS),
    allowed_workspaces: restrictionList(workspaceId).describe(WORKSPACES),
  })
  .partial()
  .meta({
    id: 'NewRestrictions',
    description:
      'From where and for what the key may be used. Each list allows; absent or `null` does not restrict; an empty list is refused, since it could mean all or nothing.',
  });

export const endpointOutput = z
  .object({
    methods: z.array(z.string()).optional().describe(METHODS),
    path: z.string().describe(PATH),
  })
  .meta({ id: 'Endpoint', description: 'A route and its methods.' });

/** Routes as the API shows them: all methods are none in particular. */
export function endpointsView(endpoints: readonly RouteRuleText[]): z.input<typeof endpointOutput>[] {
  return endpoints.map(({ methods, path }) => (methods == null ? { path } : { methods: [...methods], path }));
}

export const restrictionsOutput = z
  .object({
    allowed_ips: z.array(z.string()).nullable().describe(IPS),
    allowed_referrers: z.array(z.string()).nullable().optional().describe(REFERRERS),
    allowed_endpoints: z.array(endpointOutput).nullable().optional().describe(ENDPOINTS),
    allowed_workspaces: z.array(z.string()).nullable().optional().describe(WORKSPACES),
  })
  .meta({
    id: 'Restrictions',
    description:
      'From where and for what the key may be used: the lists that a key of its kind can have, `null` where it is not restricted.',
  });

const count = (most: number) =>
  z
    .int(`must be a whole number from 1 to ${most}`)
    .min(1, `must be a whole number from 1 to ${most}`)
    .max(most, `must be a whole number from 1 to ${most}`);

const LIMIT = 'How many uses a window allows.';
const WINDOW = 'The length of a window. Windows are aligned to the epoch.';
const RATE_LIMIT = 'At most `limit` uses in each window of `window_seconds`.';

export const rateLimit = z
  .strictObject({
    limit: count(MAX_LIMIT).describe(LIMIT),
    window_seconds: count(MAX_WINDOW_SECONDS).describe(WINDOW),
  })
  .meta({ id: 'NewRateLimit', description: RATE_LIMIT });
export const rateLimitOutput = z
  .object({ limit: z.int().describe(LIMIT), window_seconds: z.int().describe(WINDOW) })
  .meta({ id: 'RateLimit', description: RATE_LIMIT });

export const rateLimitState = z
  .object({
    limit: z.int().describe(LIMIT),
    remaining: z
      .int()
      .describe(
        'What the window still allows, as far as this instance knows; exact while it alone serves the key.',
      ),
    reset: z.int().describe('When the window ends, in seconds since the epoch.'),
    window_seconds: z.int().describe(WINDOW),
  })
  .meta({ id: 'RateLimitState', description: 'How a rate limit stands in the current window.' });

/** Any JSON object: body.ts has bounded its depth, the lifecycle bounds its size. */
export const metadata = z
  .custom<JsonObject>(
    (value) => typeof value === 'object' && value !== null && !Array.isArray(value),
    'must be a JSON object',
  )
  .refine((value) => !holdsToken(JSON.stringify(value)), HOLDS_TOKEN)
  .meta({
    type: 'object',
    additionalProperties: true,
    description: `Any JSON object of at most ${MAX_METADATA_BYTES} bytes; Claviger keeps it and shows it, no more.`,
  });
export const metadataOutput = z.record(z.string(), z.unknown()).describe('What the caller gave, as it was.');

export const keyId = z
  .string()
  .meta({ pattern: KEY_ID_PATTERN.source, description: 'The id of a key: a TypeID, sortable by creation.' });

export const keyOutput = z
  .object({
    id: keyId,
    prefix: z.string().describe('What its token begins with, such as `ck_live_`.'),
    hint: z.string().describe('The prefix and the last four characters of the token, to tell keys apart.'),
    workspace_id: z.string().describe('The workspace that owns the key, for ever.'),
    name: z.string().describe('What people call the key.'),
    environment: z.string().describe('The environment of the key, for ever.'),
    scopes: z.array(z.string()).describe('What the key may do; for a service key, its permissions.'),
    status: z.enum(KEY_STATUSES).describe('What the key is at the time of the answer.'),
    restrictions: restrictionsOutput.nullable().describe('`null`: none.'),
    rate_limit: rateLimitOutput.nullable().describe('`null`: none.'),
    metadata: metadataOutput.nullable().describe('What the caller gave, as it was.'),
    created_by: z.string().nullable().describe('Who asked for the key, in the words of the caller.'),
    created_at: timeOutput.describe('When the key was made.'),
    expires_at: timeOutput.nullable().describe('From then on the key is refused; `null`: never.'),
    revoked_at: timeOutput.nullable().describe('When the key was revoked, for ever.'),
    revoked_reason: z.string().nullable().describe('What was said of why.'),
    rotated_from: z.string().nullable().describe('The id of the key that this one succeeds.'),
    rotated_to: z.string().nullable().describe('The id of the key that succeeds this one.'),
    rotation_due_at: timeOutput.describe(
      'When the key is old enough to be rotated. Nothing happens by itself.',
    ),
    last_used: timeOutput
      .nullable()
      .describe(
        'When an introspection last found the key active; for a service key, when it last called. Up to two seconds late.',
      ),
    last_used_ip: z.string().nullable().describe("The client's address then, where it was told."),
  })
  .meta({ id: 'Key', description: 'A key, without its token.' });

export const keyWithTokenOutput = keyOutput
  .extend({
    key: z.string().meta({
      // domain/token.ts: two labels, then id, secret, tag and checksum.
      pattern: '^[a-z][a-z0-9]{0,15}_[a-z][a-z0-9]{0,15}_[0-9A-Za-z]{66}$',
      description: 'The token: shown this once, and never again.',
    }),
  })
  .meta({ id: 'KeyWithToken', description: 'A new key, with its token.' });

export const paginationOutput = z
  .object({
    next_cursor: z
      .string()
      .nullable()
      .describe('Send it as `cursor`, with the same filters, for the next page.'),
    has_more: z.boolean().describe('Whether there is a next page.'),
  })
  .meta({ id: 'Pagination', description: 'Where a list goes on.' });

export const succeeded = z.literal(true).describe('`true`; an error has `false` here.');
export const success = <T extends z.ZodType>(data: T) => z.object({ success: succeeded, data });

export const propagationOutput = z
  .object({
    instances: z.int().describe('The instances that could have answered by the old state.'),
    confirmed: z.int().describe('How many of them have dropped it, or have left.'),
    fenced: z.int().describe('How many stayed silent, were barred from memory, and were waited out.'),
    waited_ms: z.int().describe('How long this call waited for that.'),
  })
  .meta({
    id: 'Propagation',
    description:
      'How the change came to hold: no instance answers a request that begins after this answer by the old state.',
    examples: [{ instances: 3, confirmed: 3, fenced: 0, waited_ms: 4 }],
  });

/** The answer to a change, which holds on every instance when it is given. */
export const changed = <T extends z.ZodType>(data: T) =>
  z.object({ success: succeeded, data, propagation: propagationOutput });

export function propagationView({
  instances,
  confirmed,
  fenced,
  waitedMs,
}: Propagation): z.input<typeof propagationOutput> {
  return { instances, confirmed, fenced, waited_ms: waitedMs };
}

/** The problems that a route may answer with, by status, as Fastify and OpenAPI want them. */
export function problems<Status extends number>(descriptions: Readonly<Record<Status, string>>) {
  const responses: Record<
    number,
    { description: string; content: Record<string, { schema: typeof problemSchema }> }
  > = {};
  for (const [status, description] of Object.entries<string>(descriptions)) {
    responses[Number(status)] = { description, content: { [PROBLEM_TYPE]: { schema: problemSchema } } };
  }
  return responses;
}

/** A service key with this permission, or any at all, in either header: roles as of OpenAPI 3.1's security requirements. */
export function callerWith(permission?: Permission): Record<string, string[]>[] {
  const roles = permission === undefined ? [] : [permission];
  return [{ bearer: roles }, { apiKey: roles }];
}

/** What every route that asks for a service key may answer. */
export const CALLER_PROBLEMS = {
  400: 'Malformed, or a rule of this endpoint is broken (`invalid_request`).',
  401: 'No service key, or not a valid one (`unauthorized`).',
  403: 'The service key may not do this (`forbidden`).',
  429: 'Too many requests (`rate_limited`).',
  503: 'Nothing was decided or done (`overloaded`, `unavailable`).',
} as const;

/** What a route may answer besides that gives a key what its workspace's plan has to allow. */
export const PLAN_PROBLEMS = {
  403: "The service key may not do this (`forbidden`), or the workspace's plan does not allow it (`limit_reached`): `detail` says which.",
} as const;

/** What a route that asks for nothing may answer still. */
export const BARE_PROBLEMS = { 400: 'Not a well-formed HTTP request (`invalid_request`).' } as const;

/** What a route with a body may answer besides. */
export const BODY_PROBLEMS = {
  413: 'The body is larger than 64 KiB (`payload_too_large`).',
  415: 'The body is of another media type (`unsupported_media_type`).',
} as const;

/** A page of a list (contract §3). `what` names its entries, in the plural. */
export function list<Entry extends z.ZodType>(entry: Entry, what: string) {
  return z.object({
    success: succeeded,
    data: z.array(entry).describe(`The ${what} of this page.`),
    pagination: paginationOutput,
  });
}
