import { type Bench, call, compare } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { unmintedTokens } from './keys.ts';

/** Tokens of the right checksum that this deployment did not mint, against the bare route; and what the database saw. */
export async function unminted(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_unminted');
  const service = await bench.service(database.url);
  const token = service.token ?? '';
  const bodies = unmintedTokens(1_000).map((key) => JSON.stringify({ key }));
  const answer = await call(service, token, '/v1/introspect', { body: JSON.parse(bodies[0] ?? '{}') });
  const bare = await bench.bare(JSON.stringify(answer).length);
  const lookups = async () => {
    const metrics = await (await fetch(`${service.url}/metrics`)).text();
    return Number(/claviger_lookups_total\{way="database"\} (\d+)/.exec(metrics)?.[1]);
  };
  const before = await lookups();
  const { ratio, control, oursUs, yardstickUs } = await compare(bench, {
    yardstick: [bare, { url: `${bare.url}/bare`, bodies, seconds }],
    ours: [
      service,
      { url: `${service.url}/v1/introspect`, headers: { authorization: `Bearer ${token}` }, bodies, seconds },
    ],
    rounds,
  });
  const queries = (await lookups()) - before;
  await service.stop();
  await bare.stop('SIGKILL');
  return [
    {
      name: 'bogus tokens ÷ bare route',
      value: ratio,
      unit: '',
      aim: { text: '≥ 0.75', reached: ratio >= 0.75 },
      control,
      detail: `${oursUs.toFixed(0)} µs against ${yardstickUs.toFixed(0)} µs of CPU`,
    },
    {
      name: 'key reads of the database meanwhile',
      value: queries,
      unit: '',
      aim: { text: '0', reached: queries === 0 },
    },
  ];
}
