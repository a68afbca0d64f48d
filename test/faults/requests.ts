import net from 'node:net';

/** What came of one request; `lost`: the connection ended without a whole answer. */
export type Reply =
  | { readonly kind: 'answer'; readonly status: number; readonly text: string; readonly endedAt: number }
  | { readonly kind: 'lost'; readonly why: string; readonly endedAt: number };

/** One keep-alive connection to an instance that carries one request at a time, and tells when exactly it was written. */
export interface Line {
  readonly busy: boolean;
  readonly closed: boolean;
  /** Writes at once, also while nobody reads at the other end. */
  send(request: string, onWritten?: () => void): Promise<Reply>;
  close(): void;
}

/** Nothing in these tests is slower, unless it hangs. */
const LOST_AFTER_MS = 30_000;
const HEADER_END = Buffer.from('\r\n\r\n');

/** What a request says besides its method and path. */
export interface RequestContent {
  readonly body?: unknown;
  readonly idempotencyKey?: string | undefined;
}

/** The text of a request, to be sent as it is. */
export function requestText(
  method: string,
  path: string,
  { token, body, idempotencyKey }: RequestContent & { token: string },
): string {
  const payload = body === undefined ? '' : JSON.stringify(body);
  const entity =
    payload === ''
      ? ''
      : `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(payload)}\r\n`;
  const once = idempotencyKey === undefined ? '' : `idempotency-key: ${idempotencyKey}\r\n`;
  return `${method} ${path} HTTP/1.1\r\nhost: claviger\r\nauthorization: Bearer ${token}\r\n${once}${entity}\r\n${payload}`;
}

/** Connects in the background; what is sent meanwhile goes out with the connection. */
export function openLine(port: number): Line {
  const socket = net.connect({ host: '127.0.0.1', port, noDelay: true });
  let received = Buffer.alloc(0);
  let finish: ((reply: Reply) => void) | undefined;
  let closed = false;

  function settle(reply: Reply): void {
    const done = finish;
    finish = undefined;
    done?.(reply);
  }

  function end(why: string): void {
    closed = true;
    socket.destroy();
    settle({ kind: 'lost', why, endedAt: performance.now() });
  }

  socket.on('error', (error: NodeJS.ErrnoException) => end(error.code ?? 'error'));
  socket.on('close', () => end('closed'));
  socket.on('data', (chunk) => {
    received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
    const headerEnd = received.indexOf(HEADER_END);
    if (headerEnd < 0) return;
    const header = received.toString('latin1', 0, headerEnd);
    const length = Number(/\r\ncontent-length: (\d+)/i.exec(header)?.[1] ?? 0);
    const bodyStart = headerEnd + HEADER_END.length;
    if (received.length < bodyStart + length) return;
    const text = received.toString('utf8', bodyStart, bodyStart + length);
    received = received.subarray(bodyStart + length);
    if (/\r\nconnection: close/i.test(header)) {
      closed = true;
      socket.end();
    }
    settle({ kind: 'answer', status: Number(header.slice(9, 12)), text, endedAt: performance.now() });
  });

  return {
    get busy() {
      return finish !== undefined;
    },
    get closed() {
      return closed;
    },
    send(request, onWritten) {
      if (finish !== undefined) throw new Error('the line is busy');
      return new Promise((resolve) => {
        const timer = setTimeout(() => end('silence'), LOST_AFTER_MS);
        finish = (reply) => {
          clearTimeout(timer);
          resolve(reply);
        };
        if (closed) settle({ kind: 'lost', why: 'closed', endedAt: performance.now() });
        else socket.write(request, () => onWritten?.());
      });
    },
    close: () => end('closed by the test'),
  };
}
