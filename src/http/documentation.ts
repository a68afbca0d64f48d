import helmet from '@fastify/helmet';
import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import type { FastifyInstance } from 'fastify';
import { jsonSchemaTransform, jsonSchemaTransformObject } from 'fastify-type-provider-zod';

/** Collects the routes registered after it into an OpenAPI 3.1 document. */
export async function collectDocument(app: FastifyInstance, { version }: { version: string }): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Claviger',
        version,
        description: 'Issues, verifies, limits and revokes API keys.',
        license: { name: 'MIT', identifier: 'MIT' },
      },
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer', description: 'A service key: `ck_svc_…`.' },
          apiKey: {
            type: 'apiKey',
            in: 'header',
            name: 'X-Api-Key',
            description: 'A service key: `ck_svc_…`.',
          },
        },
      },
    },
    transform: jsonSchemaTransform,
    transformObject: jsonSchemaTransformObject,
  });
}

/** `/docs` and `/openapi.json`. Nothing on the page comes from elsewhere. */
export function registerDocumentation(app: FastifyInstance): void {
  app.register(async (scope) => {
    await scope.register(helmet, { contentSecurityPolicy: false });
    await scope.register(swaggerUi, { routePrefix: '/docs', staticCSP: true });
    scope.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());
  });
}
