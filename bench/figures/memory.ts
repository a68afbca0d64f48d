import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import {
  type Bench,
  halfOfSaturation,
  KEY_SECRET,
  load,
  OPEN_CONNECTIONS,
  SERVICE_SETTINGS,
} from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeKeysWithMemo } from './keys.ts';

/** Of the tokens in memory, every so many-th is asked for: the load's process need not hold all. */
const EVERY = 10;
const MEASURED_SECONDS = 20;

/** What a key takes in memory, and how long the event loop is kept from its work while there are a million. */
export async function memory(bench: Bench, { cached }: Options): Promise<Figure[]> {
  const database = await bench.createDatabase('bench_memory');
  const first = await bench.service(database.url);
  await first.stop();
  const [key] = await storeKeysWithMemo(database, 1);
  const tokensFile = join(bench.folder, 'tokens');
  const delayFile = join(bench.folder, 'delay');
  const options = { count: cached, token: key?.token, tokensFile, delayFile };
  const filled = await bench.program(
    ['--expose-gc', '--max-old-space-size=6144', 'bench/filled.js', JSON.stringify(options)],
    {
      ...SERVICE_SETTINGS,
      DATABASE_URL: database.url,
      KEY_SECRET,
      CACHED_KEYS: String(cached + 10_000),
      LEASE_SECONDS: '300',
    },
  );
  const { bytesPerKey } = z
    .object({ bytesPerKey: z.number() })
    .parse(JSON.parse(filled.printed.split('\n')[0] ?? ''));

  const bodies: string[] = [];
  let line = 0;
  for await (const token of createInterface({ input: createReadStream(tokensFile) }))
    if (line++ % EVERY === 0) bodies.push(JSON.stringify({ key: token, scopes: ['read'] }));
  const work = {
    url: `${filled.url}/v1/introspect`,
    headers: { authorization: `Bearer ${first.token}` },
    bodies,
  };
  const open = { ...work, connections: OPEN_CONNECTIONS };
  await load(bench, { ...open, seconds: 3 });
  const rate = await halfOfSaturation(bench, { ...open, seconds: 3 });
  // The delays from here on are what counts.
  filled.child.kill('SIGUSR2');
  const { succeeded, answered } = await load(bench, { ...open, rate, seconds: MEASURED_SECONDS });
  if (succeeded !== answered) throw new Error('not every key in memory was found');
  await filled.stop();
  const delay = z
    .object({ p99Ms: z.number(), maxMs: z.number() })
    .parse(JSON.parse(await readFile(delayFile, 'utf8')));
  return [
    {
      name: `heap + external per cached key at ${cached} keys`,
      value: bytesPerKey,
      unit: 'bytes',
      aim: { text: '≤ 700 bytes', reached: bytesPerKey <= 700 },
      detail: 'after a collection; no metadata; the tables of the cache included',
    },
    {
      name: `event-loop delay p99 at half of saturation with ${cached} cached keys`,
      value: delay.p99Ms,
      unit: 'ms',
      aim: { text: '≤ 10 ms', reached: delay.p99Ms <= 10 },
      detail: `worst ${delay.maxMs.toFixed(1)} ms; ${rate} a second for ${MEASURED_SECONDS} s, measured every millisecond, which is part of the figure`,
    },
  ];
}
