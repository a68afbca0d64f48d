import { expect } from 'vitest';
import type { Answer, Client } from '../support/client.ts';

/** The parameters of a form; a list for some that are there more than once or out of order. */
export type Parameters = Record<string, string> | readonly (readonly [string, string])[];

export interface Credentials {
  readonly id: string;
  readonly token: string;
}

export function basic({ id, token }: Credentials): string {
  const encoded = [id, token].map(encodeURIComponent).join(':');
  return `Basic ${Buffer.from(encoded).toString('base64')}`;
}

/** Posts a form, with the headers given and no other credential. */
export function postForm(
  client: Pick<Client, 'send'>,
  path: string,
  parameters: Parameters | string,
  headers: Readonly<Record<string, string>> = {},
): Promise<Answer> {
  const body =
    typeof parameters === 'string'
      ? parameters
      : new URLSearchParams(parameters as [string, string][]).toString();
  return client.send('POST', path, {
    as: null,
    body,
    headers: { 'content-type': 'application/x-www-form-urlencoded', ...headers },
  });
}

/** Asks for an access token by Basic. */
export function requestToken(
  client: Pick<Client, 'send'>,
  key: Credentials,
  parameters: Record<string, string> = {},
): Promise<Answer> {
  return postForm(
    client,
    '/oauth/token',
    { grant_type: 'client_credentials', ...parameters },
    { authorization: basic(key) },
  );
}

/** The access token itself; fails the test where there is none. */
export async function accessToken(
  client: Pick<Client, 'send'>,
  key: Credentials,
  parameters?: Record<string, string>,
): Promise<string> {
  const { status, body, text } = await requestToken(client, key, parameters);
  expect(status, text).toBe(200);
  return body.access_token;
}

/** An error of RFC 6749 §5.2, and nothing of a problem. */
export function expectOAuthError(answer: Answer, status: number, error: string): void {
  expect({ status: answer.status, error: answer.body.error }, answer.text).toEqual({ status, error });
  expect(Object.keys(answer.body)).toEqual(['error', 'error_description']);
  expect(answer.body.error_description).toMatch(/^[ !#-[\]-~]+$/);
  expect(answer.headers['content-type']).toBe('application/json; charset=utf-8');
  expect(answer.headers['cache-control']).toBe('no-store');
  expect(answer.headers.pragma).toBe('no-cache');
}

/** The claims of a JWT, unverified. */
export function claimsOf(jwt: string): Record<string, unknown> {
  return partOf(jwt, 1);
}

export function headerOf(jwt: string): Record<string, unknown> {
  return partOf(jwt, 0);
}

function partOf(jwt: string, index: number): Record<string, unknown> {
  return JSON.parse(Buffer.from(jwt.split('.')[index] ?? '', 'base64url').toString('utf8'));
}
