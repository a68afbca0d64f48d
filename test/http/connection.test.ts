import { once } from 'node:events';
import http from 'node:http';
import type { Socket } from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInThisContext } from 'node:vm';
import { expect, onTestFinished, test } from 'vitest';
import { createTestApp } from '../support/app.ts';
import { listen } from './listen.ts';

setFlagsFromString('--allow-natives-syntax');
/** Whether V8 describes both alike, which is what decides how it reads their members. */
const haveSameMap = runInThisContext('((one, other) => %HaveSameMap(one, other))') as (
  one: object,
  other: object,
) => boolean;

test('V8 describes all connections alike, whatever is asked on them', async () => {
  const app = await createTestApp({ CALLER_RATE_LIMIT: 'off' });
  onTestFinished(() => app.close());
  const port = await listen(app);
  const { token } = await app.createKey({ scopes: ['read'] });
  const caller = { authorization: `Bearer ${app.adminToken}` };
  const json = { ...caller, 'content-type': 'application/json' };

  /** Asks twice on a connection of its own, since the first answer changes what Node keeps; answers the server's side. */
  async function connectionOf(
    path: string,
    options: http.RequestOptions = {},
    body?: string,
  ): Promise<Socket> {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    onTestFinished(() => agent.destroy());
    const connected = once(app.app.server, 'connection');
    for (let asked = 0; asked < 2; asked++) {
      const request = http.request({ host: '127.0.0.1', port, path, agent, ...options }).end(body);
      const [response] = await once(request, 'response');
      expect(response.statusCode).toBeLessThan(500);
      await once(response.resume(), 'end');
    }
    const [socket] = await connected;
    return socket;
  }

  const asked = {
    'no service key': await connectionOf('/livez'),
    'no body': await connectionOf('/v1/me', { headers: caller }),
    'an unknown route': await connectionOf('/v1/nothing', { headers: caller }),
    'a plain body': await connectionOf(
      '/v1/introspect',
      { method: 'POST', headers: json },
      JSON.stringify({ key: token }),
    ),
    'a body for Fastify': await connectionOf(
      '/v1/introspect',
      { method: 'POST', headers: json },
      `{"key":"${token}","scopes":["re\\u0061d"]}`,
    ),
    'forward authentication': await connectionOf('/v1/authorize', {
      headers: { 'x-claviger-service-key': app.adminToken, authorization: `Bearer ${token}` },
    }),
  };
  const [first, ...others] = Object.values(asked);
  expect(Object.keys(asked)).toHaveLength(6);
  expect(others.map((other) => first !== undefined && haveSameMap(first, other))).toEqual(
    others.map(() => true),
  );
});
