import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { reaches } from '../domain/caller.ts';
import { entryIdFromUuid } from '../domain/entry-id.ts';
import { KEY_ID_PATTERN } from '../domain/key-id.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import { foreignWorkspace } from '../lifecycle/key-rules.ts';
import {
  type AuditFilters,
  listAuditEvents,
  type StoredAuditEvent,
  TOKEN_SOURCES,
  type TokenSource,
} from '../storage/audit.ts';
import type { Database } from '../storage/database.ts';
import { type Callers, callerOf } from './callers.ts';
import type { CursorCodec } from './cursor.ts';
import { pageOf, pageQuery } from './page.ts';
import * as schemas from './schemas.ts';

const OPERATOR = 'operator';
const KEY_ID = 'must be the id of a key: key_ and 26 characters';

const listQuery = z.strictObject({
  workspace_id: schemas.workspaceId.optional().describe('Events of this workspace.'),
  key_id: z.string().regex(KEY_ID_PATTERN, KEY_ID).optional().describe('What was done to this key.'),
  action: z
    .string()
    .regex(/^[a-z][a-z_]{0,31}\.[a-z][a-z_]{0,31}$/, 'must be an action such as key.revoked')
    .optional()
    .describe('What was done: `key.created`, `key.updated`, `key.revoked`, `workspace.keys_revoked`, ….'),
  actor: z
    .string()
    .refine(
      (value) => value === OPERATOR || isSource(value) || KEY_ID_PATTERN.test(value),
      `${KEY_ID}, or one of: ${[OPERATOR, ...TOKEN_SOURCES].join(', ')}`,
    )
    .optional()
    .describe(
      'What this service key did; `operator`: what was done at the command line; `leak_report`, `github`, `oauth_revoke`: what a token did that was shown there.',
    ),
  from: schemas.timeInput.optional().describe('Events from then on.'),
  to: schemas.timeInput.optional().describe('Events before then.'),
  ...pageQuery,
});

const members = (what: string) => z.record(z.string(), z.unknown()).nullable().describe(what);

const eventOutput = z
  .object({
    id: z.string().meta({ pattern: '^evt_[0-9a-z]{26}$', description: 'A TypeID, sortable by time.' }),
    at: schemas.timeOutput.describe('When it was done, by the clock of the database.'),
    action: z.string().describe('What was done, such as `key.revoked`. Later releases may add others.'),
    actor: z
      .string()
      .describe(
        'The id of the service key that acted; `operator`: at the command line; `leak_report`, `github`, `oauth_revoke`: whoever showed the token there.',
      ),
    target: z
      .object({
        type: z.string().describe('`key`, `token`, `workspace`, `scope`.'),
        id: z.string().nullable().describe('Its id, or its name where it has no other.'),
      })
      .describe('What it was done to.'),
    workspace_id: z.string().nullable().describe('The workspace it concerns; `null`: none.'),
    key_id: z.string().nullable().describe('The key it was done to; `null`: not to a single key.'),
    before: members('What changed, as it was; `null` where there was nothing before.'),
    after: members('What changed, as it became.'),
    address: z.string().nullable().describe("The actor's address; `null`: at the command line."),
    request_id: z.string().nullable().describe('`X-Request-Id` of the request that did it.'),
  })
  .meta({ id: 'AuditEvent', description: 'Who did what to which key, from where. Never changed.' });

/** `GET /v1/audit-events` (contract §8). */
export function registerAuditRoutes({
  callers,
  database,
  cursors,
}: {
  callers: Callers;
  database: Database;
  cursors: CursorCodec;
}): void {
  callers.scope('audit:read', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().get(
      '/v1/audit-events',
      {
        schema: {
          tags: ['Watching'],
          operationId: 'listAuditEvents',
          summary: 'List audit events, newest first',
          description:
            'Every change of a key, a workspace or the scope catalogue, written in the transaction of the change itself. Filters add up. Events of `system` are shown to callers that may see that workspace.',
          security: schemas.callerWith('audit:read'),
          querystring: listQuery,
          response: {
            200: schemas.list(eventOutput, 'events').describe('A page of audit events.'),
            ...schemas.problems(schemas.CALLER_PROBLEMS),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const { workspace_id: workspaceId, key_id: keyId, action, actor, from, to } = request.query;
        if (workspaceId !== undefined && !reaches(caller, workspaceId)) throw foreignWorkspace(workspaceId);
        const page = pageOf(cursors, request.query, 'audit-events');
        const found = await database.read((executor) =>
          listAuditEvents(executor, {
            filters: { workspaceId, keyId, action, ...actorFilter(actor) },
            stretch: { from: schemas.toTime(from), to: schemas.toTime(to), after: page.after },
            visibleWorkspaces: caller.allowedWorkspaces,
            includeSystem: reaches(caller, SYSTEM_WORKSPACE),
            limit: page.limit,
          }),
        );
        const { shown, pagination } = page.answer(found, ({ id }) => id);
        return { success: true as const, data: shown.map(viewOf), pagination };
      },
    );
  });
}

function actorFilter(actor: string | undefined): Pick<AuditFilters, 'actor' | 'source'> {
  if (actor === OPERATOR) return { actor: null };
  return isSource(actor) ? { source: actor } : { actor };
}

function isSource(actor: string | undefined): actor is TokenSource {
  return TOKEN_SOURCES.some((source) => source === actor);
}

function viewOf(event: StoredAuditEvent): z.input<typeof eventOutput> {
  const { actor, action, keyId, workspaceId, target, before, after } = event;
  return {
    id: entryIdFromUuid('evt', event.id),
    at: schemas.fromTime(event.at),
    action,
    actor: actor.keyId ?? actor.source ?? OPERATOR,
    target: { type: action.replace(/\..*/, ''), id: target ?? keyId ?? workspaceId },
    workspace_id: workspaceId,
    key_id: keyId,
    before: before && { ...before },
    after: after && { ...after },
    address: actor.address,
    request_id: actor.requestId,
  };
}
