import type { IncomingHttpHeaders } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Caller } from '../domain/caller.ts';
import { Failure } from '../domain/errors.ts';
import type { RateLimit } from '../domain/rate-limit.ts';
import { type Permission, permits } from '../domain/scope.ts';
import type { Recorder } from '../recording/recorder.ts';
import { type Authentication, type Soon, showToken, type Verifier } from '../verification/verifier.ts';
import { addressBlockOf, addressOf, peerAddressOf } from './address.ts';
import { connectionOf } from './connection.ts';
import { type Credential, readCredential } from './credential.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Set by the scope that the route is registered in (`Callers.scope`). */
    caller: Caller | null;
  }
}

/** Claviger's own limits, in requests a minute; `null` is off. */
export interface CallerLimits {
  readonly callerPerMinute: number | null;
  readonly introspectPerMinute: number | null;
  readonly failedPerMinute: number | null;
}

export type Limiter = 'management' | 'introspection';

export interface Callers {
  /** Registers routes that a caller with this permission may use (`null`: any service key), under one of the limits. */
  scope(permission: Permission | null, limiter: Limiter, routes: (scope: FastifyInstance) => void): void;
  /** The same for the routes of a scope that there is already, with a way of its own to show a service key. */
  guard(
    scope: FastifyInstance,
    gate: {
      readonly permission: Permission | null;
      readonly limiter: Limiter;
      readonly read?: (rawHeaders: readonly string[]) => Credential;
    },
  ): void;
  /** Registers routes that ask for no service key: each address may send them as many requests as it may fail elsewhere. */
  strangers(routes: (scope: FastifyInstance) => void): void;
  /**
   * Lets in the gateway that shows a service key with `introspect`, in a header of its own since the others hold its
   * client's key; throws, or rejects, a Failure for any other.
   */
  admitGateway(request: FastifyRequest, reply: FastifyReply): Soon<void>;
  /**
   * The caller whose service key this is, where memory alone lets it in to ask for verdicts and it has no limit.
   * `undefined` says nothing of any other: it has to be let in by the ways above. Leaves no trace (`arrived`).
   */
  recognize(token: string, socket: Socket, address: () => string): Caller | undefined;
  /** A caller who was recognized is answered. */
  arrived(caller: Caller, address: () => string): void;
  /**
   * Counts a request to an unknown route against its address, and throws `rate_limited` where there were too many;
   * not for a valid service key, which is never refused for what others at its address did.
   */
  countUnknownRoute(request: FastifyRequest, reply: FastifyReply): Promise<void>;
  /** Counts a failed authentication against its address, and throws `rate_limited` where there were too many. */
  countFailure(request: FastifyRequest, reply: FastifyReply): Promise<void>;
}

type Limit = ReturnType<FastifyInstance['createRateLimit']>;

/** What a scope asks of its callers. */
interface Gate {
  readonly permission: Permission | null;
  readonly limit: Limit | undefined;
}

/** A service key as it was shown; `undefined`: none was. */
interface Shown {
  readonly token: string | undefined;
  /** The id that was shown with it, where one was. */
  readonly keyId?: string | undefined;
  /** Where the caller is. */
  readonly address: () => string;
  /** The answer to who shows none. */
  readonly absent: () => Failure;
}

const MINUTE_MS = 60_000;
export const LIMIT_HEADERS = ['x-ratelimit-limit', 'x-ratelimit-remaining', 'x-ratelimit-reset'] as const;

/** Caller authentication: before the body is read, so that strangers learn nothing of what a body should look like. */
export function createCallers(
  app: FastifyInstance,
  { verifier, recorder }: { verifier: Verifier; recorder: Recorder },
  limits: CallerLimits,
): Callers {
  app.decorateRequest('caller', null);
  const byCaller = (max: number | null) =>
    max === null
      ? undefined
      : app.createRateLimit({
          max,
          timeWindow: MINUTE_MS,
          keyGenerator: (request) => callerOf(request).keyId,
        });
  const limiters: Record<Limiter, Limit | undefined> = {
    management: byCaller(limits.callerPerMinute),
    introspection: byCaller(limits.introspectPerMinute),
  };
  const byAddress = (max: number | null) =>
    max === null
      ? undefined
      : app.createRateLimit({ max, timeWindow: MINUTE_MS, keyGenerator: addressBlockOf });
  const failures = byAddress(limits.failedPerMinute);
  // Counted apart: neither uses up the other's.
  const strangers = byAddress(limits.failedPerMinute);

  async function countFailure(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    if (failures !== undefined) await spend(failures, request, reply);
  }

  /** Lets a caller in who may use the route; throws, or rejects, a Failure for any other. A warm one waits for nothing. */
  function admit(
    request: FastifyRequest,
    reply: FastifyReply,
    gate: Gate,
    { token, keyId, address, absent }: Shown,
  ): Soon<void> {
    const { permission, limit } = gate;
    if (token === undefined) return refuseStranger(request, reply, absent);
    const connection = connectionOf(request.raw.socket);
    const shown = connection.shown?.token === token ? connection.shown : showToken(token);
    const found = verifier.authenticate(shown, address);
    const goOn = (authentication: Authentication): Soon<void> => {
      if (!authentication.authenticated)
        return refuseStranger(request, reply, REFUSED_CREDENTIAL[authentication.because]);
      const { caller, rateLimit } = authentication;
      if (keyId !== undefined && keyId !== caller.keyId)
        return refuseStranger(request, reply, REFUSED_CREDENTIAL.invalid);
      request.caller = caller;
      connection.shown = shown;
      recorder.called(caller, address);
      // Before the permission: a request that is refused costs as much as any.
      if (rateLimit !== null) return spendOwn(caller, rateLimit, request, reply, gate);
      if (limit === undefined) return refuseUnpermitted(caller, permission);
      return spend(limit, request, reply).then(() => refuseUnpermitted(caller, permission));
    };
    return found instanceof Promise ? found.then(goOn) : goOn(found);
  }

  /** A service key that was given a rate limit: that one is shown, whatever else is counted. */
  async function spendOwn(
    caller: Caller,
    rateLimit: RateLimit,
    request: FastifyRequest,
    reply: FastifyReply,
    { permission, limit }: Gate,
  ): Promise<void> {
    const charge = await verifier.chargeCall(caller, rateLimit);
    if (limit !== undefined && charge.admitted) await spend(limit, request, reply);
    if (charge.rateLimit !== undefined) {
      const { limit: max, remaining, reset } = charge.rateLimit;
      setLimitHeaders(reply, max, remaining, reset);
    }
    if (!charge.admitted) {
      throw new Failure('rate_limited', "This service key's rate limit is spent; see Retry-After.", {
        retryAfterSeconds: charge.retryAfterSeconds,
      });
    }
    refuseUnpermitted(caller, permission);
  }

  async function refuseStranger(
    request: FastifyRequest,
    reply: FastifyReply,
    refuse: () => Failure,
  ): Promise<void> {
    recorder.refused(addressOf(request));
    await countFailure(request, reply);
    throw refuse();
  }

  async function isGenuine(request: FastifyRequest): Promise<boolean> {
    const credential = readCredential(request.raw.rawHeaders);
    if (credential.kind !== 'presented') return false;
    return (await verifier.authenticate(credential.token, () => addressOf(request))).authenticated;
  }

  const recognize: Callers['recognize'] = (token, socket, address) => {
    if (limiters.introspection !== undefined) return undefined;
    const connection = connectionOf(socket);
    const shown = connection.shown?.token === token ? connection.shown : showToken(token);
    const found = verifier.recall(shown, address);
    if (found?.authenticated !== true || found.rateLimit !== null) return undefined;
    if (!permits(found.caller.permissions, 'introspect')) return undefined;
    connection.shown = shown;
    return found.caller;
  };

  const guard: Callers['guard'] = (scope, { permission, limiter, read = readCredential }) => {
    const gate = { permission, limit: limiters[limiter] };
    // With `done` rather than a promise: a warm request then passes without a turn of the microtask queue.
    scope.addHook('onRequest', (request, reply, done) => {
      try {
        const admitted = admit(request, reply, gate, shownBy(request, read));
        if (admitted instanceof Promise) admitted.then(() => done(), done);
        else done();
      } catch (refusal) {
        done(refusal instanceof Error ? refusal : new TypeError('no Error was thrown'));
      }
    });
  };

  return {
    guard,
    scope(permission, limiter, routes) {
      app.register(async (scope) => {
        guard(scope, { permission, limiter });
        routes(scope);
      });
    },
    strangers(routes) {
      app.register(async (scope) => {
        if (strangers !== undefined) {
          scope.addHook('onRequest', (request, reply) => spend(strangers, request, reply));
        }
        routes(scope);
      });
    },
    admitGateway: (request, reply) =>
      admit(
        request,
        reply,
        { permission: 'introspect', limit: limiters.introspection },
        {
          token: gatewayKeyOf(request.headers),
          // X-Forwarded-For speaks of the gateway's client there, whichever proxies are trusted elsewhere.
          address: () => peerAddressOf(request.raw),
          absent: NO_GATEWAY_KEY,
        },
      ),
    recognize,
    arrived(caller, address) {
      verifier.recalled();
      recorder.called(caller, address);
    },
    countFailure,
    async countUnknownRoute(request, reply) {
      try {
        await countFailure(request, reply);
      } catch (refusal) {
        if (!(await isGenuine(request))) throw refusal;
        for (const name of LIMIT_HEADERS) reply.removeHeader(name);
      }
    },
  };
}

const NO_CREDENTIAL = () =>
  new Failure('unauthorized', 'Send a service key in Authorization: Bearer or in X-Api-Key.');

const NO_GATEWAY_KEY = () =>
  new Failure('unauthorized', 'The gateway has to show a service key, in X-Claviger-Service-Key.');

function shownBy(request: FastifyRequest, read: (rawHeaders: readonly string[]) => Credential): Shown {
  const credential = read(request.raw.rawHeaders);
  if (credential.kind === 'ambiguous') {
    throw new Failure('invalid_request', 'Send one service key, in Authorization: Bearer or in X-Api-Key.');
  }
  const common = { address: () => addressOf(request), absent: NO_CREDENTIAL };
  if (credential.kind === 'absent') return { token: undefined, ...common };
  return { token: credential.token, keyId: credential.keyId, ...common };
}

/** Node joins several into one text, which is no service key. */
export function gatewayKeyOf(headers: IncomingHttpHeaders): string | undefined {
  const shown = headers['x-claviger-service-key'];
  return typeof shown === 'string' && shown !== '' ? shown : undefined;
}

const REFUSED_CREDENTIAL = {
  invalid: () =>
    new Failure('unauthorized', 'The credential is not a valid service key.', { invalidCredential: true }),
  address: () => new Failure('forbidden', 'This service key may not be used from this address.'),
} as const;

function refuseUnpermitted(caller: Caller, permission: Permission | null): void {
  if (permission === null || permits(caller.permissions, permission)) return;
  throw new Failure('forbidden', `This service key lacks the permission "${permission}".`, {
    missingPermission: permission,
  });
}

/** The caller of a route that is registered in a scope. */
export function callerOf(request: FastifyRequest): Caller {
  if (request.caller === null) throw new TypeError('a route outside of any scope asked who calls');
  return request.caller;
}

/** `X-RateLimit-*`, names and values in turn. */
export function limitHeaders(
  ...values: readonly [limit: number, remaining: number, reset: number]
): readonly string[] {
  return LIMIT_HEADERS.flatMap((name, index) => [name, String(values[index])]);
}

function setLimitHeaders(
  reply: FastifyReply,
  ...values: readonly [limit: number, remaining: number, reset: number]
) {
  for (const [index, name] of LIMIT_HEADERS.entries()) reply.header(name, values[index]);
}

async function spend(limit: Limit, request: FastifyRequest, reply: FastifyReply): Promise<void> {
  const state = await limit(request);
  if (state.isAllowed) return;
  setLimitHeaders(reply, state.max, state.remaining, Math.ceil((Date.now() + state.ttl) / 1000));
  if (state.isExceeded) {
    throw new Failure('rate_limited', 'Too many requests to Claviger; see Retry-After.', {
      retryAfterSeconds: Math.max(1, state.ttlInSeconds),
    });
  }
}
