import type { IncomingMessage, RequestListener, Server, ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';
import { Failure } from '../domain/errors.ts';
import { connectionOf, describeConnections } from './connection.ts';
import { behindAuthorize } from './gateway-request.ts';
import { problemText } from './problem.ts';
import { newRequestId } from './request-id.ts';
import type { TrafficObserver } from './traffic.ts';

/*
 * What Node would answer by itself, or not at all, is answered here with a problem: bytes that are no HTTP request,
 * CONNECT, an Expect that nobody knows.
 *
 * A connection is open until it is refused, which happens once: bytes behind a refusal are not looked at. The refusal
 * waits for the answers to the requests before it, so that no client takes it for the answer to one of those.
 */

/** As much of a request line as is looked at: `/v1/authorize` stands at its front. */
const MAX_TARGET_LENGTH = 512;

/** Watches over the connections of a server; answers its handler of `clientError`. `observer` is told of refusals. */
export function guardConnections(
  server: Server,
  observer: Pick<TrafficObserver, 'problem'> | undefined,
): (error: Error, socket: Duplex) => void {
  const refused = new WeakSet<Duplex>();
  const secured = new WeakSet<Duplex>();

  function refuse(socket: Duplex, failure: Failure): void {
    if (refused.has(socket)) return;
    refused.add(socket);
    observer?.problem(failure.code);
    const last = socket instanceof Socket ? connectionOf(socket).latest : undefined;
    if (last === undefined || last.request.complete) {
      after(last?.response, () => end(socket, failure));
      return;
    }
    // The fault lies in the body of the latest request, so that this is its answer, unless it had one.
    after(last.before, () => {
      if (last.response.headersSent) after(last.response, () => socket.destroy());
      else end(socket, failure);
    });
  }

  function note(request: IncomingMessage, response: ServerResponse): void {
    const connection = connectionOf(request.socket);
    const last = connection.latest;
    if (last === undefined) {
      connection.latest = { request, response, before: undefined };
      return;
    }
    last.before = last.response;
    last.request = request;
    last.response = response;
  }

  describeConnections(server);
  putInFront(server, (answering) => (request, response) => {
    note(request, response);
    answering(request, response);
  });
  server.on('connect', (_request, socket) => {
    socket.on('error', () => socket.destroy());
    refuse(socket, new Failure('not_found', 'There is no such route.'));
  });
  server.on('checkExpectation', (request, response) => server.emit('request', request, response));
  // Node drops header lines beyond a count, and a second Authorization among them; their size is bounded anyway.
  server.maxHeadersCount = 0;

  server.on('secureConnection', (socket: TLSSocket) => secured.add(socket));

  return (error, socket) => {
    // Before a handshake is over there is no way to say anything.
    if (socket instanceof TLSSocket && !secured.has(socket)) {
      socket.destroy();
      return;
    }
    const code = isForGateways(error) ? 'forbidden' : 'invalid_request';
    refuse(socket, new Failure(code, 'This is not a well-formed HTTP request.'));
  };
}

/** Replaces what answers a server's requests by what is made of it. Of two beside each other Node copies the list at each request. */
export function putInFront(server: Server, wrap: (answering: RequestListener) => RequestListener): void {
  const [answering, ...others] = server.listeners('request') as RequestListener[];
  if (answering === undefined || others.length > 0) throw new TypeError('one listener answers requests');
  server.removeAllListeners('request');
  server.on('request', wrap(answering.bind(server)));
}

/**
 * Whether bytes that are no request begin like one to `/v1/authorize`, where 400 is no answer: such are methods that
 * Node does not know, and heads that are too large.
 */
function isForGateways(error: Error): boolean {
  const bytes: unknown = 'rawPacket' in error ? error.rawPacket : undefined;
  if (!Buffer.isBuffer(bytes)) return false;
  const [, target] = bytes.toString('latin1', 0, MAX_TARGET_LENGTH).split(' ', 2);
  return target !== undefined && behindAuthorize(target) !== undefined;
}

function after(response: ServerResponse | undefined, then: () => void): void {
  if (response === undefined || response.writableFinished || response.destroyed) then();
  else response.once('close', then);
}

function end(socket: Duplex, failure: Failure): void {
  if (!socket.writable || socket.destroyed) {
    socket.destroy();
    return;
  }
  socket.end(problemText(failure, newRequestId()));
}
