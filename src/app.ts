import rateLimit from '@fastify/rate-limit';
import Fastify, { type FastifyBaseLogger, type FastifyInstance, LogController } from 'fastify';
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import { Failure } from './domain/errors.ts';
import { registerJsonBody } from './http/body.ts';
import { type CallerLimits, createCallers } from './http/callers.ts';
import type { CursorCodec } from './http/cursor.ts';
import { collectDocument, registerDocumentation } from './http/documentation.ts';
import { type Readiness, registerHealthRoutes } from './http/health.ts';
import { registerIntrospectRoute } from './http/introspect.ts';
import { registerKeyRoutes } from './http/keys.ts';
import { registerMeRoute } from './http/me.ts';
import { answerClientError, handleError, sendProblem } from './http/problem.ts';
import { requestIdOf } from './http/request-id.ts';
import { registerWorkspaceRoutes } from './http/workspaces.ts';
import type { KeyLifecycle } from './lifecycle/keys.ts';
import type { Database } from './storage/database.ts';
import type { Verifier } from './verification/verifier.ts';

export interface AppDependencies {
  readonly logger: FastifyBaseLogger;
  readonly database: Database;
  readonly verifier: Verifier;
  readonly lifecycle: KeyLifecycle;
  readonly cursors: CursorCodec;
  readonly readiness: Readiness;
  readonly limits: CallerLimits;
  readonly rotationDueDays: number;
  /** Addresses and CIDRs of proxies whose `X-Forwarded-For` is believed. */
  readonly trustedProxies: readonly string[];
  readonly version: string;
  /** Once true, each answer asks the client to use another connection. */
  isClosing(): boolean;
}

const BODY_LIMIT_BYTES = 64 * 1024;
/** Longer than any id, so that a long one is answered by its route, not by the router. */
const MAX_PARAM_LENGTH = 1_000;
/** A client that takes longer for its headers and body is no client of ours. */
const REQUEST_TIMEOUT_MS = 30_000;

/** The HTTP service over what it is given. It opens nothing: no socket, no connection, no file. */
export async function buildApp(dependencies: AppDependencies): Promise<FastifyInstance> {
  const { verifier, lifecycle, database, cursors, rotationDueDays, isClosing } = dependencies;
  const app: FastifyInstance = Fastify({
    loggerInstance: dependencies.logger,
    // One line a request, by the hook below: Fastify's own would hold the URL, and so whatever a client put there.
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: BODY_LIMIT_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    routerOptions: { maxParamLength: MAX_PARAM_LENGTH },
    trustProxy: dependencies.trustedProxies.length === 0 ? false : [...dependencies.trustedProxies],
    genReqId: requestIdOf,
    requestIdHeader: false,
    // While it drains an instance still answers what it accepted; Fastify's own 503 would drop it.
    return503OnClosing: false,
    // Node's own answer to a request without Host has no body; the hook below gives one.
    http: { requireHostHeader: false },
    clientErrorHandler: (_error, socket) => answerClientError(socket),
    frameworkErrors: (error, request, reply) => {
      setCommonHeaders(request.id, reply);
      handleError(error, request, reply);
    },
  });
  // Node answers an Expect that it does not know by itself, and without a body.
  app.server.on('checkExpectation', (message, response) => app.server.emit('request', message, response));

  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler(handleError);
  registerJsonBody(app);
  app.addHook('onRequest', async (request, reply) => {
    setCommonHeaders(request.id, reply);
    if (isClosing()) reply.header('connection', 'close');
    if (request.raw.httpVersionMinor === 1 && request.headers.host === undefined) {
      throw new Failure('invalid_request', 'An HTTP/1.1 request needs a Host header.');
    }
  });
  app.addHook('onResponse', async (request, reply) => {
    request.log.info(
      {
        method: request.method,
        route: request.routeOptions.url ?? null,
        status: reply.statusCode,
        duration_ms: Math.round(reply.elapsedTime * 1000) / 1000,
        caller: request.caller?.keyId ?? null,
        address: request.ip,
      },
      'answered',
    );
  });

  await app.register(rateLimit, { global: false });
  const callers = createCallers(app, verifier, dependencies.limits);
  app.setNotFoundHandler(async (request, reply) => {
    try {
      await callers.countFailure(request, reply);
    } catch (refusal) {
      // A valid service key is not refused for what others at its address did.
      if (!(await callers.isGenuine(request))) throw refusal;
    }
    return sendProblem(request, reply, new Failure('not_found', 'There is no such route.'));
  });

  await collectDocument(app, dependencies);
  registerKeyRoutes({ callers, lifecycle, database, cursors, rotationDueDays });
  registerWorkspaceRoutes({ callers, lifecycle });
  registerIntrospectRoute({ callers, verifier });
  registerMeRoute({ callers });
  registerHealthRoutes(app, dependencies);
  registerDocumentation(app);
  return app;
}

function setCommonHeaders(requestId: string, reply: { header(name: string, value: string): unknown }): void {
  reply.header('x-request-id', requestId);
  reply.header('cache-control', 'no-store');
}
