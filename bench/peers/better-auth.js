// better-auth's API key plugin behind a Fastify route, as its documentation says to verify keys on a server. argv:
// {databaseUrl, keys, tokensFile}. Makes its tables and that many keys of one user, writes their tokens, and listens.
import { writeFileSync } from 'node:fs';
import { apiKey } from '@better-auth/api-key';
import { betterAuth } from 'better-auth';
import { getMigrations } from 'better-auth/db/migration';
import fastify from 'fastify';
import pg from 'pg';

const { databaseUrl, keys, tokensFile } = JSON.parse(process.argv[2] ?? '{}');

const options = {
  secret: 'a-secret-for-the-bench-alone-of-enough-length',
  baseURL: 'http://127.0.0.1',
  database: new pg.Pool({ connectionString: databaseUrl, max: 10 }),
  emailAndPassword: { enabled: true },
  telemetry: { enabled: false },
  // Its default of ten requests a day would refuse; the limit stays on, as Claviger's does.
  plugins: [apiKey({ rateLimit: { enabled: true, timeWindow: 3_600_000, maxRequests: 1_000_000_000 } })],
};
await (await getMigrations(options)).runMigrations();
const auth = betterAuth(options);

const { user } = await auth.api.signUpEmail({
  body: { name: 'Bench', email: 'bench@example.com', password: 'a-password-for-the-bench' },
});
const tokens = [];
for (let n = 0; n < keys; n++) {
  const { key } = await auth.api.createApiKey({ body: { name: `Key ${n}`, userId: user.id } });
  tokens.push(key);
}
writeFileSync(tokensFile, JSON.stringify(tokens));

const app = fastify({ logger: false });
app.post(
  '/introspect',
  {
    schema: {
      body: {
        type: 'object',
        required: ['key'],
        additionalProperties: false,
        properties: { key: { type: 'string' } },
      },
    },
  },
  async (request, reply) => {
    const { valid, error, key } = await auth.api.verifyApiKey({ body: { key: request.body.key } });
    if (!valid) return reply.send({ active: false, reason: { code: error?.code } });
    return {
      active: true,
      key_id: key.id,
      name: key.name,
      created_at: key.createdAt,
      expires_at: key.expiresAt,
      metadata: key.metadata,
    };
  },
);
const address = await app.listen({ host: '127.0.0.1', port: 0 });
process.stdout.write(`listens on ${address}\n`);
