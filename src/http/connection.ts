import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { ShownToken } from '../verification/verifier.ts';
import type { Arrival } from './traffic.ts';

/*
 * What is kept of a connection stands on its socket, in one member that is there before the first request. When a socket
 * gets which member decides how V8 describes it: of more than four descriptions V8 remembers none, and all that Node
 * itself reads of a socket, dozens of times for each request, has to be looked up (docs/performance.md).
 */

interface Latest {
  request: IncomingMessage;
  response: ServerResponse;
  /** The answer before, on the same connection. */
  before: ServerResponse | undefined;
}

export class Connection {
  latest: Latest | undefined;
  /**
   * The service key that it showed last, where that was let in. A client shows the same with each request, and to digest
   * it again would be a thirtieth of what an introspection costs. The key itself is compared, so that a connection keeps
   * it in memory for as long as it lasts (docs/performance.md); whether it is still good is found out for each request.
   */
  shown: ShownToken | undefined;
  /** The one request whose body is not whole yet; `undefined`: nobody has waited for a body here. */
  reading: Arrival | null | undefined;
}

const CONNECTION = Symbol('connection');

declare module 'node:net' {
  interface Socket {
    [CONNECTION]?: Connection;
  }
}

export function connectionOf(socket: Socket): Connection {
  socket[CONNECTION] ??= new Connection();
  return socket[CONNECTION];
}

/** Gives the sockets of a server all members that they will ever get here. */
export function describeConnections(server: Server): void {
  const describe = (socket: Socket) => {
    connectionOf(socket);
    // Node keeps the address on the socket when it is first asked for, which some requests do and others do not.
    void socket.remoteAddress;
  };
  server.on('connection', describe).on('secureConnection', describe);
}
