// A validation API. Which scope opens which endpoint stands in the scope catalogue alone: this code sends the method
// and the path of each request along, and names no scope.
import { createServer } from 'node:http';

const { CLAVIGER_URL = 'http://127.0.0.1:8080', INTROSPECT_KEY, PORT = '3000' } = process.env;

const routes = {
  'POST /offers/validations': () => ({ valid: true, what: 'offer' }),
  'POST /target-groups/validations': () => ({ valid: true, what: 'target group' }),
  'GET /statistics': () => ({ validations: 0 }),
};

/** Throws where there is no verdict; then nobody is let in. */
async function introspect(question) {
  const response = await fetch(`${CLAVIGER_URL}/v1/introspect`, {
    method: 'POST',
    headers: { authorization: `Bearer ${INTROSPECT_KEY}`, 'content-type': 'application/json' },
    body: JSON.stringify(question),
    signal: AbortSignal.timeout(2_000),
  });
  if (!response.ok) throw new Error(`Claviger answered ${response.status}`);
  return response.json();
}

const server = createServer(async (request, response) => {
  const answer = (status, body) =>
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  const key = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1];
  if (key === undefined) return answer(401, { error: 'Send your API key as Authorization: Bearer.' });

  try {
    // The path as it came, before anything has read meaning into it.
    const verdict = await introspect({ key, request: { method: request.method, path: request.url } });
    if (!verdict.active) return answer(verdict.reason.status, { error: verdict.reason.detail });
  } catch {
    return answer(503, { error: 'Try again in a moment.' });
  }

  const { pathname } = new URL(request.url, 'http://localhost');
  const route = routes[`${request.method} ${pathname}`];
  return route === undefined ? answer(404, { error: 'There is nothing here.' }) : answer(200, route());
});

server.listen(Number(PORT), '127.0.0.1');
