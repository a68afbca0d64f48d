import { z } from 'zod';
import { type JsonObject, KEY_STATUSES } from '../domain/key.ts';
import { MAX_LIMIT, MAX_WINDOW_SECONDS } from '../domain/rate-limit.ts';
import { MAX_SCOPE_LENGTH, MAX_SCOPES, SCOPE_PATTERN } from '../domain/scope.ts';
import { LABEL_PATTERN } from '../domain/token.ts';
import { WORKSPACE_ID_PATTERN } from '../domain/workspace.ts';
import { PROBLEM_TYPE, problemSchema } from './problem.ts';

/*
 * The shapes that requests and responses share. Inputs are strict: an unknown member is a fault that names it.
 */

const MAX_LIST_ENTRIES = 100;
const MAX_PATTERN_LENGTH = 512;
const MAX_TEXT_LENGTH = 200;
/** The last millisecond that RFC 3339 can write. */
const LAST_TIME_MS = Date.UTC(9999, 11, 31, 23, 59, 59, 999);

/** A text of a caller's own. NUL and unpaired surrogates are refused with the body; a query is checked here. */
const text = (most: number) =>
  z
    .string()
    .min(1, `must have 1 to ${most} characters`)
    .max(most, `must have 1 to ${most} characters`)
    .refine(
      (value) => value.isWellFormed() && !value.includes('\0'),
      'must hold no NUL and no unpaired surrogate',
    );

export const workspaceId = z
  .string()
  .regex(WORKSPACE_ID_PATTERN, 'must be 1 to 100 of A-Z a-z 0-9 _ . : - and neither "." nor ".."')
  .describe("The caller's own id of the tenant.");
export const environment = z.string().regex(LABEL_PATTERN, 'must be the name of an environment');
export const keyName = text(120);
export const createdBy = text(MAX_TEXT_LENGTH).describe('Who asked for the key, in the words of the caller.');
export const reason = text(MAX_TEXT_LENGTH);
export const scope = z
  .string()
  .max(MAX_SCOPE_LENGTH, `must have at most ${MAX_SCOPE_LENGTH} characters`)
  .regex(SCOPE_PATTERN, 'must be a scope such as read or validate:offers');
export const scopes = z.array(scope).max(MAX_SCOPES, `must be at most ${MAX_SCOPES} scopes`);

/** RFC 3339 with any offset; `toTime` makes it milliseconds. */
export const timeInput = z.iso
  .datetime({ offset: true, error: 'must be an RFC 3339 time such as 2030-01-31T12:00:00Z' })
  .refine((value) => {
    const time = Date.parse(value);
    return time >= 0 && time <= LAST_TIME_MS;
  }, 'must be an RFC 3339 time from 1970 to 9999');
export const timeOutput = z.string().meta({ format: 'date-time', examples: ['2026-01-02T03:04:05.678Z'] });

export function toTime(value: string): number {
  return Date.parse(value);
}

export function fromTime(timeMs: number): string;
export function fromTime(timeMs: number | null): string | null;
export function fromTime(timeMs: number | null): string | null {
  return timeMs === null ? null : new Date(timeMs).toISOString();
}

// Which entries are well-formed is domain/restriction.ts's to say; here are only shape and size.
const pattern = z.string().max(MAX_PATTERN_LENGTH, `must have at most ${MAX_PATTERN_LENGTH} characters`);
const restrictionList = <T extends z.ZodType>(entry: T) =>
  z
    .array(entry)
    .min(1, 'must not be empty: leave it out or send null for no restriction')
    .max(MAX_LIST_ENTRIES, `must have at most ${MAX_LIST_ENTRIES} entries`)
    .nullable();

const endpointInput = z.strictObject({
  methods: z
    .array(z.string().max(32))
    .min(1, 'must not be empty: leave it out for all methods')
    .max(16)
    .nullable()
    .optional(),
  path: pattern,
});

export const restrictionsInput = z
  .strictObject({
    allowed_ips: restrictionList(pattern).describe('Addresses and CIDRs of both families.'),
    allowed_referrers: restrictionList(pattern).describe('`scheme://host[:port]/path` with `*`.'),
    allowed_endpoints: restrictionList(endpointInput).describe(
      'Methods and paths with `:name` and a final `*`.',
    ),
    allowed_workspaces: restrictionList(workspaceId).describe(
      'Service keys only: the workspaces that it may see.',
    ),
  })
  .partial();

export const restrictionsOutput = z.object({
  allowed_ips: z.array(z.string()).nullable(),
  allowed_referrers: z.array(z.string()).nullable().optional(),
  allowed_endpoints: z
    .array(z.object({ methods: z.array(z.string()).optional(), path: z.string() }))
    .nullable()
    .optional(),
  allowed_workspaces: z.array(z.string()).nullable().optional(),
});

const count = (most: number) =>
  z
    .int(`must be a whole number from 1 to ${most}`)
    .min(1, `must be a whole number from 1 to ${most}`)
    .max(most, `must be a whole number from 1 to ${most}`);

export const rateLimit = z.strictObject({
  limit: count(MAX_LIMIT),
  window_seconds: count(MAX_WINDOW_SECONDS),
});
export const rateLimitOutput = z.object({ limit: z.int(), window_seconds: z.int() });

/** Any JSON object: body.ts has bounded its depth, the lifecycle bounds its size. */
export const metadata = z.custom<JsonObject>(
  (value) => typeof value === 'object' && value !== null && !Array.isArray(value),
  'must be a JSON object',
);
export const metadataOutput = z.record(z.string(), z.unknown());

export const keyOutput = z
  .object({
    id: z.string(),
    prefix: z.string(),
    hint: z.string(),
    workspace_id: z.string(),
    name: z.string(),
    environment: z.string(),
    scopes: z.array(z.string()),
    status: z.enum(KEY_STATUSES),
    restrictions: restrictionsOutput.nullable(),
    rate_limit: rateLimitOutput.nullable(),
    metadata: metadataOutput.nullable(),
    created_by: z.string().nullable(),
    created_at: timeOutput,
    expires_at: timeOutput.nullable(),
    revoked_at: timeOutput.nullable(),
    revoked_reason: z.string().nullable(),
    rotated_from: z.string().nullable(),
    rotated_to: z.string().nullable(),
    rotation_due_at: timeOutput,
    last_used: timeOutput.nullable(),
    last_used_ip: z.string().nullable(),
  })
  .meta({ id: 'Key' });

export const keyWithTokenOutput = keyOutput
  .extend({ key: z.string().describe('The token: shown this once, and never again.') })
  .meta({ id: 'KeyWithToken' });

export const paginationOutput = z.object({ next_cursor: z.string().nullable(), has_more: z.boolean() });

export const success = <T extends z.ZodType>(data: T) => z.object({ success: z.literal(true), data });

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

/** What every route that asks for a service key may answer. */
export const CALLER_PROBLEMS = {
  400: 'Malformed, or a rule of this endpoint is broken (`invalid_request`).',
  401: 'No service key, or not a valid one (`unauthorized`).',
  403: 'The service key may not do this (`forbidden`).',
  429: 'Too many requests (`rate_limited`).',
  503: 'Nothing was decided or done (`overloaded`, `unavailable`).',
} as const;

/** What a route with a body may answer besides. */
export const BODY_PROBLEMS = {
  413: 'The body is larger than 64 KiB (`payload_too_large`).',
  415: 'The body is of another media type (`unsupported_media_type`).',
} as const;
