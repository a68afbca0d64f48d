// The load, in a process of its own: argv holds the options of one run as JSON, standard output its result.
import { readFileSync } from 'node:fs';
import autocannon from 'autocannon';

const { url, headers, bodiesFile, connections, seconds, amount, rate } = JSON.parse(process.argv[2] ?? '{}');
const bodies = JSON.parse(readFileSync(bodiesFile, 'utf8'));
const result = await autocannon({
  url,
  method: 'POST',
  headers: { 'content-type': 'application/json', ...headers },
  connections,
  ...(amount === undefined ? { duration: seconds } : { amount }),
  ...(rate === undefined ? {} : { overallRate: rate }),
  requests: bodies.map((body) => ({ body })),
});
process.stdout.write(
  JSON.stringify({
    answered: result['2xx'] + result.non2xx,
    succeeded: result['2xx'],
    errors: result.errors,
    seconds: result.duration,
  }),
);
