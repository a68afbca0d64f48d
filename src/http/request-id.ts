import { randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';

const ACCEPTED = /^[A-Za-z0-9._-]{1,128}$/;
/** A token (contract §2) anywhere in it: ids are logged and kept in audit events, and tokens never are. */
const TOKEN_WITHIN = /[a-z0-9]_[a-z][a-z0-9]{0,15}_[0-9A-Za-z]{66}/;

// Unique without a draw for each request: the process's own part, then a count.
const processPart = randomBytes(9).toString('hex');
let count = 0;

/** An id that no other request of any instance has: `req_` and up to 32 letters and digits. */
export function newRequestId(): string {
  count += 1;
  return `req_${processPart}${count.toString(36)}`;
}

/** The id that the caller gave, where it is well-formed and holds no token; else a new one. */
export function requestIdOf(message: IncomingMessage): string {
  const given = message.headers['x-request-id'];
  if (typeof given !== 'string' || !ACCEPTED.test(given) || TOKEN_WITHIN.test(given)) return newRequestId();
  return given;
}
