/*
 * What Prometheus has recorded, every 15 seconds, in its own notation: `1+0x20` is 1 and then twenty times the same,
 * `0+5x20` grows by 5. The names and labels are those of a scrape (test/operations/reference.test.ts).
 */
export interface Samples {
  readonly series: Readonly<Record<string, string>>;
  readonly at: string;
}

export interface AlertSamples {
  readonly fires: Samples & { readonly labels: Record<string, string>; readonly summary: string };
  readonly quiet: readonly (Samples & { readonly when: string })[];
}

const OF = 'job="claviger",instance="one"';
const INSTANCE = { job: 'claviger', instance: 'one' };
const JOB = { job: 'claviger' };

const bucketsOf = (name: string, labels: string, perScrape: Readonly<Record<string, number>>) =>
  Object.fromEntries(
    Object.entries(perScrape).map(([le, count]) => [
      `${name}_bucket{${labels},le="${le}"}`,
      `0+${count}x200`,
    ]),
  );

const requests = (answers: readonly [route: string, status: string, perScrape: number][]) =>
  Object.fromEntries(
    answers.map(([route, status, perScrape]) => [
      `claviger_http_requests_total{${OF},method="POST",route="${route}",status="${status}"}`,
      `0+${perScrape}x200`,
    ]),
  );

const introspections = (perScrape: Readonly<Record<string, number>>) =>
  bucketsOf('claviger_http_request_seconds', `${OF},method="POST",route="/v1/introspect"`, perScrape);

export const SAMPLES: Readonly<Record<string, AlertSamples>> = {
  ClavigerDown: {
    fires: {
      series: { [`up{${OF}}`]: '1+0x4 0+0x20' },
      at: '4m',
      labels: INSTANCE,
      summary: 'one does not answer Prometheus.',
    },
    quiet: [
      { when: 'while an instance restarts', series: { [`up{${OF}}`]: '1+0x4 0+0x2 1+0x20' }, at: '2m' },
      { when: 'where another job is down', series: { 'up{job="other",instance="one"}': '0+0x20' }, at: '4m' },
    ],
  },
  ClavigerRestarting: {
    fires: {
      series: { [`claviger_process_start_time_seconds{${OF}}`]: '100 200 300 400+0x60' },
      at: '10m',
      labels: INSTANCE,
      summary: 'one has started 3 times more within half an hour.',
    },
    quiet: [
      {
        when: 'after a deployment',
        series: { [`claviger_process_start_time_seconds{${OF}}`]: '100+0x20 200+0x60' },
        at: '10m',
      },
    ],
  },
  ClavigerErrors: {
    fires: {
      series: requests([
        ['/v1/introspect', '200', 95],
        ['/v1/introspect', '503', 5],
      ]),
      at: '10m',
      labels: JOB,
      summary: '5% of requests are answered with a 5xx.',
    },
    quiet: [
      {
        when: 'below 1 %',
        series: requests([
          ['/v1/introspect', '200', 199],
          ['/v1/introspect', '503', 1],
        ]),
        at: '10m',
      },
      {
        when: 'where clients are at fault, and where an instance says that it drains',
        series: requests([
          ['/v1/introspect', '200', 50],
          ['/v1/introspect', '401', 50],
          ['/readyz', '503', 50],
        ]),
        at: '10m',
      },
    ],
  },
  ClavigerIntrospectionSlow: {
    fires: {
      series: introspections({ '0.01': 90, '0.1': 95, '0.25': 100, '+Inf': 100 }),
      at: '15m',
      labels: JOB,
      summary: '1 % of introspections take longer than 220ms.',
    },
    quiet: [
      {
        when: 'where only fewer than 1 % are slow',
        series: introspections({ '0.01': 990, '0.1': 995, '0.25': 1000, '+Inf': 1000 }),
        at: '15m',
      },
      {
        when: 'where changes are slow',
        series: bucketsOf('claviger_http_request_seconds', `${OF},method="DELETE",route="/v1/api-keys/:id"`, {
          '0.1': 0,
          '10': 100,
          '+Inf': 100,
        }),
        at: '15m',
      },
    ],
  },
  ClavigerStrangers: {
    fires: {
      series: { [`claviger_problems_total{${OF},code="unauthorized"}`]: '0+300x200' },
      at: '20m',
      labels: JOB,
      summary: '20 requests a second come without a valid service key.',
    },
    quiet: [
      {
        when: 'for a client with an old key',
        series: { [`claviger_problems_total{${OF},code="unauthorized"}`]: '0+60x200' },
        at: '20m',
      },
      {
        when: 'for a short burst',
        series: { [`claviger_problems_total{${OF},code="unauthorized"}`]: '0+300x20 6000+0x100' },
        at: '20m',
      },
    ],
  },
  ClavigerEventLoopSlow: {
    fires: {
      series: { [`claviger_nodejs_eventloop_lag_p99_seconds{${OF}}`]: '0.5+0x40' },
      at: '8m',
      labels: INSTANCE,
      summary: 'The event loop of one is held up by 500ms.',
    },
    quiet: [
      {
        when: 'for a moment',
        series: { [`claviger_nodejs_eventloop_lag_p99_seconds{${OF}}`]: '0.5+0x8 0.01+0x40' },
        at: '8m',
      },
    ],
  },
  ClavigerNotLeased: {
    fires: {
      series: { [`claviger_leased{${OF}}`]: '1+0x4 0+0x20' },
      at: '4m',
      labels: INSTANCE,
      summary: 'one has no lease: each of its requests reads the database.',
    },
    quiet: [
      {
        when: 'while an instance joins anew',
        series: { [`claviger_leased{${OF}}`]: '1 0 0 1+0x20' },
        at: '1m',
      },
    ],
  },
  ClavigerLeaseOld: {
    fires: {
      series: {
        [`claviger_lease_age_seconds{${OF}}`]: '1 2 3 8',
        [`claviger_lease_seconds{${OF}}`]: '10+0x20',
      },
      at: '45s',
      labels: INSTANCE,
      summary: 'The lease of one was not renewed for 8s.',
    },
    quiet: [
      {
        when: 'between two renewals',
        series: {
          [`claviger_lease_age_seconds{${OF}}`]: '0 3.3 1 6.6',
          [`claviger_lease_seconds{${OF}}`]: '10+0x20',
        },
        at: '45s',
      },
      {
        when: 'without a lease, which another alert tells',
        series: {
          [`claviger_lease_age_seconds{${OF}}`]: 'NaN NaN NaN NaN',
          [`claviger_lease_seconds{${OF}}`]: '10+0x20',
        },
        at: '45s',
      },
    ],
  },
  ClavigerMembershipUnstable: {
    fires: {
      series: {
        [`claviger_memberships_ended_total{${OF},reason="fenced"}`]: '0+0x10 2+0x100',
        [`claviger_memberships_ended_total{${OF},reason="lapsed"}`]: '0+0x20 2+0x100',
      },
      at: '25m',
      labels: INSTANCE,
      summary: 'one keeps losing its membership: 4 times within half an hour.',
    },
    quiet: [
      {
        when: 'after one fence and a drain',
        series: {
          [`claviger_memberships_ended_total{${OF},reason="fenced"}`]: '0+0x10 1+0x100',
          [`claviger_memberships_ended_total{${OF},reason="drain"}`]: '0+0x20 5+0x100',
        },
        at: '25m',
      },
    ],
  },
  ClavigerFence: {
    fires: {
      series: { [`claviger_fences_total{${OF}}`]: '0+0x10 1+0x40' },
      at: '5m',
      labels: INSTANCE,
      summary: 'one had to fence an instance that did not confirm a change.',
    },
    quiet: [
      {
        when: 'later than ten minutes after',
        series: { [`claviger_fences_total{${OF}}`]: '0 1+0x100' },
        at: '15m',
      },
    ],
  },
  ClavigerChangesSlow: {
    fires: {
      series: bucketsOf('claviger_change_wait_seconds', OF, { '1': 90, '5': 100, '+Inf': 100 }),
      at: '20m',
      labels: JOB,
      summary: 'Revocations and other changes wait 4.6s to hold everywhere.',
    },
    quiet: [
      {
        when: 'while they take milliseconds',
        series: bucketsOf('claviger_change_wait_seconds', OF, {
          '0.05': 90,
          '0.1': 100,
          '5': 100,
          '+Inf': 100,
        }),
        at: '20m',
      },
      {
        when: 'while nobody changes anything',
        series: bucketsOf('claviger_change_wait_seconds', OF, { '1': 0, '5': 0, '+Inf': 0 }),
        at: '20m',
      },
    ],
  },
  ClavigerArgon2Queue: {
    fires: {
      series: {
        [`claviger_argon2_waiting{${OF}}`]: '100+0x40',
        [`claviger_argon2_waiting_max{${OF}}`]: '256+0x40',
      },
      at: '5m',
      labels: INSTANCE,
      summary: '100 keys wait on one for their argon2 proof.',
    },
    quiet: [
      {
        when: 'for the crowd after a restart',
        series: {
          [`claviger_argon2_waiting{${OF}}`]: '200 200 200 10+0x40',
          [`claviger_argon2_waiting_max{${OF}}`]: '256+0x40',
        },
        at: '5m',
      },
    ],
  },
  ClavigerOverloaded: {
    fires: {
      series: { [`claviger_argon2_overloaded_total{${OF}}`]: '0+0x10 3+0x40' },
      at: '4m',
      labels: INSTANCE,
      summary: 'one refuses keys that it has not seen: its argon2 queue is full.',
    },
    quiet: [
      {
        when: 'when it is over',
        series: { [`claviger_argon2_overloaded_total{${OF}}`]: '0 3+0x60' },
        at: '10m',
      },
    ],
  },
  ClavigerCacheSmall: {
    fires: {
      series: {
        [`claviger_cache_evictions_total{${OF}}`]: '0+300x300',
        [`claviger_lookups_total{${OF},way="memory"}`]: '0+1200x300',
        [`claviger_lookups_total{${OF},way="database"}`]: '0+300x300',
      },
      at: '65m',
      labels: INSTANCE,
      summary: 'one forgets 20 keys a second that are still in use.',
    },
    quiet: [
      {
        when: 'where what it forgets is hardly asked for',
        series: {
          [`claviger_cache_evictions_total{${OF}}`]: '0+30x300',
          [`claviger_lookups_total{${OF},way="memory"}`]: '0+15000x300',
          [`claviger_lookups_total{${OF},way="database"}`]: '0+30x300',
        },
        at: '65m',
      },
    ],
  },
  ClavigerDatabaseAway: {
    fires: {
      series: { [`claviger_database_failures_total{${OF},reason="unavailable"}`]: '0+0x10 1+5x20' },
      at: '5m',
      labels: { ...INSTANCE, reason: 'unavailable' },
      summary: 'one cannot reach the database.',
    },
    quiet: [
      {
        when: 'where one connection broke',
        series: { [`claviger_database_failures_total{${OF},reason="unavailable"}`]: '0+0x10 1+0x40' },
        at: '6m',
      },
    ],
  },
  ClavigerDatabaseWait: {
    fires: {
      series: bucketsOf('claviger_database_wait_seconds', OF, { '0.1': 90, '0.2': 100, '+Inf': 100 }),
      at: '15m',
      labels: INSTANCE,
      summary: 'one waits 190ms for a connection of its pool.',
    },
    quiet: [
      {
        when: 'while connections are to be had',
        series: bucketsOf('claviger_database_wait_seconds', OF, { '0.001': 995, '0.1': 1000, '+Inf': 1000 }),
        at: '15m',
      },
    ],
  },
  ClavigerDatabaseRefuses: {
    fires: {
      series: { [`claviger_database_failures_total{${OF},reason="refused"}`]: '0+1x40' },
      at: '5m',
      labels: { ...INSTANCE, reason: 'refused' },
      summary: 'The database refuses statements of one.',
    },
    quiet: [
      {
        when: 'for a few that met',
        series: { [`claviger_database_failures_total{${OF},reason="refused"}`]: '0+0x10 2+0x40' },
        at: '10m',
      },
    ],
  },
  ClavigerRateLimitsUnchecked: {
    fires: {
      series: { [`claviger_rate_limit_outage{${OF}}`]: '0+0x4 1+0x10' },
      at: '2m',
      labels: INSTANCE,
      summary: 'RATE_LIMIT_ON_OUTAGE decides for limited keys on one.',
    },
    quiet: [
      {
        when: 'where a statement was late once',
        series: { [`claviger_rate_limit_outage{${OF}}`]: '0+0x4 1 0+0x10' },
        at: '90s',
      },
    ],
  },
  ClavigerUsageLate: {
    fires: {
      series: { [`claviger_usage_lag_seconds{${OF}}`]: '0.5 15+15x20' },
      at: '6m',
      labels: INSTANCE,
      summary: 'Usage counted by one waits for 5m 15s.',
    },
    quiet: [
      {
        when: 'in the rhythm of its flushes',
        series: { [`claviger_usage_lag_seconds{${OF}}`]: '0.1 0.6 0.3 0+0x20' },
        at: '4m',
      },
    ],
  },
  ClavigerUsageLost: {
    fires: {
      series: { [`claviger_usage_dropped_total{${OF}}`]: '0+0x10 90+0x250' },
      at: '1h',
      labels: INSTANCE,
      summary: '90 introspections of one are in no count.',
    },
    quiet: [
      { when: 'where none are', series: { [`claviger_usage_dropped_total{${OF}}`]: '0+0x250' }, at: '1h' },
    ],
  },
  ClavigerRequestLogsLost: {
    fires: {
      series: {
        [`claviger_request_logs_dropped_total{${OF},reason="full"}`]: '0+0x10 10+0x100',
        [`claviger_request_logs_dropped_total{${OF},reason="lost"}`]: '0+0x100',
        [`claviger_request_logs_dropped_total{${OF},reason="rate"}`]: '0+7x100',
      },
      at: '15m',
      labels: INSTANCE,
      summary: 'The request log lacks 10 entries of one.',
    },
    quiet: [
      {
        when: 'for what is over REQUEST_LOG_PER_SECOND',
        series: { [`claviger_request_logs_dropped_total{${OF},reason="rate"}`]: '0+7x100' },
        at: '15m',
      },
    ],
  },
  ClavigerRequestLogsCapped: {
    fires: {
      series: { [`claviger_request_logs_dropped_total{${OF},reason="rate"}`]: '0+7x300' },
      at: '65m',
      labels: { ...INSTANCE, reason: 'rate' },
      summary: 'one has more to log than REQUEST_LOG_PER_SECOND.',
    },
    quiet: [
      {
        when: 'after a busy minute',
        series: { [`claviger_request_logs_dropped_total{${OF},reason="rate"}`]: '0+7x4 28+0x300' },
        at: '65m',
      },
    ],
  },
  ClavigerUpkeepFailing: {
    fires: {
      series: { [`claviger_upkeep_age_seconds{${OF}}`]: '10900+15x20' },
      at: '1m',
      labels: INSTANCE,
      summary: 'Upkeep of one has not succeeded for 3h 2m 40s.',
    },
    quiet: [
      {
        when: 'between two runs',
        series: { [`claviger_upkeep_age_seconds{${OF}}`]: '3500+15x10' },
        at: '2m',
      },
    ],
  },
};
