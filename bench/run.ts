import { execFile } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { parseArgs, promisify } from 'node:util';
import { authorize, gateway } from './figures/authorize.ts';
import { changes } from './figures/changes.ts';
import { cold, memo } from './figures/cold.ts';
import { create } from './figures/create.ts';
import { faults } from './figures/faults.ts';
import { leaks } from './figures/leaks.ts';
import { firstUses, limits } from './figures/limits.ts';
import { memory } from './figures/memory.ts';
import { outage } from './figures/outage.ts';
import { peers } from './figures/peers.ts';
import { recording } from './figures/recording.ts';
import { requestLogs } from './figures/request-logs.ts';
import { signals } from './figures/signals.ts';
import { size, start } from './figures/size.ts';
import { unminted } from './figures/unminted.ts';
import { usage } from './figures/usage.ts';
import { crowd, many, pair, warm } from './figures/warm.ts';
import { type Bench, openBench } from './harness.ts';

/** One line of the table. */
export interface Figure {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** What it has to reach, as a sentence; `undefined` for figures that are only told. */
  readonly aim?: { readonly text: string; readonly reached: boolean };
  /** The yardstick against itself, in the same rounds. */
  readonly control?: number;
  readonly detail?: string;
}

export interface Options {
  readonly rounds: number;
  readonly seconds: number;
  /** How many keys are revoked under faults. */
  readonly revocations: number;
  /** How many keys memory is filled with. */
  readonly cached: number;
  /** How long the database is away, in seconds. */
  readonly outage: number;
  /** How many rows the request log holds, and the counts of usage. */
  readonly entries: number;
  /** How many keys there are to look for signals among. */
  readonly keys: number;
}

const MEASUREMENTS: Record<string, (bench: Bench, options: Options) => Promise<Figure[]>> = {
  warm,
  many,
  pair,
  unminted,
  crowd,
  authorize,
  gateway,
  memo,
  cold,
  leaks,
  limits,
  'first-uses': firstUses,
  memory,
  start,
  size,
  create,
  recording,
  outage,
  changes,
  faults,
  'request-logs': requestLogs,
  signals,
  usage,
  peers,
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '7' },
    seconds: { type: 'string', default: '3' },
    revocations: { type: 'string', default: '10000' },
    cached: { type: 'string', default: '1000000' },
    outage: { type: 'string', default: '300' },
    entries: { type: 'string', default: '10000000' },
    keys: { type: 'string', default: '1000000' },
  },
});
const options: Options = {
  rounds: Number(values.rounds),
  seconds: Number(values.seconds),
  revocations: Number(values.revocations),
  cached: Number(values.cached),
  outage: Number(values.outage),
  entries: Number(values.entries),
  keys: Number(values.keys),
};
const unknown = positionals.filter((name) => !Object.hasOwn(MEASUREMENTS, name));
if (unknown.length > 0)
  throw new Error(`there is no measurement ${unknown.join(', ')}: ${Object.keys(MEASUREMENTS).join(', ')}`);
const chosen = Object.entries(MEASUREMENTS).filter(
  ([name]) => positionals.length === 0 || positionals.includes(name),
);

const bench = await openBench();
const figures: Figure[] = [];
try {
  for (const [name, measure] of chosen) {
    process.stderr.write(`measuring: ${name}\n`);
    figures.push(...(await measure(bench, options).catch((error) => [unmeasured(name, error)])));
    // What it left running, having failed or not, is not to be measured beside the next.
    await bench.endAll();
  }
} finally {
  await bench.close();
}

const { stdout: commit } = await promisify(execFile)('git', ['rev-parse', '--short', 'HEAD']);
const taken = {
  date: new Date().toISOString().slice(0, 10),
  commit: commit.trim(),
  machine: `${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? 'unknown'}), ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.versions.node}`,
  ...options,
};
const table = tableOf(figures);
process.stdout.write(`${table}\n`);
await mkdir('bench/results', { recursive: true });
await writeFile('bench/results/latest.json', `${JSON.stringify({ ...taken, figures }, undefined, 2)}\n`);
// A part of the figures is for whoever works on them.
if (positionals.length === 0) await keepResults();
// Sockets that a fault left half open would keep the process for as long as they live.
process.exit(figures.some(({ value }) => Number.isNaN(value)) ? 1 : 0);

/** A measurement that failed is a figure that was missed; the others go on. */
function unmeasured(name: string, error: unknown): Figure {
  const detail = error instanceof Error ? (error.stack ?? error.message) : String(error);
  process.stderr.write(`${detail}\n`);
  return {
    name: `${name}: could not be measured`,
    value: Number.NaN,
    unit: '',
    aim: { text: 'a value', reached: false },
    detail: (detail.split('\n')[0] ?? '').replaceAll('|', '/').slice(0, 300),
  };
}

function tableOf(rows: readonly Figure[]): string {
  const lines = rows.map(({ name, value, unit, aim, control, detail }) => {
    const cells = [
      name,
      `${format(value)}${unit === '' ? '' : ` ${unit}`}`,
      aim === undefined ? '' : `${aim.text}${aim.reached ? '' : ' **missed**'}`,
      control === undefined ? '' : format(control),
      detail ?? '',
    ];
    return `| ${cells.join(' | ')} |`;
  });
  return ['| figure | value | aim | control | how |', '| --- | --- | --- | --- | --- |', ...lines].join('\n');
}

function format(value: number): string {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2);
}

/** The newest on top. */
async function keepResults(): Promise<void> {
  const path = 'bench/RESULTS.md';
  const title =
    '# Results\n\nWhat `npm run bench` printed, newest first. Ratios are server CPU per request of the yardstick ÷ ours.\n';
  const former = (await readFile(path, 'utf8').catch(() => title)).slice(title.length);
  const { date, machine, rounds, seconds } = taken;
  const section = `\n## ${date}, ${taken.commit}\n\n${machine}; ${rounds} rounds of ${seconds} s\n\n${table}\n`;
  await writeFile(path, title + section + former);
}
