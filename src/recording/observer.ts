import type { Outcome } from '../domain/decision.ts';

/** What the counting of usage tells of itself. */
export interface UsageObserver {
  /** An introspection has come to this. */
  introspected(outcome: Outcome): void;
  /** A batch of usage is committed. */
  usageFlushed(batch: { readonly keys: number; readonly tookMs: number }): void;
  /** A batch of usage was not, or its answer was lost: it is kept and tried again. */
  usageFlushFailed(): void;
  /** Introspections that are in no count, for want of room or of time. */
  usageDropped(count: number): void;
}

/** What the request log tells of itself. */
export interface RequestLogObserver {
  /** So many entries are written. */
  requestsLogged(count: number): void;
  /** So many are not: over the rate, over the room that memory has, or lost with the database. */
  requestLogsDropped(reason: RequestLogDrop, count: number): void;
}

export type RequestLogDrop = 'rate' | 'full' | 'lost';

/** What upkeep tells of itself. */
export interface UpkeepObserver {
  /** Upkeep has made, or dropped, so many partitions. */
  partitionsMade(count: number): void;
  partitionsDropped(count: number): void;
  /** A step of upkeep failed, and is tried again. */
  upkeepFailed(): void;
  /** A run of upkeep left nothing undone. */
  upkeepDone(): void;
}

/** What the recorder tells of itself as it happens; metrics are made of it. Every call is cheap and throws nothing. */
export interface RecordingObserver extends UsageObserver, RequestLogObserver, UpkeepObserver {}

/** For whom nobody watches. */
export const UNOBSERVED_RECORDING: RecordingObserver = {
  introspected: () => undefined,
  usageFlushed: () => undefined,
  usageFlushFailed: () => undefined,
  usageDropped: () => undefined,
  requestsLogged: () => undefined,
  requestLogsDropped: () => undefined,
  partitionsMade: () => undefined,
  partitionsDropped: () => undefined,
  upkeepFailed: () => undefined,
  upkeepDone: () => undefined,
};
