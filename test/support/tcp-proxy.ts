import net from 'node:net';

/*
 * The way between one instance and PostgreSQL, for a test to disturb. It does what a network does and no more:
 * bytes are late or held back, never lost, changed or reordered while their connection lives, and what was held
 * is delivered afterwards, also when its sender is long dead (an end of connection queues behind the data).
 */

/** Towards PostgreSQL, or towards the instance. */
export type Direction = 'up' | 'down';

/** Connections are told apart by the application name in their startup packet. */
export type ConnectionKind = 'pool' | 'listener';

/** What is disturbed: everything unless it says less. */
export interface Part {
  readonly direction?: Direction | undefined;
  readonly kind?: ConnectionKind | undefined;
}

export interface TcpProxy {
  readonly port: number;
  /** Where new connections go; a restarted PostgreSQL has another port. */
  target(port: number): void;
  /** Holds bytes back; new connections too, which are accepted and hear nothing. Answers how to deliver them. */
  stall(part?: Part): () => void;
  /** Delays each byte by so many milliseconds. */
  delay(ms: number, part?: Part): void;
  /** Delivers what was held, in order, and goes on undisturbed: ends every stall, delay, refusal and hold. */
  deliver(): void;
  /** Ends all connections, by RST or by FIN, and refuses new ones until `deliver`. */
  cut(how: 'reset' | 'end'): void;
  /**
   * Watches for a text that an instance sends to PostgreSQL, and from then on holds what PostgreSQL answers on that
   * connection alone, until `deliver`. Resolves once it was seen, with the port of `portsOf`. With `after` it watches transactions only in which
   * that text went before it.
   */
  holdAnswersTo(text: string, after?: string): Promise<number>;
  /** The ports from which connections of this kind reach PostgreSQL (`pg_stat_activity.client_port`). */
  portsOf(kind: ConnectionKind): number[];
  close(): Promise<void>;
}

const LISTENER_NAME = Buffer.from('claviger listener');
const BEGIN = Buffer.from('BEGIN');
const HOST = '127.0.0.1';
/** How much is held before the sender is asked to wait, as a network's buffers would. */
const MOST_HELD_BYTES = 1 << 20;

interface Stream {
  readonly direction: Direction;
  readonly connection: Connection;
  readonly from: net.Socket;
  readonly to: net.Socket;
  /** What is on its way; `null` is the end of the stream. */
  readonly queue: { readonly data: Buffer | null; readonly dueAt: number }[];
  heldBytes: number;
  timer: NodeJS.Timeout | undefined;
}

interface Connection {
  readonly upstream: net.Socket;
  kind: ConnectionKind;
  answersHeld: boolean;
  /** The watches whose first text its transaction has sent. */
  readonly begun: Set<Watch>;
  readonly streams: Stream[];
}

interface Watch {
  readonly text: Buffer;
  readonly after: Buffer | undefined;
  seen(port: number): void;
}

/** Starts one on a free port of the loopback. `onSent` is shown what the instance sends. */
export async function startTcpProxy(
  targetPort: number,
  onSent: (data: Buffer, kind: ConnectionKind) => void = () => undefined,
): Promise<TcpProxy> {
  let upstreamPort = targetPort;
  let stalled: Part[] = [];
  let delays: { readonly ms: number; readonly part: Part }[] = [];
  let refusing = false;
  let watches: Watch[] = [];
  const connections = new Set<Connection>();

  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    if (refusing) {
      client.on('error', () => undefined);
      client.resetAndDestroy();
      return;
    }
    const upstream = net.connect({ host: HOST, port: upstreamPort, allowHalfOpen: true, noDelay: true });
    const connection: Connection = {
      upstream,
      kind: 'pool',
      answersHeld: false,
      begun: new Set(),
      streams: [],
    };
    connections.add(connection);
    client.once('data', (packet) => {
      if (packet.includes(LISTENER_NAME)) connection.kind = 'listener';
    });
    pipe(connection, 'up', client, upstream);
    pipe(connection, 'down', upstream, client);
    client.on('data', (data) => look(connection, data));
    let open = 2;
    const closed = () => {
      if (--open === 0) connections.delete(connection);
    };
    client.once('close', closed);
    upstream.once('close', closed);
  });

  function pipe(connection: Connection, direction: Direction, from: net.Socket, to: net.Socket): void {
    const stream: Stream = { direction, connection, from, to, queue: [], heldBytes: 0, timer: undefined };
    connection.streams.push(stream);
    from.on('data', (data) => send(stream, data));
    from.on('end', () => send(stream, null));
    // A reset is a fault of one end; the other hears of it behind all that was sent before.
    from.on('error', () => send(stream, null));
  }

  function look(connection: Connection, data: Buffer): void {
    onSent(data, connection.kind);
    if (data.includes(BEGIN)) connection.begun.clear();
    for (const watch of watches) {
      if (watch.after !== undefined && data.includes(watch.after)) connection.begun.add(watch);
    }
    const isDue = (watch: Watch) => watch.after === undefined || connection.begun.has(watch);
    for (const watch of watches.filter((watch) => isDue(watch) && data.includes(watch.text))) {
      connection.answersHeld = true;
      watches = watches.filter((other) => other !== watch);
      watch.seen(connection.upstream.localPort ?? 0);
    }
  }

  const touches = ({ direction, kind }: Part, stream: Stream) =>
    (direction === undefined || direction === stream.direction) &&
    (kind === undefined || kind === stream.connection.kind);

  const isHeld = (stream: Stream) =>
    (stream.connection.answersHeld && stream.direction === 'down') ||
    stalled.some((part) => touches(part, stream));

  function send(stream: Stream, data: Buffer | null): void {
    const delayMs = Math.max(0, ...delays.filter(({ part }) => touches(part, stream)).map(({ ms }) => ms));
    stream.queue.push({ data, dueAt: performance.now() + delayMs });
    stream.heldBytes += data?.length ?? 0;
    if (stream.heldBytes > MOST_HELD_BYTES) stream.from.pause();
    flow(stream);
  }

  /** Passes on what is due. */
  function flow(stream: Stream): void {
    clearTimeout(stream.timer);
    stream.timer = undefined;
    while (!isHeld(stream)) {
      const [next] = stream.queue;
      if (next === undefined) break;
      const waitMs = next.dueAt - performance.now();
      if (waitMs > 0) {
        stream.timer = setTimeout(() => flow(stream), Math.ceil(waitMs));
        break;
      }
      stream.queue.shift();
      stream.heldBytes -= next.data?.length ?? 0;
      if (stream.to.destroyed) continue;
      if (next.data === null) stream.to.end();
      else stream.to.write(next.data);
    }
    if (stream.heldBytes <= MOST_HELD_BYTES) stream.from.resume();
  }

  function flowAll(): void {
    for (const { streams } of connections) streams.forEach(flow);
  }

  function end(connection: Connection, how: 'reset' | 'end'): void {
    for (const { from, timer } of connection.streams) {
      clearTimeout(timer);
      if (how === 'reset') from.resetAndDestroy();
      else from.destroy();
    }
  }

  await new Promise<void>((resolve) => server.listen(0, HOST, resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('the proxy has no port');

  return {
    port: address.port,
    target(port) {
      upstreamPort = port;
    },
    stall(part = {}) {
      stalled.push(part);
      return () => {
        stalled = stalled.filter((other) => other !== part);
        flowAll();
      };
    },
    delay(ms, part = {}) {
      delays.push({ ms, part });
    },
    deliver() {
      stalled = [];
      delays = [];
      watches = [];
      refusing = false;
      for (const connection of connections) connection.answersHeld = false;
      flowAll();
    },
    cut(how) {
      refusing = true;
      for (const connection of connections) end(connection, how);
    },
    holdAnswersTo: (text, after) =>
      new Promise((seen) => {
        watches.push({
          text: Buffer.from(text),
          after: after === undefined ? after : Buffer.from(after),
          seen,
        });
      }),
    portsOf: (kind) =>
      [...connections].flatMap((connection) =>
        connection.kind === kind ? (connection.upstream.localPort ?? []) : [],
      ),
    async close() {
      refusing = true;
      for (const connection of connections) end(connection, 'reset');
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
