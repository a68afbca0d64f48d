// Compiles src/ to dist/. With --if-possible a missing compiler is no fault as long as nothing needs one:
// `npm ci --omit=dev` runs `prepare` too, and an image starts from a dist/ built elsewhere.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

function compilerPath() {
  try {
    return join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin', 'tsc');
  } catch {
    return undefined;
  }
}

const compiler = compilerPath();
if (compiler !== undefined && existsSync(join(root, 'src'))) {
  const { status } = spawnSync(process.execPath, [compiler, '--project', 'tsconfig.build.json'], {
    cwd: root,
    stdio: 'inherit',
  });
  process.exitCode = status ?? 1;
} else if (!process.argv.includes('--if-possible')) {
  console.error('claviger: TypeScript is not installed. Run `npm ci` without --omit=dev, then build again.');
  process.exitCode = 1;
}
