import { execFile } from 'node:child_process';
import { access, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type Bench, type Comparison, call, compare, type Load, type Process } from '../harness.ts';
import type { Figure, Options } from '../run.ts';

/*
 * POST /v1/introspect beside what a TypeScript team would use instead, each on a database of its own on the same
 * PostgreSQL, with its documented defaults (docs/performance.md, "Beside others"). The peers are a package of their
 * own in bench/peers/, so that nobody else installs them.
 */

const PEERS = 'bench/peers';
/** Each is asked about that many keys in turn, so that writes to the row of one do not wait for each other. */
const KEYS = 200;
const BETTER_AUTH_AIM = 20;
const OIDC_PROVIDER_AIM = 3;

export async function peers(bench: Bench, { rounds, seconds }: Options): Promise<Figure[]> {
  await install();
  const { service, token, keys } = await startOurs(bench);
  const common = { inTurn: true, seconds };
  const headers = { authorization: `Bearer ${token}` };
  const url = `${service.url}/v1/introspect`;

  const betterAuth = await startPeer(bench, 'better-auth');
  const betterAuthTokens: string[] = JSON.parse(await readFile(betterAuth.tokensFile, 'utf8'));
  const json = (tokens: readonly string[]) => tokens.map((key) => JSON.stringify({ key }));
  const besideBetterAuth = await beside(bench, rounds, {
    peer: [
      betterAuth.process,
      { url: `${betterAuth.process.url}/introspect`, bodies: json(betterAuthTokens), ...common },
    ],
    ours: [service, { url, headers, bodies: json(keys), ...common }],
  });
  await betterAuth.process.stop();

  const oidcProvider = await startPeer(bench, 'oidc-provider');
  const { tokens, authorization } = JSON.parse(await readFile(oidcProvider.tokensFile, 'utf8'));
  const form = { 'content-type': 'application/x-www-form-urlencoded' };
  const forms = (all: readonly string[]) => all.map((one) => `token=${encodeURIComponent(one)}`);
  const besideOidcProvider = await beside(bench, rounds, {
    peer: [
      oidcProvider.process,
      {
        url: `${oidcProvider.process.url}/token/introspection`,
        headers: { ...form, authorization },
        bodies: forms(tokens),
        ...common,
      },
    ],
    ours: [service, { url, headers: { ...form, ...headers }, bodies: forms(keys), ...common }],
  });
  await oidcProvider.process.stop();
  await service.stop();
  return [
    figureOf('better-auth, API key plugin ÷ introspection', besideBetterAuth, BETTER_AUTH_AIM),
    figureOf(
      'oidc-provider, introspection ÷ introspection by RFC 7662',
      besideOidcProvider,
      OIDC_PROVIDER_AIM,
    ),
  ];
}

function figureOf(name: string, { ratio, control, oursUs, yardstickUs }: Comparison, aim: number): Figure {
  return {
    name,
    value: ratio,
    unit: '',
    aim: { text: `≥ ${aim}`, reached: ratio >= aim },
    control,
    detail: `${yardstickUs.toFixed(0)} µs against ${oursUs.toFixed(0)} µs of the server's CPU, ${KEYS} keys in turn`,
  };
}

/** The peer is the yardstick. Each must say of its keys that they are good, or it would be compared for its refusals. */
async function beside(
  bench: Bench,
  rounds: number,
  { peer, ours }: { peer: [Process, Load]; ours: [Process, Load] },
): Promise<Comparison> {
  await expectActive(peer[1]);
  await expectActive(ours[1]);
  const comparison = await compare(bench, { yardstick: peer, ours, rounds });
  await expectActive(peer[1]);
  await expectActive(ours[1]);
  return comparison;
}

async function expectActive({ url, headers = {}, bodies = [] }: Load): Promise<void> {
  for (const body of bodies) {
    const response = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body,
    });
    const answer = await response.text();
    if (!/"active":\s*true/.test(answer)) throw new Error(`${url}: ${response.status} ${answer}`);
  }
}

/** With a rate limit, as the others have one or none that never refuses. */
async function startOurs(bench: Bench) {
  const database = await bench.createDatabase('peers_ours');
  const service = await bench.service(database.url);
  const token = service.token ?? '';
  const keys: string[] = [];
  for (let n = 0; n < KEYS; n++) {
    const { data } = await call(service, token, '/v1/api-keys', {
      body: {
        workspace_id: 'ws_bench',
        name: `Key ${n}`,
        scopes: ['read'],
        rate_limit: { limit: 1_000_000_000, window_seconds: 3_600 },
      },
    });
    keys.push(data.key);
  }
  return { service, token, keys };
}

async function startPeer(bench: Bench, name: 'better-auth' | 'oidc-provider') {
  const database = await bench.createDatabase(`peers_${name.replace('-', '_')}`);
  const tokensFile = join(bench.folder, `${name}.json`);
  const process = await bench.program([
    `${PEERS}/${name}.js`,
    JSON.stringify({ databaseUrl: database.url, keys: KEYS, tokensFile }),
  ]);
  return { process, tokensFile };
}

/** What its lock file names, where that is not there yet. */
async function install(): Promise<void> {
  const isThere = await access(`${PEERS}/node_modules`).then(
    () => true,
    () => false,
  );
  if (!isThere) await promisify(execFile)('npm', ['ci', '--no-audit', '--no-fund'], { cwd: PEERS });
}
