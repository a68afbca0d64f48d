import {
  type Catalogue,
  compileCatalogue,
  type ScopeEntry,
  type Unmatched,
} from '../domain/scope-catalogue.ts';
import type { BrokenRule, Memory } from './membership.ts';

/*
 * The scope catalogue as memory holds it: one snapshot, made ready to decide by. The rules are those of records
 * (record-cache.ts, docs/revocation.md):
 *
 *   absent    the next request that needs it loads it
 *     │ a load begins under a lease
 *   loading   a flight that other requests join
 *     │ it lands, and is still the flight
 *   held      answers at once, while the lease holds
 *
 * A change of the catalogue and the end of an epoch lead back to absent from wherever it is. They detach the flight:
 * it answers those who joined it before, nobody joins it any more, and what it read is not kept.
 */

export interface CatalogueCache extends Memory {
  /** The catalogue in memory; `undefined` where it has to be read. Believed only under a lease. */
  held(): Catalogue | undefined;
  /** Reads it, together with all others that ask meanwhile. */
  load(): Promise<Catalogue>;
  /** Reads it for one request alone, as every request without a lease does. */
  read(): Promise<Catalogue>;
}

export interface CatalogueCacheOptions {
  /** All entries, from the primary. */
  readEntries(): Promise<readonly ScopeEntry[]>;
  readonly unmatched: Unmatched;
  readonly broken?: ReadonlySet<BrokenRule>;
}

interface Flight {
  readonly outcome: Promise<Catalogue>;
}

export function createCatalogueCache({
  readEntries,
  unmatched,
  broken = new Set(),
}: CatalogueCacheOptions): CatalogueCache {
  let snapshot: Catalogue | undefined;
  let flight: Flight | undefined;

  async function read(): Promise<Catalogue> {
    return compileCatalogue(await readEntries(), unmatched);
  }

  function drop({ detach }: { detach: boolean }): void {
    snapshot = undefined;
    if (detach) flight = undefined;
  }

  return {
    held: () => snapshot,
    read,

    load() {
      if (flight !== undefined) return flight.outcome;
      const begun: Flight = {
        outcome: read().then(
          (catalogue) => {
            if (flight === begun) {
              snapshot = catalogue;
              flight = undefined;
            }
            return catalogue;
          },
          (cause: unknown) => {
            if (flight === begun) flight = undefined;
            throw cause;
          },
        ),
      };
      flight = begun;
      return begun.outcome;
    },

    invalidate(subject) {
      if (subject.kind === 'catalogue') drop({ detach: !broken.has('detach') });
    },

    forget() {
      drop({ detach: !broken.has('epoch') });
    },
  };
}
