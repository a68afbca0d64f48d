import { Counter, Gauge, Histogram, type Registry } from 'prom-client';

/** Makes metrics of one registry. Names are given without `claviger_`, which goes before each. */
export interface Instruments {
  /** Counts up from 0. */
  counter(name: string, help: string): (by?: number) => void;
  /** A counter for each value of a label. It costs a request one addition: labels are put on at the scrape. */
  counts<Value extends string>(
    name: string,
    help: string,
    label: string,
    values: readonly Value[],
  ): (value: Value, by?: number) => void;
  /** A counter that is read where it is kept. */
  readCounter(name: string, help: string, read: () => number): void;
  /** What is the case at the time of the scrape. */
  gauge(name: string, help: string, read: () => number): void;
  /** The same for each value of a label. */
  gauges(name: string, help: string, label: string, read: () => Readonly<Record<string, number>>): void;
  /** Durations, told in milliseconds and shown in seconds. */
  durations(name: string, help: string, bucketSeconds: readonly number[]): (tookMs: number) => void;
  /** The same for each value of a label. */
  durationsBy<Value extends string>(
    name: string,
    help: string,
    bucketSeconds: readonly number[],
    label: string,
    values: readonly Value[],
  ): (value: Value, tookMs: number) => void;
}

export const PREFIX = 'claviger_';

export function createInstruments(registry: Registry): Instruments {
  const registers = [registry];
  const named = (name: string, help: string) => ({ name: PREFIX + name, help, registers });

  return {
    counter(name, help) {
      const counter = new Counter(named(name, help));
      return (by = 1) => counter.inc(by);
    },

    counts(name, help, label, values) {
      const cells = new Map(values.map((value) => [String(value), { count: 0 }]));
      new Counter({
        ...named(name, help),
        labelNames: [label],
        collect() {
          this.reset();
          for (const [value, { count }] of cells) this.inc({ [label]: value }, count);
        },
      });
      return (value, by = 1) => {
        const cell = cells.get(value);
        if (cell !== undefined) cell.count += by;
      };
    },

    readCounter(name, help, read) {
      new Counter({
        ...named(name, help),
        collect() {
          this.reset();
          this.inc(read());
        },
      });
    },

    gauge(name, help, read) {
      new Gauge({
        ...named(name, help),
        collect() {
          this.set(read());
        },
      });
    },

    gauges(name, help, label, read) {
      new Gauge({
        ...named(name, help),
        labelNames: [label],
        collect() {
          for (const [value, count] of Object.entries(read())) this.set({ [label]: value }, count);
        },
      });
    },

    durations(name, help, bucketSeconds) {
      const histogram = new Histogram({ ...named(name, help), buckets: [...bucketSeconds] });
      return (tookMs) => histogram.observe(tookMs / 1000);
    },

    durationsBy(name, help, bucketSeconds, label, values) {
      const histogram = new Histogram({
        ...named(name, help),
        labelNames: [label],
        buckets: [...bucketSeconds],
      });
      for (const value of values) histogram.zero({ [label]: value });
      return (value, tookMs) => histogram.observe({ [label]: value }, tookMs / 1000);
    },
  };
}
