import { STATUS_CODES } from 'node:http';
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';
import type { Logger } from 'pino';
import { z } from 'zod';
import { REFUSAL_TITLES, REFUSALS, type Refusal, type RefusalCode } from '../domain/decision.ts';
import { ERRORS, type ErrorCode, Failure, type InputFault } from '../domain/errors.ts';
import { loggable } from '../storage/database.ts';
import { type Answer, sendAnswer } from './answer.ts';

export type ProblemCode = ErrorCode | RefusalCode;

const refusals = Object.entries(REFUSALS).map(([code, status]) => [
  code,
  { status, title: REFUSAL_TITLES[code as RefusalCode] },
]);
/** All that a problem may tell of: a failure, or, where the verdict is the whole answer, a refusal. */
export const PROBLEMS: Readonly<Record<ProblemCode, { readonly status: number; readonly title: string }>> = {
  ...Object.fromEntries(refusals),
  ...ERRORS,
};
export const PROBLEM_CODES = Object.keys(PROBLEMS) as readonly ProblemCode[];

/** `application/problem+json` (RFC 9457) with Claviger's extensions (contract §3). */
export const problemSchema = z
  .object({
    type: z.string().describe('`urn:claviger:error:<code>`'),
    title: z.string().describe('What went wrong, the same for each `code`.'),
    status: z.int().describe('The HTTP status of this response.'),
    detail: z.string().describe('What went wrong this time, for a developer to read.'),
    instance: z.string().describe('`urn:claviger:request:<request id>`'),
    success: z.literal(false).describe('`false`; a success has `true` here.'),
    code: z.string().meta({
      enum: PROBLEM_CODES,
      description:
        'The one member to branch on: a closed list. Reasons to refuse a key are told by `/v1/authorize` alone.',
    }),
    request_id: z
      .string()
      .describe('What to name when asking for help: the `X-Request-Id` of this response.'),
    errors: z
      .array(
        z.object({
          path: z.string().describe('Where in the request: `restrictions.allowed_ips.0`.'),
          message: z.string().describe('What to do about it.'),
        }),
      )
      .optional()
      .describe('Each fault of the input, by its path in the request.'),
  })
  .meta({ id: 'Problem', description: 'An error (RFC 9457).' });

type Problem = z.infer<typeof problemSchema>;

export const PROBLEM_TYPE = 'application/problem+json';
/** Fastify adds the charset to every type of JSON. */
const PROBLEM_TYPE_AS_SENT = `${PROBLEM_TYPE}; charset=utf-8`;
const REALM = 'Bearer realm="claviger"';
const DEFAULT_RETRY_AFTER_SECONDS = 1;
/** A body of 64 KiB can have thousands of faults; nobody reads that many. */
const MAX_FAULTS = 100;

/** Answers with a problem, with the status of its code unless told otherwise. */
export function sendProblem(
  request: FastifyRequest,
  reply: FastifyReply,
  failure: Failure,
  status?: number,
): FastifyReply {
  return sendAnswer(reply, problemAnswer(failure, request.id, status));
}

/** A failure as an answer, with the status of its code unless told otherwise. */
export function problemAnswer(
  failure: Failure,
  requestId: string,
  status: number = ERRORS[failure.code].status,
): Answer {
  const headers: string[] = [];
  const challenge = challengeOf(failure);
  if (challenge !== undefined) headers.push('www-authenticate', challenge);
  const { retryAfterSeconds } = failure.options;
  const isToBeRepeated = failure.code === 'rate_limited' || status === 503;
  if (retryAfterSeconds !== undefined || isToBeRepeated) {
    headers.push('retry-after', String(retryAfterSeconds ?? DEFAULT_RETRY_AFTER_SECONDS));
  }
  return answerOf(headers, problemOf({ ...troubleOf(failure), status }, requestId));
}

/**
 * The refusal of a key as an answer with a problem.
 * @param challenge what `WWW-Authenticate` says behind the realm (RFC 6750 §3); `undefined`: there is none.
 */
export function refusalAnswer(
  { code, detail, limited }: Refusal,
  requestId: string,
  { status, challenge }: { readonly status: number; readonly challenge: string | undefined },
): Answer {
  const headers: string[] = [];
  if (challenge !== undefined) headers.push('www-authenticate', `${REALM}${challenge}`);
  if (limited !== undefined) headers.push('retry-after', String(limited.retryAfterSeconds));
  return answerOf(headers, problemOf({ code, status, title: PROBLEMS[code].title, detail }, requestId));
}

/** As finished text, so that no schema of a route can get in its way. */
function answerOf(headers: readonly string[], problem: Problem): Answer {
  return {
    status: problem.status,
    headers: [...headers, 'content-type', PROBLEM_TYPE_AS_SENT],
    body: JSON.stringify(problem),
  };
}

/** `WWW-Authenticate` (RFC 6750 §3): no `error` for a request that showed no credential at all. */
export function challengeOf({ code, options }: Failure): string | undefined {
  if (options.missingPermission !== undefined) {
    return `${REALM}, error="insufficient_scope", scope="${options.missingPermission}"`;
  }
  if (code !== 'unauthorized') return undefined;
  return options.invalidCredential === true ? `${REALM}, error="invalid_token"` : REALM;
}

/** How a failure is told. */
type ProblemSender = (request: FastifyRequest, reply: FastifyReply, failure: Failure) => FastifyReply;

type ErrorHandler = (error: FastifyError, request: FastifyRequest, reply: FastifyReply) => FastifyReply;

/** Fastify's error handler: whatever was thrown becomes a failure of the closed list, and a problem unless `answer` says else. */
export function createErrorHandler(logger: Logger, answer: ProblemSender = sendProblem): ErrorHandler {
  return (error, request, reply) => {
    const failure = failureOf(error, request);
    logFault(logger, failure, request.id);
    return answer(request, reply, failure);
  };
}

/** A cause means that something of ours or below us failed; a caller's mistakes are no news to the log. */
export function logFault(logger: Logger, { code, options }: Failure, requestId: string): void {
  const { cause } = options;
  if (cause === undefined) return;
  logger.error({ request_id: requestId, err: loggable(cause), code }, 'the request could not be answered');
}

function failureOf(error: FastifyError | Failure, request: FastifyRequest): Failure {
  if (error instanceof Failure) return error;
  switch (error.code) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new Failure(
        'payload_too_large',
        `The body is larger than ${request.routeOptions.bodyLimit / 1024} KiB.`,
      );
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new Failure(
        'unsupported_media_type',
        'Send the body as application/json with a matching Content-Type.',
      );
    case 'FST_ERR_BAD_URL':
      return new Failure('invalid_request', 'The path holds a malformed percent-encoding.');
  }
  if (error.statusCode !== undefined && error.statusCode >= 400 && error.statusCode < 500) {
    return new Failure('invalid_request', 'The request is malformed.');
  }
  return faultOf(error);
}

/** What went wrong where nothing may: the closed list has no code for it; to the caller it is one that a repeat may cure. */
export function faultOf(error: unknown): Failure {
  if (error instanceof Failure) return error;
  return new Failure('unavailable', 'The request could not be answered because of a fault of the service.', {
    cause: error,
  });
}

/** What a problem tells of. */
interface Trouble {
  readonly code: string;
  readonly status: number;
  readonly title: string;
  readonly detail: string;
  readonly errors?: readonly InputFault[] | undefined;
}

function troubleOf({ code, message, options }: Failure): Trouble {
  return { code, ...ERRORS[code], detail: message, errors: options.errors };
}

function problemOf({ code, status, title, detail, errors }: Trouble, requestId: string): Problem {
  return {
    type: `urn:claviger:error:${code}`,
    title,
    status,
    detail,
    instance: `urn:claviger:request:${requestId}`,
    success: false,
    code,
    request_id: requestId,
    ...(errors === undefined ? {} : { errors: errors.slice(0, MAX_FAULTS) }),
  };
}

/** A whole HTTP response with a problem, for a connection that has no request to answer and is closed behind it. */
export function problemText(failure: Failure, requestId: string): string {
  const body = JSON.stringify(problemOf(troubleOf(failure), requestId));
  const { status } = ERRORS[failure.code];
  return (
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nContent-Type: ${PROBLEM_TYPE}\r\nContent-Length: ${Buffer.byteLength(body)}\r\n` +
    `X-Request-Id: ${requestId}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n${body}`
  );
}
