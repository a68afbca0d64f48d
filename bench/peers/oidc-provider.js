// oidc-provider's introspection endpoint (RFC 7662), with its tokens in PostgreSQL. argv: {databaseUrl, keys,
// tokensFile}. Makes its table, has that many tokens issued by client_credentials, writes them, and listens.
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';
import pg from 'pg';

const { databaseUrl, keys, tokensFile } = JSON.parse(process.argv[2] ?? '{}');
const pool = new pg.Pool({ connectionString: databaseUrl, max: 10 });
await pool.query(`
  CREATE TABLE oidc_models (
    model text, id text, payload jsonb NOT NULL, grant_id text, uid text, expires_at timestamptz, consumed_at timestamptz,
    PRIMARY KEY (model, id))`);

/** Its storage, as its example adapters do it: a row for each model, found by its id. */
class PostgresAdapter {
  constructor(model) {
    this.model = model;
  }

  async upsert(id, payload, expiresIn) {
    const expiresAt = expiresIn ? new Date(Date.now() + expiresIn * 1000) : null;
    await pool.query(
      `INSERT INTO oidc_models (model, id, payload, grant_id, uid, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
       ON CONFLICT (model, id) DO UPDATE SET payload = excluded.payload, expires_at = excluded.expires_at`,
      [this.model, id, payload, payload.grantId ?? null, payload.uid ?? null, expiresAt],
    );
  }

  async find(id) {
    const { rows } = await pool.query({
      name: 'find',
      text: 'SELECT payload, expires_at, consumed_at FROM oidc_models WHERE model = $1 AND id = $2',
      values: [this.model, id],
    });
    const [row] = rows;
    if (row === undefined || (row.expires_at !== null && row.expires_at <= new Date())) return undefined;
    return { ...row.payload, ...(row.consumed_at === null ? {} : { consumed: true }) };
  }

  async findByUid(uid) {
    const { rows } = await pool.query('SELECT payload FROM oidc_models WHERE model = $1 AND uid = $2', [
      this.model,
      uid,
    ]);
    return rows[0]?.payload;
  }

  async findByUserCode() {
    return undefined;
  }

  async consume(id) {
    await pool.query('UPDATE oidc_models SET consumed_at = now() WHERE model = $1 AND id = $2', [
      this.model,
      id,
    ]);
  }

  async destroy(id) {
    await pool.query('DELETE FROM oidc_models WHERE model = $1 AND id = $2', [this.model, id]);
  }

  async revokeByGrantId(grantId) {
    await pool.query('DELETE FROM oidc_models WHERE grant_id = $1', [grantId]);
  }
}

const CLIENT = { client_id: 'bench', client_secret: 'a-secret-for-the-bench-alone-of-enough-length' };
const provider = new Provider('http://127.0.0.1', {
  adapter: PostgresAdapter,
  clients: [
    {
      ...CLIENT,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
      token_endpoint_auth_method: 'client_secret_basic',
    },
  ],
  scopes: ['read'],
  ttl: { ClientCredentials: 86_400 },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
  },
  cookies: { keys: ['a-secret-for-the-bench-alone'] },
});
const server = createServer(provider.callback());
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const address = `http://127.0.0.1:${server.address().port}`;

const authorization = `Basic ${Buffer.from(`${CLIENT.client_id}:${CLIENT.client_secret}`).toString('base64')}`;
const tokens = [];
for (let n = 0; n < keys; n++) {
  const response = await fetch(`${address}/token`, {
    method: 'POST',
    headers: { authorization },
    body: new URLSearchParams({ grant_type: 'client_credentials', scope: 'read' }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(JSON.stringify(answer));
  tokens.push(answer.access_token);
}
writeFileSync(tokensFile, JSON.stringify({ tokens, authorization }));
process.stdout.write(`listens on ${address}\n`);
