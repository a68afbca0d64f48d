import type { Core } from '../core.ts';
import type { EngineObserver } from '../verification/observer.ts';
import type { Instruments } from './instruments.ts';

const ARGON2_BUCKETS_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
const QUOTA_BUCKETS_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 3];
const CHANGE_BUCKETS_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 10, 30, 100, 310];
const RENEWAL_BUCKETS_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5];

/** Verification: memory, proofs, leases, changes, rate limits. */
export function observeEngine(instruments: Instruments): EngineObserver {
  const { counter, counts, durations } = instruments;
  const argon2Wait = durations(
    'argon2_wait_seconds',
    'Time waited for an argon2 slot.',
    ARGON2_BUCKETS_SECONDS,
  );
  const argon2Time = durations('argon2_seconds', 'Time of an argon2 computation.', ARGON2_BUCKETS_SECONDS);
  const statementTime = durations(
    'rate_limit_statement_seconds',
    'Time of a statement that fetched quota.',
    QUOTA_BUCKETS_SECONDS,
  );
  const countersAsked = counter('rate_limit_counters_total', 'Counters that such statements asked about.');
  return {
    lookedUp: counts('lookups_total', 'Tokens looked up, by where the answer came from.', 'way', [
      'memory',
      'database',
      'joined',
      'unminted',
    ]),
    proved: counts(
      'proofs_total',
      'Secrets proved after a read of the database, by what proved them.',
      'by',
      ['memory', 'memo', 'argon2'],
    ),
    hashed({ waitedMs, tookMs }) {
      argon2Wait(waitedMs);
      argon2Time(tookMs);
    },
    overloaded: counter('argon2_overloaded_total', 'Computations refused because the queue was full.'),
    changeHeard: counter('changes_heard_total', 'Changes heard of, and dropped from memory.'),
    acknowledged: counter('acknowledgements_total', 'Changes of other instances acknowledged.'),
    fenced: counter('fences_total', 'Silent instances that this one fenced.'),
    confirmed: durations(
      'change_wait_seconds',
      'Time from the commit of a change until it held on every instance.',
      CHANGE_BUCKETS_SECONDS,
    ),
    renewed: durations(
      'lease_renewal_seconds',
      'Time of a statement that renewed the lease.',
      RENEWAL_BUCKETS_SECONDS,
    ),
    registered: counter('registrations_total', 'Times that this instance joined.'),
    charged: counts('rate_limit_charges_total', 'Uses charged to a rate limit, by what decided.', 'by', [
      'memory',
      'fetched',
      'refused',
      'outage_allowed',
      'outage_refused',
    ]),
    exchanged({ counters, tookMs }) {
      statementTime(tookMs);
      countersAsked(counters);
    },
    left: counts('memberships_ended_total', 'Times that memory stopped answering, by why.', 'reason', [
      'fenced',
      'lapsed',
      'listener',
      'drain',
    ]),
  };
}

/** Its queues, caches and leases, as they are at a scrape. */
export function watchEngine(
  { gauge, readCounter }: Instruments,
  {
    cache,
    catalogues,
    hasher,
    membership,
    quota,
    verifier,
  }: Pick<Core, 'cache' | 'catalogues' | 'hasher' | 'membership' | 'quota' | 'verifier'>,
  { cachedKeys, leaseSeconds }: { readonly cachedKeys: number; readonly leaseSeconds: number },
): void {
  gauge('cached_keys', 'Keys that memory knows.', () => cache.size);
  gauge('cached_keys_max', 'Keys that memory has room for: CACHED_KEYS.', () => cachedKeys);
  readCounter('cache_evictions_total', 'Keys that memory forgot for want of room.', () => cache.evictions);
  gauge('loads_running', 'Keys being read and proved.', () => cache.loading);
  gauge('key_reads_waiting', 'Keys that wait to be read from the database.', () => verifier.readsWaiting());
  gauge('catalogue_held', '1 while memory holds the scope catalogue, else 0.', () =>
    catalogues.held() === undefined ? 0 : 1,
  );
  gauge('argon2_running', 'Argon2 computations under way.', () => hasher.load().running);
  gauge('argon2_slots', 'Argon2 computations that may be under way at once.', () => hasher.load().slots);
  gauge('argon2_waiting', 'Argon2 computations that wait for a slot.', () => hasher.load().waiting);
  gauge('argon2_waiting_max', 'How many may wait; more are refused.', () => hasher.load().queueLength);
  gauge('changes_waiting', 'Changes being made, or waiting for other instances.', () =>
    membership.changesWaiting(),
  );
  gauge('leased', '1 while memory may answer, else 0.', () => (membership.isLeased() ? 1 : 0));
  gauge(
    'lease_age_seconds',
    'Time since the lease was renewed; NaN without one.',
    () => (membership.leaseAgeMs() ?? Number.NaN) / 1000,
  );
  gauge('lease_seconds', 'How long a lease lasts: LEASE_SECONDS.', () => leaseSeconds);
  gauge(
    'rate_limit_counters_held',
    'Counters of rate limits that memory holds.',
    () => quota.load().accounts,
  );
  gauge('rate_limit_waiting', 'Uses that wait for quota.', () => quota.load().waiting);
  gauge('rate_limit_outage', '1 while RATE_LIMIT_ON_OUTAGE decides, else 0.', () =>
    quota.load().away ? 1 : 0,
  );
}
