import { DrizzleQueryError } from 'drizzle-orm';
import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import { Failure } from '../domain/errors.ts';
import { connectionTo } from './connection.ts';
import { ObservedPool, type PoolObserver } from './pool.ts';

/** Runs statements: the pool, or one transaction. Functions of storage/ take it as their first argument. */
export type Executor = NodePgDatabase;

export interface Database {
  /** For single statements; each may run on another connection. */
  read<T>(run: (executor: Executor) => Promise<T>): Promise<T>;
  /**
   * All or nothing. Answers only once the commit is on disk.
   *
   * @param requestId of the request that it is for: PostgreSQL shows it beside the application's name, in
   * `pg_stat_activity` and, by `%a`, in its log.
   */
  transaction<T>(run: (executor: Executor) => Promise<T>, requestId?: string): Promise<T>;
  /** Resolves when the last connection is closed. */
  close(): Promise<void>;
}

/** A database, and how busy its connections are. */
export interface PooledDatabase extends Database {
  /** Connections there are and may be, those that nobody uses, and who waits for one. */
  load(): { readonly open: number; readonly idle: number; readonly most: number; readonly waiting: number };
}

/** What the database tells of itself as it happens; metrics are made of it. Every call is cheap and throws nothing. */
export interface DatabaseObserver extends PoolObserver {
  /** A read or a transaction is over, its wait for a connection included. */
  ran(kind: 'read' | 'transaction', tookMs: number): void;
  /** It failed: the database could not be reached or is in trouble, or it refused the statement. */
  failed(because: 'unavailable' | 'refused'): void;
}

/** For whom nobody watches. */
export const UNOBSERVED_DATABASE: DatabaseObserver = {
  connected: () => undefined,
  ran: () => undefined,
  failed: () => undefined,
};

export interface DatabaseOptions {
  readonly url: string;
  readonly poolSize: number;
  readonly applicationName: string;
  /** Told of faults of idle connections, which no request waits for. */
  onConnectionLost(fault: StorageError): void;
  readonly observer?: DatabaseObserver;
}

/** Waiting longer than this for a connection is a database that cannot be reached. */
const CONNECT_TIMEOUT_MS = 5_000;
/** How long a transaction of ours may be silent: an instance that stops within one must not keep its locks. */
const SILENCE_TIMEOUT_MS = 5_000;
const RETRY_AFTER_SECONDS = 1;
/** Of a connection that does not even take this back in time, nothing more is expected. */
const ROLLBACK: pg.QueryConfig & { query_timeout: number } = { text: 'ROLLBACK', query_timeout: 1_000 };
/** No statement of ours takes longer, unless the database is in trouble. */
export const STATEMENT_TIMEOUT_MS = 10_000;

/**
 * A fault of PostgreSQL or of the way there. It carries the SQLSTATE and names of objects alone: the messages
 * of PostgreSQL and of drizzle quote rows and parameters, a hash among them, and logs print messages.
 */
export class StorageError extends Error {
  override readonly name = 'StorageError';
  /** SQLSTATE, or the `code` of a socket error, or `unknown`. */
  readonly code: string;
  readonly constraint: string | undefined;

  constructor(cause: unknown) {
    const fault = rootOf(cause);
    const code = stringMember(fault, 'code') ?? 'unknown';
    const constraint = stringMember(fault, 'constraint');
    super(`PostgreSQL: ${[code, stringMember(fault, 'table'), constraint].filter(Boolean).join(' ')}`);
    this.code = code;
    this.constraint = constraint;
    if (fault instanceof Error && fault.stack !== undefined) {
      // Where it happened, without the message, which heads a stack.
      this.stack = `${this.name}: ${this.message}\n${fault.stack.replace(/^[\s\S]*?(?=^ {4}at )/m, '')}`;
    }
  }
}

export function createDatabase(options: DatabaseOptions): PooledDatabase {
  const { observer = UNOBSERVED_DATABASE } = options;
  const { application_name = options.applicationName, ...config } = connectionTo(options.url).config;
  const pool = new ObservedPool(
    {
      ...config,
      max: options.poolSize,
      application_name,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      query_timeout: STATEMENT_TIMEOUT_MS,
      keepAlive: true,
      // Statements of one transaction that do not wait for each other share a round trip.
      pipeline: true,
    },
    observer,
  );
  // Without a listener the loss of an idle connection would end the process; the pool has dropped it already.
  pool.on('error', (error) => options.onConnectionLost(new StorageError(error)));
  // The same while it is checked out, from its first moment on: the pool's own listener is gone before we get it.
  pool.on('connect', (client) => client.on('error', ignoreLoss));
  const executor = drizzle(pool);
  /** One for each connection, so that what `once` built for it is built once. */
  const executors = new WeakMap<pg.PoolClient, Executor>();

  function executorOf(client: pg.PoolClient): Executor {
    let found = executors.get(client);
    if (found === undefined) {
      found = drizzle(client);
      executors.set(client, found);
    }
    return found;
  }

  async function inTransaction<T>(
    run: (executor: Executor) => Promise<T>,
    requestId: string | undefined,
  ): Promise<T> {
    const client = await pool.connect().catch(rethrow);
    let trusted = false;
    try {
      // One round trip. SET LOCAL rather than start-up parameters: a transaction pooler passes it on.
      const settings = [
        'synchronous_commit = on',
        `statement_timeout = ${STATEMENT_TIMEOUT_MS}`,
        `idle_in_transaction_session_timeout = ${SILENCE_TIMEOUT_MS}`,
      ];
      if (requestId !== undefined) {
        settings.push(`application_name = ${pg.escapeLiteral(`${options.applicationName} ${requestId}`)}`);
      }
      await client.query(['BEGIN', ...settings.map((one) => `SET LOCAL ${one}`)].join('; ')).catch(rethrow);
      const result = await run(executorOf(client));
      await client.query('COMMIT').catch(rethrow);
      trusted = true;
      return result;
    } catch (error) {
      trusted = await client.query(ROLLBACK).then(
        () => true,
        () => false,
      );
      return rethrowQuery(error);
    } finally {
      client.release(!trusted);
    }
  }

  async function observed<T>(kind: 'read' | 'transaction', work: Promise<T>): Promise<T> {
    const startedAt = performance.now();
    try {
      return await work;
    } catch (error) {
      if (error instanceof StorageError) observer.failed('refused');
      else if (error instanceof Failure && error.cause instanceof StorageError)
        observer.failed('unavailable');
      throw error;
    } finally {
      observer.ran(kind, performance.now() - startedAt);
    }
  }

  return {
    read: (run) => observed('read', run(executor).catch(rethrowQuery)),
    transaction: (run, requestId) => observed('transaction', inTransaction(run, requestId)),
    load: () => ({
      open: pool.totalCount,
      idle: pool.idleCount,
      most: options.poolSize,
      waiting: pool.waitingCount,
    }),
    close: () => pool.end(),
  };
}

/**
 * A query whose text is made once for each executor, and not at each call: drizzle takes longer for that than the
 * database for a row. The server is told no name for it, since a transaction pooler may hand each execution to another
 * connection.
 */
export function once<Query extends object>(
  build: (executor: Executor) => Query,
): (executor: Executor) => Query {
  const built = new WeakMap<Executor, Query>();
  return (executor) => {
    let query = built.get(executor);
    if (query === undefined) {
      query = build(executor);
      built.set(executor, query);
    }
    return query;
  };
}

/** What `prepare` takes for a query that the server is not to keep. */
export const UNNAMED = '';

/** The statement under way, or the next one, fails of itself. */
function ignoreLoss(): void {}

/** What `run` threw of its own passes; what drizzle says of a query does not, since it quotes the parameters. */
function rethrowQuery(error: unknown): never {
  if (error instanceof DrizzleQueryError) rethrow(error);
  throw error;
}

/** Throws a `StorageError`, as the cause of `unavailable` where the database rather than the statement is at fault. */
function rethrow(error: unknown): never {
  const fault = new StorageError(error);
  if (!isOutage(rootOf(error), fault.code)) throw fault;
  throw new Failure('unavailable', 'The database cannot be reached.', {
    cause: fault,
    retryAfterSeconds: RETRY_AFTER_SECONDS,
  });
}

/**
 * Whether the database is at fault: connection exceptions (class 08), too little of something (53), shutdown,
 * start-up and failover (57P0x, 25006), a timeout of ours (57014, 55P03, 25P03), and every fault of the way there.
 */
function isOutage(root: unknown, code: string): boolean {
  if (root instanceof pg.DatabaseError) return /^(08|53|57P0|57014|55P03|25006|25P03)/.test(code);
  // Socket errors and pg's own timeouts are plain Errors, or several for a host of several addresses; a TypeError and
  // its like are faults of ours.
  return root instanceof AggregateError || (root instanceof Error && root.constructor === Error);
}

/** An error that may be logged: what pg or drizzle threw quotes rows and parameters. */
export function loggable(error: unknown): unknown {
  return error instanceof DrizzleQueryError || rootOf(error) instanceof pg.DatabaseError
    ? new StorageError(error)
    : error;
}

/** drizzle wraps what pg threw. */
function rootOf(error: unknown): unknown {
  let root = error;
  while (root instanceof Error && root.cause !== undefined) root = root.cause;
  return root;
}

function stringMember(value: unknown, name: string): string | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const member: unknown = Reflect.get(value, name);
  return typeof member === 'string' ? member : undefined;
}
