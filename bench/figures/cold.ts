import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { type Bench, median } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeHashedKeys } from './keys.ts';

const KEYS_PER_ROUND = 120;

/** Keys that no instance has seen, without a memo: throughput ÷ that of raw argon2 with the same slots, in turns. */
export async function cold(bench: Bench, { rounds }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_cold');
  const service = await bench.service(database.url, { VERIFICATION_MEMO: 'off' });
  const ratios: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const keys = await storeHashedKeys(database, KEYS_PER_ROUND);
    const raw = await rawArgon2(2);
    const { succeeded, seconds } = await introspectAll(
      service,
      keys.map(({ token }) => token),
    );
    const again = await rawArgon2(2);
    ratios.push(succeeded / seconds / ((raw + again) / 2));
  }
  await service.stop();
  const value = median(ratios);
  return [
    {
      name: 'first introspection ÷ raw argon2 with the same slots',
      value,
      unit: '',
      aim: { text: '≥ 0.9', reached: value >= 0.9 },
      detail: `throughput, ${KEYS_PER_ROUND} never-seen keys a round, no memo`,
    },
  ];
}

async function rawArgon2(seconds: number): Promise<number> {
  const { stdout } = await promisify(execFile)(process.execPath, ['bench/raw-argon2.js', String(seconds)]);
  return JSON.parse(stdout).perSecond;
}

/** Each token once, as many at a time as keep the slots busy. */
async function introspectAll(service: { url: string; token: string | undefined }, tokens: readonly string[]) {
  const startedAt = performance.now();
  let succeeded = 0;
  const left = [...tokens];
  await Promise.all(
    Array.from({ length: 8 }, async () => {
      for (let token = left.pop(); token !== undefined; token = left.pop()) {
        const response = await fetch(`${service.url}/v1/introspect`, {
          method: 'POST',
          headers: { authorization: `Bearer ${service.token}`, 'content-type': 'application/json' },
          body: JSON.stringify({ key: token }),
        });
        const answer: unknown = await response.json();
        if (typeof answer === 'object' && answer !== null && Reflect.get(answer, 'active') === true)
          succeeded++;
      }
    }),
  );
  return { succeeded, seconds: (performance.now() - startedAt) / 1000 };
}
