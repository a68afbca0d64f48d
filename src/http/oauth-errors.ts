import type { FastifyReply } from 'fastify';
import { z } from 'zod';
import { ERRORS, type Failure } from '../domain/errors.ts';
import { challengeOf } from './problem.ts';

/** The errors of RFC 6749 §5.2 and RFC 6750 §3.1 that there are, and one for an answer that cannot be given now. */
const OAUTH_ERRORS = [
  'invalid_request',
  'invalid_client',
  'unauthorized_client',
  'unsupported_grant_type',
  'invalid_scope',
  'invalid_token',
  'insufficient_scope',
  'temporarily_unavailable',
] as const;
export type OAuthErrorCode = (typeof OAUTH_ERRORS)[number];

export const JSON_TYPE = 'application/json';
const BASIC_CHALLENGE = 'Basic realm="claviger", charset="UTF-8"';
const DEFAULT_RETRY_AFTER_SECONDS = 1;

export const oauthErrorSchema = z
  .object({
    error: z
      .string()
      .meta({ enum: [...OAUTH_ERRORS], description: 'The one member to branch on: a closed list.' }),
    error_description: z.string().describe('What went wrong, for a developer to read.'),
  })
  .meta({ id: 'OAuthError', description: 'An error of an OAuth endpoint (RFC 6749 §5.2).' });

/** The errors that a route may answer with, by status, as Fastify and OpenAPI want them. */
export function oauthErrors<Status extends number>(descriptions: Readonly<Record<Status, string>>) {
  return Object.fromEntries(
    Object.entries<string>(descriptions).map(([status, description]) => [
      Number(status),
      { description, content: { [JSON_TYPE]: { schema: oauthErrorSchema } } },
    ]),
  );
}

/** What each OAuth endpoint may answer. */
export const OAUTH_PROBLEMS = {
  400: 'Malformed, or a parameter is missing or there twice (`invalid_request`).',
  401: 'The client is not known, or its secret is wrong (`invalid_client`).',
  413: 'The body is larger than 64 KiB (`invalid_request`).',
  415: 'The body is no form (`invalid_request`).',
  429: 'Too many failed attempts from this address (`temporarily_unavailable`).',
  503: 'Nothing was decided or done (`temporarily_unavailable`).',
} as const;

interface OAuthErrorOptions {
  /** `WWW-Authenticate`. */
  readonly challenge?: string | undefined;
  readonly retryAfterSeconds?: number | undefined;
  readonly allow?: string;
}

/** An answer of an OAuth endpoint that is no success. `message` is the `error_description`. */
export class OAuthError extends Error {
  override readonly name = 'OAuthError';
  readonly status: number;
  readonly code: OAuthErrorCode;
  readonly options: OAuthErrorOptions;

  constructor(status: number, code: OAuthErrorCode, description: string, options: OAuthErrorOptions = {}) {
    super(description);
    this.status = status;
    this.code = code;
    this.options = options;
  }
}

export function invalidRequest(description: string): OAuthError {
  return new OAuthError(400, 'invalid_request', description);
}

/** RFC 6749 §5.2: with the challenge of the scheme that the client may use; RFC 9110 §15.5.2 wants one with every 401. */
export function invalidClient(description: string): OAuthError {
  return new OAuthError(401, 'invalid_client', description, { challenge: BASIC_CHALLENGE });
}

/**
 * A failure of the closed list of all other endpoints (domain/errors.ts) in the words of OAuth. RFC 7662 §2.3: who came
 * as a client is refused as one, who came with Bearer as of RFC 6750 §3.
 */
export function oauthErrorOf(failure: Failure, { isBearer }: { readonly isBearer: boolean }): OAuthError {
  const { code, message, options } = failure;
  const { status } = ERRORS[code];
  const { retryAfterSeconds = DEFAULT_RETRY_AFTER_SECONDS, missingPermission } = options;
  if (status === 429 || status === 503) {
    return new OAuthError(status, 'temporarily_unavailable', message, { retryAfterSeconds });
  }
  const challenge = isBearer ? challengeOf(failure) : undefined;
  if (status === 401) {
    return isBearer ? new OAuthError(401, 'invalid_token', message, { challenge }) : invalidClient(message);
  }
  if (status === 403) {
    const lacksPermission = missingPermission !== undefined;
    return new OAuthError(403, lacksPermission ? 'insufficient_scope' : 'unauthorized_client', message, {
      challenge,
    });
  }
  const description =
    code === 'unsupported_media_type' ? 'Send the body as a form, without a Content-Encoding.' : message;
  return new OAuthError(status, 'invalid_request', description);
}

/** Sent as finished text, so that no schema of the route can get in its way. */
export function sendOAuthError(
  reply: FastifyReply,
  { status, code, message, options }: OAuthError,
): FastifyReply {
  const { challenge, retryAfterSeconds, allow } = options;
  if (challenge !== undefined) reply.header('www-authenticate', challenge);
  if (retryAfterSeconds !== undefined) reply.header('retry-after', retryAfterSeconds);
  if (allow !== undefined) reply.header('allow', allow);
  return reply
    .code(status)
    .type(JSON_TYPE)
    .send(JSON.stringify({ error: code, error_description: describable(message) }));
}

/** RFC 6749 §5.2: `error_description` has neither quotes nor a backslash, and nothing beyond ASCII. */
function describable(text: string): string {
  return text.replaceAll('"', "'").replaceAll(/[^ !#-[\]-~]/g, '?');
}
