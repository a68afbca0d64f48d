import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Core } from './core.ts';
import { OUTCOMES } from './domain/decision.ts';
import type { RecordingObserver } from './recording/observer.ts';
import type { EngineObserver } from './verification/observer.ts';

/** What Prometheus scrapes (contract §8). */
export interface Metrics {
  /** To be told of what happens in the engine. */
  readonly observer: EngineObserver;
  /** To be told of what happens in the recorder. */
  readonly recordingObserver: RecordingObserver;
  /** Reads the sizes of what was put together, at each scrape. */
  watch(core: Pick<Core, 'cache' | 'hasher' | 'membership' | 'usage' | 'requestLog' | 'quota'>): void;
  /** The metrics in Prometheus' text format, and its content type. */
  render(): Promise<{ readonly text: string; readonly contentType: string }>;
}

const PREFIX = 'claviger_';
const ARGON2_BUCKETS_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
const FLUSH_BUCKETS_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const QUOTA_BUCKETS_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 3];
const CHANGE_BUCKETS_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 10, 30, 100, 310];

export function createMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ prefix: PREFIX, register: registry });

  /** A counter that costs a request one addition: its labels are put on at the scrape. */
  function counts<Label extends string>(name: string, help: string, label: string, values: readonly Label[]) {
    const counted = new Map<Label, number>(values.map((value) => [value, 0]));
    new Counter({
      name: PREFIX + name,
      help,
      labelNames: [label],
      registers,
      collect() {
        this.reset();
        for (const [value, count] of counted) this.inc({ [label]: value }, count);
      },
    });
    return (value: Label, by = 1) => {
      counted.set(value, (counted.get(value) ?? 0) + by);
    };
  }
  const counter = (name: string, help: string) => new Counter({ name: PREFIX + name, help, registers });
  const histogram = (name: string, help: string, buckets: number[]) =>
    new Histogram({ name: PREFIX + name, help, buckets, registers });
  const gauge = (name: string, help: string, read: () => number) =>
    new Gauge({
      name: PREFIX + name,
      help,
      registers,
      collect() {
        this.set(read());
      },
    });

  const lookups = counts('lookups_total', 'Tokens looked up, by where the answer came from.', 'way', [
    'memory',
    'database',
    'unminted',
  ]);
  const proofs = counts(
    'proofs_total',
    'Secrets proved after a read of the database, by what proved them.',
    'by',
    ['memory', 'memo', 'argon2'],
  );
  const ends = counts('memberships_ended_total', 'Times that memory stopped answering, by why.', 'reason', [
    'fenced',
    'lapsed',
    'listener',
    'drain',
  ]);
  const charges = counts('rate_limit_charges_total', 'Uses charged to a rate limit, by what decided.', 'by', [
    'memory',
    'fetched',
    'refused',
    'outage_allowed',
    'outage_refused',
  ]);
  const quotaStatements = histogram(
    'rate_limit_statement_seconds',
    'Time of a statement that fetched quota.',
    QUOTA_BUCKETS_SECONDS,
  );
  const quotaCounters = counter('rate_limit_counters_total', 'Counters that those statements asked about.');
  const argon2Wait = histogram(
    'argon2_wait_seconds',
    'Time waited for an argon2 slot.',
    ARGON2_BUCKETS_SECONDS,
  );
  const argon2Time = histogram('argon2_seconds', 'Time of an argon2 computation.', ARGON2_BUCKETS_SECONDS);
  const overloads = counter('argon2_overloaded_total', 'Computations refused because the queue was full.');
  const changes = counter('changes_heard_total', 'Changes heard of, and dropped from memory.');
  const acknowledgements = counter('acknowledgements_total', 'Changes of other instances acknowledged.');
  const fences = counter('fences_total', 'Silent instances that this one fenced.');
  const registrations = counter('registrations_total', 'Times that this instance joined.');
  const changeWait = histogram(
    'change_wait_seconds',
    'Time from the commit of a change until it held on every instance.',
    CHANGE_BUCKETS_SECONDS,
  );
  const introspections = counts(
    'introspections_total',
    'Introspections, by what they came to.',
    'outcome',
    OUTCOMES,
  );
  const flushTime = histogram(
    'usage_flush_seconds',
    'Time to commit a batch of usage.',
    FLUSH_BUCKETS_SECONDS,
  );
  const flushFailures = counter('usage_flush_failures_total', 'Batches of usage that will be tried again.');
  const droppedUsage = counter('usage_dropped_total', 'Introspections that are in no count.');

  const loggedRequests = counter('request_logs_total', 'Entries written to the request log.');
  const droppedLogs = counts(
    'request_logs_dropped_total',
    'Entries that the request log lacks: over the rate, over the room in memory, or lost.',
    'reason',
    ['rate', 'full', 'lost'],
  );
  const partitionsMade = counter('partitions_made_total', 'Partitions that upkeep made.');
  const partitionsDropped = counter('partitions_dropped_total', 'Partitions dropped, older than is kept.');
  const upkeepFailures = counter('upkeep_failures_total', 'Steps of upkeep that will be tried again.');

  return {
    observer: {
      lookedUp: lookups,
      proved: proofs,
      hashed({ waitedMs, tookMs }) {
        argon2Wait.observe(waitedMs / 1000);
        argon2Time.observe(tookMs / 1000);
      },
      overloaded: () => overloads.inc(),
      changeHeard: () => changes.inc(),
      acknowledged: (count) => acknowledgements.inc(count),
      fenced: (count) => fences.inc(count),
      confirmed: (waitedMs) => changeWait.observe(waitedMs / 1000),
      registered: () => registrations.inc(),
      charged: charges,
      exchanged({ counters, tookMs }) {
        quotaStatements.observe(tookMs / 1000);
        quotaCounters.inc(counters);
      },
      left: ends,
    },

    recordingObserver: {
      introspected: introspections,
      usageFlushed: ({ tookMs }) => flushTime.observe(tookMs / 1000),
      usageFlushFailed: () => flushFailures.inc(),
      usageDropped: (count) => droppedUsage.inc(count),
      requestsLogged: (count) => loggedRequests.inc(count),
      requestLogsDropped: droppedLogs,
      partitionsMade: (count) => partitionsMade.inc(count),
      partitionsDropped: (count) => partitionsDropped.inc(count),
      upkeepFailed: () => upkeepFailures.inc(),
    },

    watch({ cache, hasher, membership, usage, requestLog, quota }) {
      gauge('request_logs_waiting', 'Entries of the request log that wait in memory to be written.', () =>
        requestLog.waiting(),
      );
      gauge('usage_pending', 'Keys whose usage waits in memory to be written, by the hour.', () =>
        usage.pending(),
      );
      gauge('cached_keys', 'Keys that memory knows.', () => cache.size);
      gauge('argon2_running', 'Argon2 computations under way.', () => hasher.load().running);
      gauge('argon2_waiting', 'Argon2 computations that wait for a slot.', () => hasher.load().waiting);
      gauge('rate_limit_waiting', 'Uses that wait for quota.', () => quota.load().waiting);
      gauge('rate_limit_outage', '1 while RATE_LIMIT_ON_OUTAGE decides, else 0.', () =>
        quota.load().away ? 1 : 0,
      );
      gauge('leased', '1 while memory may answer, else 0.', () => (membership.isLeased() ? 1 : 0));
      gauge(
        'lease_age_seconds',
        'Time since the lease was renewed; NaN without one.',
        () => (membership.leaseAgeMs() ?? Number.NaN) / 1000,
      );
    },

    render: async () => ({ text: await registry.metrics(), contentType: registry.contentType }),
  };
}
