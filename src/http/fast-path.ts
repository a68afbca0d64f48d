import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import type { Logger } from 'pino';
import type { Caller } from '../domain/caller.ts';
import type { Failure } from '../domain/errors.ts';
import type { Asking } from '../recording/recorder.ts';
import type { Soon } from '../verification/verifier.ts';
import { peerAddressOf } from './address.ts';
import { type Answer, writeAnswer } from './answer.ts';
import type { Callers } from './callers.ts';
import { faultOfHost } from './host.ts';
import { faultOf, logFault } from './problem.ts';
import { requestIdOf } from './request-id.ts';
import type { Follow, Followed } from './traffic.ts';

/*
 * Most requests to the two hot routes are answered before Fastify sees them: its routing, hooks and sending take longer
 * than all that there is to find out (docs/performance.md).
 *
 *   head ── not plain ──────────────────────────────────────> Fastify
 *     └──> body, where the route has one ── not plain ──────> Fastify, with what was read
 *            └──> answer
 *
 * Plain is what needs nothing that only Fastify knows; each route says so for itself. What is not goes on as if nobody
 * had looked: nothing was counted or recorded of it, and whatever is wrong with it is for Fastify to say. Both ways give
 * one answer; test/http/fast-path.test.ts holds them side by side.
 */

/** A request that is to be answered: to the recorder, the same as one of Fastify's. */
export interface Asked extends Asking {
  readonly raw: IncomingMessage;
}

/** A request with a plain head. */
export interface PlainRequest {
  /** `null`: it may ask without a service key. */
  readonly caller: Caller | null;
  /** How long its body is; 0: it is not read. */
  readonly bodyLength: number;
  /** `undefined`: the body is not plain. May throw, or reject, a Failure. */
  answer(asked: Asked, body: Buffer | undefined): Soon<Answer> | undefined;
  failed(failure: Failure, asked: Asked): Answer;
}

export interface FastRoute {
  /** Looks at a head; `undefined` where that is not plain, or another route's. */
  begin(request: IncomingMessage): PlainRequest | undefined;
  /** As the log and the metrics know it. */
  readonly routeOptions: (method: string) => Followed['routeOptions'];
}

/** What became of a request that went to Fastify when its body had been read. */
interface Left {
  readonly id: string;
  readonly body: Buffer;
}

const LEFT = Symbol('what was read of a request before Fastify got it');

declare module 'node:http' {
  interface IncomingMessage {
    [LEFT]?: Left;
  }
}

/** What was read of this request on the fast path, and the id that it got there. */
export function leftOf(request: IncomingMessage): Left | undefined {
  return request[LEFT];
}

export interface FastPathOptions {
  readonly routes: readonly FastRoute[];
  readonly callers: Pick<Callers, 'arrived'>;
  readonly follow: Follow;
  readonly logger: Logger;
  /** Once `false`, every request is Fastify's. */
  isOpen(): boolean;
}

/** A listener that answers what is plain and hands on the rest. */
export function createFastPath(
  { routes, callers, follow, logger, isOpen }: FastPathOptions,
  fastify: RequestListener,
): RequestListener {
  function settle(
    request: IncomingMessage,
    response: ServerResponse,
    asked: Asked,
    plain: PlainRequest,
    body?: Buffer,
  ) {
    const fail = (error: unknown) => {
      const failure = faultOf(error);
      logFault(logger, failure, asked.id);
      writeAnswer(response, asked.id, plain.failed(failure, asked));
    };
    try {
      const answer = plain.answer(asked, body);
      if (answer === undefined) {
        if (body !== undefined) request[LEFT] = { id: asked.id, body };
        fastify(request, response);
        return;
      }
      if (plain.caller !== null) callers.arrived(plain.caller, request);
      if (answer instanceof Promise)
        answer.then((later) => writeAnswer(response, asked.id, later)).catch(fail);
      else writeAnswer(response, asked.id, answer);
    } catch (error) {
      fail(error);
    }
  }

  function take(
    request: IncomingMessage,
    response: ServerResponse,
    route: FastRoute,
    plain: PlainRequest,
  ): void {
    const { method = '' } = request;
    const asked = {
      id: requestIdOf(request),
      caller: plain.caller,
      raw: request,
      method,
      routeOptions: route.routeOptions(method),
    };
    follow(asked, response, peerOfAsked);
    const { bodyLength } = plain;
    if (bodyLength === 0) settle(request, response, asked, plain);
    else readBody(request, bodyLength, (body) => settle(request, response, asked, plain, body));
  }

  return (request, response) => {
    if (isOpen() && faultOfHost(request) === undefined) {
      for (const route of routes) {
        const plain = route.begin(request);
        if (plain === undefined) continue;
        take(request, response, route, plain);
        return;
      }
    }
    fastify(request, response);
  };
}

function readBody(request: IncomingMessage, length: number, then: (body: Buffer) => void): void {
  let read: Buffer | undefined;
  request.on('data', (chunk: Buffer) => {
    read = read === undefined ? chunk : Buffer.concat([read, chunk]);
    if (read.length === length) then(read);
  });
}

function peerOfAsked({ raw }: Pick<Asked, 'raw'>): string {
  return peerAddressOf(raw);
}
