import { type Bench, compareInTurns } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeKeysWithMemo } from './keys.ts';

const KEYS = 1_000;
const AIM = 0.9;

/**
 * What it costs to record: instances on one database, one of them with RECORDING=off, all warm. Counting is told apart
 * from the request log, which by default also holds what was allowed, up to a number a second.
 */
export async function recording(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_recording');
  const on = await bench.service(database.url);
  const counting = await bench.service(database.url, { REQUEST_LOG_SAMPLE: '0' });
  const off = await bench.service(database.url, { RECORDING: 'off' });
  const keys = await storeKeysWithMemo(database, KEYS);
  // Neither is to wait for quota, which is not what is measured.
  await database.query('UPDATE api_keys SET rate_limit = NULL, rate_limit_window_seconds = NULL');
  const headers = { authorization: `Bearer ${on.token}` };
  const request = { ip: '203.0.113.9', method: 'GET', path: '/contacts/17?page=2' };
  const asking = (scope: string) =>
    keys.map(({ token }) => JSON.stringify({ key: token, scopes: [scope], request }));

  const figures: Figure[] = [];
  for (const [name, service, bodies, aim] of [
    ['one key, not logged', counting, asking('read').slice(0, 1), AIM],
    ['one key', on, asking('read').slice(0, 1), AIM],
    [`${KEYS} keys, not logged`, counting, asking('read'), undefined],
    [`${KEYS} keys`, on, asking('read'), undefined],
    [`${KEYS} keys, refused`, on, asking('write'), undefined],
  ] as const) {
    const load = (url: string) => ({ url: `${url}/v1/introspect`, headers, bodies, seconds });
    const { ratio, control, oursUs, yardstickUs } = await compareInTurns(bench, {
      yardstick: [off, load(off.url)],
      ours: [service, load(service.url)],
      rounds,
    });
    figures.push({
      name: `warm introspection, ${name}: recording off ÷ on`,
      value: ratio,
      unit: '',
      control,
      detail: `${oursUs.toFixed(0)} µs with, ${yardstickUs.toFixed(0)} µs without`,
      ...(aim === undefined ? {} : { aim: { text: `≥ ${aim}`, reached: ratio >= aim } }),
    });
  }
  for (const service of [on, counting]) await service.stop();
  await off.stop();
  return figures;
}
