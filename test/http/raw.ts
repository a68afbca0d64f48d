import net from 'node:net';
import type { Answer } from '../support/client.ts';
import { bodyOf } from '../support/client.ts';

/** A response as it came over a socket. */
export interface RawAnswer extends Answer {
  readonly version: string;
  /** Every header line, in order: names in lower case. */
  readonly lines: readonly (readonly [string, string])[];
}

export interface Exchange {
  /** The final responses; the interim ones (1xx) are left out. */
  readonly answers: readonly RawAnswer[];
  /** Whether the server closed the connection. */
  readonly closed: boolean;
  /** All that came. */
  readonly text: string;
}

export interface ExchangeOptions {
  readonly port: number;
  /** The client's own address; the whole of 127.0.0.0/8 is this machine. */
  readonly from?: string;
  /** How many responses to wait for; without it, until the server closes. */
  readonly responses?: number;
  /** Sent once the first response has come. */
  readonly afterFirst?: string;
  /** No body follows the head, whatever Content-Length says. */
  readonly method?: 'HEAD';
}

/** Something went on for longer than any answer takes: the test fails, instead of waiting for its own end. */
const PATIENCE_MS = 15_000;

/** Writes bytes to a socket as they are and reads the responses. A `Buffer` or a latin1 string, in parts where given so. */
export function exchange(
  bytes: string | Buffer | readonly (string | Buffer)[],
  { port, from, responses, method, afterFirst }: ExchangeOptions,
): Promise<Exchange> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({
      host: '127.0.0.1',
      port,
      ...(from === undefined ? {} : { localAddress: from }),
    });
    let received = Buffer.alloc(0);
    let rest = afterFirst;
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`no end of the answer; so far: ${JSON.stringify(received.toString('latin1'))}`));
    }, PATIENCE_MS);
    const finish = (closed: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      try {
        resolve({
          answers: parseAnswers(received, closed, method).answers,
          closed,
          text: received.toString('utf8'),
        });
      } catch (error) {
        reject(error);
      }
    };
    socket.on('data', (chunk) => {
      received = Buffer.concat([received, chunk]);
      if (rest !== undefined && parseAnswers(received, false, method).answers.length > 0) {
        socket.write(Buffer.from(rest, 'latin1'));
        rest = undefined;
      }
      if (responses !== undefined && parseAnswers(received, false, method).answers.length >= responses) {
        finish(false);
      }
    });
    socket.on('end', () => finish(true));
    // A server that has said what it had to say may close on what we still send.
    socket.on('error', () => finish(true));
    for (const part of Array.isArray(bytes) ? bytes : [bytes]) {
      socket.write(typeof part === 'string' ? Buffer.from(part, 'latin1') : part);
    }
  });
}

/** One request over a connection of its own. `headers` may name one twice. */
export async function request(
  options: ExchangeOptions & {
    readonly line: string;
    readonly headers?: readonly string[];
    readonly body?: string | Buffer;
    /** Sent as given, without a `Host` of ours. */
    readonly bare?: boolean;
  },
): Promise<RawAnswer> {
  const { line, headers = [], body, bare = false } = options;
  const bytes = body === undefined ? undefined : Buffer.from(body);
  const lines = [
    line,
    ...(bare ? [] : ['Host: claviger.test', 'Connection: close']),
    ...headers,
    ...(bytes === undefined ? [] : [`Content-Length: ${bytes.length}`]),
  ];
  const head = Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1');
  const { answers, text } = await exchange(bytes === undefined ? head : Buffer.concat([head, bytes]), {
    responses: 1,
    ...options,
  });
  const [answer] = answers;
  if (answer === undefined) throw new Error(`no answer to ${JSON.stringify(line.slice(0, 100))}: ${text}`);
  return answer;
}

function parseAnswers(received: Buffer, closed: boolean, method?: 'HEAD'): { answers: RawAnswer[] } {
  const answers: RawAnswer[] = [];
  let rest = received;
  for (;;) {
    const end = rest.indexOf('\r\n\r\n');
    if (end < 0) break;
    const [statusLine = '', ...headerLines] = rest.subarray(0, end).toString('latin1').split('\r\n');
    const match = /^HTTP\/(1\.[01]) (\d{3}) /.exec(statusLine);
    if (match === null) throw new Error(`not a status line: ${JSON.stringify(statusLine)}`);
    const lines = headerLines.map((line): [string, string] => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
    });
    const headers = Object.fromEntries(lines);
    const body = bodyBytes(rest.subarray(end + 4), headers, { closed, none: method === 'HEAD' });
    if (body === undefined) break;
    rest = rest.subarray(end + 4 + body.length);
    const status = Number(match[2]);
    if (status < 200) continue;
    const text = body.content.toString('utf8');
    answers.push({
      version: match[1] ?? '',
      status,
      headers,
      lines,
      text,
      body: method === 'HEAD' ? undefined : bodyOf(headers['content-type'], text),
    });
  }
  return { answers };
}

function bodyBytes(
  rest: Buffer,
  headers: Record<string, string>,
  { closed, none }: { closed: boolean; none: boolean },
): { content: Buffer; length: number } | undefined {
  if (none) return { content: Buffer.alloc(0), length: 0 };
  if (headers['transfer-encoding'] === 'chunked') {
    const parts: Buffer[] = [];
    let at = 0;
    for (;;) {
      const end = rest.indexOf('\r\n', at);
      if (end < 0) return undefined;
      const size = Number.parseInt(rest.subarray(at, end).toString('latin1'), 16);
      if (rest.length < end + 2 + size + 2) return undefined;
      parts.push(rest.subarray(end + 2, end + 2 + size));
      at = end + 2 + size + 2;
      if (size === 0) return { content: Buffer.concat(parts), length: at };
    }
  }
  if (headers['content-length'] !== undefined) {
    const length = Number(headers['content-length']);
    return rest.length < length ? undefined : { content: rest.subarray(0, length), length };
  }
  return closed ? { content: rest, length: rest.length } : { content: Buffer.alloc(0), length: 0 };
}
