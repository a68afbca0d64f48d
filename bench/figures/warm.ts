import { type Bench, call, compare } from '../harness.ts';
import type { Figure, Options } from '../run.ts';

/** A key in memory, against the bare route with the same body and answer size. */
export async function warm(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_warm');
  const service = await bench.service(database.url);
  const token = service.token ?? '';
  const created = await call(service, token, '/v1/api-keys', {
    body: { workspace_id: 'ws_bench', name: 'Bench', scopes: ['read'] },
  });
  const body = { key: created.data.key, scopes: ['read'] };
  const answer = await call(service, token, '/v1/introspect', { body });
  const bare = await bench.bare(JSON.stringify(answer).length);
  const bodies = [JSON.stringify(body)];
  const { ratio, control, oursUs, yardstickUs } = await compare(bench, {
    yardstick: [bare, { url: `${bare.url}/bare`, bodies, seconds }],
    ours: [
      service,
      { url: `${service.url}/v1/introspect`, headers: { authorization: `Bearer ${token}` }, bodies, seconds },
    ],
    rounds,
  });
  await service.stop();
  await bare.stop('SIGKILL');
  return [
    {
      name: 'warm introspection ÷ bare route',
      value: ratio,
      unit: '',
      control,
      detail: `${oursUs.toFixed(0)} µs against ${yardstickUs.toFixed(0)} µs of CPU`,
    },
  ];
}
