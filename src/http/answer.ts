import type { ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import { commonHeaders } from './common-headers.ts';

/** A response but for what every one carries (common-headers.ts). */
export interface Answer {
  readonly status: number;
  /** Names in lower case, and values, in turn. */
  readonly headers: readonly string[];
  readonly body: string;
}

/** Answers through Fastify. */
export function sendAnswer(reply: FastifyReply, { status, headers, body }: Answer): FastifyReply {
  for (let index = 0; index < headers.length; index += 2) {
    reply.header(headers[index] ?? '', headers[index + 1]);
  }
  reply.code(status);
  // An empty text would be given a type.
  return body === '' ? reply.header('content-length', '0').send() : reply.send(body);
}

/** Answers past Fastify: a request on the fast path (fast-path.ts). */
export function writeAnswer(
  response: ServerResponse,
  requestId: string,
  { status, headers, body }: Answer,
): void {
  const all = commonHeaders(requestId);
  for (const part of headers) all.push(part);
  all.push('content-length', String(Buffer.byteLength(body)));
  response.writeHead(status, all);
  const { socket } = response;
  if (body === '' || socket === null) {
    response.end(body);
    return;
  }
  // In one piece: `end` alone would add an empty one, and two make for a slower way to the kernel.
  socket.cork();
  response.write(body);
  socket.uncork();
  response.end();
}
