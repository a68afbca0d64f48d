import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { MAX_SCOPES, SCOPE_PATTERN } from '../domain/scope.ts';
import { MAX_GRANTS } from '../domain/scope-catalogue.ts';
import { noSuchScope, type ScopeLifecycle } from '../lifecycle/scopes.ts';
import type { Database } from '../storage/database.ts';
import { findScope, listScopes, type StoredScope } from '../storage/scopes.ts';
import { type Callers, callerOf } from './callers.ts';
import type { CursorCodec } from './cursor.ts';
import { originOf } from './keys.ts';
import { pageOf, pageQuery } from './page.ts';
import * as schemas from './schemas.ts';

export interface ScopeRoutes {
  readonly callers: Callers;
  readonly scopes: ScopeLifecycle;
  readonly database: Database;
  readonly cursors: CursorCodec;
}

const TAGS = ['Scopes'];
const IMPLIES = 'Who holds this scope holds these too, and what they imply in turn.';
const GRANTS = 'The routes that this scope opens.';
const DESCRIPTION = 'What the scope is for, for people to read.';

const putBody = z
  .strictObject({
    description: schemas.scopeDescription.nullable().optional(),
    implies: z
      .array(schemas.scope)
      .max(MAX_SCOPES, `must be at most ${MAX_SCOPES} scopes`)
      .nullable()
      .optional()
      .describe(`${IMPLIES} They need no entry of their own. No circles.`),
    grants: z
      .array(schemas.endpointInput)
      .max(MAX_GRANTS, `must have at most ${MAX_GRANTS} entries`)
      .nullable()
      .optional()
      .describe(GRANTS),
  })
  .meta({ id: 'NewScope', description: 'An entry of the scope catalogue: what its scope means.' });

const scopeOutput = z
  .object({
    name: z.string().describe('The scope.'),
    description: z.string().nullable().describe(DESCRIPTION),
    implies: z.array(z.string()).describe(IMPLIES),
    grants: z.array(schemas.endpointOutput).describe(GRANTS),
    created_at: schemas.timeOutput.describe('When the entry was first put.'),
    updated_at: schemas.timeOutput.describe('When it was last changed.'),
  })
  .meta({ id: 'Scope', description: 'An entry of the scope catalogue.' });

const listQuery = z.strictObject(pageQuery);
const putParams = z.object({ name: schemas.scope });
/** Whatever is no scope has no entry. */
const nameParams = z.object({ name: z.string().describe('The scope.') });
const deleteBody = z
  .strictObject({})
  .meta({ id: 'ScopeDeletion', description: 'Nothing: a body may be left out.' })
  .nullish();
const noScope = { 404: 'The catalogue has no entry of this name (`not_found`).' };

/** `/v1/scopes` (contract §6). */
export function registerScopeRoutes({ callers, scopes, database, cursors }: ScopeRoutes): void {
  callers.scope('keys:read', 'management', (plain) => {
    const app = plain.withTypeProvider<ZodTypeProvider>();

    app.get(
      '/v1/scopes',
      {
        schema: {
          tags: TAGS,
          operationId: 'listScopes',
          summary: 'List the scope catalogue, newest first',
          description: 'While it is empty any scope may be given to keys.',
          security: schemas.callerWith('keys:read'),
          querystring: listQuery,
          response: {
            200: schemas.list(scopeOutput, 'entries').describe('A page of entries.'),
            ...schemas.problems(schemas.CALLER_PROBLEMS),
          },
        },
      },
      async (request) => {
        const page = pageOf(cursors, request.query, 'scopes');
        const found = await database.read((executor) => listScopes(executor, page));
        const { shown, pagination } = page.answer(found, ({ id }) => id);
        return { success: true as const, data: shown.map(viewOf), pagination };
      },
    );

    app.get(
      '/v1/scopes/:name',
      {
        schema: {
          tags: TAGS,
          operationId: 'getScope',
          summary: 'Get an entry of the scope catalogue',
          security: schemas.callerWith('keys:read'),
          params: nameParams,
          response: {
            200: schemas.success(scopeOutput).describe('The entry.'),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...noScope }),
          },
        },
      },
      async (request) => {
        const name = nameOf(request.params);
        const found = await database.read((executor) => findScope(executor, name));
        if (found === undefined) throw noSuchScope();
        return { success: true as const, data: viewOf(found) };
      },
    );
  });

  callers.scope('scopes:write', 'management', (plain) => {
    const app = plain.withTypeProvider<ZodTypeProvider>();

    app.put(
      '/v1/scopes/:name',
      {
        schema: {
          tags: TAGS,
          operationId: 'putScope',
          summary: 'Put an entry into the scope catalogue',
          description:
            'Adds the entry or replaces all of it: what is left out is empty. From the first entry on, keys are given no scope that has none.',
          security: schemas.callerWith('scopes:write'),
          params: putParams,
          body: putBody,
          response: {
            200: schemas.changed(scopeOutput).describe('The entry as every instance goes by it from now on.'),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...schemas.BODY_PROBLEMS }),
          },
        },
      },
      async (request) => {
        const { description, implies, grants } = request.body;
        const { scope, propagation } = await scopes.put(callerOf(request), originOf(request), {
          name: request.params.name,
          description: description ?? null,
          implies: implies ?? [],
          grants: grants ?? [],
        });
        return {
          success: true as const,
          data: viewOf(scope),
          propagation: schemas.propagationView(propagation),
        };
      },
    );

    app.delete(
      '/v1/scopes/:name',
      {
        schema: {
          tags: TAGS,
          operationId: 'deleteScope',
          summary: 'Delete an entry of the scope catalogue',
          description:
            'Keys that hold the scope keep it, and other entries may go on implying it; it implies and grants nothing any more.',
          security: schemas.callerWith('scopes:write'),
          params: nameParams,
          body: deleteBody,
          response: {
            200: schemas
              .changed(scopeOutput)
              .describe('The entry as it was. No instance goes by it any more.'),
            ...schemas.problems({ ...schemas.CALLER_PROBLEMS, ...noScope, ...schemas.BODY_PROBLEMS }),
          },
        },
      },
      async (request) => {
        const { scope, propagation } = await scopes.delete(
          callerOf(request),
          originOf(request),
          nameOf(request.params),
        );
        return {
          success: true as const,
          data: viewOf(scope),
          propagation: schemas.propagationView(propagation),
        };
      },
    );
  });
}

/** A string that is no scope names no entry. */
function nameOf({ name }: { name: string }): string {
  if (!SCOPE_PATTERN.test(name)) throw noSuchScope();
  return name;
}

function viewOf(scope: StoredScope): z.input<typeof scopeOutput> {
  return {
    name: scope.name,
    description: scope.description,
    implies: [...scope.implies],
    grants: schemas.endpointsView(scope.grants),
    created_at: schemas.fromTime(scope.createdAt),
    updated_at: schemas.fromTime(scope.updatedAt),
  };
}
