import { type Bench, compare } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeKeysWithMemo } from './keys.ts';

const KEYS = 1_000;
const AIM = 0.9;

/** What it costs to record: two instances on one database, one of them with RECORDING=off, both warm. */
export async function recording(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_recording');
  const on = await bench.service(database.url);
  const off = await bench.service(database.url, { RECORDING: 'off' });
  const keys = await storeKeysWithMemo(database, KEYS);
  // Neither is to wait for quota, which is not what is measured.
  await database.query('UPDATE api_keys SET rate_limit = NULL, rate_limit_window_seconds = NULL');
  const headers = { authorization: `Bearer ${on.token}` };
  const request = { ip: '203.0.113.9', method: 'GET', path: '/contacts/17?page=2' };
  const asking = (scope: string) =>
    keys.map(({ token }) => JSON.stringify({ key: token, scopes: [scope], request }));

  const figures: Figure[] = [];
  for (const [name, bodies, aim] of [
    ['allowed', asking('read'), AIM],
    ['refused', asking('write'), undefined],
  ] as const) {
    const load = (url: string) => ({ url: `${url}/v1/introspect`, headers, bodies, seconds });
    const { ratio, control, oursUs, yardstickUs } = await compare(bench, {
      yardstick: [off, load(off.url)],
      ours: [on, load(on.url)],
      rounds,
    });
    figures.push({
      name: `warm introspection, ${name}: recording off ÷ on`,
      value: ratio,
      unit: '',
      control,
      detail: `${oursUs.toFixed(0)} µs with, ${yardstickUs.toFixed(0)} µs without; ${KEYS} keys`,
      ...(aim === undefined ? {} : { aim: { text: `≥ ${aim}`, reached: ratio >= aim } }),
    });
  }
  await on.stop();
  await off.stop();
  return figures;
}
