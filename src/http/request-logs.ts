import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { formatAddress, parseAddress } from '../domain/address.ts';
import { type Caller, reaches } from '../domain/caller.ts';
import { entryIdFromUuid } from '../domain/entry-id.ts';
import { KEY_ID_PATTERN, type KeyId } from '../domain/key-id.ts';
import { foreignWorkspace } from '../lifecycle/key-rules.ts';
import type { Database, Executor } from '../storage/database.ts';
import {
  findWorkspaceOf,
  LOG_CODES,
  type LogCode,
  type LogFilters,
  listRequestLogs,
  type StoredLogEntry,
} from '../storage/request-logs.ts';
import { type Callers, callerOf } from './callers.ts';
import type { CursorCodec } from './cursor.ts';
import { pageOf, pageQuery } from './page.ts';
import * as schemas from './schemas.ts';

const codes = LOG_CODES as readonly [LogCode, ...LogCode[]];

const listQuery = z.strictObject({
  workspace_id: schemas.workspaceId.optional().describe('Entries of this workspace.'),
  key_id: z
    .string()
    .regex(KEY_ID_PATTERN, 'must be the id of a key: key_ and 26 characters')
    .optional()
    .describe('Entries of this key.'),
  code: z
    .enum(codes, `must be one of: ${LOG_CODES.join(', ')}`)
    .optional()
    .describe('What the introspection came to; `reported`: requests that an API reported.'),
  ip: z
    .string()
    .max(64)
    .refine((value) => parseAddress(value) !== undefined, 'must be an address')
    .optional()
    .describe("Entries of this client's address."),
  from: schemas.timeInput.optional().describe('Entries from then on.'),
  to: schemas.timeInput.optional().describe('Entries before then.'),
  ...pageQuery,
});

const entryOutput = z
  .object({
    id: z.string().meta({ pattern: '^log_[0-9a-z]{26}$', description: 'A TypeID, sortable by time.' }),
    at: schemas.timeOutput.describe('When it happened.'),
    type: z
      .enum(['introspection', 'report'])
      .describe('`introspection`: a key was asked about. `report`: an API told of a request of its own.'),
    key_id: z.string().nullable().describe('The key; `null`: no key of a workspace that the asker may see.'),
    workspace_id: z.string().nullable().describe('The workspace of the key.'),
    code: z.enum(codes).describe('`active`, why not, or `reported`.'),
    status: z
      .int()
      .nullable()
      .describe('What the API answered its client (report), or was told to answer (refusal).'),
    duration_ms: z.number().nullable().describe('How long the API took, where it reported that.'),
    ip: z.string().nullable().describe("The client's address, where it was told."),
    ip_first_seen: z.boolean().describe('Whether the key had not been used from this address before.'),
    method: z.string().nullable().describe('The method of the request, where it was told.'),
    path: z
      .string()
      .nullable()
      .describe(
        'The path of the request, where it was told: without its query, and without what looks like a token.',
      ),
    caller: z.string().nullable().describe('The id of the service key that asked or reported.'),
    request_id: z.string().nullable().describe('`X-Request-Id` of the introspection or of the report.'),
  })
  .meta({ id: 'RequestLogEntry', description: 'A single introspection, or a request that an API reported.' });

/** `GET /v1/request-logs` (contract §8). */
export function registerRequestLogRoutes({
  callers,
  database,
  cursors,
}: {
  callers: Callers;
  database: Database;
  cursors: CursorCodec;
}): void {
  callers.scope('keys:read', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().get(
      '/v1/request-logs',
      {
        schema: {
          tags: ['Watching'],
          operationId: 'listRequestLogs',
          summary: 'List introspections and reported requests, newest first',
          description:
            'Every refusal, the share of what was allowed that `REQUEST_LOG_SAMPLE` says, and each first use of a key from an address; about a second late. Filters add up. What belongs to no workspace is shown to callers that are not bound to any.',
          security: schemas.callerWith('keys:read'),
          querystring: listQuery,
          response: {
            200: schemas.list(entryOutput, 'entries').describe('A page of the request log.'),
            ...schemas.problems(schemas.CALLER_PROBLEMS),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const { workspace_id, key_id, code, ip, from, to } = request.query;
        if (workspace_id !== undefined && !reaches(caller, workspace_id))
          throw foreignWorkspace(workspace_id);
        const page = pageOf(cursors, request.query, 'request-logs');
        const found = await database.read(async (executor) => {
          const of = await ownersOf(executor, caller, workspace_id, key_id);
          if (of === undefined) return [];
          return listRequestLogs(executor, {
            filters: { of, code, ip: ip === undefined ? undefined : canonical(ip) },
            stretch: { from: schemas.toTime(from), to: schemas.toTime(to), after: page.after },
            limit: page.limit,
            nowMs: caller.now,
          });
        });
        const { shown, pagination } = page.answer(found, ({ id }) => id);
        return { success: true as const, data: shown.map(viewOf), pagination };
      },
    );
  });
}

/** Whose entries are asked for and may be shown; `undefined`: nobody's. */
async function ownersOf(
  executor: Executor,
  caller: Caller,
  workspaceId: string | undefined,
  keyId: KeyId | undefined,
): Promise<LogFilters['of'] | undefined> {
  if (keyId !== undefined) {
    // A key is of one workspace for ever: its entries need not be compared one by one.
    const owner = await findWorkspaceOf(executor, keyId);
    const isShown = owner !== undefined && reaches(caller, owner) && (workspaceId ?? owner) === owner;
    return isShown ? { keyId } : undefined;
  }
  if (workspaceId !== undefined) return { workspaceIds: [workspaceId] };
  return caller.allowedWorkspaces === null ? null : { workspaceIds: caller.allowedWorkspaces };
}

function canonical(ip: string): string {
  const address = parseAddress(ip);
  return address === undefined ? ip : formatAddress(address);
}

function viewOf(entry: StoredLogEntry): z.input<typeof entryOutput> {
  return {
    id: entryIdFromUuid('log', entry.id),
    at: schemas.fromTime(entry.at),
    type: entry.code === 'reported' ? 'report' : 'introspection',
    key_id: entry.keyId,
    workspace_id: entry.workspaceId,
    code: entry.code,
    status: entry.status,
    duration_ms: entry.durationMs,
    ip: entry.ip,
    ip_first_seen: entry.ipFirstSeen,
    method: entry.method,
    path: entry.path,
    caller: entry.callerKeyId,
    request_id: entry.requestId,
  };
}
