import ipaddr from 'ipaddr.js';

/*
 * Addresses and networks of both families. An IPv4-mapped IPv6 address is its IPv4 (contract §5), from the moment it is
 * read: afterwards the families are apart, and an IPv6 network never holds an IPv4 address, not even `::/0`.
 *
 * The reader is our own since it is stricter than ipaddr.js's (which takes `::ffff:010.0.0.1`, and reads the deprecated
 * `::1.2.3.4` as an IPv4-mapped address), and because it runs on every request of a restricted key.
 */

/** An address as four 32-bit words, highest first (signed, as JavaScript's bit operators leave them). */
export interface Address {
  readonly family: 4 | 6;
  /** An IPv4 address lies in its mapped form: `0, 0, 0xffff, address`. */
  readonly word0: number;
  readonly word1: number;
  readonly word2: number;
  readonly word3: number;
}

/** A network: its first address, its length, and the length as masks. */
export interface Cidr extends Address {
  /** As written after the slash: 0–32 for IPv4, 0–128 for IPv6. */
  readonly prefixLength: number;
  readonly mask0: number;
  readonly mask1: number;
  readonly mask2: number;
  readonly mask3: number;
}

/** `0000:0000:0000:0000:0000:ffff:255.255.255.255`: nothing longer is an address. */
const MAX_ADDRESS_LENGTH = 45;
const GROUPS = 8;
/** The bits before the IPv4 address in its mapped form, `::ffff:0:0/96` (RFC 4291 §2.5.5.2). */
const MAPPED_BITS = 96;
const MAPPED_WORD = 0xffff;

const ZERO = 0x30;
const DOT = 0x2e;
const COLON = 0x3a;

/** Where the groups of an IPv6 address are gathered: one buffer, since reading never yields to another reader. */
const groups = new Uint16Array(GROUPS);

/**
 * Reads an address, for the hot path: no allocation but the answer, and time bounded by the longest address.
 *
 * @returns `undefined` for all but the plain spellings: four decimal octets without leading zeros, or IPv6 as in
 * RFC 4291 §2.2. Zone ids, ports, brackets, spaces, and octal, hexadecimal and short IPv4 forms are refused, since
 * systems disagree on what they mean.
 */
export function parseAddress(text: string): Address | undefined {
  if (text.length > MAX_ADDRESS_LENGTH) return undefined;
  const ipv4 = readIpv4(text, 0);
  if (ipv4 >= 0) return addressOf(4, 0, 0, MAPPED_WORD, ipv4 | 0);
  if (!readIpv6(text)) return undefined;
  const word0 = wordOf(0);
  const word1 = wordOf(2);
  const word2 = wordOf(4);
  return addressOf(isMapped(word0, word1, word2) ? 4 : 6, word0, word1, word2, wordOf(6));
}

/** The one spelling of an address: dotted quad, or RFC 5952. What it writes, `parseAddress` reads. */
export function formatAddress(address: Address): string {
  const { family, word0, word1, word2, word3 } = address;
  if (family === 4)
    return [word3 >>> 24, (word3 >>> 16) & 0xff, (word3 >>> 8) & 0xff, word3 & 0xff].join('.');
  const parts = [word0, word1, word2, word3].flatMap((word) => [word >>> 16, word & 0xffff]);
  return new ipaddr.IPv6(parts).toRFC5952String();
}

/** The one spelling of the address that a text is; `null` for one that is none. */
export function spellAddress(text: string | null | undefined): string | null {
  const address = typeof text === 'string' ? parseAddress(text) : undefined;
  return address === undefined ? null : formatAddress(address);
}

/**
 * Reads a network, or an address as the network of itself alone. `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
 *
 * @returns `undefined` for what `cidrFault` finds a fault in.
 */
export function parseCidr(text: string): Cidr | undefined {
  const cidr = readCidr(text);
  return 'fault' in cidr ? undefined : cidr;
}

/** What keeps a text from being a network, as a sentence for its writer; `undefined` where nothing does. */
export function cidrFault(text: string): string | undefined {
  const cidr = readCidr(text);
  return 'fault' in cidr ? cidr.fault : undefined;
}

/** Whether the network holds the address. */
export function containsAddress(cidr: Cidr, address: Address): boolean {
  return (
    address.family === cidr.family &&
    ((address.word3 ^ cidr.word3) & cidr.mask3) === 0 &&
    ((address.word2 ^ cidr.word2) & cidr.mask2) === 0 &&
    ((address.word1 ^ cidr.word1) & cidr.mask1) === 0 &&
    ((address.word0 ^ cidr.word0) & cidr.mask0) === 0
  );
}

/** Whether every address of `inner` is one of `outer`. */
export function cidrWithin(inner: Cidr, outer: Cidr): boolean {
  return outer.prefixLength <= inner.prefixLength && containsAddress(outer, inner);
}

/** Whether every address of `inner` is one of some of `outer`, also where it takes several of them to hold it. */
export function cidrWithinUnion(inner: Cidr, outer: readonly Cidr[]): boolean {
  const last = lastOf(inner);
  // Walk up from the first address of `inner`: each network begins where the ones before it left no gap.
  let uncovered = firstOf(inner);
  const spans = outer
    .filter((cidr) => cidr.family === inner.family)
    .map((cidr) => ({ first: firstOf(cidr), last: lastOf(cidr) }))
    .sort((a, b) => (a.first < b.first ? -1 : a.first > b.first ? 1 : 0));
  for (const span of spans) {
    if (span.first > uncovered) return false;
    if (span.last >= uncovered) uncovered = span.last + 1n;
    if (uncovered > last) return true;
  }
  return false;
}

function readCidr(text: string): Cidr | { readonly fault: string } {
  const slash = text.indexOf('/');
  const address = parseAddress(slash < 0 ? text : text.slice(0, slash));
  if (address === undefined)
    return { fault: 'This is neither an IP address nor a network in CIDR notation.' };
  if (slash < 0) return networkOf(address, address.family, 128);

  // An address in its mapped spelling counts its length from the front of the IPv6 address.
  const writtenAs6 = address.family === 6 || text.includes(':');
  const written = readPrefixLength(text, slash + 1);
  const bits = writtenAs6 ? written : written + MAPPED_BITS;
  if (written < 0 || bits > 128) {
    return { fault: `The length after the slash must be a whole number from 0 to ${writtenAs6 ? 128 : 32}.` };
  }
  const network = networkOf(address, address.family === 4 && bits >= MAPPED_BITS ? 4 : 6, bits);
  const { word0, word1, word2, word3 } = network;
  const isFirst =
    word0 === address.word0 && word1 === address.word1 && word2 === address.word2 && word3 === address.word3;
  if (!isFirst) {
    // Most likely a typing error, of the address or of the length: better asked than guessed.
    return {
      fault:
        'The address has bits beyond the length of the network: ' +
        `write ${formatAddress(network)}/${network.prefixLength} for the network, or the address alone.`,
    };
  }
  return network;
}

/** @returns a whole number of at most three digits without leading zeros, else -1. */
function readPrefixLength(text: string, start: number): number {
  const digits = text.length - start;
  if (digits < 1 || digits > 3 || (digits > 1 && text.charCodeAt(start) === ZERO)) return -1;
  let value = 0;
  for (let i = start; i < text.length; i++) {
    const digit = text.charCodeAt(i) - ZERO;
    if (digit < 0 || digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value;
}

/** Reads a dotted quad from `start` to the end of the text. @returns 0 to 2³² − 1, or -1 for anything else. */
function readIpv4(text: string, start: number): number {
  let value = 0;
  let octet = -1;
  let dots = 0;
  for (let i = start; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === DOT) {
      if (octet < 0 || dots === 3) return -1;
      value = value * 256 + octet;
      octet = -1;
      dots++;
      continue;
    }
    const digit = code - ZERO;
    // A zero before further digits would be octal to some readers.
    if (digit < 0 || digit > 9 || octet === 0) return -1;
    octet = octet < 0 ? digit : octet * 10 + digit;
    if (octet > 255) return -1;
  }
  return dots === 3 && octet >= 0 ? value * 256 + octet : -1;
}

/** Reads an IPv6 address (RFC 4291 §2.2) into `groups`. @returns whether the text is one. */
function readIpv6(text: string): boolean {
  let count = 0;
  let gap = -1;
  let i = 0;
  if (text.startsWith('::')) {
    gap = 0;
    i = 2;
  } else if (text.length === 0) {
    return false;
  }

  while (i < text.length) {
    if (count === GROUPS) return false;
    const end = endOfHex(text, i);
    if (text.charCodeAt(end) === DOT) {
      const ipv4 = count <= GROUPS - 2 ? readIpv4(text, i) : -1;
      if (ipv4 < 0) return false;
      groups[count++] = ipv4 >>> 16;
      groups[count++] = ipv4 & 0xffff;
      break;
    }
    if (end === i || end - i > 4) return false;
    groups[count++] = hexBetween(text, i, end);
    i = end;
    if (i === text.length) break;
    if (text.charCodeAt(i) !== COLON) return false;
    i++;
    if (i === text.length) return false;
    if (text.charCodeAt(i) === COLON) {
      if (gap >= 0) return false;
      gap = count;
      i++;
    }
  }

  if (gap < 0) return count === GROUPS;
  // `::` stands for one group at least.
  if (count === GROUPS) return false;
  groups.copyWithin(GROUPS - (count - gap), gap, count);
  groups.fill(0, gap, GROUPS - (count - gap));
  return true;
}

function endOfHex(text: string, start: number): number {
  let end = start;
  while (end < text.length && hexDigit(text.charCodeAt(end)) >= 0) end++;
  return end;
}

function hexBetween(text: string, start: number, end: number): number {
  let value = 0;
  for (let i = start; i < end; i++) value = value * 16 + hexDigit(text.charCodeAt(i));
  return value;
}

function hexDigit(code: number): number {
  if (code >= ZERO && code <= 0x39) return code - ZERO;
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}

function wordOf(group: number): number {
  return ((groups[group] ?? 0) << 16) | (groups[group + 1] ?? 0);
}

function isMapped(word0: number, word1: number, word2: number): boolean {
  return word0 === 0 && word1 === 0 && word2 === MAPPED_WORD;
}

function addressOf(family: 4 | 6, word0: number, word1: number, word2: number, word3: number): Address {
  return { family, word0, word1, word2, word3 };
}

/** @param bits the length of the prefix counted in 128 bits, for IPv4 too. */
function networkOf(address: Address, family: 4 | 6, bits: number): Cidr {
  const mask0 = maskOf(bits);
  const mask1 = maskOf(bits - 32);
  const mask2 = maskOf(bits - 64);
  const mask3 = maskOf(bits - 96);
  return {
    family,
    word0: address.word0 & mask0,
    word1: address.word1 & mask1,
    word2: address.word2 & mask2,
    word3: address.word3 & mask3,
    prefixLength: family === 4 ? bits - MAPPED_BITS : bits,
    mask0,
    mask1,
    mask2,
    mask3,
  };
}

function maskOf(bits: number): number {
  if (bits <= 0) return 0;
  return bits >= 32 ? -1 : -1 << (32 - bits);
}

function firstOf({ word0, word1, word2, word3 }: Address): bigint {
  return [word0, word1, word2, word3].reduce((value, word) => (value << 32n) | BigInt(word >>> 0), 0n);
}

function lastOf(cidr: Cidr): bigint {
  const hostBits = (cidr.family === 4 ? 32 : 128) - cidr.prefixLength;
  return firstOf(cidr) + (1n << BigInt(hostBits)) - 1n;
}
