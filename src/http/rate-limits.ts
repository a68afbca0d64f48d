import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { reaches } from '../domain/caller.ts';
import { KEY_ID_PATTERN } from '../domain/key-id.ts';
import { noSuchKey } from '../lifecycle/key-rules.ts';
import type { Database } from '../storage/database.ts';
import { findKey } from '../storage/keys.ts';
import { findWorkspace } from '../storage/workspaces.ts';
import type { QuotaLook } from '../verification/quota-look.ts';
import { type Callers, callerOf } from './callers.ts';
import * as schemas from './schemas.ts';

const NO_LIMIT = { limit: null, remaining: null, reset: null, window_seconds: null };

const limitOutput = z
  .object({
    limit: z.int().nullable().describe('How many uses a window of the key allows; `null`: it has no limit.'),
    remaining: z.int().nullable().describe('What of that is not spent.'),
    reset: z.int().nullable().describe('When the window ends, in seconds since the epoch.'),
    window_seconds: z.int().nullable().describe('The length of a window.'),
    workspace: schemas.rateLimitState
      .nullable()
      .describe('The limit that all keys of its workspace share; `null`: there is none.'),
  })
  .meta({ id: 'KeyRateLimit', description: "How a key's rate limit, and its workspace's, stand." });

export interface RateLimitRoutes {
  readonly callers: Callers;
  readonly database: Database;
  readonly lookAtQuota: QuotaLook;
}

/** `GET /v1/api-keys/{id}/rate-limit` (contract §4). */
export function registerRateLimitRoutes({ callers, database, lookAtQuota }: RateLimitRoutes): void {
  callers.scope('keys:read', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().get(
      '/v1/api-keys/:id/rate-limit',
      {
        schema: {
          tags: ['Keys'],
          operationId: 'getRateLimit',
          summary: "See how a key's rate limit stands",
          description:
            'The current window, over all instances; nothing is spent. What an instance holds that does not answer within a second counts as unspent.',
          security: schemas.callerWith('keys:read'),
          params: z.object({ id: z.string().describe('The id of the key: `key_…`.') }),
          response: {
            200: schemas.success(limitOutput).describe('How the limits stand.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              404: 'There is no such key that this caller may see (`not_found`).',
            }),
          },
        },
      },
      async (request) => {
        const { id } = request.params;
        const key = KEY_ID_PATTERN.test(id)
          ? await database.read((executor) => findKey(executor, id))
          : undefined;
        if (key === undefined || !reaches(callerOf(request), key.workspaceId)) throw noSuchKey();
        const { workspaceId, rateLimit } = key;
        const workspace = await database.read((executor) => findWorkspace(executor, workspaceId));
        const shared = workspace?.rateLimit ?? null;
        const [own, ofAll] = await Promise.all([
          rateLimit && lookAtQuota({ kind: 'key', id }, rateLimit),
          shared && lookAtQuota({ kind: 'workspace', id: workspaceId }, shared),
        ]);
        return { success: true as const, data: { ...(own ?? NO_LIMIT), workspace: ofAll } };
      },
    );
  });
}
