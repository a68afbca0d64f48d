import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Caller } from '../domain/caller.ts';
import { Failure } from '../domain/errors.ts';
import { type Permission, permits } from '../domain/scope.ts';
import type { Verifier } from '../verification/verifier.ts';
import { addressBlockOf, addressOf } from './address.ts';
import { readCredential } from './credential.ts';
import { sendInvalidCredential } from './problem.ts';

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
  /**
   * Counts a request to an unknown route against its address, and throws `rate_limited` where there were too many;
   * not for a valid service key, which is never refused for what others at its address did.
   */
  countUnknownRoute(request: FastifyRequest, reply: FastifyReply): Promise<void>;
}

type Limit = ReturnType<FastifyInstance['createRateLimit']>;

const MINUTE_MS = 60_000;
const LIMIT_HEADERS = ['x-ratelimit-limit', 'x-ratelimit-remaining', 'x-ratelimit-reset'] as const;

/** Caller authentication: before the body is read, so that strangers learn nothing of what a body should look like. */
export function createCallers(app: FastifyInstance, verifier: Verifier, limits: CallerLimits): Callers {
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
  const failures =
    limits.failedPerMinute === null
      ? undefined
      : app.createRateLimit({
          max: limits.failedPerMinute,
          timeWindow: MINUTE_MS,
          keyGenerator: addressBlockOf,
        });

  async function countFailure(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    if (failures !== undefined) await spend(failures, request, reply);
  }

  async function authenticate(request: FastifyRequest, reply: FastifyReply): Promise<Caller | FastifyReply> {
    const credential = readCredential(request.raw.rawHeaders);
    if (credential.kind === 'ambiguous') {
      throw new Failure('invalid_request', 'Send one service key, in Authorization: Bearer or in X-Api-Key.');
    }
    if (credential.kind === 'absent') {
      await countFailure(request, reply);
      throw new Failure('unauthorized', 'Send a service key in Authorization: Bearer or in X-Api-Key.');
    }
    const result = await verifier.authenticate(credential.token, addressOf(request));
    if (result.authenticated) return result.caller;
    await countFailure(request, reply);
    if (result.because === 'address')
      throw new Failure('forbidden', 'This service key may not be used from this address.');
    return sendInvalidCredential(request, reply);
  }

  async function isGenuine(request: FastifyRequest): Promise<boolean> {
    const credential = readCredential(request.raw.rawHeaders);
    if (credential.kind !== 'presented') return false;
    return (await verifier.authenticate(credential.token, addressOf(request))).authenticated;
  }

  return {
    scope(permission, limiter, routes) {
      app.register(async (scope) => {
        scope.addHook('onRequest', async (request, reply) => {
          const caller = await authenticate(request, reply);
          if (!('keyId' in caller)) return caller;
          request.caller = caller;
          // Before the permission: a request that is refused costs as much as any.
          const limit = limiters[limiter];
          if (limit !== undefined) await spend(limit, request, reply);
          if (permission !== null && !permits(caller.permissions, permission)) {
            throw new Failure('forbidden', `This service key lacks the permission "${permission}".`, {
              missingPermission: permission,
            });
          }
          return undefined;
        });
        routes(scope);
      });
    },
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

/** The caller of a route that is registered in a scope. */
export function callerOf(request: FastifyRequest): Caller {
  if (request.caller === null) throw new TypeError('a route outside of any scope asked who calls');
  return request.caller;
}

async function spend(limit: Limit, request: FastifyRequest, reply: FastifyReply): Promise<void> {
  const state = await limit(request);
  if (state.isAllowed) return;
  const [limitHeader, remainingHeader, resetHeader] = LIMIT_HEADERS;
  reply.header(limitHeader, state.max);
  reply.header(remainingHeader, state.remaining);
  reply.header(resetHeader, Math.ceil((Date.now() + state.ttl) / 1000));
  if (state.isExceeded) {
    throw new Failure('rate_limited', 'Too many requests to Claviger; see Retry-After.', {
      retryAfterSeconds: Math.max(1, state.ttlInSeconds),
    });
  }
}
