// The yardstick: a Fastify POST route that parses a body and answers one, and does nothing else.
import Fastify from 'fastify';

const [answerBytes = '300'] = process.argv.slice(2);
const app = Fastify({ logger: false });
const frame = { active: true, padding: '' };
const answer = {
  ...frame,
  padding: 'x'.repeat(Math.max(0, Number(answerBytes) - JSON.stringify(frame).length)),
};
app.post('/bare', async (request) => (request.body === undefined ? {} : answer));
const address = await app.listen({ host: '127.0.0.1', port: 0 });
process.stdout.write(`listens on ${address}\n`);
