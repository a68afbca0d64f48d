import type { Core } from '../core.ts';
import { OUTCOMES } from '../domain/decision.ts';
import type { RecordingObserver } from '../recording/observer.ts';
import type { Instruments } from './instruments.ts';

const FLUSH_BUCKETS_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];

/** Usage, the request log, and the upkeep of what grows with time. */
export function observeRecording({ counter, counts, durations, gauge }: Instruments): RecordingObserver {
  const flushTime = durations(
    'usage_flush_seconds',
    'Time to commit a batch of usage.',
    FLUSH_BUCKETS_SECONDS,
  );
  const startedAt = performance.now();
  let upkeepDoneAt: number | undefined;
  gauge(
    'upkeep_age_seconds',
    'Time since upkeep left nothing undone, or since the start.',
    () => (performance.now() - (upkeepDoneAt ?? startedAt)) / 1000,
  );
  return {
    introspected: counts(
      'introspections_total',
      'Introspections, by what they came to.',
      'outcome',
      OUTCOMES,
    ),
    usageFlushed: ({ tookMs }) => flushTime(tookMs),
    usageFlushFailed: counter('usage_flush_failures_total', 'Batches of usage that will be tried again.'),
    usageDropped: counter('usage_dropped_total', 'Introspections that are in no count.'),
    requestsLogged: counter('request_logs_total', 'Entries written to the request log.'),
    requestLogsDropped: counts(
      'request_logs_dropped_total',
      'Entries that the request log lacks: over the rate, over the room in memory, or lost.',
      'reason',
      ['rate', 'full', 'lost'],
    ),
    partitionsMade: counter('partitions_made_total', 'Partitions that upkeep made.'),
    partitionsDropped: counter('partitions_dropped_total', 'Partitions dropped, older than is kept.'),
    upkeepFailed: counter('upkeep_failures_total', 'Steps of upkeep that will be tried again.'),
    upkeepDone() {
      upkeepDoneAt = performance.now();
    },
  };
}

/** What waits in memory to be written, at a scrape. */
export function watchRecording(
  { gauge }: Instruments,
  { usage, requestLog, failures }: Pick<Core, 'usage' | 'requestLog' | 'failures'>,
): void {
  gauge(
    'usage_pending',
    'Counts of usage that wait in memory to be written, one for each key, hour and outcome.',
    () => usage.pending(),
  );
  gauge(
    'usage_lag_seconds',
    'For how long the oldest usage has waited to be written.',
    () => usage.lagMs() / 1000,
  );
  gauge('request_logs_waiting', 'Entries of the request log that wait in memory to be written.', () =>
    requestLog.waiting(),
  );
  gauge(
    'request_log_addresses',
    'Pairs of key and address that memory knows to be noted today.',
    () => requestLog.knownAddresses,
  );
  gauge(
    'failure_addresses',
    'Addresses whose failed authentications memory counts.',
    () => failures.addresses,
  );
}
