import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { reaches } from '../domain/caller.ts';
import { DEFAULT_WORKSPACE, type Workspace } from '../domain/workspace.ts';
import { noSuchWorkspace, type WorkspaceLifecycle } from '../lifecycle/workspaces.ts';
import type { Database } from '../storage/database.ts';
import { findWorkspace } from '../storage/workspaces.ts';
import { type Callers, callerOf } from './callers.ts';
import { originOf } from './keys.ts';
import * as schemas from './schemas.ts';
import { fromTime } from './schemas.ts';

/** An `integer` column holds it. */
const MAX_ACTIVE_KEYS = 2_147_483_647;
/** A hundred years. */
const MAX_LIFETIME_DAYS = 36_500;
const MAX_PLAN_SCOPES = 256;
const TAGS = ['Workspaces'];

const NAME = 'What people call the workspace.';
const KEYS =
  'How many active keys it may have; 0: none at all; `null`: any number. A rotated key and its successor count once.';
const SCOPES = 'The scopes that its keys may be given; `null`: any.';
const LIFETIME =
  'How long its keys may live, counted from their creation. A key that is given no expiry gets the longest; `null`: any.';
const RATE_LIMIT = "Shared by all its keys, beside each key's own; `null`: none.";
const DISABLED = 'Whether all its keys are inactive.';

const whole = (least: number, most: number) => {
  const message = `must be a whole number from ${least} to ${most}`;
  return z.int(message).min(least, message).max(most, message);
};

const putBody = z
  .strictObject({
    name: schemas.workspaceName.nullable().describe(NAME),
    limits: z
      .strictObject({
        max_active_keys: whole(0, MAX_ACTIVE_KEYS).nullable().describe(KEYS),
        allowed_scopes: z
          .array(schemas.scope)
          .min(1, 'must not be empty: leave it out or send null for any scope')
          .max(MAX_PLAN_SCOPES, `must be at most ${MAX_PLAN_SCOPES} scopes`)
          .nullable()
          .describe(SCOPES),
        max_key_lifetime_days: whole(1, MAX_LIFETIME_DAYS).nullable().describe(LIFETIME),
      })
      .partial()
      .meta({ id: 'NewPlanLimits', description: 'What the plan allows. Absent members do not limit.' })
      .nullable()
      .describe('What the plan allows. Absent or `null`: anything.'),
    rate_limit: schemas.rateLimit.nullable().describe(RATE_LIMIT),
    disabled: z.boolean('must be true or false').describe(DISABLED),
  })
  .partial()
  .meta({
    id: 'NewWorkspace',
    description: 'The settings of a workspace. They replace what was there: what is absent gets its default.',
  });

const workspaceOutput = z
  .object({
    id: z.string().describe("The caller's own id of the tenant."),
    name: z.string().nullable().describe(NAME),
    limits: z
      .object({
        max_active_keys: z.int().nullable().describe(KEYS),
        allowed_scopes: z.array(z.string()).nullable().describe(SCOPES),
        max_key_lifetime_days: z.int().nullable().describe(LIFETIME),
      })
      .meta({ id: 'PlanLimits', description: 'What the plan allows; `null` does not limit.' }),
    rate_limit: schemas.rateLimitOutput.nullable().describe(RATE_LIMIT),
    disabled: z.boolean().describe(DISABLED),
    created_at: schemas.timeOutput.nullable().describe('When it was first put; `null`: never.'),
    updated_at: schemas.timeOutput.nullable().describe('When its settings last changed; `null`: never.'),
  })
  .meta({ id: 'Workspace', description: 'A workspace and its plan.' });

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

const idParams = z.object({ id: schemas.workspaceId });
const noWorkspace = { 404: 'There is no such workspace that this caller may see (`not_found`).' };

/** `/v1/workspaces/{id}` (contract §4, §6). */
export function registerWorkspaceRoutes({
  callers,
  workspaces,
  database,
}: {
  callers: Callers;
  workspaces: WorkspaceLifecycle;
  database: Database;
}): void {
  callers.scope('keys:read', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().get(
      '/v1/workspaces/:id',
      {
        schema: {
          tags: TAGS,
          operationId: 'getWorkspace',
          summary: 'Get a workspace',
          description:
            'A workspace needs no preparation: one that was never put has the defaults, which limit nothing.',
          security: schemas.callerWith('keys:read'),
          params: idParams,
          response: {
            200: schemas.success(workspaceOutput).describe('The workspace.'),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...noWorkspace }),
          },
        },
      },
      async (request) => {
        const { id } = request.params;
        if (!reaches(callerOf(request), id)) throw noSuchWorkspace();
        const found = await database.read((executor) => findWorkspace(executor, id));
        return { success: true as const, data: viewOf(found ?? { ...DEFAULT_WORKSPACE, id }) };
      },
    );
  });

  callers.scope('workspaces:write', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().put(
      '/v1/workspaces/:id',
      {
        schema: {
          tags: TAGS,
          operationId: 'putWorkspace',
          summary: "Replace a workspace's settings",
          description:
            'A narrower plan is for what comes: keys keep what they have until they are changed or rotated. `disabled` and `rate_limit` hold for every key at once. Not for `system`.',
          security: schemas.callerWith('workspaces:write'),
          params: idParams,
          body: putBody,
          response: {
            200: schemas.changed(workspaceOutput).describe('The workspace as it is from now on.'),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...schemas.BODY_PROBLEMS, ...noWorkspace }),
          },
        },
      },
      async (request) => {
        const { name, limits, rate_limit, disabled } = request.body;
        const { workspace, propagation } = await workspaces.put(
          callerOf(request),
          originOf(request),
          request.params.id,
          {
            name: name ?? null,
            limits: {
              maxActiveKeys: limits?.max_active_keys ?? null,
              allowedScopes: limits?.allowed_scopes == null ? null : [...new Set(limits.allowed_scopes)],
              maxKeyLifetimeDays: limits?.max_key_lifetime_days ?? null,
            },
            rateLimit: rate_limit ?? null,
            disabled: disabled ?? false,
          },
        );
        return {
          success: true as const,
          data: viewOf(workspace),
          propagation: schemas.propagationView(propagation),
        };
      },
    );
  });

  callers.scope('keys:write', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().post(
      '/v1/workspaces/:id/revoke-keys',
      {
        schema: {
          tags: TAGS,
          operationId: 'revokeWorkspaceKeys',
          summary: "Revoke a workspace's keys",
          description:
            'All of them, or those of one environment or creator. Keys revoked before keep their time and reason.',
          security: schemas.callerWith('keys:write'),
          params: idParams,
          body: bulkBody,
          response: {
            200: schemas
              .changed(
                z
                  .object({ revoked: z.int().describe('How many keys this call revoked.') })
                  .describe('What was done.'),
              )
              .describe('The keys are revoked, on every instance.'),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...schemas.BODY_PROBLEMS, ...noWorkspace }),
          },
        },
      },
      async (request) => {
        const { environment, created_by, reason } = request.body ?? {};
        const { revoked, propagation } = await workspaces.revokeKeys(
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

/** A workspace as the API shows it. */
function viewOf(workspace: Workspace): z.input<typeof workspaceOutput> {
  const { id, name, limits, rateLimit, disabled, createdAt, updatedAt } = workspace;
  return {
    id,
    name,
    limits: {
      max_active_keys: limits.maxActiveKeys,
      allowed_scopes: limits.allowedScopes === null ? null : [...limits.allowedScopes],
      max_key_lifetime_days: limits.maxKeyLifetimeDays,
    },
    rate_limit: rateLimit,
    disabled,
    created_at: fromTime(createdAt),
    updated_at: fromTime(updatedAt),
  };
}
