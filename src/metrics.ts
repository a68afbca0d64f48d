import { collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import type { Config } from './config.ts';
import type { Core, CoreObservers } from './core.ts';
import type { TrafficObserver } from './http/traffic.ts';
import { observeEngine, watchEngine } from './metrics/engine.ts';
import { createInstruments, PREFIX } from './metrics/instruments.ts';
import { observeRecording, watchRecording } from './metrics/recording.ts';
import { observeDatabase, observeIdempotency, watchStorage } from './metrics/storage.ts';
import { createTrafficMetrics } from './metrics/traffic.ts';

/** What Prometheus scrapes (contract §8; docs/metrics.md). */
export interface Metrics {
  /** To be told of what happens below HTTP. */
  readonly observers: CoreObservers;
  /** To be told of requests. */
  readonly traffic: TrafficObserver;
  /** Reads the sizes of what was put together, at each scrape. */
  watch(core: Core, settings: Pick<Config, 'CACHED_KEYS' | 'LEASE_SECONDS'>): void;
  /** Counts open connections, at each scrape. */
  watchConnections(connections: { readonly size: number }): void;
  /** The metrics in Prometheus' text format, and its content type. */
  render(): Promise<{ readonly text: string; readonly contentType: string }>;
}

/** @param version of Claviger, shown as a label. */
export function createMetrics(version: string): Metrics {
  const registry = new Registry();
  const instruments = createInstruments(registry);
  collectDefaultMetrics({ prefix: PREFIX, register: registry });
  new Gauge({
    name: `${PREFIX}build_info`,
    help: '1, with the version of Claviger as a label.',
    labelNames: ['version'],
    registers: [registry],
  }).set({ version }, 1);
  const traffic = createTrafficMetrics(registry);
  let connections: { readonly size: number } = new Set();
  instruments.gauge('http_connections', 'Open connections of clients.', () => connections.size);

  return {
    observers: {
      engine: observeEngine(instruments),
      recording: observeRecording(instruments),
      database: observeDatabase(instruments),
      idempotency: observeIdempotency(instruments),
    },
    traffic: traffic.observer,

    watch(core, { CACHED_KEYS: cachedKeys, LEASE_SECONDS: leaseSeconds }) {
      watchEngine(instruments, core, { cachedKeys, leaseSeconds });
      watchRecording(instruments, core);
      watchStorage(instruments, core);
    },

    watchConnections(watched) {
      connections = watched;
    },

    render: async () => ({
      text: `${await registry.metrics()}\n${traffic.render()}`,
      contentType: registry.contentType,
    }),
  };
}
