import { type Bench, load } from '../harness.ts';
import type { Figure, Options } from '../run.ts';

/** Creating keys: a hash each, so that argon2 sets the pace. */
export async function create(bench: Bench, { seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_create');
  const service = await bench.service(database.url);
  const { succeeded, seconds: took } = await load(bench, {
    url: `${service.url}/v1/api-keys`,
    headers: { authorization: `Bearer ${service.token}` },
    bodies: [JSON.stringify({ workspace_id: 'ws_bench', name: 'Bench', scopes: ['read'] })],
    connections: 8,
    seconds,
  });
  await service.stop();
  return [
    { name: 'keys created', value: succeeded / took, unit: 'a second', detail: 'default argon2 parameters' },
  ];
}
