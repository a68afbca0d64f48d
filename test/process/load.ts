import { randomBytes } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import { connect, type Socket } from 'node:net';

/** How one request ended: with a complete answer, or with the code of the fault that cut it off. */
export type Outcome =
  | {
      readonly answered: true;
      readonly id: string;
      readonly status: number;
      readonly headers: http.IncomingHttpHeaders;
      readonly text: string;
    }
  | {
      readonly answered: false;
      readonly id: string;
      readonly code: string;
      /** Whether its connection had carried another request before. */
      readonly reused: boolean;
      readonly receivedBytes: number;
    };

export interface LoadRequest {
  readonly method: string;
  readonly path: string;
  readonly body?: unknown;
}

/** Sends one request and reads the whole answer: an answer that is shorter than it said counts as none. */
export function sendOnce(
  url: string,
  token: string,
  { method, path, body }: LoadRequest,
  agent: http.Agent | false = false,
): Promise<Outcome> {
  const payload = body === undefined ? undefined : JSON.stringify(body);
  const id = `load-${randomBytes(9).toString('hex')}`;
  return new Promise((resolve) => {
    let receivedBytes = 0;
    const lose = (code: string) =>
      resolve({ answered: false, id, code, reused: request.reusedSocket, receivedBytes });
    const fail = (error: NodeJS.ErrnoException) => lose(error.code ?? error.message);
    const { request: open } = url.startsWith('https:') ? https : http;
    const request = open(
      new URL(path, url),
      {
        method,
        agent,
        headers: {
          authorization: `Bearer ${token}`,
          'x-request-id': id,
          ...(payload === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }),
        },
      },
      (response) => {
        let text = '';
        receivedBytes = response.socket.bytesRead;
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          text += chunk;
        });
        response.on('error', fail);
        response.on('end', () =>
          response.complete
            ? resolve({
                answered: true,
                id,
                status: response.statusCode ?? 0,
                headers: response.headers,
                text,
              })
            : lose('INCOMPLETE'),
        );
      },
    );
    request.on('error', fail);
    request.end(payload);
  });
}

export interface Load {
  readonly outcomes: readonly Outcome[];
  /** Resolves once so many requests have ended. */
  reached(count: number): Promise<void>;
  /** Ends the load after the requests under way; answers all outcomes. */
  stop(): Promise<readonly Outcome[]>;
  /** Resolves when all clients have ended by themselves, since nobody listens any more. */
  readonly ended: Promise<void>;
}

/**
 * Clients that send one request after the other, each client over one kept connection or each request over a fresh
 * one, until nobody listens any more.
 */
export function startLoad(options: {
  readonly url: string;
  readonly token: string;
  readonly clients: number;
  readonly keepAlive: boolean;
  /** Whom to trust with https. */
  readonly ca?: string;
  request(index: number): LoadRequest;
}): Load {
  const { url, token, clients, keepAlive, ca, request } = options;
  const outcomes: Outcome[] = [];
  const waiting = new Set<{ count: number; resolve: () => void }>();
  let stopping = false;
  let index = 0;

  async function runClient(): Promise<void> {
    const agent =
      ca === undefined
        ? keepAlive && new http.Agent({ keepAlive, maxSockets: 1 })
        : new https.Agent({ keepAlive, maxSockets: 1, maxCachedSessions: 0, ca });
    while (!stopping) {
      const outcome = await sendOnce(url, token, request(index++), agent);
      if (!outcome.answered && outcome.code === 'ECONNREFUSED') break;
      outcomes.push(outcome);
      for (const waiter of waiting) if (outcomes.length >= waiter.count) waiter.resolve();
    }
    if (agent !== false) agent.destroy();
  }

  const ended = Promise.all(Array.from({ length: clients }, runClient)).then(() => undefined);
  return {
    outcomes,
    ended,
    reached: (count) =>
      new Promise<void>((resolve) => {
        if (outcomes.length >= count) resolve();
        else waiting.add({ count, resolve });
      }),
    async stop() {
      stopping = true;
      await ended;
      return outcomes;
    },
  };
}

/** A connection to write bytes to; what came back is in `received`. */
export async function openSocket(
  url: string,
): Promise<{ socket: Socket; received(): string; closed: Promise<void> }> {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  let received = '';
  socket.setEncoding('utf8').on('data', (chunk: string) => {
    received += chunk;
  });
  socket.on('error', () => undefined);
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  return { socket, received: () => received, closed };
}
