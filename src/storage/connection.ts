import type pg from 'pg';
import { parseIntoClientConfig } from 'pg-connection-string';

/** How to reach a PostgreSQL, from the URL of a setting. */
export interface Connection {
  readonly config: pg.ClientConfig;
  readonly setting: ConnectionSetting;
}

export type ConnectionSetting = 'DATABASE_URL' | 'DATABASE_LISTEN_URL';

/** There is no way to the database; `message` is one line for the operator, and quotes nothing of the URL. */
export class ConnectionError extends Error {
  override readonly name = 'ConnectionError';
}

/**
 * Reads the files that the URL names, such as `sslrootcert`: once, so that a connection which is made anew later does
 * not depend on them.
 *
 * @throws ConnectionError
 */
export function connectionTo(url: string, setting: ConnectionSetting = 'DATABASE_URL'): Connection {
  try {
    return { config: parseIntoClientConfig(url), setting };
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : 'unknown';
    throw new ConnectionError(`${setting} cannot be used (${code}).`);
  }
}

/** What OpenSSL finds wrong with a certificate, as Node names it. */
const DISTRUST =
  /^(CERT_|CRL_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|ERROR_IN_CERT_|INVALID_(CA|PURPOSE)|PATH_LENGTH_)/;

/** What is wrong with the way to the database, by the code of the failure: a message could quote the URL. */
export function unreachable({ config, setting }: Connection, code: string): ConnectionError {
  return new ConnectionError(whyUnreachable(code, setting, Boolean(config.ssl)));
}

function whyUnreachable(code: string, setting: ConnectionSetting, isTls: boolean): string {
  if (/^28/.test(code)) return `PostgreSQL refuses the user or password of ${setting} (${code}).`;
  if (code === '3D000') return `The database that ${setting} names does not exist; create it first.`;
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID')
    return `The certificate of PostgreSQL is for another host than ${setting} names (${code}).`;
  if (DISTRUST.test(code))
    return `The certificate of PostgreSQL is not trusted (${code}). Is sslrootcert of ${setting} the CA that signed it?`;
  // Of a server without TLS, pg tells without a code.
  if (isTls && code === 'unknown') return `PostgreSQL does not speak TLS, which ${setting} asks for.`;
  return `PostgreSQL cannot be reached (${code}). Is it running, and is ${setting} right?`;
}
