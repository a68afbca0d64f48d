import { execFile } from 'node:child_process';
import { access } from 'node:fs/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);

/**
 * Makes sure that a file of a Debian package is there, installing the package where it may. Nothing is skipped for
 * want of it: the test fails, and says what to install.
 */
export async function needPackage(name: string, file: string): Promise<void> {
  if (await isThere(file)) return;
  try {
    await run('apt-get', ['update', '-q']);
    await run('apt-get', ['install', '-y', '-q', '--no-install-recommends', name], {
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    });
  } catch (cause) {
    throw new Error(`This test needs ${file}: install the package ${name} (apt-get install ${name}).`, {
      cause,
    });
  }
  if (!(await isThere(file))) throw new Error(`The package ${name} has no ${file} on this system.`);
}

async function isThere(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}
