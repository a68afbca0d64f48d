import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import type { Caller } from '../domain/caller.ts';
import type { Failure } from '../domain/errors.ts';
import type { Soon } from '../verification/verifier.ts';
import { type Answer, writeAnswer } from './answer.ts';
import type { Callers } from './callers.ts';
import { type Connection, connectionOf } from './connection.ts';
import { faultOfHost } from './host.ts';
import { faultOf, logFault } from './problem.ts';
import { requestIdOf } from './request-id.ts';
import type { Arrival, Followed, Traffic } from './traffic.ts';

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
 * one answer, and leave one trace; test/http/fast-path.test.ts holds them side by side. There is one difference: a client
 * that leaves before its body is whole has not used its service key.
 */

/** A request that is to be answered: to the recorder and the log, the same as one of Fastify's. */
export interface Asked extends Followed {
  readonly id: string;
  readonly raw: IncomingMessage;
}

/** A request with a plain head. */
export interface PlainRequest extends Pick<Followed, 'routeOptions'> {
  /** `null`: it may ask without a service key. */
  readonly caller: Caller | null;
  /** Where the caller is. */
  address(): string;
  /** How long its body is; 0: it is not read. */
  readonly bodyLength: number;
  /** `undefined`: the body is not plain. May throw, or reject, a Failure. */
  answer(asked: Asked, body: Buffer | undefined): Soon<Answer> | undefined;
  failed(failure: Failure, asked: Asked): Answer;
}

/** Looks at a head; `undefined` where that is not plain, or another route's. */
export type FastRoute = (request: IncomingMessage) => PlainRequest | undefined;

/** What was made of a request before it went to Fastify. */
interface Left {
  readonly arrival: Arrival;
  body: Buffer | undefined;
}

const LEFT = Symbol('what was made of a request before Fastify got it');

declare module 'node:http' {
  interface IncomingMessage {
    [LEFT]?: Left;
  }
}

/** When this request came, where the fast path began to answer it and then left it to Fastify. */
export function arrivalOf(request: IncomingMessage): Arrival | undefined {
  return request[LEFT]?.arrival;
}

/** The body that was read of this request on the fast path, where it was: once. */
export function takeBodyOfLeft(request: IncomingMessage): Buffer | undefined {
  const left = request[LEFT];
  const body = left?.body;
  if (left !== undefined) left.body = undefined;
  return body;
}

export interface FastPathOptions {
  readonly routes: readonly FastRoute[];
  readonly callers: Pick<Callers, 'arrived'>;
  readonly traffic: Traffic;
  /** Where a request's client is. */
  addressOf(request: IncomingMessage): string;
  readonly logger: Logger;
  /** Once `false`, every request is Fastify's. */
  isOpen(): boolean;
}

/** A listener that answers what is plain and hands on the rest. */
export function createFastPath(
  { routes, callers, traffic, addressOf, logger, isOpen }: FastPathOptions,
  fastify: RequestListener,
): RequestListener {
  const addressOfAsked = ({ raw }: Asked) => addressOf(raw);

  function look(request: IncomingMessage): PlainRequest | undefined {
    try {
      if (!isOpen() || faultOfHost(request) !== undefined) return undefined;
      for (const route of routes) {
        const plain = route(request);
        if (plain !== undefined) return plain;
      }
    } catch {
      // Fastify comes upon the same fault, and tells of it.
    }
    return undefined;
  }

  /** `undefined`: it is not plain after all. */
  function answerOf(asked: Asked, plain: PlainRequest, body: Buffer | undefined): Soon<Answer> | undefined {
    let answer: Soon<Answer> | undefined;
    try {
      answer = plain.answer(asked, body);
    } catch (error) {
      answer = failed(error, asked, plain);
    }
    if (answer !== undefined && plain.caller !== null) callers.arrived(plain.caller, plain.address);
    return answer instanceof Promise ? answer.catch((error) => failed(error, asked, plain)) : answer;
  }

  function failed(error: unknown, asked: Asked, plain: PlainRequest): Answer {
    const failure = faultOf(error);
    logFault(logger, failure, asked.id);
    return plain.failed(failure, asked);
  }

  function settle(
    { asked, arrival, plain }: { asked: Asked; arrival: Arrival; plain: PlainRequest },
    response: ServerResponse,
    body: Buffer | undefined,
  ): void {
    const answer = answerOf(asked, plain, body);
    if (answer === undefined) {
      asked.raw[LEFT] = { arrival, body };
      fastify(asked.raw, response);
    } else if (answer instanceof Promise) {
      traffic.follow(arrival, response);
      void answer.then((later) => writeAnswer(response, asked.id, later));
    } else {
      writeAnswer(response, asked.id, answer);
      traffic.ended(arrival, answer.status);
    }
  }

  /** The request whose body is read on this connection ends with it. To follow each would cost each a listener. */
  function watch(socket: Socket, connection: Connection): void {
    connection.reading = null;
    socket.once('close', () => {
      if (connection.reading != null) traffic.ended(connection.reading, undefined);
    });
  }

  return (request, response) => {
    const plain = look(request);
    if (plain === undefined) {
      fastify(request, response);
      return;
    }
    const { caller, routeOptions, bodyLength } = plain;
    const asked = {
      id: requestIdOf(request),
      caller,
      raw: request,
      method: request.method ?? '',
      routeOptions,
    };
    const arrival = traffic.arrived(asked, addressOfAsked);
    if (bodyLength === 0) {
      settle({ asked, arrival, plain }, response, undefined);
      return;
    }
    const { socket } = request;
    const connection = connectionOf(socket);
    if (connection.reading === undefined) watch(socket, connection);
    connection.reading = arrival;
    readBody(request, bodyLength, (body) => {
      connection.reading = null;
      settle({ asked, arrival, plain }, response, body);
    });
  };
}

function readBody(request: IncomingMessage, length: number, then: (body: Buffer) => void): void {
  let read: Buffer | undefined;
  request.on('data', (chunk: Buffer) => {
    const body = read === undefined ? chunk : Buffer.concat([read, chunk]);
    // The request outlives its answer, on a connection that is kept: no part of its body is to.
    read = body.length < length ? body : undefined;
    if (body.length === length) then(body);
  });
}
