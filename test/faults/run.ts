/*
 * npm run test:faults                                all suites that put real instances under real faults
 * npm run test:faults -- --minutes 30 [--seed 7]     rounds of faults alone, for so long
 * npm run test:faults -- --round 31 --seed 7         one round again: the same plan, though not to the millisecond
 * npm run test:faults -- --minutes 2 --broken fence  whether rounds notice that a rule is off (BrokenRule)
 *
 * Whatever else is given goes to vitest.
 */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const VITEST = fileURLToPath(new URL('../../node_modules/vitest/vitest.mjs', import.meta.url));
const CONFIG = fileURLToPath(new URL('../../vitest.faults.config.ts', import.meta.url));
const OPTIONS: Readonly<Record<string, string>> = {
  '--minutes': 'FAULT_MINUTES',
  '--seed': 'FAULT_SEED',
  '--round': 'FAULT_ROUND',
  '--broken': 'FAULT_BROKEN',
};

const environment: Record<string, string> = {};
const others: string[] = [];
const given = process.argv.slice(2);
for (let index = 0; index < given.length; index++) {
  const word = given[index] ?? '';
  const variable = OPTIONS[word];
  if (variable === undefined) {
    others.push(word);
    continue;
  }
  const value = given[++index];
  const form = word === '--broken' ? /^[a-z]+$/ : /^\d+(\.\d+)?$/;
  if (value === undefined || !form.test(value)) {
    process.stderr.write(`${word} takes a ${word === '--broken' ? 'rule' : 'number'}\n`);
    process.exit(2);
  }
  environment[variable] = value;
}
const isLong = environment.FAULT_MINUTES !== undefined;
if (isLong) {
  environment.FAULT_SEED ??= String(Math.floor(Math.random() * 2 ** 31));
  environment.FAULT_VERBOSE = 'yes';
}
if (Object.keys(environment).length > 0) others.unshift('test/faults/rounds');

const child = spawn(process.execPath, [VITEST, 'run', '--config', CONFIG, ...others], {
  stdio: 'inherit',
  env: { ...process.env, ...environment },
});
child.once('exit', (code) => {
  process.exitCode = code ?? 1;
});
