import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, cp, lstat, mkdir, readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { collectOutput } from '../support/service.ts';

/** An instruction of a Dockerfile, continued lines joined. */
export interface Instruction {
  readonly name: string;
  readonly text: string;
}

export interface Stage {
  readonly name: string;
  readonly base: string;
  readonly instructions: readonly Instruction[];
}

/** What a stage leaves behind: a folder that stands for `/`, and how a container of it starts. */
export interface BuiltStage {
  readonly root: string;
  readonly workingDirectory: string;
  readonly environment: Readonly<Record<string, string>>;
  readonly user: string;
  readonly command: readonly string[];
  readonly healthCheck: readonly string[];
}

const STAGE_START = /^(\S+)(?:\s+AS\s+(\S+))?$/i;
/** What a RUN step may not name: it would leave the folder that stands for `/`. */
const ABSOLUTE_PATH = /(^|[\s=:'"])\/(?!dev\/null)/;

/** Reads the instructions that Claviger's Dockerfile uses; others are faults. */
export function parseDockerfile(text: string): Stage[] {
  const lines = text
    .split('\n')
    .filter((line) => !/^\s*#/.test(line))
    .join('\n')
    .replaceAll(/\\\n\s*/g, '')
    .split('\n')
    .filter((line) => line.trim() !== '');
  const stages: { name: string; base: string; instructions: Instruction[] }[] = [];
  for (const line of lines) {
    const [, name = '', rest = ''] = /^([A-Z]+)\s+(.*)$/.exec(line) ?? [];
    if (name === '') throw new Error(`this is no instruction: ${line}`);
    if (name === 'FROM') {
      const [, base = '', stageName = String(stages.length)] = STAGE_START.exec(rest) ?? [];
      stages.push({ name: stageName, base, instructions: [] });
    } else {
      stages.at(-1)?.instructions.push({ name, text: rest });
    }
  }
  return stages;
}

/** The list of an instruction in exec form: started as it is, with no shell in between. */
export function execForm(text: string): string[] {
  const words: unknown = JSON.parse(text);
  if (!Array.isArray(words) || words.some((word) => typeof word !== 'string'))
    throw new Error(`not in exec form: ${text}`);
  return words.map(String);
}

/** The names that `.dockerignore` lets into the build: everything is left out, then some are let in again. */
export function parseDockerignore(text: string): string[] {
  const [first, ...others] = text.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('#'));
  if (first !== '*' || others.some((line) => !/^![\w.-]+$/.test(line)))
    throw new Error('.dockerignore is not a list of what is let in');
  return others.map((line) => line.slice(1));
}

/**
 * Carries out the steps of a stage in folders: `context` is what was sent to the build, `earlier` are the stages
 * before, by name. Absolute paths of the image become paths below `root`.
 */
export async function buildStage(
  stage: Stage,
  options: {
    readonly root: string;
    readonly context: string;
    readonly earlier: ReadonlyMap<string, BuiltStage>;
    /** Added to what the stage sets, for its RUN steps. */
    readonly environment: Readonly<Record<string, string>>;
  },
): Promise<BuiltStage> {
  const { root, context, earlier } = options;
  const inImage = (path: string, from: string) =>
    path.startsWith('/') ? join(root, path) : join(from, path);
  let directory = root;
  let user = 'root';
  let command: string[] = [];
  let healthCheck: string[] = [];
  const environment: Record<string, string> = {
    PATH: `${join(root, 'usr/local/bin')}:${process.env.PATH ?? ''}`,
  };

  for (const { name, text } of stage.instructions) {
    switch (name) {
      case 'WORKDIR':
        directory = inImage(text, directory);
        await mkdir(directory, { recursive: true, mode: 0o755 });
        break;
      case 'COPY':
        await copy(text, { context, earlier, target: (path) => inImage(path, directory) });
        break;
      case 'RUN': {
        // A cache mount only makes it faster; npm's own cache on this machine is its equal.
        const step = text.replace(/^--mount=type=cache,\S+\s+/, '');
        if (ABSOLUTE_PATH.test(step)) throw new Error(`a RUN step names an absolute path: ${step}`);
        await run(step, { cwd: directory, env: { ...options.environment, ...environment } });
        break;
      }
      case 'ENV':
        for (const pair of text.split(/\s+/)) {
          const [variable = '', value = ''] = pair.split(/=(.*)/s);
          environment[variable] = value
            .replaceAll(/(?<=^|:)\/app/g, join(root, 'app'))
            .replaceAll('$PATH', environment.PATH ?? '');
        }
        break;
      case 'USER':
        user = text;
        break;
      case 'CMD':
        command = execForm(text);
        break;
      case 'HEALTHCHECK':
        healthCheck = execForm(text.replace(/^.*?CMD\s+/, ''));
        break;
      case 'EXPOSE':
        break;
      default:
        throw new Error(`this test does not know the instruction ${name}`);
    }
  }
  return { root, workingDirectory: directory, environment, user, command, healthCheck };
}

async function copy(
  text: string,
  {
    context,
    earlier,
    target,
  }: { context: string; earlier: ReadonlyMap<string, BuiltStage>; target: (path: string) => string },
): Promise<void> {
  const words = text.split(/\s+/);
  const flags = words.filter((word) => word.startsWith('--'));
  const paths = words.filter((word) => !word.startsWith('--'));
  const destination = paths.pop() ?? '';
  const stageName = flags.find((flag) => flag.startsWith('--from='))?.slice('--from='.length);
  const source = stageName === undefined ? context : earlier.get(stageName)?.root;
  if (source === undefined) throw new Error(`there is no stage ${stageName}`);
  for (const path of paths) {
    // As Docker does: a folder's content goes into the destination, a file into the folder named with a slash.
    const into = target(destination);
    const from = join(source, path);
    const isFolder = (await lstat(from)).isDirectory();
    await cp(from, isFolder || !destination.endsWith('/') ? into : join(into, basename(path)), {
      recursive: true,
      verbatimSymlinks: true,
    });
  }
}

async function run(
  command: string,
  { cwd, env }: { cwd: string; env: Record<string, string> },
): Promise<void> {
  // An image is built under the umask 022, whatever the one of this test.
  const child = spawn('/bin/sh', ['-c', `umask 022; ${command}`], {
    cwd,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const printed = collectOutput(child);
  const [code] = await once(child, 'close');
  if (code !== 0) throw new Error(`RUN ${command} ended with ${code}:\n${printed.stdout}${printed.stderr}`);
}

/** Takes away from group and others what they may do with a tree, as the umask 077 would have. */
export async function makePrivate(path: string): Promise<void> {
  const found = await lstat(path);
  if (found.isSymbolicLink()) return;
  await chmod(path, found.mode & 0o700);
  if (!found.isDirectory()) return;
  for (const name of await readdir(path)) await makePrivate(join(path, name));
}

export async function readStages(path: string): Promise<Stage[]> {
  return parseDockerfile(await readFile(path, 'utf8'));
}
