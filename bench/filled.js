// An instance of the compiled service with so many keys in memory, and what each of them takes there.
//
// The keys go in by the service's own code, from the read of a row on: its loader, its verifier, its cache. Only the
// driver is played: it answers each read with a copy of one real row under another id, since a million real reads take
// minutes. Run with --expose-gc. argv: {count, token, tokensFile,
// delayFile}; `token` is that of the real row, which has a memo.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createWriteStream, writeFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { writeHeapSnapshot } from 'node:v8';
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import pino from 'pino';
import { buildApp } from '../dist/app.js';
import { readConfig } from '../dist/config.js';
import { openCore } from '../dist/core.js';
import { keyIdToUuid, newKeyId } from '../dist/domain/key-id.js';
import { hmacSha256 } from '../dist/domain/key-secret.js';
import { createTokenMint } from '../dist/domain/token.js';
import { createMetrics } from '../dist/metrics.js';
import { appDependencies } from '../dist/server.js';
import { loadKeys } from '../dist/storage/keys.js';
import { createRecordCache } from '../dist/verification/record-cache.js';
import { createVerifier } from '../dist/verification/verifier.js';

const { count, token: sampleToken, tokensFile, delayFile } = JSON.parse(process.argv[2] ?? '{}');
const config = readConfig(process.env);
const logger = pino({ level: 'warn' }, pino.destination({ fd: 2, sync: true }));
const metrics = createMetrics('bench');
const core = await openCore(config, {
  role: 'service',
  report: ({ message }) => logger.warn(message),
  observers: metrics.observers,
});
const mint = createTokenMint(core.deriveKeys('mint'), randomBytes);
const [memoKey] = core.deriveKeys('memo');

// The real row, as the driver hands it over.
let sample;
const client = new pg.Client({ connectionString: config.DATABASE_URL });
await client.connect();
const spied = {
  async query(query, values) {
    const result = await client.query(query, values);
    sample = result.rows[0];
    return result;
  },
};
const sampleId = mint.identify(sampleToken);
const [{ hash }] = await loadKeys(drizzle(spied), [sampleId]);
await client.end();
const sampleUuid = keyIdToUuid(sampleId);

/** As fresh as from the wire: nothing is shared with other rows. */
function fresh(value) {
  if (typeof value === 'string') return Buffer.from(value).toString();
  if (value instanceof Date) return new Date(value);
  if (Array.isArray(value)) return value.map(fresh);
  return value;
}

let mac;
const played = drizzle({
  async query(_query, values) {
    const [[uuid]] = values;
    const row = sample.map((value) => {
      if (value === sampleUuid) return fresh(uuid);
      return Buffer.isBuffer(value) ? mac : fresh(value);
    });
    return { rows: [row], rowCount: 1 };
  },
});
const verifier = createVerifier({
  ...core,
  database: { read: (run) => run(played) },
  mint,
  lease: core.membership,
  memoKey,
  observer: metrics.observers.engine,
});

const stream = createWriteStream(tokensFile);

async function remember() {
  const token = mint.mint({ prefix: 'ck', environment: 'live', id: newKeyId(Date.now()) });
  mac = hmacSha256(memoKey, token, hash);
  // Finds that it is no service key, but only after it has loaded, proved and remembered it.
  await verifier.authenticate(token, () => '127.0.0.1');
  return token;
}

function used() {
  for (let times = 0; times < 4; times++) globalThis.gc();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

for (let warmUp = 0; warmUp < 1_000; warmUp++) await remember();
const before = used();
const held = core.cache.size;
for (let index = 0; index < count; index++) {
  const token = await remember();
  if (!stream.write(`${token}\n`)) await once(stream, 'drain');
}
await new Promise((resolve) => stream.end(resolve));
const added = core.cache.size - held;
if (added < count) throw new Error(`only ${added} of ${count} keys were remembered`);
const withKeys = used();
// What the cache takes at its start already.
const another = createRecordCache({ capacity: config.CACHED_KEYS });
const tables = used() - withKeys;
if (another.size !== 0) throw new Error('a new cache holds keys');
const bytesPerKey = (withKeys - before + tables) / added;
if (process.env.HEAP_SNAPSHOT !== undefined) writeHeapSnapshot(process.env.HEAP_SNAPSHOT);

const app = await buildApp(
  appDependencies(core, config, { logger, phase: { draining: false, closing: false }, metrics }),
);
const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
// SIGUSR2: from now on; SIGTERM: tell, and end.
process.on('SIGUSR2', () => delay.reset());
process.on('SIGTERM', async () => {
  writeFileSync(delayFile, JSON.stringify({ p99Ms: delay.percentile(99) / 1e6, maxMs: delay.max / 1e6 }));
  await app.close();
  await core.close();
});
const address = await app.listen({ host: '127.0.0.1', port: 0 });
process.stdout.write(`${JSON.stringify({ added, bytesPerKey })}\nlistens on ${address}\n`);
