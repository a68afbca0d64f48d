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

/** A request since it came. */
export interface Arrival {
  /** Whom the log's line is to speak of: Fastify's request, once it is Fastify's. */
  request: Followed;
  /** When it came, by `performance.now()`. */
  readonly began: number;
  /** Where its client is, if the log wants it: of a client that has left the socket no longer tells. */
  readonly address: string;
}

/** Each request arrives once, and ends once: by itself, or with the response that it is followed to. */
export interface Traffic {
  /** @param addressOf tells where a request's client is. */
  arrived<Request extends Followed>(request: Request, addressOf: (request: Request) => string): Arrival;
  /** It ends with Node's response, which comes to its end whether it was sent or its client has left. */
  follow(arrival: Arrival, response: ServerResponse): void;
  /** It has ended, with this status; `undefined`: its client has left. A listener fewer than to follow it. */
  ended(arrival: Arrival, status: number | undefined): void;
}

/**
 * Tells the metrics, and the log in one line, of requests as they end. Before any route is registered.
 *
 * The end is that of Node's response: Fastify's `onResponse` knows of no request whose client has left, and costs more.
 */
export function followTraffic(
  app: FastifyInstance,
  { logger, observer }: { logger: Logger; observer: TrafficObserver | undefined },
): Traffic {
  const isLogged = logger.isLevelEnabled('info');
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

  function ended({ request, began, address }: Arrival, status: number | undefined): void {
    const tookMs = performance.now() - began;
    const observe = request.routeOptions.config?.observer ?? unmatched;
    observe?.(status, tookMs);
    if (!isLogged) return;
    const line = lineOf(request, { status, tookMs, address });
    logger.info(line, status === undefined ? 'left' : 'answered');
  }

  return {
    arrived: (request, addressOf) => ({
      request,
      began: performance.now(),
      address: isLogged ? addressOf(request) : '',
    }),
    follow(arrival, response) {
      if (!isLogged && observer === undefined) return;
      response.on('close', () => ended(arrival, response.writableEnded ? response.statusCode : undefined));
    },
    ended,
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
