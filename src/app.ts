import type { Server } from 'node:http';
import type { SecureContextOptions } from 'node:tls';
import rateLimit from '@fastify/rate-limit';
import Fastify, {
  type FastifyInstance,
  type FastifyPluginCallback,
  type FastifyReply,
  type FastifyRequest,
} from 'fastify';
import { serializerCompiler } from 'fastify-type-provider-zod';
import type { Logger } from 'pino';
import { Failure } from './domain/errors.ts';
import type { SignalThresholds } from './domain/signal.ts';
import { addressOf, createAddressReader } from './http/address.ts';
import { registerAuditRoutes } from './http/audit-events.ts';
import { type GatewaySettings, registerAuthorizeRoute, routedUrl } from './http/authorize.ts';
import { registerJsonBody } from './http/body.ts';
import { type CallerLimits, createCallers } from './http/callers.ts';
import { setCommonHeaders } from './http/common-headers.ts';
import { guardConnections, putInFront } from './http/connections.ts';
import type { CursorCodec } from './http/cursor.ts';
import { collectDocument, registerDocumentation } from './http/documentation.ts';
import { arrivalOf, createFastPath } from './http/fast-path.ts';
import type { GithubKeys } from './http/github-keys.ts';
import { registerGithubLeakRoute } from './http/github-leaks.ts';
import { type Readiness, registerHealthRoutes } from './http/health.ts';
import { faultOfHost } from './http/host.ts';
import { registerIntrospectRoute } from './http/introspect.ts';
import { registerKeyRoutes } from './http/keys.ts';
import { registerLeakRoute } from './http/leaks.ts';
import { registerMeRoute } from './http/me.ts';
import { type MetricsSource, registerMetricsRoute } from './http/metrics.ts';
import { registerOAuthScope } from './http/oauth.ts';
import { INTROSPECT_URL, registerOAuthIntrospectRoute } from './http/oauth-introspect.ts';
import { registerMetadataRoutes } from './http/oauth-metadata.ts';
import { REVOKE_URL, registerRevokeRoute } from './http/oauth-revoke.ts';
import { registerTokenRoute, TOKEN_URL } from './http/oauth-token.ts';
import { createErrorHandler, sendProblem } from './http/problem.ts';
import { registerRateLimitRoutes } from './http/rate-limits.ts';
import { requestIdOf } from './http/request-id.ts';
import { registerRequestLogRoutes } from './http/request-logs.ts';
import { registerRotationRoute } from './http/rotation.ts';
import { registerScopeRoutes } from './http/scopes.ts';
import { registerSignalRoutes } from './http/signals.ts';
import { followTraffic, type TrafficObserver } from './http/traffic.ts';
import { registerUsageRoutes } from './http/usage.ts';
import { validatorCompiler } from './http/validation.ts';
import { registerWorkspaceRoutes } from './http/workspaces.ts';
import type { AccessTokenLifecycle } from './lifecycle/access-tokens.ts';
import type { Idempotency } from './lifecycle/idempotency.ts';
import type { KeyLifecycle } from './lifecycle/keys.ts';
import type { ScopeLifecycle } from './lifecycle/scopes.ts';
import type { TokenRevocation } from './lifecycle/token-revocation.ts';
import type { WorkspaceLifecycle } from './lifecycle/workspaces.ts';
import type { Recorder } from './recording/recorder.ts';
import type { Database } from './storage/database.ts';
import type { QuotaLook } from './verification/quota-look.ts';
import type { PublicJwk } from './verification/signing-keys.ts';
import type { Verifier } from './verification/verifier.ts';

export interface AppDependencies {
  readonly logger: Logger;
  readonly database: Database;
  readonly verifier: Verifier;
  readonly lifecycle: KeyLifecycle;
  readonly scopes: ScopeLifecycle;
  readonly recorder: Recorder;
  readonly workspaces: WorkspaceLifecycle;
  readonly tokenRevocation: TokenRevocation;
  /** `undefined`: no report of GitHub's can be checked. */
  readonly githubKeys: GithubKeys | undefined;
  readonly idempotency: Idempotency;
  readonly accessTokens: AccessTokenLifecycle;
  publicKeys(): readonly PublicJwk[];
  readonly cursors: CursorCodec;
  readonly lookAtQuota: QuotaLook;
  readonly readiness: Readiness;
  readonly limits: CallerLimits;
  readonly rotationDueDays: number;
  readonly signals: SignalThresholds;
  /** Addresses and CIDRs of proxies whose `X-Forwarded-For` is believed. */
  readonly trustedProxies: readonly string[];
  /** The issuer of access tokens, for the port that is listened on where that is known. */
  issuerAt(port: number | undefined): string;
  readonly gateways: GatewaySettings;
  readonly version: string;
  /** `undefined`: there is no `/metrics`. */
  readonly metrics: MetricsSource | undefined;
  /** A certificate and its key, to serve HTTPS. Without: plain HTTP. */
  readonly tls?: SecureContextOptions;
  /** Makes spans of requests (tracing.ts). */
  readonly tracing?: FastifyPluginCallback;
  /** Told of requests; `undefined`: nobody is. */
  readonly traffic: TrafficObserver | undefined;
  /** Once true, each answer asks the client to use another connection. */
  isClosing(): boolean;
}

const BODY_LIMIT_BYTES = 64 * 1024;
/** Longer than any id, so that a long one is answered by its route, not by the router. */
const MAX_PARAM_LENGTH = 1_000;
/** A client that takes longer for its headers and body is no client of ours. */
const REQUEST_TIMEOUT_MS = 30_000;
/** Node's own answer to a request without Host has no body; a hook of ours gives one. */
const HTTP_OPTIONS = { requireHostHeader: false };

/** The HTTP service over what it is given. It opens nothing: no socket, no connection, no file. */
export async function buildApp(dependencies: AppDependencies): Promise<FastifyInstance> {
  const {
    verifier,
    lifecycle,
    workspaces,
    scopes,
    idempotency,
    recorder,
    database,
    cursors,
    rotationDueDays,
    tokenRevocation,
    githubKeys,
    logger,
    tls,
    traffic,
    isClosing,
  } = dependencies;
  const answerProblem: typeof sendProblem = (request, reply, failure) => {
    traffic?.problem(failure.code);
    return sendProblem(request, reply, failure);
  };
  const handleError = createErrorHandler(logger, answerProblem);
  const app: FastifyInstance = Fastify<Server>({
    // Two lines of ours tell of requests, in traffic.ts and in problem.ts. Fastify's own would hold the URL, and so
    // whatever a client put there; and with a logger it listens for the end of every response, logged or not.
    logger: false,
    bodyLimit: BODY_LIMIT_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    routerOptions: { maxParamLength: MAX_PARAM_LENGTH },
    trustProxy: dependencies.trustedProxies.length === 0 ? false : [...dependencies.trustedProxies],
    rewriteUrl: routedUrl,
    genReqId: (message) => arrivalOf(message)?.request.id ?? requestIdOf(message),
    requestIdHeader: false,
    // While it drains an instance still answers what it accepted; Fastify's own 503 would drop it.
    return503OnClosing: false,
    ...(tls === undefined
      ? { http: HTTP_OPTIONS }
      : { https: { ...HTTP_OPTIONS, ...tls, handshakeTimeout: REQUEST_TIMEOUT_MS } }),
    clientErrorHandler: (error, socket) => refuseBytes(error, socket),
    frameworkErrors: (error, request, reply) => {
      follow(request, reply);
      setCommonHeaders(request.id, reply);
      handleError(error, request, reply);
    },
  });
  const followed = followTraffic(app, { logger, observer: traffic });
  const follow = (request: FastifyRequest, reply: FastifyReply) => {
    const arrival = arrivalOf(request.raw) ?? followed.arrived(request, addressOf);
    arrival.request = request;
    followed.follow(arrival, reply.raw);
  };

  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler(handleError);
  registerJsonBody(app);
  if (dependencies.tracing !== undefined) await app.register(dependencies.tracing);
  app.addHook('onRequest', (request, reply, done) => {
    follow(request, reply);
    setCommonHeaders(request.id, reply);
    if (isClosing()) reply.header('connection', 'close');
    const badHost = faultOfHost(request.raw);
    if (badHost !== undefined) done(badHost);
    // Here rather than in its handler, before which Fastify would read a body and find fault with it.
    else if (request.is404) answerUnknownRoute(request, reply).catch(done);
    else done();
  });

  await app.register(rateLimit, { global: false });
  const callers = createCallers(app, { verifier, recorder }, dependencies.limits);
  const answerUnknownRoute = async (request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> => {
    await callers.countUnknownRoute(request, reply);
    return answerProblem(request, reply, new Failure('not_found', 'There is no such route.'));
  };
  app.setNotFoundHandler(answerUnknownRoute);

  await collectDocument(app, dependencies);
  registerKeyRoutes({ callers, lifecycle, idempotency, database, cursors, rotationDueDays });
  registerRotationRoute({ callers, lifecycle, idempotency, rotationDueDays });
  registerRateLimitRoutes({ callers, database, lookAtQuota: dependencies.lookAtQuota });
  registerWorkspaceRoutes({ callers, workspaces, database });
  registerScopeRoutes({ callers, scopes, database, cursors });
  const addressOfMessage = createAddressReader(dependencies.trustedProxies);
  const fastRoutes = [
    registerIntrospectRoute({ callers, verifier, recorder, traffic, addressOf: addressOfMessage }),
    registerAuthorizeRoute(app, { ...dependencies, callers }),
  ];
  // The span of a request is begun and ended by hooks of Fastify's.
  if (dependencies.tracing === undefined) {
    const isOpen = () => !isClosing();
    putInFront(app.server, (fastify) =>
      createFastPath(
        { routes: fastRoutes, callers, traffic: followed, addressOf: addressOfMessage, logger, isOpen },
        fastify,
      ),
    );
  }
  const refuseBytes = guardConnections(app.server, traffic);
  registerAuditRoutes({ callers, database, cursors });
  registerRequestLogRoutes({ callers, database, cursors });
  registerUsageRoutes({ callers, database, recorder });
  registerSignalRoutes({ callers, database, cursors, thresholds: dependencies.signals });
  registerMeRoute({ callers });
  const issuer = () => {
    const bound = app.server.address();
    return dependencies.issuerAt(typeof bound === 'object' ? bound?.port : undefined);
  };
  registerOAuthScope(app, { urls: [TOKEN_URL, INTROSPECT_URL, REVOKE_URL], logger }, (scope) => {
    const { accessTokens } = dependencies;
    registerTokenRoute(scope, { callers, accessTokens, issuer });
    registerRevokeRoute(scope, { callers, verifier, accessTokens, tokenRevocation });
    registerOAuthIntrospectRoute(scope, { callers, verifier, recorder });
  });
  registerMetadataRoutes(app, { issuer, publicKeys: dependencies.publicKeys });
  registerLeakRoute({ callers, tokenRevocation });
  registerGithubLeakRoute(app, { callers, tokenRevocation, githubKeys });
  registerHealthRoutes(app, dependencies);
  if (dependencies.metrics !== undefined) registerMetricsRoute(app, dependencies.metrics);
  registerDocumentation(app);
  return app;
}
