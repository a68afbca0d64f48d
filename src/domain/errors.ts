/**
 * The closed list of failures that a caller may see (contract §3), with the HTTP status and the title each
 * one has. A refused key is not a failure: that is a `Decision` (decision.ts).
 */
export const ERRORS = {
  invalid_request: { status: 400, title: 'The request is malformed' },
  unauthorized: { status: 401, title: 'A valid service key is required' },
  forbidden: { status: 403, title: 'The service key may not do this' },
  limit_reached: { status: 403, title: "The workspace's plan does not allow this" },
  not_found: { status: 404, title: 'Not found' },
  key_not_active: { status: 409, title: 'The key is not active' },
  idempotency_in_flight: { status: 409, title: 'The same request is being worked on' },
  last_admin: { status: 409, title: 'The last active admin key must remain' },
  payload_too_large: { status: 413, title: 'The body is too large' },
  unsupported_media_type: { status: 415, title: 'The media type is not supported' },
  idempotency_mismatch: { status: 422, title: 'The Idempotency-Key was used for another request' },
  rate_limited: { status: 429, title: 'Too many requests' },
  overloaded: { status: 503, title: 'Too much work is queued' },
  unavailable: { status: 503, title: 'The service cannot answer now' },
} as const satisfies Record<string, { status: number; title: string }>;

export type ErrorCode = keyof typeof ERRORS;

/** One fault of the input: where it stands (`restrictions.allowed_ips.0`) and what to do about it. */
export interface InputFault {
  readonly path: string;
  readonly message: string;
}

export interface FailureOptions {
  readonly cause?: unknown;
  readonly errors?: readonly InputFault[];
  /** Seconds after which a repeat may succeed; sent as `Retry-After`. */
  readonly retryAfterSeconds?: number;
  /** Whether the caller did send a credential, which is not valid; told in `WWW-Authenticate`. */
  readonly invalidCredential?: boolean;
  /** The permission that was missing; sent in `WWW-Authenticate`. */
  readonly missingPermission?: string;
}

/** No answer can be given, for a reason of the closed list. `message` is the `detail` that the caller reads. */
export class Failure extends Error {
  override readonly name = 'Failure';
  readonly code: ErrorCode;
  readonly options: FailureOptions;

  constructor(code: ErrorCode, detail: string, options: FailureOptions = {}) {
    super(detail, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.options = options;
  }
}

/** A request that is well-formed JSON but breaks a rule: `invalid_request` naming each fault. */
export function invalidInput(...errors: readonly InputFault[]): Failure {
  return new Failure('invalid_request', 'The request breaks a rule of this endpoint; see `errors`.', {
    errors,
  });
}
