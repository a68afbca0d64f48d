import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { KeyLifecycle } from '../lifecycle/keys.ts';
import { type Callers, callerOf } from './callers.ts';
import { originOf } from './keys.ts';
import * as schemas from './schemas.ts';

const bulkBody = z
  .strictObject({
    reason: schemas.reason.nullable(),
    environment: schemas.environment.describe('Only keys of this environment.'),
    created_by: schemas.createdBy.describe('Only keys that this one asked for.'),
  })
  .partial()
  .meta({
    id: 'BulkRevocation',
    description: 'Which keys are revoked, and why. Absent members do not narrow.',
  })
  .nullish();

/** `/v1/workspaces/{id}` (contract §4). */
export function registerWorkspaceRoutes({
  callers,
  lifecycle,
}: {
  callers: Callers;
  lifecycle: KeyLifecycle;
}): void {
  callers.scope('keys:write', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().post(
      '/v1/workspaces/:id/revoke-keys',
      {
        schema: {
          tags: ['Workspaces'],
          operationId: 'revokeWorkspaceKeys',
          summary: "Revoke a workspace's keys",
          description:
            'All of them, or those of one environment or creator. Keys revoked before keep their time and reason.',
          security: schemas.callerWith('keys:write'),
          params: z.object({ id: schemas.workspaceId }),
          body: bulkBody,
          response: {
            200: schemas
              .changed(
                z
                  .object({ revoked: z.int().describe('How many keys this call revoked.') })
                  .describe('What was done.'),
              )
              .describe('The keys are revoked, on every instance.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              ...schemas.BODY_PROBLEMS,
              404: 'There is no such workspace that this caller may see (`not_found`).',
            }),
          },
        },
      },
      async (request) => {
        const { environment, created_by, reason } = request.body ?? {};
        const { revoked, propagation } = await lifecycle.revokeAll(
          callerOf(request),
          originOf(request),
          request.params.id,
          {
            environment,
            createdBy: created_by,
            reason: reason ?? null,
          },
        );
        return {
          success: true as const,
          data: { revoked },
          propagation: schemas.propagationView(propagation),
        };
      },
    );
  });
}
