/*
 * Gives up to millions of names a place each: a number below the capacity, by which whoever asks keeps what belongs to the
 * name in arrays. A look at one of many touches as little memory as can be (docs/performance.md): a word of an index,
 * and the row of the place, which is no longer than a line of the processor's caches.
 *
 *   name ── a number out of it ──> index ──> place ──> row: number · tag · whether it was used · digest
 *                                                        └── tag: a second number out of the name
 *
 * A Map of strings also reads the strings that it compares, and a list in the order of use is written at every hit.
 * Names of one number and one tag are as good as none: the second of them finds the place of the first. Whoever finds a
 * place makes sure by the digest that it is of the very name.
 *
 * The index is a table with open addressing and linear probing, at most half full. Its words hold eight bits of the tag
 * beside the place, so that rows of other names are hardly ever touched. It has its full length from the start, 8 to 16
 * bytes for each name that there is room for: to make millions of words anew would hold up everybody, and the kernel gives
 * memory only to what is written.
 *
 * What goes when there is no room is found by second chance (the clock algorithm), which comes close to the least recently
 * used: a hand goes round the places. A name that was used since the hand passed it last is spared this once.
 */

/** From 0 up to the capacity. */
export type Place = number;

export interface NameCache {
  /** The place of a name, which is used herewith. */
  find(name: string): Place | undefined;
  /** The same, where it is no use. */
  peek(name: string): Place | undefined;
  /** Gives a place to a name that has none. */
  add(name: string, digest: string): Place;
  /** Whether the name at a place has this digest. */
  isOf(place: Place, digest: string): boolean;
  /** Gives the place of a name another digest. */
  change(place: Place, digest: string): void;
  readonly size: number;
}

/** A digest has 256 bits, a character of Latin-1 for each byte. */
export const DIGEST_LENGTH = 32;
const DIGEST_WORDS = DIGEST_LENGTH / 4;
/** Where a digest is taken apart: a character at a time would take half a microsecond. */
const digestBytes = Buffer.alloc(DIGEST_LENGTH);
const digestWords = new Int32Array(digestBytes.buffer, digestBytes.byteOffset, DIGEST_WORDS);

/** What a row is made of, in words of 32 bits. */
const NUMBER = 0;
const TAG = 1;
const USED = 2;
const DIGEST = 3;
const ROW_BITS = 4;
/** Rows are made so many at a time: none is ever copied. */
const CHUNK_BITS = 13;
const CHUNK_MASK = (1 << CHUNK_BITS) - 1;

/** A word of the index: bits of the tag, and the place's number from 1 on; 0: nothing. */
const PLACE_BITS = 24;
const PLACE_MASK = (1 << PLACE_BITS) - 1;
const MAX_CAPACITY = PLACE_MASK;
/** 2^32 ÷ the golden ratio, odd: its products differ in their upper bits wherever numbers differ (Knuth, TAOCP 3, 6.4). */
const SPREAD = 0x9e3779b1;

/** How many names are spared for one that comes: then even a used one goes, rather than that all wait. */
const MOST_CHANCES = 16;
/** Of so many characters at the end each number is made, where ids are random. */
const NUMBER_LENGTH = 6;
const TAG_LENGTH = 6;
/** Odd, so that no bit of a character is lost, and more than the codes of an id's characters are apart. */
const FACTOR = 79;

export function createNameCache({
  capacity,
  forgotten,
}: {
  /** At least 1, at most 2^24 - 1. */
  readonly capacity: number;
  /** The name of this place went for want of room: another gets it. */
  forgotten(place: Place): void;
}): NameCache {
  if (capacity > MAX_CAPACITY) throw new RangeError('more names than a word of the index has places for');
  const chunks: Int32Array[] = [];
  const indexBits = Math.ceil(Math.log2(2 * capacity));
  const index = new Int32Array(1 << indexBits);
  let size = 0;
  let hand = 0;

  const chunkOf = (place: Place) => chunks[place >> CHUNK_BITS] as Int32Array;
  const rowAt = (place: Place) => (place & CHUNK_MASK) << ROW_BITS;

  const homeOf = (number: number) => Math.imul(number, SPREAD) >>> (32 - indexBits);
  const after = (slot: number) => (slot + 1) & (index.length - 1);
  const wordOf = (place: Place, tag: number) => (tag << PLACE_BITS) | (place + 1);

  function peek(name: string): Place | undefined {
    const number = numberOf(name);
    const tag = tagOf(name);
    for (let slot = homeOf(number); ; slot = after(slot)) {
      const word = index[slot] ?? 0;
      if (word === 0) return undefined;
      if (word >>> PLACE_BITS !== (tag & 0xff)) continue;
      const place = (word & PLACE_MASK) - 1;
      const chunk = chunkOf(place);
      const row = rowAt(place);
      if (chunk[row + NUMBER] === number && chunk[row + TAG] === tag) return place;
    }
  }

  /** Puts a place into the index, where it is not yet. */
  function enter(place: Place): void {
    const chunk = chunkOf(place);
    const row = rowAt(place);
    let slot = homeOf(chunk[row + NUMBER] ?? 0);
    while (index[slot] !== 0) slot = after(slot);
    index[slot] = wordOf(place, chunk[row + TAG] ?? 0);
  }

  /** Takes a place out of the index. Those behind it move up, so that no search ends at the gap before it has found them. */
  function leave(place: Place): void {
    let gap = homeOf(chunkOf(place)[rowAt(place) + NUMBER] ?? 0);
    while (((index[gap] ?? 0) & PLACE_MASK) !== place + 1) gap = after(gap);
    for (let slot = after(gap); index[slot] !== 0; slot = after(slot)) {
      const word = index[slot] ?? 0;
      const other = (word & PLACE_MASK) - 1;
      const home = homeOf(chunkOf(other)[rowAt(other) + NUMBER] ?? 0);
      const fromHome = (slot - home) & (index.length - 1);
      if (fromHome < ((slot - gap) & (index.length - 1))) continue;
      index[gap] = word;
      gap = slot;
    }
    index[gap] = 0;
  }

  function newPlace(): Place {
    const place = size++;
    if (place >> CHUNK_BITS === chunks.length) chunks.push(new Int32Array(1 << (CHUNK_BITS + ROW_BITS)));
    return place;
  }

  /** The place of a name that was not used for long, and is forgotten. */
  function takenPlace(): Place {
    for (let chances = 0; ; chances++) {
      const place = hand;
      hand = hand + 1 === capacity ? 0 : hand + 1;
      const chunk = chunkOf(place);
      const row = rowAt(place);
      if (chunk[row + USED] === 1 && chances < MOST_CHANCES) {
        chunk[row + USED] = 0;
        continue;
      }
      leave(place);
      forgotten(place);
      return place;
    }
  }

  function change(place: Place, digest: string): void {
    const chunk = chunkOf(place);
    digestBytes.write(digest, 'latin1');
    chunk.set(digestWords, rowAt(place) + DIGEST);
  }

  return {
    find(name) {
      const place = peek(name);
      if (place === undefined) return undefined;
      const chunk = chunkOf(place);
      const row = rowAt(place);
      if (chunk[row + USED] === 0) chunk[row + USED] = 1;
      return place;
    },

    peek,

    add(name, digest) {
      const place = size < capacity ? newPlace() : takenPlace();
      const chunk = chunkOf(place);
      const row = rowAt(place);
      chunk[row + NUMBER] = numberOf(name);
      chunk[row + TAG] = tagOf(name);
      chunk[row + USED] = 0;
      change(place, digest);
      enter(place);
      return place;
    },

    isOf(place, digest) {
      const chunk = chunkOf(place);
      const from = rowAt(place) + DIGEST;
      digestBytes.write(digest, 'latin1');
      for (let word = 0; word < DIGEST_WORDS; word++) {
        if (chunk[from + word] !== digestWords[word]) return false;
      }
      return true;
    },

    change,

    get size() {
      return size;
    },
  };
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
