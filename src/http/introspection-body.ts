import { z } from 'zod';
import { MAX_COST } from '../domain/rate-limit.ts';
import type { RequestFacts } from '../domain/restriction.ts';
import { LABEL_PATTERN, MIN_TOKEN_LENGTH } from '../domain/token.ts';
import { WORKSPACE_ID_PATTERN } from '../domain/workspace.ts';
import * as schemas from './schemas.ts';

/*
 * What an introspection in JSON asks. `introspectionBody` says what a body may hold. `readPlainBody` reads most of the
 * bodies that there are, to the same value, in a tenth of the time: JSON of printable ASCII without an escape, on one
 * line. What it does not recognise it leaves to the schema, wrong or right, and so finds no faults itself.
 */

/** Whatever a client sent as its key gets a verdict, so that the body's own bound is the only one. */
const MAX_KEY_LENGTH = 65_536;
const MAX_FACT_LENGTHS = { ip: 64, method: 32, path: 8_192, referrer: 8_192 } as const;

const fact = (most: number) =>
  z.string().max(most, `must have at most ${most} characters`).nullable().optional();

export const introspectionBody = z
  .strictObject({
    key: z
      .string()
      .max(MAX_KEY_LENGTH)
      .optional()
      .describe('What the client sent: the token of a key, or an access token of one. Alias: `token`.'),
    token: z.string().max(MAX_KEY_LENGTH).optional().describe('Another name for `key`. Send one of them.'),
    scopes: schemas.scopes
      .optional()
      .describe('All of these are needed, held directly or by `implies` of the scope catalogue.'),
    workspace_id: schemas.workspaceId.optional().describe('The workspace that the key is expected to be of.'),
    environment: schemas.environment
      .optional()
      .describe('The environment that the key is expected to be of.'),
    cost: z
      .int()
      .min(0)
      .max(MAX_COST)
      .optional()
      .describe('What this use counts against the rate limit; 0 spends nothing.'),
    request: z
      .strictObject({
        ip: fact(MAX_FACT_LENGTHS.ip).describe("The client's address."),
        method: fact(MAX_FACT_LENGTHS.method).describe('The method of the request.'),
        path: fact(MAX_FACT_LENGTHS.path).describe('The path of the request, with or without its query.'),
        referrer: fact(MAX_FACT_LENGTHS.referrer).describe('The `Referer` header of the request.'),
      })
      .optional()
      .describe(
        'The request that the client made, for the restrictions of its key and, where it has a method and a path, for the grants of the scope catalogue.',
      ),
  })
  .meta({
    id: 'Introspection',
    description: 'A token, and what is asked of it.',
    oneOf: [{ required: ['key'] }, { required: ['token'] }],
  });

export interface IntrospectionBody {
  readonly key?: string | undefined;
  readonly token?: string | undefined;
  readonly scopes?: readonly string[] | undefined;
  readonly workspace_id?: string | undefined;
  readonly environment?: string | undefined;
  readonly cost?: number | undefined;
  readonly request?: RequestFacts | undefined;
}

/** Longer ones are rare, and a part of a text keeps all of it in memory. */
export const MAX_PLAIN_BYTES = 2_048;
/** All that needs no decoding and breaks no rule of JSON inside of a string. */
const PLAIN = /^[ -[\]-~]*$/;
const COST = /(?:0|[1-9][0-9]{0,4})(?![0-9.eE])/y;
const SPACE = 0x20;

/** Services ask for few lists of scopes, again and again: those that keep all rules, by how they were written. */
const scopeLists = new Map<string, readonly string[]>();
const MAX_SCOPE_LISTS = 1_000;

interface Cursor {
  readonly body: Buffer;
  /** The same as text, a character for each byte. */
  readonly text: string;
  at: number;
}

/** The value of a body, if it is a plain one that keeps all rules; else `undefined`, which says nothing of it. */
export function readPlainBody(body: Buffer): IntrospectionBody | undefined {
  if (body.length > MAX_PLAIN_BYTES) return undefined;
  const text = body.toString('latin1');
  if (!PLAIN.test(text)) return undefined;
  const cursor: Cursor = { body, text, at: 0 };
  const read: { -readonly [Name in keyof Required<IntrospectionBody>]: IntrospectionBody[Name] } = {
    key: undefined,
    token: undefined,
    scopes: undefined,
    workspace_id: undefined,
    environment: undefined,
    cost: undefined,
    request: undefined,
  };
  if (!take(cursor, '{')) return undefined;
  do {
    const name = takeName(cursor);
    switch (name) {
      case 'key':
      case 'token':
        if (read[name] !== undefined) return undefined;
        read[name] = takeString(cursor);
        break;
      case 'scopes':
        if (read.scopes !== undefined) return undefined;
        read.scopes = takeScopes(cursor);
        break;
      case 'workspace_id':
        if (read.workspace_id !== undefined) return undefined;
        read.workspace_id = takeMatch(cursor, WORKSPACE_ID_PATTERN);
        break;
      case 'environment':
        if (read.environment !== undefined) return undefined;
        read.environment = takeMatch(cursor, LABEL_PATTERN);
        break;
      case 'cost':
        if (read.cost !== undefined) return undefined;
        read.cost = takeCost(cursor);
        break;
      case 'request':
        if (read.request !== undefined) return undefined;
        read.request = takeFacts(cursor);
        break;
      default:
        return undefined;
    }
    if (read[name] === undefined) return undefined;
  } while (take(cursor, ','));
  if (!take(cursor, '}')) return undefined;
  skipSpaces(cursor);
  return cursor.at === text.length ? read : undefined;
}

function skipSpaces(cursor: Cursor): void {
  while (cursor.text.charCodeAt(cursor.at) === SPACE) cursor.at++;
}

function take(cursor: Cursor, character: string): boolean {
  skipSpaces(cursor);
  if (cursor.text[cursor.at] !== character) return false;
  cursor.at++;
  return true;
}

function takeString(cursor: Cursor): string | undefined {
  if (!take(cursor, '"')) return undefined;
  const end = cursor.text.indexOf('"', cursor.at);
  if (end < 0) return undefined;
  const value = cursor.text.slice(cursor.at, end);
  cursor.at = end + 1;
  return value;
}

function takeName(cursor: Cursor): string | undefined {
  const name = takeString(cursor);
  return take(cursor, ':') ? name : undefined;
}

function takeMatch(cursor: Cursor, pattern: RegExp): string | undefined {
  const value = takeString(cursor);
  // What could hold a token is looked at by the schema.
  return value !== undefined && value.length < MIN_TOKEN_LENGTH && pattern.test(value) ? value : undefined;
}

function takeCost(cursor: Cursor): number | undefined {
  skipSpaces(cursor);
  COST.lastIndex = cursor.at;
  const written = COST.exec(cursor.text)?.[0];
  if (written === undefined || Number(written) > MAX_COST) return undefined;
  cursor.at += written.length;
  return Number(written);
}

function takeScopes(cursor: Cursor): readonly string[] | undefined {
  skipSpaces(cursor);
  const start = cursor.at;
  // No scope holds a bracket.
  const end = cursor.text.indexOf(']', start) + 1;
  const scopes = scopeLists.get(cursor.text.slice(start, end)) ?? readScopes(cursor.body, start, end);
  cursor.at = end;
  return scopes;
}

function readScopes(body: Buffer, start: number, end: number): readonly string[] | undefined {
  // A copy: the text that the cursor has of it would keep the whole body, and the token in it.
  const written = body.toString('latin1', start, end);
  let value: unknown;
  try {
    value = JSON.parse(written);
  } catch {
    return undefined;
  }
  const { data: scopes } = schemas.scopes.safeParse(value);
  if (scopes === undefined) return undefined;
  if (scopeLists.size >= MAX_SCOPE_LISTS) scopeLists.clear();
  scopeLists.set(written, scopes);
  return scopes;
}

function takeFacts(cursor: Cursor): RequestFacts | undefined {
  const facts: { -readonly [Name in keyof Required<RequestFacts>]: RequestFacts[Name] } = {
    ip: undefined,
    method: undefined,
    path: undefined,
    referrer: undefined,
  };
  if (!take(cursor, '{')) return undefined;
  do {
    const name = takeName(cursor);
    if (name !== 'ip' && name !== 'method' && name !== 'path' && name !== 'referrer') return undefined;
    if (facts[name] !== undefined) return undefined;
    const value = takeFact(cursor, MAX_FACT_LENGTHS[name]);
    if (value === undefined) return undefined;
    facts[name] = value;
  } while (take(cursor, ','));
  return take(cursor, '}') ? facts : undefined;
}

function takeFact(cursor: Cursor, most: number): string | null | undefined {
  skipSpaces(cursor);
  if (cursor.text.startsWith('null', cursor.at)) {
    cursor.at += 4;
    return null;
  }
  const value = takeString(cursor);
  if (value === undefined || value.length > most) return undefined;
  // A copy, since the recorder keeps it: see `readScopes`.
  return cursor.body.toString('latin1', cursor.at - 1 - value.length, cursor.at - 1);
}
