import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SETTINGS } from '../../src/config.ts';
import { ROOT } from './service.ts';

/**
 * A fenced block of a document. What stands behind the opening fence says what a test does with it:
 *
 *     ```sh          is run, all in one shell, in order
 *     ```sh <where>  is run where the word says: with what it needs in place
 *     ```json        is what the block of commands before it prints, in shape; `{ … }` stands for anything
 *     ```text        is a part of what the block of commands before it prints
 *     ```ts          is a file, named in its first line
 */
export interface Block {
  readonly language: string;
  readonly where: string;
  readonly text: string;
  /** For a message: document and line. */
  readonly place: string;
}

export async function readDocument(path: string): Promise<string> {
  return readFile(join(ROOT, path), 'utf8');
}

export async function readBlocks(path: string): Promise<Block[]> {
  const blocks: Block[] = [];
  let open: { language: string; where: string; lines: string[]; line: number } | undefined;
  (await readDocument(path)).split('\n').forEach((line, index) => {
    const fence = /^```(\S*)\s*(.*)$/.exec(line);
    if (fence === null) {
      open?.lines.push(line);
    } else if (open === undefined) {
      open = { language: fence[1] ?? '', where: fence[2] ?? '', lines: [], line: index + 1 };
    } else {
      const { language, where, lines } = open;
      blocks.push({ language, where, text: lines.join('\n'), place: `${path}:${open.line}` });
      open = undefined;
    }
  });
  return blocks;
}

/** Blocks of commands, each with what it is said to print. */
export function examplesOf(blocks: readonly Block[]): { commands: Block; output: Block | undefined }[] {
  return blocks.flatMap((commands, index) => {
    if (commands.language !== 'sh') return [];
    const next = blocks[index + 1];
    const isOutput =
      next !== undefined && /^(json|text)$/.test(next.language) && documentOf(next) === documentOf(commands);
    return [{ commands, output: isOutput ? next : undefined }];
  });
}

function documentOf({ place }: Block): string {
  return place.replace(/:\d+$/, '');
}

/** What differs from run to run, replaced by words. */
export function masked(text: string): string {
  return text
    .replaceAll(/\bck_(live|test|svc)_[0-9A-Za-z]{66}\b/g, 'ck_$1_<token>')
    .replaceAll(/\bck_(live|test|svc)_[0-9A-Za-z]+…[0-9A-Za-z]+/g, 'ck_$1_<token>')
    .replaceAll(/\bck_(live|test|svc)_…[0-9A-Za-z]{4}/g, 'ck_$1_<hint>')
    .replaceAll(/\beyJ[\w.-]+…?/g, '<JWT>')
    .replaceAll(/\bkey_[0-9a-z]{26}\b/g, '<key id>')
    .replaceAll(/\breq_[0-9a-f]{19,}\b/g, '<request id>')
    .replaceAll(/\b\d{4}-\d\d-\d\dT[\d:.]+Z/g, '<time>')
    .replaceAll(/\b\d{4}-\d\d-\d\d\b/g, '<date>')
    .replaceAll(/"waited_ms":\s*\d+/g, '"waited_ms": 0')
    .replaceAll(/"reset":\s*\d+/g, '"reset": 0')
    .replaceAll(/http:\/\/127\.0\.0\.1:\d+/g, '<url>');
}

/** A documented JSON, to compare with what was printed. */
export function shapeOf(json: string, anything: unknown): unknown {
  const wildcard = '<anything>';
  return JSON.parse(masked(json.replaceAll(/\{\s*…\s*\}/g, JSON.stringify(wildcard))), (_name, value) =>
    value === wildcard ? anything : value,
  );
}

/** The README's table of settings, as src/config.ts has them. */
export function settingsTable(): string {
  const rows = Object.entries(SETTINGS).map(
    ([name, setting]) =>
      `| \`${name}\` | ${setting.default === '' ? '' : `\`${setting.default}\``} | ${setting.range} | ${setting.purpose} |`,
  );
  return ['| name | default | range | what for |', '| --- | --- | --- | --- |', ...rows].join('\n');
}
