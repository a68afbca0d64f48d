import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Bench, compareInTurns, type Load, load, median, type Process } from '../harness.ts';
import type { Figure, Options } from '../run.ts';
import { storeKeysWithMemo } from './keys.ts';

const RECIPE = fileURLToPath(new URL('../../examples/gateways/nginx', import.meta.url));
/** Well below what one core can answer, so that no request waits for another. */
const REQUESTS_A_SECOND = 500;
const OPEN_CONNECTIONS = 32;

/** An instance, and what a gateway asks it of a key in memory. */
async function startAsked(bench: Bench, name: string, settings: Record<string, string>) {
  const database = await bench.createDatabase(name);
  const service = await bench.service(database.url, settings);
  const [key] = await storeKeysWithMemo(database, 1);
  return { service, serviceKey: service.token ?? '', bearer: `Bearer ${key?.token}` };
}

/** The answer to a gateway against a bare GET route, in CPU. */
export async function authorize(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const { service, serviceKey, bearer } = await startAsked(bench, 'bench_authorize', {});
  const bare = await bench.bare(0);
  const headers = {
    authorization: bearer,
    'x-claviger-service-key': serviceKey,
    'x-forwarded-method': 'GET',
    'x-forwarded-uri': '/contacts/17?page=2',
    'x-forwarded-for': '203.0.113.9',
  };
  const { ratio, control, oursUs, yardstickUs } = await compareInTurns(bench, {
    yardstick: [bare, { url: `${bare.url}/bare`, headers, seconds }],
    ours: [service, { url: `${service.url}/v1/authorize`, headers, seconds }],
    rounds,
  });
  await service.stop();
  await bare.stop('SIGKILL');
  return [
    {
      name: 'forward authentication ÷ bare GET route',
      value: ratio,
      unit: '',
      aim: { text: '≥ 0.75', reached: ratio >= 0.75 },
      control,
      detail: `${oursUs.toFixed(1)} µs against ${yardstickUs.toFixed(1)} µs of CPU`,
    },
  ];
}

/** What a client of nginx waits longer for where nginx asks first, by the recipe of examples/gateways/nginx. */
export async function gateway(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  const { service, serviceKey, bearer } = await startAsked(bench, 'bench_gateway', {
    AUTHORIZE_SOURCE: 'original',
  });
  const bare = await bench.bare(200);
  const asking = await startNginx(bench, 'asking', { claviger: service, bare, serviceKey, asks: true });
  const plain = await startNginx(bench, 'plain', { claviger: service, bare, serviceKey, asks: false });
  const work = (port: number): Load => ({
    url: `http://127.0.0.1:${port}/bare`,
    headers: { authorization: bearer },
    connections: OPEN_CONNECTIONS,
    rate: REQUESTS_A_SECOND,
    seconds,
  });
  const taken: { asking: Latency; plain: Latency; again: Latency }[] = [];
  try {
    for (let round = -1; round < rounds; round++) {
      const measured = {
        plain: await latency(bench, work(plain.port)),
        asking: await latency(bench, work(asking.port)),
        again: await latency(bench, work(plain.port)),
      };
      if (round >= 0) taken.push(measured);
    }
  } finally {
    await asking.stop();
    await plain.stop();
  }
  await service.stop();
  await bare.stop('SIGKILL');
  return (['p50Us', 'p99Us'] as const).map((which) => {
    const of = (name: 'asking' | 'plain' | 'again') => median(taken.map((round) => round[name][which]));
    return {
      name: `nginx with auth_request − without, ${which.slice(0, 3)}`,
      value: median(
        taken.map((round) => (round.asking[which] - (round.plain[which] + round.again[which]) / 2) / 1_000),
      ),
      unit: 'ms',
      control: of('plain') / of('again'),
      detail: `${of('asking').toFixed(0)} µs against ${of('plain').toFixed(0)} µs, at ${REQUESTS_A_SECOND} a second`,
    };
  });
}

interface Latency {
  readonly p50Us: number;
  readonly p99Us: number;
}

async function latency(bench: Bench, work: Load): Promise<Latency> {
  const result = await load(bench, work);
  if (result.errors > 0 || result.succeeded < result.answered) throw new Error('some of the requests failed');
  return result;
}

/** nginx by its recipe; where it does not ask, without the lines that ask. */
async function startNginx(
  bench: Bench,
  name: string,
  {
    claviger,
    bare,
    serviceKey,
    asks,
  }: { claviger: Process; bare: Process; serviceKey: string; asks: boolean },
): Promise<{ port: number; stop(): Promise<void> }> {
  const port = await freePort();
  const folder = join(bench.folder, `nginx-${name}`);
  await cp(RECIPE, folder, { recursive: true });
  const set = (file: string, text: string) => writeFile(join(folder, 'settings', file), text);
  await set('listen.conf', `listen 127.0.0.1:${port};`);
  await set('service-key.conf', `map "" $claviger_service_key { default "${serviceKey}"; }`);
  await set(
    'upstreams.conf',
    `upstream claviger { server ${new URL(claviger.url).host}; keepalive 32; }
     upstream service { server ${new URL(bare.url).host}; keepalive 32; }`,
  );
  if (!asks) {
    const file = join(folder, 'nginx.conf');
    const recipe = await readFile(file, 'utf8');
    const unasked = recipe
      .replace(/^ *auth_request .*\n/m, '')
      .replaceAll(/auth_request_set (\S+) .*;/g, 'set $1 "";');
    await writeFile(file, unasked);
  }
  const directives = `pid ${folder}/pid; daemon off; user ${userInfo().username};`;
  const child = spawn('nginx', ['-c', join(folder, 'nginx.conf'), '-g', directives], { stdio: 'inherit' });
  let isListening = false;
  while (!isListening) {
    if (child.exitCode !== null) throw new Error('nginx does not run');
    await sleep(50);
    isListening = await fetch(`http://127.0.0.1:${port}/`).then(
      () => true,
      () => false,
    );
  }
  return {
    port,
    async stop() {
      child.kill('SIGTERM');
      await once(child, 'exit');
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('there is no free port');
  return address.port;
}
