import { v7 as uuidv7 } from 'uuid';
import type { Caller } from '../domain/caller.ts';
import { Failure, type InputFault, invalidInput } from '../domain/errors.ts';
import type { Key } from '../domain/key.ts';
import { catalogueFaults, type ScopeEntry, scopeEntryFaults } from '../domain/scope-catalogue.ts';
import { SYSTEM_WORKSPACE } from '../domain/workspace.ts';
import { appendAuditEvent } from '../storage/audit.ts';
import type { Executor } from '../storage/database.ts';
import { readDatabaseTime } from '../storage/keys.ts';
import {
  deleteScope,
  listUnknownScopes,
  loadCatalogue,
  lockCatalogue,
  putScope,
  type StoredScope,
} from '../storage/scopes.ts';
import type { Membership, Propagation } from '../verification/membership.ts';
import { actorOf, changedMembers, type Origin, scopeShown } from './audit.ts';

/** An entry after a change that holds on every instance by now. */
export interface ChangedScope {
  readonly scope: StoredScope;
  readonly propagation: Propagation;
}

/** The one door for changes of the scope catalogue (contract §6). They happen one after the other. */
export interface ScopeLifecycle {
  /** Adds an entry, or replaces the one of its name. */
  put(caller: Caller, origin: Origin, entry: ScopeEntry): Promise<ChangedScope>;
  /** Deletes an entry, and answers it as it was. Keys that hold the scope keep it, and it means just itself. */
  delete(caller: Caller, origin: Origin, name: string): Promise<ChangedScope>;
}

const CATALOGUE = { kind: 'catalogue' } as const;

export function createScopeLifecycle(membership: Pick<Membership, 'change'>): ScopeLifecycle {
  return {
    async put(caller, origin, given) {
      refuseNarrowed(caller);
      const entry = normalForm(given);
      const faults = scopeEntryFaults(entry);
      if (faults.length > 0) throw invalidInput(...faults);
      const { result: scope, propagation } = await membership.change(async (executor) => {
        await lockCatalogue(executor);
        const entries = await loadCatalogue(executor);
        const before = entries.find(({ name }) => name === entry.name);
        const clashes = catalogueFaults(
          entry,
          entries.filter((other) => other !== before),
        );
        if (clashes.length > 0) throw invalidInput(...clashes);
        const now = Math.floor(await readDatabaseTime(executor));
        const after: StoredScope = {
          ...entry,
          id: before?.id ?? uuidv7({ msecs: now }),
          createdAt: before?.createdAt ?? now,
          updatedAt: now,
        };
        const changes = changesOf(before, after);
        if (changes === undefined) return { result: before ?? after, subject: CATALOGUE, repeated: true };
        await putScope(executor, after);
        await appendAuditEvent(
          executor,
          {
            action: before === undefined ? 'scope.created' : 'scope.updated',
            actor: actorOf(caller, origin),
            workspaceId: null,
            keyId: null,
            target: entry.name,
            ...changes,
          },
          now,
        );
        return { result: after, subject: CATALOGUE, repeated: false };
      }, origin.requestId);
      return { scope, propagation };
    },

    async delete(caller, origin, name) {
      refuseNarrowed(caller);
      const { result: scope, propagation } = await membership.change(async (executor) => {
        await lockCatalogue(executor);
        const before = await deleteScope(executor, name);
        // Waited for all the same: who deleted it may have died half-way, and was asked to repeat.
        if (before === undefined) return { result: undefined, subject: CATALOGUE, repeated: true };
        await appendAuditEvent(
          executor,
          {
            action: 'scope.deleted',
            actor: actorOf(caller, origin),
            workspaceId: null,
            keyId: null,
            target: name,
            before: scopeShown(before),
            after: null,
          },
          await readDatabaseTime(executor),
        );
        return { result: before, subject: CATALOGUE, repeated: false };
      }, origin.requestId);
      if (scope === undefined) throw noSuchScope();
      return { scope, propagation };
    },
  };
}

export function noSuchScope(): Failure {
  return new Failure('not_found', 'The scope catalogue has no entry of this name.');
}

/**
 * Refuses scopes that the catalogue does not know, by name: those that a request gives to a key, or to the successor
 * of one. What a key holds stays with it otherwise when the catalogue changes. Service keys have permissions instead.
 *
 * No lock is held against changes of the catalogue: a key that is made while an entry is deleted is like one that was
 * made before.
 *
 * @throws Failure `invalid_request` naming each.
 */
export async function refuseUnknownScopes(
  executor: Executor,
  { workspaceId }: Pick<Key, 'workspaceId'>,
  given: readonly string[],
): Promise<void> {
  if (given.length === 0 || workspaceId === SYSTEM_WORKSPACE) return;
  const unknown = new Set(await listUnknownScopes(executor, given));
  if (unknown.size === 0) return;
  const faults = given.flatMap((scope, index): InputFault[] =>
    unknown.has(scope)
      ? [{ path: `scopes.${index}`, message: `the scope catalogue has no "${scope}"; see GET /v1/scopes` }]
      : [],
  );
  throw invalidInput(...faults);
}

/** What all keys may do is not for one who may not even see all of them. */
function refuseNarrowed(caller: Caller): void {
  if (caller.allowedWorkspaces === null) return;
  throw new Failure(
    'forbidden',
    'A service key that is bound to workspaces may not write the scope catalogue.',
  );
}

/** One spelling of what means the same. */
function normalForm({ name, description, implies, grants }: ScopeEntry): ScopeEntry {
  return {
    name,
    description,
    implies: [...new Set(implies)],
    grants: grants.map(({ methods, path }) =>
      methods == null ? { path } : { methods: [...new Set(methods)], path },
    ),
  };
}

/** What a PUT changes: all of an entry that is new, else the members that differ. */
function changesOf(before: ScopeEntry | undefined, after: ScopeEntry) {
  if (before === undefined) return { before: null, after: scopeShown(after) };
  return changedMembers(scopeShown(before), scopeShown(after));
}
