import type { FastifyRequest } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { reaches } from '../domain/caller.ts';
import { KEY_STATUSES } from '../domain/key.ts';
import { KEY_ID_PATTERN, type KeyId, keyIdFromUuid, keyIdToUuid } from '../domain/key-id.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import type { Origin } from '../lifecycle/audit.ts';
import type { Idempotency } from '../lifecycle/idempotency.ts';
import { foreignWorkspace, noSuchKey } from '../lifecycle/key-rules.ts';
import type { KeyLifecycle, NewKey } from '../lifecycle/keys.ts';
import type { Database } from '../storage/database.ts';
import { findKey, listKeys } from '../storage/keys.ts';
import { findUses, type KeyUse } from '../storage/usage.ts';
import { addressOf } from './address.ts';
import { type Callers, callerOf } from './callers.ts';
import type { CursorCodec } from './cursor.ts';
import { IDEMPOTENCY_PROBLEMS, makeKeyOnce } from './idempotency.ts';
import { viewOf } from './key-view.ts';
import { pageOf, pageQuery } from './page.ts';
import * as schemas from './schemas.ts';
import { toTime } from './schemas.ts';

export interface KeyRoutes {
  readonly callers: Callers;
  readonly lifecycle: KeyLifecycle;
  readonly idempotency: Idempotency;
  readonly database: Database;
  readonly cursors: CursorCodec;
  readonly rotationDueDays: number;
}

const DAY_MS = 86_400_000;
const TAGS = ['Keys'];

const createBody = z
  .strictObject({
    workspace_id: schemas.workspaceId,
    name: schemas.keyName,
    environment: schemas.environment.optional(),
    scopes: schemas.scopes.optional(),
    expires_at: schemas.timeInput
      .nullable()
      .optional()
      .describe(
        "An RFC 3339 time in the future; from then on the key is refused. Absent or `null`: never, or the latest that the workspace's plan allows.",
      ),
    restrictions: schemas.restrictionsInput.nullable().optional().describe('Absent or `null`: none.'),
    rate_limit: schemas.rateLimit
      .nullable()
      .optional()
      .describe("Absent: the deployment's default for the environment. `null`: no limit."),
    metadata: schemas.metadata.nullable().optional(),
    created_by: schemas.createdBy.nullable().optional(),
  })
  .meta({
    id: 'NewKey',
    description: 'What a key is made of. It keeps its workspace and its environment for ever.',
  });

const patchBody = z
  .strictObject({
    name: schemas.keyName.optional(),
    scopes: schemas.scopes
      .nullable()
      .optional()
      .describe('What the key may do from now on; `null`: nothing.'),
    expires_at: schemas.timeInput
      .nullable()
      .optional()
      .describe('An RFC 3339 time in the future; from then on the key is refused. `null`: never.'),
    restrictions: schemas.restrictionsInput
      .nullable()
      .optional()
      .describe('Absent lists stay; `null`: none.'),
    rate_limit: schemas.rateLimit
      .partial()
      .nullable()
      .optional()
      .describe('Absent members stay; `null`: no limit.'),
    metadata: schemas.metadata.nullable().optional(),
  })
  .meta({ id: 'KeyPatch', description: 'The settings of a key that can change: a JSON Merge Patch.' });

const revokeBody = z
  .strictObject({ reason: schemas.reason.nullable().optional() })
  .meta({ id: 'Revocation', description: 'Why the key is revoked.' })
  .nullish();

const listQuery = z.strictObject({
  workspace_id: schemas.workspaceId.optional().describe('Keys of this workspace.'),
  environment: schemas.environment.optional().describe('Keys of this environment.'),
  status: z
    .enum(KEY_STATUSES, `must be one of: ${KEY_STATUSES.join(', ')}`)
    .optional()
    .describe('Keys of this status; absent: all.'),
  scope: schemas.scope.optional().describe('Keys that hold this scope.'),
  name: schemas.keyName.optional().describe('Keys whose name begins with this.'),
  created_by: schemas.createdBy.optional().describe('Keys that this one asked for.'),
  expires_before: schemas.timeInput.optional().describe('Keys that expire before then.'),
  unused_since: schemas.timeInput.optional().describe('Keys neither made nor used since then.'),
  rotation_due: z.literal('true', 'must be true').optional().describe('Keys old enough to be rotated.'),
  ...pageQuery,
});

export const idParams = z.object({ id: z.string().describe('The id of the key: `key_…`.') });
const oneKey = schemas.success(schemas.keyOutput).describe('The key.');
const noKey = { 404: 'There is no such key that this caller may see (`not_found`).' };
const conflict = { 409: 'The key is not active (`key_not_active`), or it is the last admin (`last_admin`).' };

/** `/v1/api-keys` (contract §4). */
export function registerKeyRoutes({
  callers,
  lifecycle,
  idempotency,
  database,
  cursors,
  rotationDueDays,
}: KeyRoutes): void {
  /** The last use of a key. Read before a change, so that no fault of it follows a commit. */
  async function useOf(id: string): Promise<KeyUse | undefined> {
    const uses = await database.read((executor) => findUses(executor, [keyIdOf(id)]));
    return uses.get(id);
  }

  callers.scope('keys:read', 'management', (plain) => {
    const app = plain.withTypeProvider<ZodTypeProvider>();

    app.get(
      '/v1/api-keys',
      {
        schema: {
          tags: TAGS,
          operationId: 'listKeys',
          summary: 'List keys, newest first',
          description: 'Filters add up. Keys of `system` are shown to callers that may see that workspace.',
          security: schemas.callerWith('keys:read'),
          querystring: listQuery,
          response: {
            200: schemas.list(schemas.keyOutput, 'keys').describe('A page of keys.'),
            ...schemas.problems(schemas.CALLER_PROBLEMS),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const filters = request.query;
        if (filters.workspace_id !== undefined && !reaches(caller, filters.workspace_id)) {
          throw foreignWorkspace(filters.workspace_id);
        }
        const page = pageOf(cursors, filters, 'keys');
        const nowMs = caller.now;
        const found = await database.read((executor) =>
          listKeys(executor, {
            filters: {
              workspaceId: filters.workspace_id,
              environment: filters.environment,
              status: filters.status,
              scope: filters.scope,
              namePrefix: filters.name,
              createdBy: filters.created_by,
              expiresBefore: optionalTime(filters.expires_before),
              unusedSince: optionalTime(filters.unused_since),
              // Due at the very millisecond that `rotation_due_at` names.
              createdBefore:
                filters.rotation_due === undefined ? undefined : nowMs - rotationDueDays * DAY_MS + 1,
            },
            visibleWorkspaces: caller.allowedWorkspaces,
            includeSystem: reaches(caller, SYSTEM_WORKSPACE),
            after: page.after === undefined ? undefined : keyIdFromUuid(page.after),
            limit: page.limit,
            nowMs,
          }),
        );
        const { shown, pagination } = page.answer(found, ({ id }) => keyIdToUuid(id));
        const ids = shown.map((key) => key.id);
        const uses = await database.read((executor) => findUses(executor, ids));
        return {
          success: true as const,
          data: shown.map((key) => viewOf(key, { nowMs, rotationDueDays, use: uses.get(key.id) })),
          pagination,
        };
      },
    );

    app.get(
      '/v1/api-keys/:id',
      {
        schema: {
          tags: TAGS,
          operationId: 'getKey',
          summary: 'Get a key',
          security: schemas.callerWith('keys:read'),
          params: idParams,
          response: { 200: oneKey, ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...noKey }) },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const id = keyIdOf(request.params.id);
        const key = await database.read((executor) => findKey(executor, id));
        if (key === undefined || !reaches(caller, key.workspaceId)) throw noSuchKey();
        const use = await useOf(id);
        return { success: true as const, data: viewOf(key, { nowMs: caller.now, rotationDueDays, use }) };
      },
    );
  });

  callers.scope('keys:write', 'management', (plain) => {
    const app = plain.withTypeProvider<ZodTypeProvider>();

    app.post(
      '/v1/api-keys',
      {
        schema: {
          tags: TAGS,
          operationId: 'createKey',
          summary: 'Create a key',
          description:
            'The answer holds the token. It is shown this once; Claviger keeps only a hash of it. Send an `Idempotency-Key` to be given the same answer again should it get lost.',
          security: schemas.callerWith('keys:write'),
          idempotent: true,
          body: createBody,
          response: {
            201: schemas.success(schemas.keyWithTokenOutput).describe('The key was made; here is its token.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              ...schemas.PLAN_PROBLEMS,
              ...IDEMPOTENCY_PROBLEMS,
              ...schemas.BODY_PROBLEMS,
            }),
          },
        },
      },
      async (request, reply) => {
        const caller = callerOf(request);
        const { body } = request;
        const newKey: NewKey = {
          workspaceId: body.workspace_id,
          environment: body.environment,
          name: body.name,
          scopes: body.scopes ?? [],
          expiresAt: optionalTime(body.expires_at) ?? null,
          restrictions: body.restrictions ?? null,
          rateLimit: body.rate_limit,
          metadata: body.metadata ?? null,
          createdBy: body.created_by ?? null,
        };
        const { data } = await makeKeyOnce(
          idempotency,
          { request, reply },
          {
            first: (around) => lifecycle.create(caller, originOf(request), newKey, around),
            again: async () => {
              lifecycle.mayCreate(caller, newKey);
              return {};
            },
            view: ({ key, token }) => ({
              ...viewOf(key, { nowMs: caller.now, rotationDueDays }),
              key: token,
            }),
          },
        );
        reply.code(201);
        return { success: true as const, data };
      },
    );

    app.patch(
      '/v1/api-keys/:id',
      {
        schema: {
          tags: TAGS,
          operationId: 'updateKey',
          summary: 'Change an active key',
          description:
            'A JSON Merge Patch (RFC 7396): absent members stay, `null` clears, nested objects are merged too.',
          security: schemas.callerWith('keys:write'),
          consumes: ['application/json', 'application/merge-patch+json'],
          params: idParams,
          body: patchBody,
          response: {
            200: schemas.changed(schemas.keyOutput).describe('The key as it is from now on.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              ...schemas.PLAN_PROBLEMS,
              ...noKey,
              ...conflict,
              ...schemas.BODY_PROBLEMS,
            }),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const { name, scopes, expires_at, restrictions, rate_limit, metadata } = request.body;
        const use = await useOf(request.params.id);
        const { key, propagation } = await lifecycle.update(
          caller,
          originOf(request),
          keyIdOf(request.params.id),
          {
            name,
            scopes,
            expiresAt: optionalTime(expires_at),
            restrictions,
            rateLimit: rate_limit,
            metadata,
          },
        );
        return {
          success: true as const,
          data: viewOf(key, { nowMs: caller.now, rotationDueDays, use }),
          propagation: schemas.propagationView(propagation),
        };
      },
    );

    const revocation = {
      tags: TAGS,
      security: schemas.callerWith('keys:write'),
      params: idParams,
      body: revokeBody,
      response: {
        200: z
          .object({
            success: schemas.succeeded,
            message: z.string().describe('For people to read.'),
            data: schemas.keyOutput,
            propagation: schemas.propagationOutput,
          })
          .describe('The key is revoked, on every instance.'),
        ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...noKey, ...conflict, ...schemas.BODY_PROBLEMS }),
      },
    };
    const revoke = async (
      request: FastifyRequest<{ Params: z.output<typeof idParams>; Body: z.output<typeof revokeBody> }>,
    ) => {
      const caller = callerOf(request);
      const use = await useOf(request.params.id);
      const { key, propagation } = await lifecycle.revoke(
        caller,
        originOf(request),
        keyIdOf(request.params.id),
        request.body?.reason ?? null,
      );
      return {
        success: true as const,
        message: 'API key revoked successfully',
        data: viewOf(key, { nowMs: caller.now, rotationDueDays, use }),
        propagation: schemas.propagationView(propagation),
      };
    };
    app.delete(
      '/v1/api-keys/:id',
      {
        schema: {
          ...revocation,
          operationId: 'deleteKey',
          summary: 'Revoke a key',
          description:
            'Permanent and immediate. Idempotent: a second call answers with the first revocation. The same as `POST …/revoke`.',
        },
      },
      revoke,
    );
    app.post(
      '/v1/api-keys/:id/revoke',
      {
        schema: {
          ...revocation,
          operationId: 'revokeKey',
          summary: 'Revoke a key',
          description:
            'The same as `DELETE /v1/api-keys/{id}`, for clients that cannot send that with a body.',
        },
      },
      revoke,
    );
  });
}

export function originOf(request: FastifyRequest): Origin {
  return { address: addressOf(request), requestId: request.id };
}

/** A string that is no key id names no key. */
export function keyIdOf(text: string): KeyId {
  if (!KEY_ID_PATTERN.test(text)) throw noSuchKey();
  return text;
}

function optionalTime(value: string): number;
function optionalTime(value: string | undefined): number | undefined;
function optionalTime(value: string | null | undefined): number | null | undefined;
function optionalTime(value: string | null | undefined): number | null | undefined {
  return typeof value === 'string' ? toTime(value) : value;
}
