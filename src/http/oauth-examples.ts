/** The examples of the OAuth endpoints, as of examples.ts. */

const FORM = 'application/x-www-form-urlencoded';
const ISSUER = 'https://keys.example.com';
const KID = 'oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U';
/** Reads like a JWT and is none: nobody signed it. */
const EXAMPLE_JWT = 'eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJleGFtcGxlIjp0cnVlfQ.none';

interface Example {
  readonly summary: string;
  readonly value: unknown;
}

const error = (code: string, description: string): Example => ({
  summary: description,
  value: { error: code, error_description: description },
});
const one = (example: Example) => ({ example });

const unreadable = {
  413: one(error('invalid_request', 'The body is larger than 64 KiB.')),
  415: one(error('invalid_request', 'Send the body as a form.')),
  429: one(error('temporarily_unavailable', 'Too many requests to Claviger; see Retry-After.')),
  503: one(error('temporarily_unavailable', 'The database cannot be reached.')),
};

/** @param keyId and `token` of the examples' key. */
export function oauthExamples({ keyId, token }: { readonly keyId: string; readonly token: string }) {
  return {
    issueToken: {
      request: {
        [FORM]: {
          narrowed: {
            summary: 'For one scope, with the credentials in the form',
            value: {
              grant_type: 'client_credentials',
              scope: 'read',
              client_id: keyId,
              client_secret: token,
            },
          },
          basic: {
            summary: 'For all scopes, with the credentials in Authorization: Basic',
            value: { grant_type: 'client_credentials' },
          },
        },
      },
      responses: {
        200: one({
          summary: 'An access token',
          value: { access_token: EXAMPLE_JWT, token_type: 'Bearer', expires_in: 3600, scope: 'read' },
        }),
        400: {
          invalid_request: error('invalid_request', 'The parameter grant_type is missing.'),
          unsupported_grant_type: error(
            'unsupported_grant_type',
            'The one grant_type is client_credentials.',
          ),
          invalid_scope: error('invalid_scope', 'The key does not have each of these scopes.'),
          unauthorized_client: error('unauthorized_client', 'The workspace of this key is disabled.'),
        },
        401: one(error('invalid_client', 'The key was revoked.')),
        ...unreadable,
      },
    },
    introspectToken: {
      request: { [FORM]: one({ summary: 'An access token', value: { token: EXAMPLE_JWT } }) },
      responses: {
        200: {
          active: {
            summary: 'An access token that is active',
            value: {
              active: true,
              scope: 'read',
              client_id: keyId,
              sub: 'ws_acme',
              token_type: 'Bearer',
              iat: 1_767_323_045,
              exp: 1_767_326_645,
              jti: '3f0c9a52-6a0e-4d53-9f5e-6f1d7a0c2b11',
            },
          },
          inactive: { summary: 'Any other', value: { active: false } },
        },
        400: one(error('invalid_request', 'The parameter token is missing.')),
        401: one(error('invalid_client', 'The credential is not a valid service key.')),
        403: one(error('insufficient_scope', 'This service key lacks the permission introspect.')),
        ...unreadable,
      },
    },
    revokeToken: {
      request: { [FORM]: one({ summary: 'An access token', value: { token: EXAMPLE_JWT } }) },
      responses: {
        200: one({ summary: 'It is not active any more', value: {} }),
        400: {
          invalid_request: error('invalid_request', 'The parameter token is missing.'),
          unauthorized_client: error('unauthorized_client', 'The token was issued to another client.'),
        },
        401: one(error('invalid_client', 'The credentials of the client are wrong.')),
        ...unreadable,
      },
    },
    getAuthorizationServerMetadata: {
      responses: {
        200: one({
          summary: 'The metadata',
          value: {
            issuer: ISSUER,
            token_endpoint: `${ISSUER}/oauth/token`,
            jwks_uri: `${ISSUER}/.well-known/jwks.json`,
            response_types_supported: [],
            grant_types_supported: ['client_credentials'],
            token_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post'],
            introspection_endpoint: `${ISSUER}/oauth/introspect`,
            introspection_endpoint_auth_methods_supported: ['client_secret_basic', 'Bearer'],
            revocation_endpoint: `${ISSUER}/oauth/revoke`,
            revocation_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post', 'none'],
            service_documentation: `${ISSUER}/docs`,
          },
        }),
      },
    },
    getKeySet: {
      responses: {
        200: one({
          summary: 'One key',
          value: {
            keys: [
              {
                kty: 'EC',
                crv: 'P-256',
                x: 'f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU',
                y: 'x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0',
                kid: KID,
                alg: 'ES256',
                use: 'sig',
              },
            ],
          },
        }),
      },
    },
  };
}
