import { Counter, type Registry } from 'prom-client';
import { ERRORS, type ErrorCode } from '../domain/errors.ts';
import type { RouteObserver, TrafficObserver } from '../http/traffic.ts';
import { createInstruments, PREFIX } from './instruments.ts';

/** From a warm introspection to a change that waits out a silent instance. */
const BUCKETS_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10];
/** All that a route answers where something is wrong with Claviger: it counts from 0, so that the first one shows as growth. */
const FAULT_STATUS = 503;
const SECONDS_NAME = `${PREFIX}http_request_seconds`;

/** The requests of one route, in numbers that a request adds to by hand. */
interface Series {
  readonly labels: { readonly method: string; readonly route: string };
  readonly statuses: Map<number | 'left', number>;
  /** By the index of the bound; the last is for what is above them all. */
  readonly buckets: number[];
  count: number;
  sumSeconds: number;
}

/** Requests by route. A request adds to four numbers; text is made of them at the scrape. */
export function createTrafficMetrics(registry: Registry): {
  readonly observer: TrafficObserver;
  /** The histogram in Prometheus' text format: prom-client's own would put labels on at each request. */
  render(): string;
} {
  const routes = new Map<string, Series>();
  const problems = createInstruments(registry).counts(
    'problems_total',
    'Requests answered with a problem, by its code.',
    'code',
    Object.keys(ERRORS) as ErrorCode[],
  );
  new Counter({
    name: `${PREFIX}http_requests_total`,
    help: 'Requests, by their route and by what was answered; `left`: the client did not wait for it.',
    labelNames: ['method', 'route', 'status'],
    registers: [registry],
    collect() {
      this.reset();
      for (const { labels, statuses } of routes.values()) {
        for (const [status, count] of statuses) this.inc({ ...labels, status }, count);
      }
    },
  });

  function seriesOf(method: string, route: string): Series {
    const name = `${method} ${route}`;
    let series = routes.get(name);
    if (series === undefined) {
      series = {
        labels: { method, route },
        statuses: new Map([[FAULT_STATUS, 0]]),
        buckets: [...BUCKETS_SECONDS, Number.POSITIVE_INFINITY].map(() => 0),
        count: 0,
        sumSeconds: 0,
      };
      routes.set(name, series);
    }
    return series;
  }

  return {
    observer: {
      route: (route) => observerOf(seriesOf(route?.method ?? '*', route?.url ?? 'none')),
      problem: problems,
    },
    render: () =>
      [
        `# HELP ${SECONDS_NAME} Time from a request to the end of its answer, by its route.`,
        `# TYPE ${SECONDS_NAME} histogram`,
        ...[...routes.values()].flatMap(linesOf),
        '',
      ].join('\n'),
  };
}

function observerOf(series: Series): RouteObserver {
  const { statuses, buckets } = series;
  return (status, tookMs) => {
    const tookSeconds = tookMs / 1000;
    let index = 0;
    while (tookSeconds > (BUCKETS_SECONDS[index] ?? Number.POSITIVE_INFINITY)) index++;
    buckets[index] = (buckets[index] ?? 0) + 1;
    series.count++;
    series.sumSeconds += tookSeconds;
    const end = status ?? 'left';
    statuses.set(end, (statuses.get(end) ?? 0) + 1);
  };
}

/** Neither a route nor a method of ours has a character to escape in it. */
function linesOf({ labels: { method, route }, buckets, count, sumSeconds }: Series): string[] {
  const labels = `method="${method}",route="${route}"`;
  let below = 0;
  return [
    ...BUCKETS_SECONDS.map((bound, index) => {
      below += buckets[index] ?? 0;
      return `${SECONDS_NAME}_bucket{${labels},le="${bound}"} ${below}`;
    }),
    `${SECONDS_NAME}_bucket{${labels},le="+Inf"} ${count}`,
    `${SECONDS_NAME}_sum{${labels}} ${sumSeconds}`,
    `${SECONDS_NAME}_count{${labels}} ${count}`,
  ];
}
