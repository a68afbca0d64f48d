import { isUtf8 } from 'node:buffer';
import { type Credential, readCredential } from './credential.ts';
import { invalidClient, invalidRequest } from './oauth-errors.ts';

/** How a client shows itself (RFC 6749 §2.3.1): the id of its key, and the key's token as its secret. */
export interface ClientCredentials {
  readonly id: string;
  readonly token: string;
}

const BASIC = /^basic +([A-Za-z0-9+/]+={0,2})$/i;

/**
 * The credentials of a client, in `Authorization: Basic` or in the form, one of them; `undefined` where there are none.
 * @param rawHeaders names and values in turn, as they came (credential.ts).
 * @throws OAuthError `invalid_request` for more than one way, `invalid_client` for a header that cannot be read.
 */
export function readClient(
  rawHeaders: readonly string[],
  { client_id: id, client_secret: token }: { readonly client_id?: string; readonly client_secret?: string },
): ClientCredentials | undefined {
  const [header, ...others] = authorizationsOf(rawHeaders);
  if (others.length > 0) throw invalidRequest('There is more than one Authorization header.');
  if (header === undefined) {
    if (token === undefined) return undefined;
    if (id === undefined) throw invalidRequest('The parameter client_secret goes with client_id.');
    return { id, token };
  }
  if (token !== undefined) throw invalidRequest('Send the credentials of the client in one way.');
  const client = readBasic(header);
  if (client === undefined)
    throw invalidClient('The client shows itself by HTTP Basic, as id:token of its key.');
  // RFC 6749 §3.2.1 lets a client name itself in the form too.
  if (id !== undefined && id !== client.id)
    throw invalidRequest('The parameter client_id names another client.');
  return client;
}

/** The service key of a protected resource (RFC 7662 §2.1): by Basic as `id:token`, or as everywhere else. */
export function readResourceCredential(rawHeaders: readonly string[]): Credential {
  const [header = '', ...others] = authorizationsOf(rawHeaders);
  const client = others.length === 0 ? readBasic(header) : undefined;
  const credential = readCredential(rawHeaders);
  // To that function Basic is a credential that is none; beside another one it stays ambiguous.
  if (client === undefined || credential.kind !== 'presented') return credential;
  return { kind: 'presented', token: client.token, keyId: client.id };
}

/** RFC 7617, and RFC 6749 §2.3.1: each half is encoded as in a form. `undefined` for what is no such value. */
function readBasic(header: string): ClientCredentials | undefined {
  const encoded = BASIC.exec(header)?.[1];
  if (encoded === undefined) return undefined;
  const bytes = Buffer.from(encoded, 'base64');
  if (!isUtf8(bytes)) return undefined;
  const pair = bytes.toString('utf8');
  const colon = pair.indexOf(':');
  if (colon < 0) return undefined;
  try {
    return { id: formDecoded(pair.slice(0, colon)), token: formDecoded(pair.slice(colon + 1)) };
  } catch {
    return undefined;
  }
}

/** @throws URIError for a malformed percent-encoding. */
function formDecoded(text: string): string {
  return decodeURIComponent(text.replaceAll('+', ' '));
}

function authorizationsOf(rawHeaders: readonly string[]): string[] {
  const values: string[] = [];
  for (let index = 0; index < rawHeaders.length; index += 2) {
    if (rawHeaders[index]?.toLowerCase() === 'authorization')
      values.push((rawHeaders[index + 1] ?? '').trim());
  }
  return values;
}
