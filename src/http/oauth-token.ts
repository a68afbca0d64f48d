import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { parseScope } from '../domain/access-token.ts';
import { MAX_SCOPES } from '../domain/scope.ts';
import type { AccessTokenLifecycle, Issuance } from '../lifecycle/access-tokens.ts';
import { addressOf } from './address.ts';
import type { Callers } from './callers.ts';
import { FORM, readForm } from './oauth.ts';
import { readClient } from './oauth-client.ts';
import { invalidClient, invalidRequest, OAUTH_PROBLEMS, OAuthError, oauthErrors } from './oauth-errors.ts';

export const TOKEN_URL = '/oauth/token';
const GRANT_TYPE = 'client_credentials';
const PARAMETERS = ['grant_type', 'scope', 'client_id', 'client_secret'] as const;

const tokenForm = z
  .object({
    grant_type: z.literal(GRANT_TYPE).describe('The one grant that there is (RFC 6749 §4.4).'),
    scope: z
      .string()
      .optional()
      .describe(
        'Scopes that the key has, directly or by `implies`, separated by spaces. Absent: all of them.',
      ),
    client_id: z.string().optional().describe('The id of the key, unless it is in `Authorization: Basic`.'),
    client_secret: z
      .string()
      .optional()
      .describe('The token of the key, unless it is in `Authorization: Basic`.'),
  })
  .meta({ id: 'TokenRequest', description: 'RFC 6749 §4.4.2. Parameters that are not listed are ignored.' });

const tokenOutput = z
  .object({
    access_token: z.string().describe('A JWT (RFC 9068), signed with ES256.'),
    token_type: z.literal('Bearer').describe('How it is sent (RFC 6750).'),
    expires_in: z.int().describe('For how many seconds it is valid: never longer than its key.'),
    scope: z.string().optional().describe('What it may be used for, separated by spaces; absent: no scope.'),
  })
  .meta({ id: 'IssuedToken', description: 'RFC 6749 §5.1.' });

/** `POST /oauth/token` (contract §7). */
export function registerTokenRoute(
  app: FastifyInstance,
  {
    callers,
    accessTokens,
    issuer,
  }: { callers: Callers; accessTokens: AccessTokenLifecycle; issuer: () => string },
): void {
  app.post(
    TOKEN_URL,
    {
      schema: {
        tags: ['OAuth'],
        operationId: 'issueToken',
        summary: 'Exchange a key for an access token',
        description:
          'The client is a key: `client_id` is its id, `client_secret` its token, by HTTP Basic or in the form. Service keys get no access token, and none is a credential for Claviger itself. A service that verifies the token offline does not learn that its key was revoked before it expires.',
        security: [{ client: [] }, {}],
        documentedBody: { content: { [FORM]: { schema: tokenForm } } },
        response: {
          200: tokenOutput.describe('An access token.'),
          ...oauthErrors({
            ...OAUTH_PROBLEMS,
            400: 'Malformed (`invalid_request`), another grant (`unsupported_grant_type`), a scope that the key does not have (`invalid_scope`), or a client that may have no access token now (`unauthorized_client`).',
          }),
        },
      },
    },
    async (request, reply): Promise<z.input<typeof tokenOutput>> => {
      const form = readForm(request.body, PARAMETERS);
      if (form.grant_type === undefined) throw invalidRequest('The parameter grant_type is missing.');
      if (form.grant_type !== GRANT_TYPE) {
        throw new OAuthError(400, 'unsupported_grant_type', `The one grant_type is ${GRANT_TYPE}.`);
      }
      const scopes = form.scope === undefined ? undefined : scopesOf(form.scope);
      const client = readClient(request.raw.rawHeaders, form);
      const issuance: Issuance =
        client === undefined
          ? { issued: false, because: 'invalid' }
          : await accessTokens.issue({ client, address: addressOf(request), scopes, issuer: issuer() });
      if (!issuance.issued) {
        const refusal = REFUSALS[issuance.because]();
        // Failures alone are limited: whoever shows a genuine key is let in, whatever others at its address did.
        if (refusal.code === 'invalid_client') await callers.countFailure(request, reply);
        throw refusal;
      }
      return {
        access_token: issuance.jwt,
        token_type: 'Bearer',
        expires_in: issuance.expiresInSeconds,
        ...(issuance.scopes.length === 0 ? {} : { scope: issuance.scopes.join(' ') }),
      };
    },
  );
}

/** @throws OAuthError `invalid_scope` */
function scopesOf(text: string): string[] {
  const scopes = parseScope(text);
  if (scopes === undefined || scopes.length > MAX_SCOPES) {
    throw new OAuthError(400, 'invalid_scope', 'The parameter scope is malformed.');
  }
  return scopes;
}

/** What is told of a key that a genuine token was shown for is its holder's to know. */
const REFUSALS: Record<(Issuance & { issued: false })['because'], () => OAuthError> = {
  invalid: () => invalidClient('Send the id of a key as client_id, and its token as client_secret.'),
  revoked: () => invalidClient('The key was revoked.'),
  expired: () => invalidClient('The key has expired.'),
  disabled: () => new OAuthError(400, 'unauthorized_client', 'The workspace of this key is disabled.'),
  address: () => new OAuthError(400, 'unauthorized_client', 'This key may not be used from this address.'),
  scope: () => new OAuthError(400, 'invalid_scope', 'The key does not have each of these scopes.'),
};
