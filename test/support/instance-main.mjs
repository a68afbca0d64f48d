// One instance of the compiled service, with rules of the engine switched off as its arguments say (BrokenRule in
// src/verification/membership.ts): `claviger serve` itself has no such switch.
import { availableParallelism } from 'node:os';

process.env.UV_THREADPOOL_SIZE ??= String(availableParallelism() + 3);
const { readConfig } = await import('../../dist/config.js');
const { serve } = await import('../../dist/server.js');

try {
  await serve(readConfig(process.env), { broken: new Set(process.argv.slice(2)) });
} catch (error) {
  process.stderr.write(`${error.name}: ${error.message}\n`);
  process.exit(1);
}
