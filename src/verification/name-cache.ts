/*
 * A cache of up to millions of entries, of which a hit touches as little memory as can be (docs/performance.md): a place
 * in a Map, and the entry.
 *
 *   name ── a number out of it ──> Map ──> entry ── next ──> the entry of another name with that number
 *                                            └── tag: a second number out of the name
 *
 * A Map of strings also reads the strings that it compares, and a list in the order of use is written at every hit.
 * Names of one number are rare, and one with the same tag, too, is as good as none; whoever finds an entry makes sure
 * that it is of the very name.
 *
 * What goes when there is no room is found by second chance, which comes close to the least recently used: entries stand
 * in the order in which they came. The first of them goes, unless it was used since it stood there last: then it goes to
 * the end.
 */

/** What an entry has for the cache alone: at first 0, `false`, `undefined`. */
export interface Cached<Entry> {
  tag: number;
  isUsed: boolean;
  next: Entry | undefined;
}

export interface NameCache<Entry> {
  /** The entry of a name, which is used herewith. */
  get(name: string): Entry | undefined;
  /** The same, where it is no use. */
  peek(name: string): Entry | undefined;
  /** Takes in an entry of a name that has none. */
  add(name: string, entry: Entry): void;
  readonly size: number;
}

/** How many entries get their second chance for one that comes: then even a used one goes, rather than that all wait. */
const MOST_CHANCES = 16;
/** Of so many characters at the end each number is made, where ids are random. */
const NUMBER_LENGTH = 6;
const TAG_LENGTH = 6;
/** Odd, so that no bit of a character is lost, and more than the codes of an id's characters are apart. */
const FACTOR = 79;

export function createNameCache<Entry extends Cached<Entry>>({
  capacity,
  forgotten,
}: {
  /** At least 1. */
  readonly capacity: number;
  /** An entry went for want of room. */
  forgotten(entry: Entry): void;
}): NameCache<Entry> {
  const first = new Map<number, Entry>();
  /** From the entry on that came first. Made late: it would hold all the tables that the Map has outgrown meanwhile. */
  let oldest: MapIterator<[number, Entry]> | undefined;
  let size = 0;

  function peek(name: string): Entry | undefined {
    let entry = first.get(numberOf(name));
    if (entry === undefined) return undefined;
    const tag = tagOf(name);
    while (entry !== undefined && entry.tag !== tag) entry = entry.next;
    return entry;
  }

  function makeRoom(): void {
    for (let chances = 0; size >= capacity; ) {
      oldest ??= first.entries();
      const { value, done } = oldest.next();
      if (done) {
        oldest = undefined;
        return;
      }
      const [number, entry] = value;
      first.delete(number);
      if (wasUsed(entry) && chances++ < MOST_CHANCES) {
        first.set(number, entry);
        continue;
      }
      for (let gone: Entry | undefined = entry; gone !== undefined; gone = gone.next) {
        size--;
        forgotten(gone);
      }
    }
  }

  return {
    get(name) {
      const entry = peek(name);
      if (entry !== undefined && !entry.isUsed) entry.isUsed = true;
      return entry;
    },
    peek,
    add(name, entry) {
      makeRoom();
      const number = numberOf(name);
      entry.tag = tagOf(name);
      entry.next = first.get(number);
      first.set(number, entry);
      size++;
    },
    get size() {
      return size;
    },
  };
}

/** Whether any of these was used since this was asked last. */
function wasUsed<Entry extends Cached<Entry>>(first: Entry): boolean {
  let isAnyUsed = false;
  for (let entry: Entry | undefined = first; entry !== undefined; entry = entry.next) {
    isAnyUsed ||= entry.isUsed;
    entry.isUsed = false;
  }
  return isAnyUsed;
}

function numberOf(name: string): number {
  return fold(name, name.length - NUMBER_LENGTH, name.length);
}

function tagOf(name: string): number {
  return fold(name, name.length - NUMBER_LENGTH - TAG_LENGTH, name.length - NUMBER_LENGTH);
}

/** 32 bits, which V8 holds in place. Where a name is shorter, there is nothing to fold. */
function fold(name: string, from: number, to: number): number {
  let folded = 0;
  for (let at = Math.max(from, 0); at < to; at++)
    folded = (Math.imul(folded, FACTOR) + name.charCodeAt(at)) | 0;
  return folded;
}
