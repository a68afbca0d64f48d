import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { freePort, RECIPES, type Recipe, startProgram } from './gateway.ts';

/** The recipe for nginx as it stands, with settings/ written as its README says. */
export const nginx: Recipe = {
  name: 'nginx',
  settings: { AUTHORIZE_SOURCE: 'original' },
  statusWithoutClaviger: 503,
  passesProblems: false,
  tellsLimits: true,
  async start({ claviger, service, serviceKey, options = {} }) {
    const port = await freePort();
    const folder = await mkdtemp(join(tmpdir(), 'claviger-nginx-'));
    await cp(join(RECIPES, 'nginx'), folder, { recursive: true });
    const set = (name: string, text: string) => writeFile(join(folder, 'settings', name), text);
    await set('listen.conf', `listen 127.0.0.1:${port};`);
    await set(
      'upstreams.conf',
      `upstream claviger { server 127.0.0.1:${claviger}; keepalive 32; }
       upstream service { server 127.0.0.1:${service}; keepalive 32; }`,
    );
    await set('options.conf', `set $claviger_options "&${new URLSearchParams(options)}";`);
    await set('service-key.conf', `map "" $claviger_service_key { default "${serviceKey}"; }`);
    // Workers that run as somebody else cannot write where nginx keeps large answers.
    const directives = `pid ${folder}/nginx.pid; daemon off; user ${userInfo().username};`;
    const program = await startProgram('nginx', ['-c', join(folder, 'nginx.conf'), '-g', directives], {
      port,
    });
    return {
      ...program,
      async stop() {
        await program.stop();
        await rm(folder, { recursive: true, force: true });
      },
    };
  },
};

/** The recipe for Caddy as it stands; all that differs are the variables that it names. */
export const caddy: Recipe = {
  name: 'Caddy',
  settings: { AUTHORIZE_SOURCE: 'forwarded' },
  statusWithoutClaviger: 503,
  passesProblems: true,
  tellsLimits: true,
  async start({ claviger, service, serviceKey, options = {} }) {
    const port = await freePort();
    const folder = await mkdtemp(join(tmpdir(), 'claviger-caddy-'));
    const program = await startProgram(
      'caddy',
      ['run', '--adapter', 'caddyfile', '--config', join(RECIPES, 'caddy', 'Caddyfile')],
      {
        port,
        environment: {
          HOME: folder,
          GATEWAY_PORT: String(port),
          CLAVIGER: `127.0.0.1:${claviger}`,
          SERVICE: `127.0.0.1:${service}`,
          CLAVIGER_SERVICE_KEY: serviceKey,
          CLAVIGER_OPTIONS: new URLSearchParams(options).toString(),
        },
      },
    );
    return {
      ...program,
      async stop() {
        await program.stop();
        await rm(folder, { recursive: true, force: true });
      },
    };
  },
};
