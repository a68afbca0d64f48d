import { connect } from 'node:net';

/** What an instance answered to one introspection. */
export interface Verdict {
  readonly active: boolean;
  readonly reason?: { readonly code: string };
  readonly rate_limit?: { readonly limit: number; readonly remaining: number; readonly reset: number };
}

export interface Tally {
  active: number;
  refused: number;
  /** Answers that are no verdict, such as 503, and requests whose connection was lost before their answer. */
  none: number;
}

export interface HammerOptions {
  readonly port: number;
  /** The calling service key. */
  readonly as: string;
  readonly body: object;
  readonly requests: number;
  /** So many connections, each with so many requests under way. */
  readonly connections?: number;
  readonly depth?: number;
  onVerdict?(verdict: Verdict): void;
  /** Told of each answer, whatever it is, with how many there were. */
  onAnswered?(answered: number): void;
}

/**
 * Sends the same introspection many times at once, by pipelining on plain sockets: it costs the machine little beside
 * the instances that it asks.
 */
export async function hammer(options: HammerOptions): Promise<Tally> {
  const { port, as, body, requests, connections = 16, depth = 16, onVerdict, onAnswered } = options;
  const text = JSON.stringify(body);
  const request = `POST /v1/introspect HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ${as}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`;
  const tally: Tally = { active: 0, refused: 0, none: 0 };
  let unsent = requests;

  function count(answer: string): void {
    if (answer.startsWith('{"active":true')) tally.active++;
    else if (answer.includes('"rate_limited"') && answer.startsWith('{"active":false')) tally.refused++;
    else tally.none++;
    onAnswered?.(tally.active + tally.refused + tally.none);
    if (onVerdict !== undefined && answer.startsWith('{"active"')) onVerdict(JSON.parse(answer));
  }

  await Promise.all(
    Array.from(
      { length: connections },
      () =>
        new Promise<void>((resolve) => {
          let underWay = 0;
          let received = '';
          const socket = connect(port, '127.0.0.1').setEncoding('latin1').setNoDelay();
          const send = () => {
            const more = Math.min(depth - underWay, unsent);
            if (more > 0) {
              unsent -= more;
              underWay += more;
              socket.write(request.repeat(more));
            } else if (underWay === 0) socket.end();
          };
          socket.on('connect', send);
          socket.on('data', (chunk: string) => {
            received += chunk;
            for (;;) {
              const end = received.indexOf('\r\n\r\n');
              if (end === -1) break;
              const length = Number(/\r\ncontent-length: (\d+)/i.exec(received.slice(0, end + 2))?.[1] ?? 0);
              if (received.length < end + 4 + length) break;
              underWay--;
              count(received.slice(end + 4, end + 4 + length));
              received = received.slice(end + 4 + length);
            }
            if (underWay <= depth / 2) send();
          });
          socket.on('error', () => undefined);
          socket.on('close', () => {
            // A draining instance closes; what it did not answer was lost.
            tally.none += underWay;
            resolve();
          });
        }),
    ),
  );
  tally.none += unsent;
  return tally;
}
