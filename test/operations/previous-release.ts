import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ROOT } from '../support/service.ts';

const run = promisify(execFile);
const JOURNAL = 'migrations/meta/_journal.json';

/** The release before this one, built. */
export interface PreviousRelease {
  readonly commit: string;
  /** Its command line. */
  readonly cli: string;
  remove(): Promise<void>;
}

/**
 * Builds what was released before, from the history: the newest version tag behind this commit, or as long as there is
 * none, the last commit whose schema was an older one. It runs on the dependencies of this release.
 */
export async function buildPreviousRelease(): Promise<PreviousRelease> {
  const commit = await findPrevious();
  const folder = await mkdtemp(join(tmpdir(), 'claviger-previous-'));
  const archive = join(folder, 'source.tar');
  const source = join(folder, 'source');
  await mkdir(source);
  await git('archive', '--output', archive, commit);
  await run('tar', ['-xf', archive, '-C', source]);
  await symlink(join(ROOT, 'node_modules'), join(source, 'node_modules'));
  await run(process.execPath, ['scripts/build.js'], { cwd: source });
  return {
    commit,
    cli: join(source, 'dist', 'cli.js'),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

async function findPrevious(): Promise<string> {
  try {
    const tag = await git('describe', '--tags', '--match', 'v*', '--abbrev=0', 'HEAD^').catch(() => '');
    if (tag !== '') return tag;
    const migrated = await git('log', '-1', '--format=%H', '--', JOURNAL);
    return await git('rev-parse', '--verify', `${migrated}^`);
  } catch (cause) {
    throw new Error(
      'This test builds the previous release from the history, so that it needs a whole clone (git fetch --unshallow) and git.',
      { cause },
    );
  }
}

async function git(...args: string[]): Promise<string> {
  return (await run('git', args, { cwd: ROOT })).stdout.trim();
}
