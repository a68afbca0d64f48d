// A notes API without scopes. A key may do everything, and sees the notes of its own workspace alone.
import { createServer } from 'node:http';

const { CLAVIGER_URL = 'http://127.0.0.1:8080', INTROSPECT_KEY, PORT = '3000' } = process.env;
/** By workspace: nothing here is looked up by anything that a client says of itself. */
const notes = new Map();

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

  // `/notes` is of the key's workspace, whichever that is; `/workspaces/ws_acme/notes` expects that one.
  const [, expected] = /^\/workspaces\/([A-Za-z0-9_.:-]+)\/notes$/.exec(request.url) ?? [];
  if (expected === undefined && request.url !== '/notes')
    return answer(404, { error: 'There is nothing here.' });
  let workspace;
  try {
    const verdict = await introspect({ key, ...(expected && { workspace_id: expected }) });
    if (!verdict.active) return answer(verdict.reason.status, { error: verdict.reason.detail });
    workspace = verdict.workspace_id;
  } catch {
    return answer(503, { error: 'Try again in a moment.' });
  }

  const own = notes.get(workspace) ?? [];
  if (request.method === 'GET') return answer(200, { workspace, notes: own });
  notes.set(workspace, [...own, `Note ${own.length + 1}`]);
  return answer(201, { workspace, notes: notes.get(workspace) });
});

server.listen(Number(PORT), '127.0.0.1');
