// A contacts API. GET and HEAD need the scope `read`, everything else `write`. That who may write may also read is no
// business of this code: the scope catalogue says so.
import { createServer } from 'node:http';

const { CLAVIGER_URL = 'http://127.0.0.1:8080', INTROSPECT_KEY, PORT = '3000' } = process.env;
const contacts = ['Ada'];

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

  const reads = request.method === 'GET' || request.method === 'HEAD';
  try {
    const verdict = await introspect({ key, scopes: [reads ? 'read' : 'write'] });
    if (!verdict.active) return answer(verdict.reason.status, { error: verdict.reason.detail });
  } catch {
    return answer(503, { error: 'Try again in a moment.' });
  }

  if (reads) return answer(200, { contacts });
  contacts.push(`Contact ${contacts.length + 1}`);
  return answer(201, { added: contacts.at(-1) });
});

server.listen(Number(PORT), '127.0.0.1');
