import helmet from '@fastify/helmet';
import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import type { FastifyInstance } from 'fastify';
import { createDocumenter } from './document.ts';

const SERVICE_KEY =
  'A service key, `ck_svc_…`: a key of the workspace `system`. Its scopes are its permissions.';

const CLIENT = 'The client of OAuth: the id of a key, and its token as the password.';

const DESCRIPTION = [
  'Claviger issues, verifies, limits and revokes API keys for other services.',
  '**Callers** show a service key, in `Authorization: Bearer` or in `X-Api-Key`. Each operation names the permission ' +
    'that it asks for; `admin` is all of them. What a service key may not see does not exist for it: 404.',
  '**Requests** are JSON of at most 64 KiB, reports of usage of 1 MiB. A member that is not listed here is an error.',
  '**Responses** carry `X-Request-Id` and, under `/v1` and `/oauth`, `Cache-Control: no-store`. Times are RFC 3339, UTC, with ' +
    'milliseconds; what is absent is `null`. Later releases may add members: ignore those you do not know.',
  '**Errors** are `application/problem+json` (RFC 9457). Branch on `code`. Under `/oauth` they are those of RFC 6749. No error repeats a key, a header or a body.',
].join('\n\n');

const TAGS = [
  { name: 'Keys', description: 'Issue, list, change and revoke keys: for the backend of a dashboard.' },
  {
    name: 'Introspection',
    description: 'Ask whether a key may do what it asks for: for services and gateways.',
  },
  {
    name: 'OAuth',
    description:
      'Access tokens for keys, by OAuth 2.0 (RFC 6749). Errors are those of its section 5.2, as `application/json`.',
  },
  { name: 'Scopes', description: 'The scope catalogue: what scopes imply and which routes they grant.' },
  { name: 'Workspaces', description: 'The tenants that own keys.' },
  { name: 'Watching', description: 'What keys were used for, and who changed them.' },
  {
    name: 'Leaks',
    description: 'Report tokens that leaked, and so end their keys. They ask for no service key.',
  },
  { name: 'Service keys', description: 'The keys that call Claviger itself.' },
  { name: 'Operations', description: 'Probes, for whoever runs it. They ask for no key.' },
];

/**
 * All that the page needs comes from this origin and is a file: nothing inline, nothing from elsewhere, and no
 * `upgrade-insecure-requests`, which would break it wherever it is served over plain HTTP.
 */
const PAGE_POLICY = {
  'default-src': ["'none'"],
  'script-src': ["'self'"],
  'style-src': ["'self'"],
  'img-src': ["'self'", 'data:'],
  'connect-src': ["'self'"],
  'base-uri': ["'none'"],
  'form-action': ["'none'"],
  'frame-ancestors': ["'none'"],
};

/** Collects the routes registered after it into an OpenAPI 3.1 document. */
export async function collectDocument(app: FastifyInstance, { version }: { version: string }): Promise<void> {
  const { describeRoute, complete } = createDocumenter();
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Claviger',
        version,
        description: DESCRIPTION,
        license: { name: 'MIT', identifier: 'MIT' },
      },
      servers: [{ url: '/', description: 'The deployment that this document comes from.' }],
      tags: TAGS,
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer', description: SERVICE_KEY },
          client: { type: 'http', scheme: 'basic', description: CLIENT },
          gateway: {
            type: 'apiKey',
            in: 'header',
            name: 'X-Claviger-Service-Key',
            description: `${SERVICE_KEY} For \`/v1/authorize\`, where the other headers hold the client's key.`,
          },
          apiKey: { type: 'apiKey', in: 'header', name: 'X-Api-Key', description: SERVICE_KEY },
        },
      },
    },
    transform: describeRoute,
    transformObject: (document) => complete('openapiObject' in document ? document.openapiObject : {}),
  });
}

/** `/docs` and `/openapi.json`. Nothing on the page comes from elsewhere. */
export function registerDocumentation(app: FastifyInstance): void {
  app.register(async (scope) => {
    // Whether a host is to be reached by HTTPS alone is for its operator to say, not for a page of documentation.
    await scope.register(helmet, { contentSecurityPolicy: false, strictTransportSecurity: false });
    await scope.register(swaggerUi, {
      routePrefix: '/docs',
      staticCSP: PAGE_POLICY,
      theme: { title: 'Claviger API' },
      uiConfig: {
        // Without the bar that loads documents from other addresses.
        layout: 'BaseLayout',
        deepLinking: true,
        docExpansion: 'list',
        displayRequestDuration: true,
        tryItOutEnabled: true,
        // A service key typed into the page is forgotten with it.
        persistAuthorization: false,
      },
    });
    scope.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());
  });
}
