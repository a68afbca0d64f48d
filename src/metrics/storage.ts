import type { Core } from '../core.ts';
import type { IdempotencyObserver } from '../lifecycle/idempotency.ts';
import type { DatabaseObserver } from '../storage/database.ts';
import type { Instruments } from './instruments.ts';

const BUCKETS_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];

/** The pool of connections, and what runs on it. */
export function observeDatabase({ counts, durations, durationsBy }: Instruments): DatabaseObserver {
  return {
    connected: durations(
      'database_wait_seconds',
      'Time waited for a connection of the pool.',
      BUCKETS_SECONDS,
    ),
    ran: durationsBy(
      'database_seconds',
      'Time of a read or a transaction, with its wait for a connection.',
      BUCKETS_SECONDS,
      'kind',
      ['read', 'transaction'],
    ),
    failed: counts(
      'database_failures_total',
      'Reads and transactions that failed: the database was away or in trouble, or refused a statement.',
      'reason',
      ['unavailable', 'refused'],
    ),
  };
}

export function observeIdempotency({ counts }: Instruments): IdempotencyObserver {
  return {
    settled: counts(
      'idempotent_requests_total',
      'Requests with an Idempotency-Key that were done, or given their first answer again.',
      'as',
      ['done', 'replayed'],
    ),
  };
}

/** The pool and what is being done once, at a scrape. */
export function watchStorage(
  { gauge, gauges }: Instruments,
  { database, idempotency }: Pick<Core, 'database' | 'idempotency'>,
): void {
  gauges(
    'database_connections',
    'Connections of the pool, by whether a statement uses them.',
    'state',
    () => {
      const { open, idle } = database.load();
      return { busy: open - idle, idle };
    },
  );
  gauge(
    'database_connections_max',
    'Connections that the pool may have: DATABASE_POOL_SIZE.',
    () => database.load().most,
  );
  gauge(
    'database_waiting',
    'Statements and transactions that wait for a connection.',
    () => database.load().waiting,
  );
  gauge('idempotent_requests_running', 'Requests with an Idempotency-Key under way.', () =>
    idempotency.working(),
  );
}
