import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import type { Recorder } from '../recording/recorder.ts';
import type { Verifier } from '../verification/verifier.ts';
import { type Callers, callerOf } from './callers.ts';
import { standardAnswer, standardOutput } from './introspect.ts';
import { FORM, readForm } from './oauth.ts';
import { readResourceCredential } from './oauth-client.ts';
import { invalidRequest, JSON_TYPE, OAUTH_PROBLEMS, oauthErrors } from './oauth-errors.ts';
import * as schemas from './schemas.ts';

export const INTROSPECT_URL = '/oauth/introspect';
const PARAMETERS = ['token', 'token_type_hint'] as const;

const introspectForm = z
  .object({
    token: z.string().describe('What the client sent: the token of a key, or an access token of one.'),
    token_type_hint: z.string().optional().describe('Ignored: tokens tell what they are.'),
  })
  .meta({
    id: 'OAuthIntrospection',
    description: 'RFC 7662 §2.1. Parameters that are not listed are ignored.',
  });

/** `POST /oauth/introspect` (contract §7): `POST /v1/introspect` for OAuth libraries. */
export function registerOAuthIntrospectRoute(
  scope: FastifyInstance,
  { callers, verifier, recorder }: { callers: Callers; verifier: Verifier; recorder: Recorder },
): void {
  scope.register(async (guarded) => {
    callers.guard(guarded, {
      permission: 'introspect',
      limiter: 'introspection',
      read: readResourceCredential,
    });
    guarded.post(
      INTROSPECT_URL,
      {
        schema: {
          tags: ['OAuth'],
          operationId: 'introspectToken',
          summary: 'Is this token active?',
          description:
            'RFC 7662, for OAuth libraries: one use of the key, as a form to `/v1/introspect` is. The caller is a service key, by HTTP Basic as `id:token`, or as everywhere else.',
          security: [{ client: ['introspect'] }, ...schemas.callerWith('introspect')],
          documentedBody: { content: { [FORM]: { schema: introspectForm } } },
          response: {
            200: standardOutput.describe('The verdict; of a token that is not active, that alone.'),
            ...oauthErrors({
              ...OAUTH_PROBLEMS,
              401: 'No service key, or not a valid one (`invalid_client`; of Bearer `invalid_token`).',
              403: 'The service key may not do this (`insufficient_scope`), or not from this address (`unauthorized_client`).',
              429: 'Too many requests (`temporarily_unavailable`).',
            }),
          },
        },
      },
      async (request, reply): Promise<string> => {
        const { token } = readForm(request.body, PARAMETERS);
        if (token === undefined) throw invalidRequest('The parameter token is missing.');
        const { allowedWorkspaces: visibleWorkspaces } = callerOf(request);
        const decision = await verifier.verify(token, { visibleWorkspaces });
        recorder.introspected(decision, undefined, request);
        reply.type(JSON_TYPE);
        return standardAnswer(decision);
      },
    );
  });
}
