import { type IncomingHttpHeaders, type IncomingMessage, METHODS } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { LRUCache } from 'lru-cache';
import type { Logger } from 'pino';
import { z } from 'zod';
import { containsAddress, parseCidr } from '../domain/address.ts';
import { type Caller, reaches } from '../domain/caller.ts';
import { type Decision, REFUSALS, type Refusal, refuse } from '../domain/decision.ts';
import { ERRORS, Failure } from '../domain/errors.ts';
import type { Key } from '../domain/key.ts';
import { foreignWorkspace } from '../lifecycle/key-rules.ts';
import type { Recorder } from '../recording/recorder.ts';
import type { Soon, Verifier } from '../verification/verifier.ts';
import { peerAddressOf, peerOf } from './address.ts';
import { type Answer, sendAnswer } from './answer.ts';
import { type Callers, gatewayKeyOf, LIMIT_HEADERS, limitHeaders } from './callers.ts';
import { readCredential } from './credential.ts';
import type { Asked, FastRoute } from './fast-path.ts';
import { AUTHORIZE_PATH, type AuthorizeSource, behindAuthorize, factsOf, textOf } from './gateway-request.ts';
import { createErrorHandler, problemAnswer, refusalAnswer } from './problem.ts';
import { rateLimitFields } from './rate-limit-fields.ts';
import * as schemas from './schemas.ts';
import { routeOptionsOf, type TrafficObserver } from './traffic.ts';
import { parseInput } from './validation.ts';
import { conclude } from './verdict.ts';

/*
 * `/v1/authorize` (contract §7): the decision of introspection for a gateway, which goes by the status alone. It is made
 * before anything of a body is read, so that none can be at fault; and whatever is wrong with a request, its answer is
 * one that gateways let nobody in by and that says what it is: 401, 403, 429 or 503.
 */

/** What this deployment's gateways are like. */
export interface GatewaySettings {
  readonly source: AuthorizeSource;
  readonly forwardedForHops: number;
  /** Addresses and CIDRs of gateways that need no service key. */
  readonly trusted: readonly string[];
}

/** What the configuration of a gateway says, the same for each of its requests. */
interface Options {
  readonly scopes: readonly string[] | undefined;
  readonly workspaceId: string | undefined;
  readonly environment: string | undefined;
  /** What stands for 429 with a gateway that knows no such answer. */
  readonly rateLimitedStatus: 403 | 429;
}

/** More routes with options of their own than a gateway has. */
const MAX_KNOWN_OPTIONS = 100;
const STATUSES: readonly number[] = [401, 403, 429, 503];

const optionsInput = z.strictObject({
  scope: schemas.scopes
    .optional()
    .describe('All of these are needed, held directly or by `implies` of the scope catalogue. Repeatable.'),
  workspace_id: schemas.workspaceId.optional().describe('The workspace that the key is expected to be of.'),
  environment: schemas.environment.optional().describe('The environment that the key is expected to be of.'),
  rate_limited_status: z
    .literal('403', 'must be 403')
    .optional()
    .describe('`403`: answers 403 in place of 429, for gateways such as nginx that turn 429 into 500.'),
});

const headersInput = z.object({
  'X-Forwarded-For': z
    .string()
    .optional()
    .describe("The client's address: the `AUTHORIZE_FORWARDED_FOR_HOPS`-th from the right."),
  'X-Forwarded-Method': z
    .string()
    .optional()
    .describe('The method of the request, with `AUTHORIZE_SOURCE=forwarded`.'),
  'X-Forwarded-Uri': z
    .string()
    .optional()
    .describe('The path of the request, with or without its query, with `AUTHORIZE_SOURCE=forwarded`.'),
  'X-Original-Method': z.string().optional().describe('The same with `AUTHORIZE_SOURCE=original`.'),
  'X-Original-URI': z.string().optional().describe('The same with `AUTHORIZE_SOURCE=original`.'),
  'X-Claviger-Scope': z
    .string()
    .optional()
    .describe(
      '`scope` with `AUTHORIZE_SOURCE=path`, where the query is the client’s; separated by spaces or commas.',
    ),
  'X-Claviger-Workspace': z.string().optional().describe('`workspace_id` with `AUTHORIZE_SOURCE=path`.'),
  'X-Claviger-Environment-Expected': z
    .string()
    .optional()
    .describe('`environment` with `AUTHORIZE_SOURCE=path`.'),
});

const SCHEMA = {
  tags: ['Introspection'],
  operationId: 'authorize',
  summary: 'May this request pass?',
  description: `The same decision as introspection, for a gateway that asks before it passes a request on (nginx \`auth_request\`, Caddy \`forward_auth\`, Traefik \`ForwardAuth\`, Envoy \`ext_authz\`): 200 lets the request in, anything else is the answer to the client. See \`docs/gateways.md\`.

Any method will do, with or without a body, which is not read; HEAD has no body in its answer. With \`AUTHORIZE_SOURCE=path\` so will any path below this one: it is the client's, query and all.

The gateway shows itself by a service key in \`X-Claviger-Service-Key\`, or by its address (\`AUTHORIZE_TRUSTED_CIDRS\`); then that header is not looked at. The client's key is in \`Authorization: Bearer\` or in \`X-Api-Key\`.`,
  security: [{ gateway: ['introspect'] }],
  querystring: optionsInput,
  headers: headersInput,
  response: {
    200: { description: 'It may. The body is empty; who the key is stands in the headers.', content: {} },
    ...schemas.problems({
      401: 'The key is refused (`invalid`, `revoked`, `expired`), or the gateway is (`unauthorized`).',
      403: 'The key may not do this (`workspace_disabled`, `wrong_workspace`, `wrong_environment`, `ip_not_allowed`, `referrer_not_allowed`, `endpoint_not_allowed`, `insufficient_scope`), or the gateway may not ask this, or asks wrongly (`forbidden`).',
      429: "The key's rate limit is spent, or the gateway's own (`rate_limited`).",
      503: 'Nothing was decided (`overloaded`, `unavailable`).',
    }),
  },
};

/** What is decided of a client that shows no key, or more than one. */
const NO_KEY = {
  absent: refuse('invalid', 'Send an API key in Authorization: Bearer or in X-Api-Key.'),
  ambiguous: refuse('invalid', 'Send one API key, in Authorization: Bearer or in X-Api-Key.'),
} as const;

/**
 * `/v1/authorize`, and with `AUTHORIZE_SOURCE=path` every path below it: app.ts routes those here (`routedUrl`).
 * Answers its way on the fast path.
 */
export function registerAuthorizeRoute(
  app: FastifyInstance,
  dependencies: {
    callers: Callers;
    verifier: Verifier;
    recorder: Recorder;
    gateways: GatewaySettings;
    logger: Logger;
    traffic: TrafficObserver | undefined;
  },
): FastRoute {
  const { callers, verifier, recorder, gateways, logger, traffic } = dependencies;
  const trusted = gateways.trusted.flatMap((text) => parseCidr(text) ?? []);
  const readOptions = createOptionsReader(gateways.source);
  /** A record in memory keeps its key, and so what was made of it. */
  const identities = new WeakMap<Key, readonly string[]>();

  /** From a trusted address no header of a service key is looked at: one that stands there is the client's. */
  function isTrusted(message: IncomingMessage): boolean {
    if (trusted.length === 0) return false;
    const peer = peerOf(message);
    return peer !== undefined && trusted.some((cidr) => containsAddress(cidr, peer));
  }

  /** @param behind what stands behind the route's path in what was asked for; throws, or rejects, a Failure. */
  function judge(asked: Pick<Asked, 'id' | 'caller' | 'raw'>, behind: string | undefined): Soon<Answer> {
    const { caller, raw } = asked;
    const { method = '', headers } = raw;
    const options = readOptions(headers, behind);
    if (options instanceof Failure) throw options;
    const { workspaceId, scopes, environment } = options;
    if (workspaceId !== undefined && caller !== null && !reaches(caller, workspaceId)) {
      throw foreignWorkspace(workspaceId);
    }
    const facts = factsOf({ method, headers, behind: behind ?? '' }, gateways);
    const credential = readCredential(raw.rawHeaders);
    const question = {
      visibleWorkspaces: caller?.allowedWorkspaces ?? null,
      scopes,
      workspaceId,
      environment,
      request: facts,
      needsRoute: true,
    };
    const decision =
      credential.kind === 'presented' ? verifier.verify(credential.token, question) : NO_KEY[credential.kind];
    return conclude(recorder, decision, (made) => answerOf(made, asked, options), asked, facts);
  }

  function answerOf(decision: Decision, { id }: Pick<Asked, 'id'>, options: Options): Answer {
    const limits = limitsOf(decision);
    if (decision.active) {
      const identity = identityOf(decision.record.key);
      return { status: 200, headers: limits === NO_LIMITS ? identity : [...identity, ...limits], body: '' };
    }
    const { code } = decision;
    const status = code === 'rate_limited' ? options.rateLimitedStatus : REFUSALS[code];
    const refusal = refusalAnswer(decision, id, { status, challenge: challengeOf(decision, options) });
    return { ...refusal, headers: [...limits, ...refusal.headers] };
  }

  /** What a key is known by. */
  function identityOf(key: Key): readonly string[] {
    let identity = identities.get(key);
    if (identity === undefined) {
      identity = identityHeaders(key);
      identities.set(key, identity);
    }
    return identity;
  }

  /** Of what is wrong with the gateway or with us, as one of the statuses that no gateway lets anybody in by. */
  function failureAnswer(
    failure: Failure,
    { id, raw }: Pick<Asked, 'id' | 'raw'>,
    behind: string | undefined,
  ): Answer {
    const { status } = ERRORS[failure.code];
    const told = STATUSES.includes(status)
      ? failure
      : new Failure('forbidden', failure.message, failure.options);
    traffic?.problem(told.code);
    if (told.code !== 'rate_limited') return problemAnswer(told, id);
    const options = readOptions(raw.headers, behind);
    return problemAnswer(told, id, options instanceof Failure ? status : options.rateLimitedStatus);
  }

  async function answerThroughFastify(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    if (!isTrusted(request.raw)) await callers.admitGateway(request, reply);
    const answer = await judge(request, behindAuthorize(request.originalUrl));
    // Limits of the gateway itself, which may have been set before, are none of its client's.
    for (const name of LIMIT_HEADERS) reply.removeHeader(name);
    sendAnswer(reply, answer);
  }

  app.register(async (scope) => {
    for (const method of METHODS) {
      if (method !== 'CONNECT' && !scope.supportedMethods.includes(method)) scope.addHttpMethod(method);
    }
    scope.setErrorHandler(
      createErrorHandler(logger, (request, reply, failure) =>
        sendAnswer(reply, failureAnswer(failure, request, behindAuthorize(request.originalUrl))),
      ),
    );
    scope.addHook('onRequest', (request, reply, done) => {
      answerThroughFastify(request, reply).catch(done);
    });
    // Each is answered by the hook, before Fastify would look at the body.
    const handler = () => {
      throw new TypeError('the hook answers every request');
    };
    scope.get(AUTHORIZE_PATH, { schema: SCHEMA, exposeHeadRoute: false }, handler);
    const others = scope.supportedMethods.filter((method) => method !== 'GET');
    scope.route({ method: others, url: AUTHORIZE_PATH, schema: { hide: true }, handler });
  });

  function recognizeGateway(message: IncomingMessage, address: () => string): Caller | undefined {
    const token = gatewayKeyOf(message.headers);
    return token === undefined ? undefined : callers.recognize(token, message.socket, address);
  }

  const routeOptions = {
    get: routeOptionsOf(traffic, { method: 'GET', url: AUTHORIZE_PATH }),
    others: routeOptionsOf(traffic, { method: '*', url: AUTHORIZE_PATH }),
  };
  return (message) => {
    const behind = behindAuthorize(message.url ?? '');
    if (behind === undefined) return undefined;
    const address = () => peerAddressOf(message);
    const caller = isTrusted(message) ? null : recognizeGateway(message, address);
    if (caller === undefined) return undefined;
    return {
      routeOptions: message.method === 'GET' ? routeOptions.get : routeOptions.others,
      caller,
      address,
      bodyLength: 0,
      answer: (asked) => judge(asked, behind),
      failed: (failure, asked) => failureAnswer(failure, asked, behind),
    };
  };
}

/** The URL that a request is routed by: below `/v1/authorize` whatever a client wrote, which no router should read. */
export function routedUrl({ url = '' }: { readonly url?: string | undefined }): string {
  return behindAuthorize(url) === undefined ? url : AUTHORIZE_PATH;
}

/** Reads what a gateway's configuration says; what is wrong with it, as a value. */
function createOptionsReader(
  source: AuthorizeSource,
): (headers: IncomingHttpHeaders, behind: string | undefined) => Options | Failure {
  // The same for each request of a route of the gateway's, of which there are not many.
  const known = new LRUCache<string, Options | Failure>({ max: MAX_KNOWN_OPTIONS });
  let latest: { readonly text: string; readonly read: Options | Failure } | undefined;
  return (headers, behind) => {
    // What the router made of other spellings is nothing to go by.
    if (behind === undefined) return new Failure('invalid_request', `Write the path as ${AUTHORIZE_PATH}.`);
    const text = source === 'path' ? optionHeadersOf(headers) : queryOf(behind);
    if (latest?.text === text) return latest.read;
    let read = known.get(text);
    if (read === undefined) {
      read = readOptionText(text);
      known.set(text, read);
    }
    latest = { text, read };
    return read;
  };
}

function readOptionText(text: string): Options | Failure {
  const given = new URLSearchParams(text);
  const members = [...new Set(given.keys())].map((name) => {
    const values = given.getAll(name);
    return [name, name === 'scope' || values.length > 1 ? values : values[0]];
  });
  try {
    const input = parseInput(optionsInput, Object.fromEntries(members));
    return {
      scopes: input.scope,
      workspaceId: input.workspace_id,
      environment: input.environment,
      rateLimitedStatus: input.rate_limited_status === undefined ? 429 : 403,
    };
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
}

function queryOf(behind: string): string {
  const from = behind.indexOf('?');
  return from < 0 ? '' : behind.slice(from + 1);
}

/** The options of a gateway that can set no query, written as one. */
function optionHeadersOf(headers: IncomingHttpHeaders): string {
  const options = new URLSearchParams();
  for (const scope of textOf(headers['x-claviger-scope'])?.split(/[ ,]+/) ?? [])
    options.append('scope', scope);
  const workspaceId = textOf(headers['x-claviger-workspace']);
  if (workspaceId !== undefined) options.append('workspace_id', workspaceId);
  const environment = textOf(headers['x-claviger-environment-expected']);
  if (environment !== undefined) options.append('environment', environment);
  return options.toString();
}

/** What `WWW-Authenticate` says behind the realm (RFC 6750 §3). */
function challengeOf(refusal: Refusal, { scopes = [] }: Options): string | undefined {
  if (refusal === NO_KEY.absent) return '';
  if (REFUSALS[refusal.code] === 401) return ', error="invalid_token"';
  if (refusal.code !== 'insufficient_scope') return undefined;
  const wanted = scopes.length === 0 ? '' : `, scope="${scopes.join(' ')}"`;
  return `, error="insufficient_scope"${wanted}`;
}

function identityHeaders({ id, workspaceId, environment, scopes, name }: Key): readonly string[] {
  return [
    ...['x-claviger-key-id', id],
    ...['x-claviger-workspace-id', workspaceId],
    ...['x-claviger-environment', environment],
    ...['x-claviger-scopes', scopes.join(' ')],
    ...['x-claviger-key-name', encodeURIComponent(name)],
  ];
}

const NO_LIMITS: readonly string[] = [];

/** How the key's limits stand. */
function limitsOf(decision: Decision): readonly string[] {
  const { record, nowMs } = decision;
  const state = decision.active ? decision.rateLimit : decision.limited?.rateLimit;
  if (record === undefined || nowMs === undefined || state === undefined) return NO_LIMITS;
  const { policy, limit } = rateLimitFields(record, state, nowMs);
  return [
    ...limitHeaders(state.limit, state.remaining, state.reset),
    ...['ratelimit-policy', policy],
    ...['ratelimit', limit],
  ];
}
