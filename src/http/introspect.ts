import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import type { FastifyInstance, preParsingHookHandler } from 'fastify';
import { z } from 'zod';
import { type AccessToken, endOf } from '../domain/access-token.ts';
import { type Caller, reaches } from '../domain/caller.ts';
import { type Decision, INVALID, type Question, REFUSALS, type Refusal } from '../domain/decision.ts';
import { Failure, invalidInput } from '../domain/errors.ts';
import type { Key } from '../domain/key.ts';
import type { RateLimitState } from '../domain/rate-limit.ts';
import { isoTime } from '../domain/time.ts';
import { foreignWorkspace } from '../lifecycle/key-rules.ts';
import type { Asking, Recorder } from '../recording/recorder.ts';
import type { Soon, Verifier } from '../verification/verifier.ts';
import type { Answer } from './answer.ts';
import { bodyParser, checkText, parseJson } from './body.ts';
import { type Callers, callerOf } from './callers.ts';
import { PLAIN_BEARER } from './credential.ts';
import { type FastRoute, takeBodyOfLeft } from './fast-path.ts';
import {
  type IntrospectionBody,
  introspectionBody,
  MAX_PLAIN_BYTES,
  readPlainBody,
} from './introspection-body.ts';
import { problemAnswer } from './problem.ts';
import * as schemas from './schemas.ts';
import { routeOptionsOf, type TrafficObserver } from './traffic.ts';
import { parseInput } from './validation.ts';
import { conclude } from './verdict.ts';

const JSON_TYPE = 'application/json';
const ANSWER_TYPE = 'application/json; charset=utf-8';
const FORM = 'application/x-www-form-urlencoded';
const ANSWER_HEADERS = ['content-type', ANSWER_TYPE];
const INTROSPECT_PATH = '/v1/introspect';
/** Lengths of the names of headers that `readPlainHead` looks at, a bit each: of another length it sees none. */
const PLAIN_LENGTHS = [
  'authorization',
  'content-type',
  'content-length',
  'x-api-key',
  'content-encoding',
].reduce((lengths, { length }) => lengths | (1 << length), 0);

/** RFC 7662 §2.1; parameters that are not known here are ignored (RFC 6749 §3.2). */
const formBody = z
  .object({ token: z.string().describe('The token that the client sent (RFC 7662 §2.1).') })
  .meta({ id: 'IntrospectForm', description: 'RFC 7662. Parameters that are not listed are ignored.' });

const activeOutput = z
  .object({
    active: z.literal(true).describe('The key may do this.'),
    key_id: schemas.keyId,
    workspace_id: z.string().describe('The workspace that owns the key.'),
    name: z.string().describe('What people call the key.'),
    environment: z.string().describe('The environment of the key.'),
    scopes: z.array(z.string()).describe('All that the key, or the access token, may do.'),
    created_at: schemas.timeOutput.describe('When the key was made.'),
    expires_at: schemas.timeOutput
      .nullable()
      .describe('Of an access token, when that expires; `null`: never.'),
    metadata: schemas.metadataOutput.nullable().describe('What its creator gave, as it was.'),
    rate_limit: schemas.rateLimitState
      .nullable()
      .describe("The tighter of the key's limit and its workspace's, after this use; `null`: there is none."),
  })
  .meta({ id: 'ActiveKey', description: 'The answer to JSON for a key that may do what was asked.' });

const REFUSAL_CODES = Object.keys(REFUSALS) as [keyof typeof REFUSALS, ...(keyof typeof REFUSALS)[]];

const inactiveOutput = z
  .object({
    active: z.literal(false).describe('The key may not do this, or is no key.'),
    reason: z
      .object({
        code: z.enum(REFUSAL_CODES).describe('The first check that failed.'),
        status: z
          .int()
          .meta({ enum: [...new Set(Object.values(REFUSALS))] })
          .describe('What the asking service should answer its own client.'),
        detail: z.string().describe('For a developer to read.'),
      })
      .describe('Why not.'),
    rate_limit: schemas.rateLimitState.optional().describe('With `rate_limited`: the limit that refused.'),
    retry_after: z
      .int()
      .optional()
      .describe('With `rate_limited`: after how many seconds a repeat may be allowed.'),
  })
  .meta({ id: 'InactiveKey', description: 'The answer to JSON for a key that is refused.' });

export const standardOutput = z
  .object({
    active: z.boolean().describe('Whether the token is valid; the other members are there only if it is.'),
    scope: z.string().optional().describe('All that it may be used for, separated by spaces.'),
    client_id: z.string().optional().describe('The id of the key.'),
    sub: z.string().optional().describe('The workspace that owns the key.'),
    token_type: z.literal('Bearer').optional().describe('How the token is sent.'),
    exp: z.int().optional().describe('When it expires, in seconds since the epoch; absent: never.'),
    iat: z.int().optional().describe('When it was made, in seconds since the epoch.'),
    jti: z.string().optional().describe('The id of an access token; a key has none beside its own.'),
  })
  .meta({ id: 'StandardIntrospection', description: 'RFC 7662 §2.2, the answer to a form.' });

type InactiveAnswer = z.input<typeof inactiveOutput>;
type StandardAnswer = z.input<typeof standardOutput>;

/** `POST /v1/introspect` (contract §5). */
export function registerIntrospectRoute({
  callers,
  verifier,
  recorder,
  traffic,
  addressOf,
}: {
  callers: Callers;
  verifier: Verifier;
  recorder: Recorder;
  traffic: TrafficObserver | undefined;
  /** Where a caller is. */
  addressOf(message: IncomingMessage): string;
}): FastRoute {
  function answer<T>(
    { token, question }: { readonly token: string; readonly question: Question },
    asking: Asking,
    answerOf: (decision: Decision) => T,
  ): Soon<T> {
    return conclude(recorder, verifier.verify(token, question), answerOf, asking, question.request);
  }

  callers.scope('introspect', 'introspection', (scope) => {
    registerPlainBody(scope);
    registerFormBody(scope);
    scope.post(
      INTROSPECT_PATH,
      {
        preParsing: giveBody,
        // Its body is parsed once, below, and its answers are finished text.
        schema: {
          tags: ['Introspection'],
          operationId: 'introspect',
          summary: 'May this key do this?',
          description:
            '200 whenever a verdict was reached. `active` is the one member to test: it is `false` also when the key is fine but this request is not.',
          security: schemas.callerWith('introspect'),
          documentedBody: {
            content: { [JSON_TYPE]: { schema: introspectionBody }, [FORM]: { schema: formBody } },
          },
          response: {
            200: z
              .union([activeOutput, inactiveOutput, standardOutput])
              .describe('The verdict: the first two answer JSON, the third a form.'),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...schemas.BODY_PROBLEMS }),
          },
        },
      },
      (request, reply): Soon<string> => {
        const caller = callerOf(request);
        reply.header('content-type', ANSWER_TYPE);
        if (request.mediaType === FORM) {
          const { token } = parseInput(formBody, request.body);
          const question = { visibleWorkspaces: caller.allowedWorkspaces };
          return conclude(recorder, verifier.verify(token, question), standardAnswer, request, undefined);
        }
        if (request.mediaType !== JSON_TYPE) throw wrongMediaType(request.body);
        const asking = questionOf(readJsonBody(request.body), caller);
        if (asking instanceof Failure) throw asking;
        return answer(asking, request, jsonAnswer);
      },
    );
  });

  const routeOptions = routeOptionsOf(traffic, { method: 'POST', url: INTROSPECT_PATH });
  const plainAnswer = (decision: Decision): Answer => ({
    status: 200,
    headers: ANSWER_HEADERS,
    body: jsonAnswer(decision),
  });
  return (message) => {
    if (message.url !== INTROSPECT_PATH || message.method !== 'POST') return undefined;
    const head = readPlainHead(message.rawHeaders);
    if (head === undefined) return undefined;
    const address = () => addressOf(message);
    const caller = callers.recognize(head.token, message.socket, address);
    if (caller === undefined) return undefined;
    return {
      routeOptions,
      caller,
      address,
      bodyLength: head.bodyLength,
      answer(asked, bytes) {
        const body = bytes && readPlainBody(bytes);
        const asking = body && questionOf(body, caller);
        return asking === undefined || asking instanceof Failure
          ? undefined
          : answer(asking, asked, plainAnswer);
      },
      failed(failure, { id }) {
        traffic?.problem(failure.code);
        return problemAnswer(failure, id);
      },
    };
  };
}

/** Hands Fastify what was read of a body on the fast path. */
const giveBody: preParsingHookHandler = (request, _reply, payload, done) => {
  const body = takeBodyOfLeft(request.raw);
  done(null, body === undefined ? payload : Readable.from(body));
};

/** Bodies that were read by `readPlainBody`, and so keep the rules of the schema. */
const plainBodies = new WeakSet<object>();

/** JSON is read by `readPlainBody` on Fastify's way too, where that can. */
function registerPlainBody(app: FastifyInstance): void {
  app.removeContentTypeParser(JSON_TYPE);
  app.addContentTypeParser(
    JSON_TYPE,
    { parseAs: 'buffer' },
    bodyParser((bytes) => {
      const body = readPlainBody(bytes);
      if (body === undefined) return parseJson(bytes);
      plainBodies.add(body);
      return body;
    }),
  );
}

function readJsonBody(body: unknown): IntrospectionBody {
  const isPlain = typeof body === 'object' && body !== null && plainBodies.has(body);
  return isPlain ? body : parseInput(introspectionBody, body);
}

/** What is looked at of the head of an introspection that is plain. */
interface PlainHead {
  readonly token: string;
  readonly bodyLength: number;
}

/**
 * Reads a head as nearly all clients write it: one service key in `Authorization: Bearer`, a body in JSON. `undefined`
 * says nothing of any other.
 * @param rawHeaders names and values in turn.
 */
function readPlainHead(rawHeaders: readonly string[]): PlainHead | undefined {
  let token: string | undefined;
  let isJson = false;
  let bodyLength = 0;
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index] ?? '';
    // Most headers are told apart by their length, without a copy in lower case.
    if (((PLAIN_LENGTHS >> name.length) & 1) === 0) continue;
    const value = rawHeaders[index + 1] ?? '';
    switch (name.toLowerCase()) {
      case 'authorization':
        if (token !== undefined || !PLAIN_BEARER.test(value)) return undefined;
        token = value.slice('Bearer '.length);
        break;
      case 'content-type':
        if (isJson || value !== JSON_TYPE) return undefined;
        isJson = true;
        break;
      case 'content-length':
        // Node has seen to it that this is a number, the only one, and that the body is so long.
        bodyLength = Number(value);
        break;
      case 'x-api-key':
      case 'content-encoding':
        return undefined;
    }
  }
  if (token === undefined || !isJson || bodyLength === 0 || bodyLength > MAX_PLAIN_BYTES) return undefined;
  return { token, bodyLength };
}

/** A body of no such type, or none at all. */
function wrongMediaType(body: unknown): Failure {
  return body === undefined
    ? new Failure('invalid_request', 'Send the key in a JSON body or in a form.')
    : new Failure('unsupported_media_type', 'Send the body as application/json or as a form.');
}

/** What is asked; a failure, where something is wrong with that. */
function questionOf(
  body: IntrospectionBody,
  caller: Caller,
): { readonly token: string; readonly question: Question } | Failure {
  const { key, token = key, scopes, workspace_id: workspaceId, environment, cost, request } = body;
  if (token === undefined || (key !== undefined && body.token !== undefined)) {
    return invalidInput({ path: 'key', message: 'send the key in `key` or in `token`, one of them' });
  }
  if (workspaceId !== undefined && !reaches(caller, workspaceId)) return foreignWorkspace(workspaceId);
  return {
    token,
    question: {
      visibleWorkspaces: caller.allowedWorkspaces,
      scopes,
      workspaceId,
      environment,
      cost,
      request,
    },
  };
}

function registerFormBody(app: FastifyInstance): void {
  app.addContentTypeParser(
    FORM,
    { parseAs: 'buffer' },
    bodyParser((body) => {
      const tokens = new URLSearchParams(body.toString()).getAll('token');
      const [token] = tokens;
      // A parameter without a value counts as left out (RFC 6749 §3.2).
      if (token === undefined || token === '' || tokens.length > 1) {
        throw new Failure('invalid_request', 'The form must hold one `token`.');
      }
      checkText(token);
      return { token };
    }),
  );
}

const INVALID_TEXT = inactiveText(INVALID);

function jsonAnswer(decision: Decision): string {
  // What a flood of made-up strings comes to.
  if (decision === INVALID) return INVALID_TEXT;
  if (!decision.active) return inactiveText(decision);
  const { key, accessToken } = decision.record;
  const expiresAt = accessToken === undefined ? key.expiresAt : endOf(key, accessToken);
  return activeText(key, expiresAt, decision.rateLimit ?? null);
}

function inactiveText({ code, detail, limited }: Refusal): string {
  const reason = { code, status: REFUSALS[code], detail };
  const answer: InactiveAnswer =
    limited === undefined
      ? { active: false, reason }
      : { active: false, reason, rate_limit: limited.rateLimit, retry_after: limited.retryAfterSeconds };
  return JSON.stringify(answer);
}

/**
 * `ActiveKey` as text. Written by hand because it is most of what this route does by itself: the members that can
 * hold no character to escape are put in as they are.
 */
function activeText(key: Key, expiresAtMs: number | null, rateLimit: RateLimitState | null): string {
  const scopes = key.scopes.length === 0 ? '[]' : `["${key.scopes.join('","')}"]`;
  const expiresAt = expiresAtMs === null ? 'null' : `"${isoTime(expiresAtMs)}"`;
  const metadata = key.metadata === null ? 'null' : JSON.stringify(key.metadata);
  const limit = rateLimit === null ? 'null' : JSON.stringify(rateLimit);
  return `{"active":true,"key_id":"${key.id}","workspace_id":"${key.workspaceId}","name":${JSON.stringify(key.name)},"environment":"${key.environment}","scopes":${scopes},"created_at":"${isoTime(key.createdAt)}","expires_at":${expiresAt},"metadata":${metadata},"rate_limit":${limit}}`;
}

/** RFC 7662 §2.2: an inactive token gets nothing but that. */
export function standardAnswer(decision: Decision): string {
  if (!decision.active) return '{"active":false}';
  const { key, accessToken } = decision.record;
  const answer: StandardAnswer = {
    active: true,
    // RFC 6749 §3.3: a scope names one at least.
    ...(key.scopes.length === 0 ? {} : { scope: key.scopes.join(' ') }),
    client_id: key.id,
    sub: key.workspaceId,
    token_type: 'Bearer',
    ...(accessToken === undefined ? lifeOfKey(key) : lifeOfToken(key, accessToken)),
  };
  return JSON.stringify(answer);
}

function lifeOfKey({ createdAt, expiresAt }: Key): Partial<StandardAnswer> {
  return { iat: seconds(createdAt), ...(expiresAt === null ? {} : { exp: seconds(expiresAt) }) };
}

function lifeOfToken(key: Key, token: AccessToken): Partial<StandardAnswer> {
  return { iat: token.issuedAt, exp: seconds(endOf(key, token)), jti: token.jti };
}

function seconds(timeMs: number): number {
  return Math.floor(timeMs / 1000);
}
