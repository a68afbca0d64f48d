import type { FastifyInstance } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { Failure } from '../domain/errors.ts';
import type { PublicJwk } from '../verification/signing-keys.ts';
import { INTROSPECT_URL } from './oauth-introspect.ts';
import { REVOKE_URL } from './oauth-revoke.ts';
import { TOKEN_URL } from './oauth-token.ts';
import * as schemas from './schemas.ts';

const METADATA_URL = '/.well-known/oauth-authorization-server';
const KEYS_URL = '/.well-known/jwks.json';
/** A day before a key signs it is published (domain/signing-schedule.ts). */
const CACHED = 'public, max-age=300';

const metadataOutput = z
  .object({
    issuer: z.string().describe('`iss` of access tokens.'),
    token_endpoint: z.string().describe('Where access tokens are issued.'),
    jwks_uri: z.string().describe('Where the keys are that access tokens are verified with.'),
    response_types_supported: z
      .array(z.string())
      .describe('None: there is no authorization endpoint, and no one who would log in.'),
    grant_types_supported: z.array(z.string()).describe('`client_credentials`.'),
    token_endpoint_auth_methods_supported: z
      .array(z.string())
      .describe('How a client may show itself at the token endpoint.'),
    introspection_endpoint: z.string().describe('Where a service asks whether a token is active (RFC 7662).'),
    introspection_endpoint_auth_methods_supported: z
      .array(z.string())
      .describe('How a service key may show itself there.'),
    revocation_endpoint: z.string().describe('Where a token is revoked (RFC 7009).'),
    revocation_endpoint_auth_methods_supported: z
      .array(z.string())
      .describe('How a client may show itself there; `none`: to hold the token is enough.'),
    service_documentation: z.string().describe('Where this page is.'),
  })
  .meta({ id: 'AuthorizationServerMetadata', description: 'RFC 8414 §2.' });

const keySetOutput = z
  .object({
    keys: z
      .array(
        z
          .object({
            kty: z.literal('EC').describe('An elliptic curve.'),
            crv: z.literal('P-256').describe('This one.'),
            x: z.string().describe('A coordinate, in base64url.'),
            y: z.string().describe('The other one.'),
            kid: z
              .string()
              .describe('What the header of an access token names it by: its RFC 7638 thumbprint.'),
            alg: z.literal('ES256').describe('What it signs with.'),
            use: z.literal('sig').describe('It signs.'),
          })
          .meta({ id: 'PublicKey', description: 'A public key (RFC 7517).' }),
      )
      .describe(
        'The one whose turn it is to sign, the next one before its turn, and those that signed what is still valid.',
      ),
  })
  .meta({ id: 'KeySet', description: 'RFC 7517 §5.' });

/** `GET /.well-known/oauth-authorization-server` and `/.well-known/jwks.json` (contract §7). */
export function registerMetadataRoutes(
  plain: FastifyInstance,
  { issuer, publicKeys }: { issuer: () => string; publicKeys: () => readonly PublicJwk[] },
): void {
  const app = plain.withTypeProvider<ZodTypeProvider>();
  const metadata = (): z.input<typeof metadataOutput> => {
    const base = issuer();
    return {
      issuer: base,
      token_endpoint: base + TOKEN_URL,
      jwks_uri: base + KEYS_URL,
      response_types_supported: [],
      grant_types_supported: ['client_credentials'],
      token_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post'],
      introspection_endpoint: base + INTROSPECT_URL,
      // RFC 8414 §2 lets access token types stand here too, for those who come with one.
      introspection_endpoint_auth_methods_supported: ['client_secret_basic', 'Bearer'],
      revocation_endpoint: base + REVOKE_URL,
      revocation_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post', 'none'],
      service_documentation: `${base}/docs`,
    };
  };

  app.get(
    METADATA_URL,
    {
      schema: {
        tags: ['OAuth'],
        operationId: 'getAuthorizationServerMetadata',
        summary: 'What an OAuth client has to know',
        description: 'RFC 8414. The issuer is a setting (`ISSUER`); the Host header has no say.',
        security: [],
        response: {
          200: metadataOutput.describe('The endpoints, and what they take.'),
          ...schemas.problems(schemas.BARE_PROBLEMS),
        },
      },
    },
    async (_request, reply) => {
      reply.header('cache-control', CACHED);
      return metadata();
    },
  );

  // RFC 8414 §3.1: the path of an issuer that has one comes last.
  app.get(`${METADATA_URL}/*`, { schema: { hide: true } }, async (request, reply) => {
    if (new URL(request.url, issuer()).pathname !== METADATA_URL + new URL(issuer()).pathname) {
      throw new Failure('not_found', 'There is no such route.');
    }
    reply.header('cache-control', CACHED);
    return metadata();
  });

  app.get(
    KEYS_URL,
    {
      schema: {
        tags: ['OAuth'],
        operationId: 'getKeySet',
        summary: 'The keys that access tokens are signed with',
        description:
          'For services that verify access tokens themselves. Look a key up by `kid`, and read the set again where a token names one that you do not know.',
        security: [],
        response: {
          200: keySetOutput.describe('The keys.'),
          ...schemas.problems(schemas.BARE_PROBLEMS),
        },
      },
    },
    async (_request, reply) => {
      reply.header('cache-control', CACHED);
      return { keys: [...publicKeys()] };
    },
  );
}
