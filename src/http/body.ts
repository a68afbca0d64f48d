import { isUtf8 } from 'node:buffer';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Failure } from '../domain/errors.ts';

/** Deeper than any sensible metadata; it bounds every recursion over what a caller sends. */
const MAX_DEPTH = 32;
const BYTE_ORDER_MARK = 0xfeff;

/** Replaces Fastify's parsers, whose leniency and error texts are not the contract's, by one for JSON. */
export function registerJsonBody(app: FastifyInstance): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser(
    ['application/json', 'application/merge-patch+json'],
    { parseAs: 'buffer' },
    bodyParser((body) => parseJson(body)),
  );
}

type BodyParser = (
  request: FastifyRequest,
  body: string | Buffer,
  done: (error: Error | null, value?: unknown) => void,
) => void;

/** A parser of whole bodies for Fastify, from a function that throws a `Failure` where it cannot read one. */
export function bodyParser(read: (body: Buffer) => unknown): BodyParser {
  return (request, body, done) => {
    try {
      // RFC 9110 §8.4: a body in a coding that is not undone must not be taken for what it codes.
      const coding = request.headers['content-encoding'];
      if (coding !== undefined && body.length > 0 && coding.toLowerCase() !== 'identity') {
        throw new Failure('unsupported_media_type', 'Send the body without a Content-Encoding.');
      }
      done(null, read(Buffer.isBuffer(body) ? body : Buffer.from(body)));
    } catch (error) {
      done(error instanceof Error ? error : new Error('unreadable body'));
    }
  };
}

/**
 * Reads JSON strictly (RFC 8259, I-JSON's rules of RFC 7493 §2): UTF-8, no duplicate members, no unpaired
 * surrogates, no NUL, no number that loses its value, no `__proto__`. An empty body is `undefined`.
 * @throws Failure `invalid_request`, which never quotes the body.
 */
export function parseJson(body: Buffer): unknown {
  if (body.length === 0) return undefined;
  if (!isUtf8(body)) throw malformed('The body is not UTF-8.');
  const marked = body.toString('utf8');
  const text = marked.charCodeAt(0) === BYTE_ORDER_MARK ? marked.slice(1) : marked;
  const hasEscapes = text.includes('\\');
  const members = countMembers(text, hasEscapes);
  const value = parseText(text);
  // JSON.parse keeps the last of two members of one name; counting both ways finds that there were two.
  if (countValidMembers(value, hasEscapes) !== members) throw malformed('The body names a member twice.');
  return value;
}

/** Throws for text that PostgreSQL cannot store or that has no UTF-8 form. */
export function checkText(text: string): void {
  if (!text.isWellFormed() || text.includes('\0')) {
    throw malformed('A string holds a NUL or an unpaired surrogate.');
  }
}

function parseText(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    // The parser's own message quotes what it read.
    throw malformed('The body is not valid JSON.');
  }
}

/** How many members the objects of this text have, by their colons, while the nesting is checked. */
function countMembers(text: string, hasEscapes: boolean): number {
  let members = 0;
  let depth = 0;
  for (let index = 0; index < text.length; index++) {
    switch (text.charCodeAt(index)) {
      case 0x22: // "
        index = hasEscapes ? endOfString(text, index) : text.indexOf('"', index + 1);
        if (index < 0) return members; // nothing closes it, which the parser will say
        break;
      case 0x3a: // :
        members++;
        break;
      case 0x5b: // [
      case 0x7b: // {
        if (++depth > MAX_DEPTH) throw malformed(`The body is nested deeper than ${MAX_DEPTH} levels.`);
        break;
      case 0x5d: // ]
      case 0x7d: // }
        depth--;
        break;
    }
  }
  return members;
}

/** The index of the quote that closes the string opened at `start`; past the end where nothing closes it. */
function endOfString(text: string, start: number): number {
  for (let index = start + 1; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (code === 0x5c)
      index++; // an escape: its next character closes nothing
    else if (code === 0x22) return index;
  }
  return text.length;
}

/**
 * The same of the value read, while its strings, numbers and names are checked. Without an escape there is no string
 * to check: neither a NUL nor an unpaired surrogate can stand in valid UTF-8 JSON as it is.
 */
function countValidMembers(value: unknown, hasEscapes: boolean): number {
  if (typeof value === 'string' && hasEscapes) checkText(value);
  if (
    typeof value === 'number' &&
    (!Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value)))
  ) {
    throw malformed('A number is too large to be kept exactly; send it as a string.');
  }
  if (typeof value !== 'object' || value === null) return 0;
  let members = 0;
  if (Array.isArray(value)) {
    for (const element of value) members += countValidMembers(element, hasEscapes);
    return members;
  }
  for (const name of Object.keys(value)) {
    const member: unknown = Reflect.get(value, name);
    if (name === '__proto__' || (name === 'constructor' && isObjectWithPrototype(member))) {
      throw malformed('The body is not valid JSON.');
    }
    if (hasEscapes) checkText(name);
    members += 1 + countValidMembers(member, hasEscapes);
  }
  return members;
}

/** What code that copies members from one object to another would take for a class. */
function isObjectWithPrototype(value: unknown): boolean {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, 'prototype');
}

function malformed(detail: string): Failure {
  return new Failure('invalid_request', detail);
}
