import { type Bench, type BenchDatabase, cpuPerRequest, median, type Process } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { forgedTokens, storeHashedKeys, unmintedTokens } from './keys.ts';
import { countStatements } from './unminted.ts';

/** Of each kind of string, one a report. */
const REPORTS = 150;
/** As many reports are under way at a time. */
const AT_ONCE = 4;
/** Of a coin, this many reports of each kind make 0.5 ± 0.033 (one standard deviation). */
const NO_BETTER_THAN = 0.1;
const STRINGS_IN_FLOOD = 100;
const FLOOD_CONNECTIONS = 100;
const FLOOD_SECONDS = 9;

/** What the time of an answer tells of the string that was reported, and what a flood of reports costs. */
export async function leaks(bench: Bench, _options: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_leaks');
  const service = await bench.service(database.url, { LEASE_SECONDS: '300' });
  return [...(await tellApart(database, service)), ...(await flood(bench, database, service))];
}

async function tellApart(database: BenchDatabase, service: Process): Promise<Figure[]> {
  const genuine = await storeHashedKeys(database, REPORTS);
  const others = await storeHashedKeys(database, REPORTS);
  const kinds: Record<string, string[]> = {
    bogus: unmintedTokens(REPORTS),
    'bogus, again': unmintedTokens(REPORTS),
    genuine: genuine.map(({ token }) => token),
    'of a wrong secret': forgedTokens(others),
  };
  const times: Record<string, number[]> = Object.fromEntries(Object.keys(kinds).map((kind) => [kind, []]));
  // Taken in turns, so that whatever else the machine does meets all of them alike.
  const reports = Array.from({ length: REPORTS }, (_, index) =>
    Object.entries(kinds).map(([kind, tokens]) => ({ kind, token: tokens[index] ?? '' })),
  ).flat();
  const waiting = reports.values();
  const reporter = async () => {
    for (const { kind, token } of waiting) times[kind]?.push(await timeOf(service, token));
  };
  await Promise.all(Array.from({ length: AT_ONCE }, reporter));

  const [row] = await database.query<{ revoked: number }>(
    "SELECT count(*)::int AS revoked FROM api_keys WHERE revoked_reason = 'leaked'",
  );
  if (row?.revoked !== REPORTS) throw new Error(`${row?.revoked} of ${REPORTS} keys were revoked`);
  const { bogus = [], 'bogus, again': control = [], ...told } = times;
  return Object.entries(told).map(([kind, taken]) => {
    const value = shareLater(taken, bogus);
    return {
      name: `reports of tokens, ${kind}: how often later than of bogus ones`,
      value,
      unit: '',
      aim: { text: `0.5 ± ${NO_BETTER_THAN}`, reached: Math.abs(value - 0.5) <= NO_BETTER_THAN },
      control: shareLater(control, bogus),
      detail: `${REPORTS} of each, medians ${median(taken).toFixed(1)} and ${median(bogus).toFixed(1)} ms; 0.5 is a coin`,
    };
  });
}

async function timeOf(service: Process, token: string): Promise<number> {
  const body = JSON.stringify({ tokens: [token] });
  const startedAt = performance.now();
  const response = await fetch(`${service.url}/v1/leaks`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body,
  });
  const took = performance.now() - startedAt;
  await response.text();
  if (response.status !== 202) throw new Error(`a report was answered ${response.status}`);
  return took;
}

/** The chance that one of these is larger than one of those: what the best guess by a threshold has to go by (AUC). */
function shareLater(these: readonly number[], those: readonly number[]): number {
  let later = 0;
  for (const one of these) {
    for (const other of those) later += one > other ? 1 : one === other ? 0.5 : 0;
  }
  return later / (these.length * those.length);
}

async function flood(bench: Bench, database: BenchDatabase, service: Process): Promise<Figure[]> {
  const bodies = Array.from({ length: 20 }, () =>
    JSON.stringify({ tokens: unmintedTokens(STRINGS_IN_FLOOD) }),
  );
  const before = await countStatements(database.query);
  const perReport = await cpuPerRequest(bench, service, {
    url: `${service.url}/v1/leaks`,
    bodies,
    connections: FLOOD_CONNECTIONS,
    seconds: FLOOD_SECONDS,
  });
  const reads = (await countStatements(database.query)).reads - before.reads;
  return [
    {
      name: 'a flood of reports: CPU for each bogus string',
      value: perReport / STRINGS_IN_FLOOD,
      unit: 'µs',
      detail: `${STRINGS_IN_FLOOD} strings a report, ${FLOOD_CONNECTIONS} reports at a time`,
    },
    {
      name: 'reads of keys by the database meanwhile, for reports',
      value: reads,
      unit: '',
      aim: { text: '0', reached: reads === 0 },
      detail: 'scans of api_keys and verified_secrets',
    },
  ];
}
