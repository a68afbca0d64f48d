import type { ServerResponse } from 'node:http';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { Logger } from 'pino';
import type { ErrorCode } from '../domain/errors.ts';

/** Told of a request of one route as it ends: its status, `undefined` where the client left before, and its time. */
export type RouteObserver = (status: number | undefined, tookMs: number) => void;

/** What is told of requests; metrics are made of it. Every call is cheap and throws nothing. */
export interface TrafficObserver {
  /** A route that there is, asked for once at the start, so that a request looks nothing up; `undefined`: requests of no route. */
  route(route: { readonly method: string; readonly url: string } | undefined): RouteObserver;
  /** A request was answered with this problem. */
  problem(code: ErrorCode): void;
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Told of this route's requests. */
    observer?: RouteObserver | undefined;
  }
}

/** What is known of a request as it begins, and who asks once that is known. */
export type Followed = Pick<FastifyRequest, 'id' | 'method' | 'caller'> & {
  readonly routeOptions: {
    readonly url?: string | undefined;
    readonly config?: { readonly observer?: RouteObserver | undefined };
  };
};

export interface Traffic {
  /**
   * Follows a request from now to the end of Node's response. `address` tells its client's, where the log wants it.
   * Answers a way to name another request in its stead, which the line then speaks of.
   */
  follow<Request extends Followed>(
    request: Request,
    response: ServerResponse,
    address: (request: Request) => string,
  ): (instead: Followed) => void;
  /**
   * Tells of a request that was answered in the very turn that it came in. To follow it would cost a listener, and it
   * cannot have left.
   * @param began when it came, by `performance.now()`.
   */
  answered<Request extends Followed>(
    request: Request,
    ended: { readonly began: number; readonly status: number },
    address: (request: Request) => string,
  ): void;
}

/**
 * Follows requests to their end, for the metrics and for the log's one line. Before any route is registered.
 *
 * The end is that of Node's response, which comes whether it was sent or its client has left: Fastify's `onResponse`
 * knows of no request whose client has left, and costs more.
 */
export function followTraffic(
  app: FastifyInstance,
  { logger, observer }: { logger: Logger; observer: TrafficObserver | undefined },
): Traffic {
  const isLogged = logger.isLevelEnabled('info');
  if (!isLogged && observer === undefined) {
    return { follow: () => () => undefined, answered: () => undefined };
  }
  const unmatched = observer?.route(undefined);
  if (observer !== undefined) {
    app.addHook('onRoute', (route) => {
      const { method, url } = route;
      const methods = typeof method === 'string' ? method : '*';
      route.config = {
        ...route.config,
        observer: observer.route({ method: methods === 'HEAD' ? 'GET' : methods, url }),
      };
    });
  }
  const observerOf = ({ routeOptions }: Followed) => routeOptions.config?.observer ?? unmatched;
  const log = (request: Followed, end: { status: number | undefined; tookMs: number; address: string }) =>
    logger.info(lineOf(request, end), end.status === undefined ? 'left' : 'answered');

  return {
    follow(request, response, addressOf) {
      const began = performance.now();
      const observe = observerOf(request);
      // Now: of a client that has left the socket no longer tells.
      const address = isLogged ? addressOf(request) : '';
      let followed: Followed = request;
      response.on('close', () => {
        const tookMs = performance.now() - began;
        const status = response.writableEnded ? response.statusCode : undefined;
        observe?.(status, tookMs);
        if (isLogged) log(followed, { status, tookMs, address });
      });
      return (instead) => {
        followed = instead;
      };
    },

    answered(request, { began, status }, addressOf) {
      const tookMs = performance.now() - began;
      observerOf(request)?.(status, tookMs);
      if (isLogged) log(request, { status, tookMs, address: addressOf(request) });
    },
  };
}

/** Of a route of which some requests do not reach Fastify. */
export function routeOptionsOf(
  observer: TrafficObserver | undefined,
  route: { readonly method: string; readonly url: string },
): Followed['routeOptions'] {
  return { url: route.url, config: { observer: observer?.route(route) } };
}

/** What the log tells of a request: its route, never its URL. */
function lineOf(
  request: Followed,
  { status, tookMs, address }: { status: number | undefined; tookMs: number; address: string },
): object {
  return {
    request_id: request.id,
    method: request.method,
    route: request.routeOptions.url ?? null,
    status: status ?? null,
    duration_ms: Math.round(tookMs * 1000) / 1000,
    caller: request.caller?.keyId ?? null,
    address,
  };
}
