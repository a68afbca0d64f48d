/*
 * What deserves a look (docs/watching.md). Three rules tell of a state that keys are in, three of something that
 * happened.
 */

/** In the order in which signals of one time are listed. */
export const SIGNAL_RULES = [
  'unused',
  'rotation_due',
  'expiring',
  'growth',
  'new_address',
  'failed_authentication',
] as const;

export type SignalRule = (typeof SIGNAL_RULES)[number];

/** When a key's requests of an hour are a sudden growth. */
export interface GrowthThreshold {
  /** So many times its busiest hour of the week before. */
  readonly factor: number;
  /** And so many at least. */
  readonly minimum: number;
}

/** When failed authentications of one address are a burst: so many within a window, which is aligned to the epoch. */
export interface BurstThreshold {
  readonly failures: number;
  readonly windowMinutes: number;
}

/** From when on something is a signal: settings. */
export interface SignalThresholds {
  /** `null`: uses are not recorded, so that nothing is known of keys without any. */
  readonly unusedDays: number | null;
  readonly rotationDueDays: number;
  readonly expiringDays: number;
  readonly growth: GrowthThreshold;
  readonly burst: BurstThreshold;
  /** For how long it is told that something happened. */
  readonly recentDays: number;
}
