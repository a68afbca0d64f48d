import type { ScopeEntry } from '../domain/scope-catalogue.ts';
import type { Executor } from './database.ts';
import { scopes } from './schema.ts';

/** The whole catalogue, by name. It is bounded (domain/scope-catalogue.ts). */
export async function loadCatalogue(executor: Executor): Promise<ScopeEntry[]> {
  return executor
    .select({
      name: scopes.name,
      description: scopes.description,
      implies: scopes.implies,
      grants: scopes.grants,
    })
    .from(scopes)
    .orderBy(scopes.name);
}
