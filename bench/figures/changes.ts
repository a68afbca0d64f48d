import { keyIdFromUuid } from '../../src/domain/key-id.ts';
import { type Bench, call, quantile } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { fillWithKeys } from './keys.ts';

const REVOCATIONS = 300;
const LEASE_SECONDS = 2;

/** DELETE until every one of three instances has confirmed; and the same with one of them stopped. */
export async function changes(bench: Bench, _options: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_changes');
  const environment = { LEASE_SECONDS: String(LEASE_SECONDS) };
  const first = await bench.service(database.url, environment);
  const token = first.token ?? '';
  const others = [
    await bench.service(database.url, environment),
    await bench.service(database.url, environment),
  ];
  await fillWithKeys(database, { count: REVOCATIONS + 1, workspaces: 1 });
  const rows = await database.query<{ id: string }>("SELECT id FROM api_keys WHERE workspace_id <> 'system'");
  const ids = rows.map(({ id }) => keyIdFromUuid(id));

  const waits: number[] = [];
  for (const id of ids.slice(0, REVOCATIONS)) {
    const startedAt = performance.now();
    const { propagation } = await call(first, token, `/v1/api-keys/${id}`, { method: 'DELETE' });
    waits.push(performance.now() - startedAt);
    if (propagation.confirmed !== 3) throw new Error(`confirmed by ${propagation.confirmed} of 3`);
  }

  others[1]?.child.kill('SIGSTOP');
  const stoppedAt = performance.now();
  const { propagation } = await call(first, token, `/v1/api-keys/${ids[REVOCATIONS]}`, { method: 'DELETE' });
  const withOneStopped = performance.now() - stoppedAt;
  others[1]?.child.kill('SIGCONT');
  if (propagation.fenced !== 1) throw new Error(`fenced ${propagation.fenced} of 1`);
  for (const service of [first, ...others]) await service.stop();

  const p50 = quantile(waits, 0.5);
  const p99 = quantile(waits, 0.99);
  const bound = 500 + 1.02 * LEASE_SECONDS * 1000 + 1_000;
  return [
    {
      name: 'DELETE until 3 instances confirmed, p50',
      value: p50,
      unit: 'ms',
      aim: { text: '≤ 15 ms', reached: p50 <= 15 },
      detail: `${REVOCATIONS} one after another`,
    },
    {
      name: 'DELETE until 3 instances confirmed, p99',
      value: p99,
      unit: 'ms',
      aim: { text: '≤ 100 ms', reached: p99 <= 100 },
    },
    {
      name: 'DELETE with one of 3 instances stopped',
      value: withOneStopped,
      unit: 'ms',
      aim: { text: `≤ ${bound} ms`, reached: withOneStopped <= bound },
      detail: `LEASE_SECONDS=${LEASE_SECONDS}`,
    },
  ];
}
