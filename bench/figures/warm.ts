import { availableParallelism } from 'node:os';
import {
  type Bench,
  call,
  compare,
  compareInTurns,
  compareLatency,
  halfOfSaturation,
  type Load,
  load,
  loads,
  median,
  OPEN_CONNECTIONS,
  type Process,
} from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeHashedKeys, storeKeysWithMemo, unmintedTokens } from './keys.ts';

const MANY_KEYS = 100_000;
const NEW_KEYS_A_SECOND = 20;

interface Instance {
  readonly service: Process;
  /** Introspections with these bodies. */
  introspect(bodies: readonly string[]): Load;
}

async function startInstance(
  bench: Bench,
  url: string,
  settings: Record<string, string> = {},
): Promise<Instance & { token: string }> {
  const service = await bench.service(url, settings);
  const token = service.token ?? '';
  return {
    service,
    token,
    introspect: (bodies) => ({
      url: `${service.url}/v1/introspect`,
      headers: { authorization: `Bearer ${token}` },
      bodies,
    }),
  };
}

/** The size of a real answer, so that the yardstick's has the same. */
async function answerSize({ service, token }: { service: Process; token: string }, body: unknown) {
  return JSON.stringify(await call(service, token, '/v1/introspect', { body })).length;
}

const bodyOf = ({ token }: { token: string }) => JSON.stringify({ key: token, scopes: ['read'] });

/** A key in memory, against the bare route with the same request and answer size: CPU, then latency at a fixed rate. */
export async function warm(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_warm');
  const ours = await startInstance(bench, database.url);
  const [key] = await storeKeysWithMemo(database, 1);
  const bodies = key === undefined ? [] : [bodyOf(key)];
  const bare = await bench.bare(await answerSize(ours, JSON.parse(bodies[0] ?? '{}')));
  const yardstick = (): Load => ({ ...ours.introspect(bodies), url: `${bare.url}/bare` });

  const cpu = await compareInTurns(bench, {
    yardstick: [bare, { ...yardstick(), seconds }],
    ours: [ours.service, { ...ours.introspect(bodies), seconds }],
    rounds,
  });
  const asked = { ...ours.introspect(bodies), connections: OPEN_CONNECTIONS, seconds };
  const open = { connections: OPEN_CONNECTIONS, seconds, rate: await halfOfSaturation(bench, asked) };
  const latency = await compareLatency(bench, {
    yardstick: [{ ...yardstick(), ...open }],
    ours: () => [{ ...ours.introspect(bodies), ...open }],
    rounds,
  });
  await ours.service.stop();
  await bare.stop('SIGKILL');
  return [
    {
      name: 'warm introspection ÷ bare route',
      value: cpu.ratio,
      unit: '',
      aim: { text: '≥ 0.80', reached: cpu.ratio >= 0.8 },
      control: cpu.control,
      detail: `${cpu.oursUs.toFixed(1)} µs against ${cpu.yardstickUs.toFixed(1)} µs of CPU`,
    },
    {
      name: 'p99 latency at half of saturation ÷ the bare route’s',
      value: latency.ratio,
      unit: '',
      aim: { text: '≤ 1.5', reached: latency.ratio <= 1.5 },
      control: latency.control,
      detail: `${latency.oursUs.toFixed(0)} µs against ${latency.yardstickUs.toFixed(0)} µs, both at ${open.rate} a second`,
    },
  ];
}

/** Two instances on one database against one, each asked as fast as it answers. The load takes its share of the cores. */
export async function pair(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_pair');
  const first = await startInstance(bench, database.url);
  const second = await bench.service(database.url);
  const [key] = await storeKeysWithMemo(database, 1);
  const bodies = key === undefined ? [] : [bodyOf(key)];
  const toFirst: Load = { ...first.introspect(bodies), seconds };
  const toBoth = [toFirst, { ...toFirst, url: `${second.url}/v1/introspect` }];

  const taken: { one: Throughput; two: Throughput }[] = [];
  for (let round = -1; round < rounds; round++) {
    const measured = { one: await throughput(bench, [toFirst]), two: await throughput(bench, toBoth) };
    if (round >= 0) taken.push(measured);
  }
  await first.service.stop();
  await second.stop();
  const of = (which: 'one' | 'two', what: keyof Throughput) =>
    median(taken.map((round) => round[which][what]));
  const share = (which: 'one' | 'two') => `${(of(which, 'loadShare') * 100).toFixed(0)} %`;
  return [
    {
      name: 'throughput of two instances ÷ one',
      value: median(taken.map(({ one, two }) => two.perSecond / one.perSecond)),
      unit: '',
      detail:
        `${of('two', 'perSecond').toFixed(0)} a second against ${of('one', 'perSecond').toFixed(0)}; of ${availableParallelism()} cores ` +
        `the load itself takes ${share('two')} with two, ${share('one')} with one`,
    },
  ];
}

interface Throughput {
  readonly perSecond: number;
  /** What the load took of all cores. */
  readonly loadShare: number;
}

async function throughput(bench: Bench, streams: readonly Load[]): Promise<Throughput> {
  const { streams: results, cpuMs } = await loads(bench, streams);
  if (results.some(({ answered, succeeded }) => answered !== succeeded))
    throw new Error('some of the requests failed');
  const took = Math.max(...results.map((result) => result.seconds));
  return {
    perSecond: results.reduce((sum, result) => sum + result.succeeded / result.seconds, 0),
    loadShare: cpuMs / 1000 / took / availableParallelism(),
  };
}

/** Many keys in memory, one chosen at random for each request, against one key. */
export async function many(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_many');
  const { service, introspect } = await startInstance(bench, database.url);
  const bodies = (await storeKeysWithMemo(database, MANY_KEYS)).map(bodyOf);
  const filling = await loads(bench, [{ ...introspect(bodies), inTurn: true, amount: MANY_KEYS }]);
  if (filling.streams[0]?.succeeded !== MANY_KEYS) throw new Error('not every key was answered');
  const { ratio, control, oursUs, yardstickUs } = await compare(bench, {
    yardstick: [service, { ...introspect(bodies.slice(0, 1)), seconds }],
    ours: [service, { ...introspect(bodies), seconds }],
    rounds,
  });
  await service.stop();
  return [
    {
      name: `${MANY_KEYS} keys at random ÷ one key`,
      value: ratio,
      unit: '',
      aim: { text: '≥ 0.85', reached: ratio >= 0.85 },
      control,
      detail: `${oursUs.toFixed(1)} µs against ${yardstickUs.toFixed(1)} µs of CPU`,
    },
  ];
}

/** What honest callers feel while others send bogus tokens, and while keys come that no instance has seen. */
export async function crowd(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_crowd');
  const { service, introspect } = await startInstance(bench, database.url, { VERIFICATION_MEMO: 'off' });
  const [honest] = await storeHashedKeys(database, 1);
  const bodies = honest === undefined ? [] : [bodyOf(honest)];
  const asked = { ...introspect(bodies), connections: OPEN_CONNECTIONS, seconds };
  await load(bench, asked);
  const rate = await halfOfSaturation(bench, asked);
  // As many connections with the bogus ones as without.
  const open = { connections: OPEN_CONNECTIONS / 2, seconds };
  const alone: Load = { ...introspect(bodies), ...open, rate: Math.floor(rate / 2) };
  const unminted = unmintedTokens(1_000).map((key) => JSON.stringify({ key }));
  const halfBogus = () => [alone, { ...alone, bodies: unminted }];

  const bogus = await compareLatency(bench, { yardstick: [{ ...asked, rate }], ours: halfBogus, rounds });
  const flooded = await compareLatency(bench, { yardstick: [alone], ours: halfBogus, rounds });

  const perRound = Math.ceil(NEW_KEYS_A_SECOND * seconds * 1.5);
  const never = (await storeHashedKeys(database, perRound * (rounds + 1))).map(bodyOf);
  let used = 0;
  const fresh = await compareLatency(bench, {
    yardstick: [alone],
    ours() {
      const bodies = never.slice(used, used + perRound);
      used += perRound;
      return [alone, { ...introspect(bodies), ...open, inTurn: true, rate: NEW_KEYS_A_SECOND }];
    },
    rounds,
  });
  await service.stop();
  const described = ({ oursUs, yardstickUs }: { oursUs: number; yardstickUs: number }, honest: number) =>
    `${oursUs.toFixed(0)} µs against ${yardstickUs.toFixed(0)} µs; ${honest} honest requests a second without`;
  return [
    {
      name: 'p99 of honest callers while half of the requests are bogus ÷ while none is, of as many',
      value: bogus.ratio,
      unit: '',
      aim: { text: '≤ 1.5', reached: bogus.ratio <= 1.5 },
      control: bogus.control,
      detail: `${described(bogus, rate)}, half of saturation`,
    },
    {
      name: '… ÷ the honest ones alone, without the flood',
      value: flooded.ratio,
      unit: '',
      control: flooded.control,
      detail: described(flooded, alone.rate ?? 0),
    },
    {
      name: `… while ${NEW_KEYS_A_SECOND} never-seen keys a second arrive ÷ without`,
      value: fresh.ratio,
      unit: '',
      aim: { text: '≤ 5', reached: fresh.ratio <= 5 },
      control: fresh.control,
      detail: described(fresh, alone.rate ?? 0),
    },
  ];
}
