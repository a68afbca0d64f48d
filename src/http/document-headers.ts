/*
 * The headers of responses, as the OpenAPI document has them: components, and which response has which.
 */

/** What is looked at of an operation. */
interface Documented {
  readonly operationId: string;
  readonly security?: readonly Readonly<Record<string, unknown>>[];
  readonly parameters?: readonly { readonly name: string }[];
  readonly responses: Readonly<Record<string, { headers?: Record<string, unknown> }>>;
}

export const HEADERS = {
  'X-Request-Id': {
    description:
      "The request's own `X-Request-Id` where that is 1 to 128 of `A-Z a-z 0-9 . _ -`, else a new one. It stands in the log too.",
    required: true,
    schema: { type: 'string', pattern: '^[A-Za-z0-9._-]{1,128}$' },
    example: 'req_5f0c1d7e9a3b24680c1',
  },
  'WWW-Authenticate': {
    description: 'What is missing, as of RFC 6750 §3.',
    schema: { type: 'string' },
    example: 'Bearer realm="claviger", error="invalid_token"',
  },
  'Retry-After': {
    description: 'The seconds after which a repeat may succeed.',
    required: true,
    schema: { type: 'integer', minimum: 1 },
    example: 1,
  },
  'Retry-After-In-Flight': {
    description: 'For `idempotency_in_flight` alone: the seconds after which a repeat may succeed.',
    schema: { type: 'integer', minimum: 1 },
    example: 1,
  },
  'Idempotent-Replayed': {
    description: 'Present where this is the answer to an earlier request with the same Idempotency-Key.',
    schema: { type: 'string', const: 'true' },
    example: 'true',
  },
  'X-RateLimit-Limit': {
    description: 'How many requests a minute this caller may send. Absent where that is not limited.',
    schema: { type: 'integer', minimum: 1 },
    example: 6000,
  },
  'X-RateLimit-Remaining': {
    description: 'How many of them are left.',
    schema: { type: 'integer', minimum: 0 },
    example: 5999,
  },
  'X-RateLimit-Reset': {
    description: 'When the next minute begins, in seconds since the epoch.',
    schema: { type: 'integer' },
    example: 1767323045,
  },
  'X-Claviger-Key-Id': {
    description: 'The id of the key.',
    required: true,
    schema: { type: 'string' },
    example: 'key_01ke6c2y6pfyc8m3q0v7rt5x4n',
  },
  'X-Claviger-Workspace-Id': {
    description: 'The workspace that owns the key.',
    required: true,
    schema: { type: 'string' },
    example: 'ws_acme',
  },
  'X-Claviger-Environment': {
    description: 'The environment of the key.',
    required: true,
    schema: { type: 'string' },
    example: 'live',
  },
  'X-Claviger-Scopes': {
    description: 'All that the key may do, separated by spaces; empty for a key without scopes.',
    required: true,
    schema: { type: 'string', minLength: 0 },
    example: 'read validate:offers',
  },
  'X-Claviger-Key-Name': {
    description: 'What people call the key, percent-encoded UTF-8.',
    required: true,
    schema: { type: 'string' },
    example: 'Production%20data%20warehouse',
  },
  'RateLimit-Policy': {
    description:
      'The limits of the key and of its workspace, as of draft-ietf-httpapi-ratelimit-headers: `q` uses in each window of `w` seconds. Absent where there is none.',
    schema: { type: 'string' },
    example: '"key";q=1000;w=3600',
  },
  RateLimit: {
    description: 'How the tighter one stands: `r` uses are left, and the window ends in `t` seconds.',
    schema: { type: 'string' },
    example: '"key";r=999;t=123',
  },
  'X-RateLimit-Limit-Of-Key': {
    description: "The tighter limit of the key's and its workspace's. Absent where there is none.",
    schema: { type: 'integer', minimum: 1 },
    example: 1000,
  },
  'X-RateLimit-Remaining-Of-Key': {
    description: 'How many uses its window still allows.',
    schema: { type: 'integer', minimum: 0 },
    example: 999,
  },
  'X-RateLimit-Reset-Of-Key': {
    description: 'When its window ends, in seconds since the epoch.',
    schema: { type: 'integer' },
    example: 1767323045,
  },
} as const;

const IDENTITY_HEADERS = [
  'X-Claviger-Key-Id',
  'X-Claviger-Workspace-Id',
  'X-Claviger-Environment',
  'X-Claviger-Scopes',
  'X-Claviger-Key-Name',
] as const;
const KEY_LIMIT_HEADERS = [
  'X-RateLimit-Limit-Of-Key',
  'X-RateLimit-Remaining-Of-Key',
  'X-RateLimit-Reset-Of-Key',
  'RateLimit-Policy',
  'RateLimit',
] as const;
/** What sets components apart that are of one header: it is not part of its name. */
const APART = /-In-Flight$|-Of-Key$/;
const RATE_HEADERS = ['X-RateLimit-Limit', 'X-RateLimit-Remaining', 'X-RateLimit-Reset'] as const;

/** Adds to each response of an operation the headers that it has. */
export function addHeaders({ operationId, security = [], parameters = [], responses }: Documented): void {
  const isForGateways = operationId === 'authorize';
  const isIdempotent = parameters.some(({ name }) => name === 'Idempotency-Key');
  for (const [status, response] of Object.entries(responses)) {
    const names: (keyof typeof HEADERS)[] = ['X-Request-Id'];
    if (status === '401' || status === '403') names.push('WWW-Authenticate');
    if (status === '429' || status === '503') names.push('Retry-After');
    if (isForGateways && status === '200') names.push(...IDENTITY_HEADERS);
    const isLimited = status.startsWith('2') || status === '429';
    if (isForGateways && isLimited) names.push(...KEY_LIMIT_HEADERS);
    if (isLimited && security.some((scheme) => 'bearer' in scheme)) names.push(...RATE_HEADERS);
    if (isIdempotent && status === '201') names.push('Idempotent-Replayed');
    if (isIdempotent && status === '409') names.push('Retry-After-In-Flight');
    response.headers = Object.fromEntries(
      names.map((name) => [name.replace(APART, ''), { $ref: `#/components/headers/${name}` }]),
    );
  }
}
