// The yardstick: a Fastify POST route that parses a body and answers one, and does nothing else; with a statement, it
// reads the one row by the body's `id` first. And a GET route that answers as much.
import Fastify from 'fastify';
import pg from 'pg';

const { answerBytes, url, statement } = JSON.parse(process.argv[2] ?? '{}');
const app = Fastify({ logger: false });
const frame = { active: true, padding: '' };
const answer = {
  ...frame,
  padding: 'x'.repeat(Math.max(0, Number(answerBytes) - JSON.stringify(frame).length)),
};
const pool = url === undefined ? undefined : new pg.Pool({ connectionString: url, max: 10 });
app.post('/bare', async (request) => {
  if (pool === undefined) return request.body === undefined ? {} : answer;
  const { rows } = await pool.query(statement, [request.body.id]);
  return rows.length === 1 ? answer : {};
});
app.get('/bare', async () => answer);
const address = await app.listen({ host: '127.0.0.1', port: 0 });
process.stdout.write(`listens on ${address}\n`);
