import type { FastifyInstance, FastifyRequest } from 'fastify';
import { z } from 'zod';
import { isJwt } from '../domain/access-token.ts';
import type { KeyId } from '../domain/key-id.ts';
import type { AccessTokenLifecycle } from '../lifecycle/access-tokens.ts';
import type { TokenRevocation } from '../lifecycle/token-revocation.ts';
import type { Verifier } from '../verification/verifier.ts';
import { addressOf } from './address.ts';
import type { Callers } from './callers.ts';
import { readCredential } from './credential.ts';
import { originOf } from './keys.ts';
import { FORM, readForm } from './oauth.ts';
import { readClient } from './oauth-client.ts';
import { invalidClient, invalidRequest, OAUTH_PROBLEMS, OAuthError, oauthErrors } from './oauth-errors.ts';

export const REVOKE_URL = '/oauth/revoke';
const PARAMETERS = ['token', 'token_type_hint', 'client_id', 'client_secret'] as const;
const REASON = 'revoked by its holder';

const revokeForm = z
  .object({
    token: z
      .string()
      .describe('The token of a key, which revokes the key; or an access token, which revokes that alone.'),
    token_type_hint: z.string().optional().describe('Ignored: tokens tell what they are.'),
    client_id: z
      .string()
      .optional()
      .describe('With `client_secret`: the client, if it wants to show itself.'),
    client_secret: z.string().optional().describe('The token of that key.'),
  })
  .meta({ id: 'OAuthRevocation', description: 'RFC 7009 §2.1. Parameters that are not listed are ignored.' });

/** Who asks: any service key, the client of a key, or somebody who holds the token. */
type Revoker =
  | { readonly kind: 'service' }
  | { readonly kind: 'client'; readonly keyId: KeyId }
  | { readonly kind: 'holder' };

export interface RevokeRoute {
  readonly callers: Callers;
  readonly verifier: Verifier;
  readonly accessTokens: AccessTokenLifecycle;
  readonly tokenRevocation: TokenRevocation;
}

/** `POST /oauth/revoke` (contract §7). */
export function registerRevokeRoute(
  app: FastifyInstance,
  { callers, verifier, accessTokens, tokenRevocation }: RevokeRoute,
): void {
  /** `undefined`: credentials were sent that are not right. */
  async function revokerOf(
    request: FastifyRequest,
    form: Partial<Record<(typeof PARAMETERS)[number], string>>,
  ): Promise<Revoker | undefined> {
    const { rawHeaders } = request.raw;
    const address = () => addressOf(request);
    // Service keys come as everywhere else too. Basic is to this function a credential that is none.
    const shown = readCredential(rawHeaders);
    if (shown.kind === 'presented' && shown.token !== '') {
      return (await verifier.authenticate(shown.token, address)).authenticated
        ? { kind: 'service' }
        : undefined;
    }
    const client = readClient(rawHeaders, form);
    if (client === undefined) return { kind: 'holder' };
    const found = await verifier.authenticate(client.token, address);
    if (found.authenticated) return found.caller.keyId === client.id ? { kind: 'service' } : undefined;
    // Also a key that is over: its client may ask again for what was committed and not confirmed.
    const holder = await verifier.identifyHolder(client.token);
    return holder?.id === client.id ? { kind: 'client', keyId: holder.id } : undefined;
  }

  app.post(
    REVOKE_URL,
    {
      schema: {
        tags: ['OAuth'],
        operationId: 'revokeToken',
        summary: 'Revoke a token',
        description:
          'RFC 7009. To hold the token is enough; a client that shows itself may only revoke what is its own, and a service key whatever it holds. 200 also for what is no token. When it has answered, no instance takes the token any more.',
        security: [{ client: [] }, { bearer: [] }, {}],
        documentedBody: { content: { [FORM]: { schema: revokeForm } } },
        response: {
          200: z.object({}).describe('It is not active any more, if it ever was.'),
          ...oauthErrors({
            ...OAUTH_PROBLEMS,
            400: 'Malformed (`invalid_request`), or the token of another client (`unauthorized_client`).',
            429: 'Too many requests from this address (`temporarily_unavailable`).',
            503: 'It cannot be told whether it is revoked: repeat it (`temporarily_unavailable`).',
          }),
        },
      },
    },
    async (request, reply) => {
      const form = readForm(request.body, PARAMETERS);
      const { token } = form;
      if (token === undefined) throw invalidRequest('The parameter token is missing.');
      const revoker = await revokerOf(request, form);
      // All but service keys: a change makes work for every instance, also where it is repeated.
      if (revoker?.kind !== 'service') await callers.countFailure(request, reply);
      if (revoker === undefined)
        throw invalidClient('The credentials of the client are wrong; possession of the token is enough.');
      const origin = originOf(request);
      const clientId = revoker.kind === 'client' ? revoker.keyId : null;
      if (isJwt(token)) {
        if ((await accessTokens.revoke(token, { origin, clientId })) === 'foreign') throw foreign();
      } else {
        if (clientId !== null && (await isForeign(token, clientId))) throw foreign();
        await tokenRevocation.revokeTokens([token], { source: 'oauth_revoke', reason: REASON, origin });
      }
      return {};
    },
  );

  async function isForeign(token: string, clientId: KeyId): Promise<boolean> {
    const holder = await verifier.identifyHolder(token);
    return holder !== undefined && holder.id !== clientId;
  }
}

/** RFC 7009 §2.1. */
function foreign(): OAuthError {
  return new OAuthError(400, 'unauthorized_client', 'The token was issued to another client.');
}
