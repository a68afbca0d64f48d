import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { PERMISSIONS } from '../domain/scope.ts';
import { type Callers, callerOf } from './callers.ts';
import * as schemas from './schemas.ts';

/** `GET /v1/me`: any service key learns about itself (contract §3). */
export function registerMeRoute({ callers }: { callers: Callers }): void {
  callers.scope(null, 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().get(
      '/v1/me',
      {
        schema: {
          tags: ['Service keys'],
          operationId: 'getMe',
          summary: 'The service key that calls',
          description: 'Any service key may ask, whatever its permissions.',
          security: schemas.callerWith(),
          response: {
            200: schemas
              .success(
                z
                  .object({
                    id: schemas.keyId,
                    name: z.string().describe('What people call the service key.'),
                    permissions: z
                      .array(z.string().meta({ enum: [...PERMISSIONS] }))
                      .describe('What it may do; `admin` is all of them.'),
                    restrictions: schemas.restrictionsOutput.nullable().describe('`null`: none.'),
                    expires_at: schemas.timeOutput.nullable().describe('`null`: never.'),
                  })
                  .describe('The service key.'),
              )
              .describe('What the caller is.'),
            ...schemas.problems(schemas.CALLER_PROBLEMS),
          },
        },
      },
      async (request) => {
        const { keyId, name, permissions, allowedIps, allowedWorkspaces, expiresAt } = callerOf(request);
        const restricted = allowedIps !== null || allowedWorkspaces !== null;
        return {
          success: true as const,
          data: {
            id: keyId,
            name,
            permissions: [...permissions],
            restrictions: restricted
              ? {
                  allowed_ips: allowedIps && [...allowedIps],
                  allowed_workspaces: allowedWorkspaces && [...allowedWorkspaces],
                }
              : null,
            expires_at: schemas.fromTime(expiresAt),
          },
        };
      },
    );
  });
}
