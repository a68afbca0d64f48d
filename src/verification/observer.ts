/** What the engine tells of itself as it happens; metrics are made of it. Every call is cheap and throws nothing. */
export interface EngineObserver {
  /** How a request came to its record: from memory, by a read of the database or one under way, or not minted here. */
  lookedUp(way: 'memory' | 'database' | 'joined' | 'unminted'): void;
  /** How a secret was proved after a read: in memory already, by the memo, or by argon2. */
  proved(by: 'memory' | 'memo' | 'argon2'): void;
  /** One argon2 computation, with the time it waited for its slot. */
  hashed(durations: { readonly waitedMs: number; readonly tookMs: number }): void;
  /** A computation refused because the queue was full. */
  overloaded(): void;
  /** A change of another or of this instance was heard, and what it named dropped. */
  changeHeard(): void;
  acknowledged(count: number): void;
  fenced(count: number): void;
  /** A change holds on every instance. */
  confirmed(waitedMs: number): void;
  /** The lease was renewed, by a statement that took so long. */
  renewed(tookMs: number): void;
  /** This instance registered; the first time, and again whenever it had lost its lease or its listener. */
  registered(): void;
  /** A use was charged to its limits: by what was at hand, by quota that was fetched, or by RATE_LIMIT_ON_OUTAGE. */
  charged(way: 'memory' | 'fetched' | 'refused' | 'outage_allowed' | 'outage_refused'): void;
  /** One statement that fetched quota, for so many counters. */
  exchanged(statement: { readonly counters: number; readonly tookMs: number }): void;
  /** This instance's memory stopped answering, for this reason. */
  left(reason: 'fenced' | 'lapsed' | 'listener' | 'drain'): void;
}

/** For whom nobody watches. */
export const UNOBSERVED: EngineObserver = {
  lookedUp: () => undefined,
  proved: () => undefined,
  hashed: () => undefined,
  overloaded: () => undefined,
  changeHeard: () => undefined,
  acknowledged: () => undefined,
  fenced: () => undefined,
  confirmed: () => undefined,
  renewed: () => undefined,
  registered: () => undefined,
  charged: () => undefined,
  exchanged: () => undefined,
  left: () => undefined,
};
