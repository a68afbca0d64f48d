import { isIPv4, isIPv6 } from 'node:net';
import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import { describe, expect, test } from 'vitest';
import {
  type Address,
  type Cidr,
  cidrFault,
  cidrWithin,
  cidrWithinUnion,
  containsAddress,
  formatAddress,
  parseAddress,
  parseCidr,
} from '../../src/domain/address.ts';

function address(text: string): Address {
  const parsed = parseAddress(text);
  if (parsed === undefined) throw new Error(`not an address: ${text}`);
  return parsed;
}

function cidr(text: string): Cidr {
  const parsed = parseCidr(text);
  if (parsed === undefined) throw new Error(`not a network: ${text}`);
  return parsed;
}

/** The plain model: a family and a number of 32 or 128 bits, read by ipaddr.js. */
function modelOf(text: string): { family: 4 | 6; value: bigint } {
  const parsed = ipaddr.parse(text);
  const value = parsed.toByteArray().reduce((sum, byte) => sum * 256n + BigInt(byte), 0n);
  if (parsed.kind() === 'ipv4') return { family: 4, value };
  return value >> 32n === 0xffffn ? { family: 4, value: value & 0xffffffffn } : { family: 6, value };
}

function modelContains(network: string, candidate: string): boolean {
  const [base = '', length = ''] = network.split('/');
  const [outer, inner] = [modelOf(base), modelOf(candidate)];
  const shift = BigInt((outer.family === 4 ? 32 : 128) - Number(length));
  return outer.family === inner.family && outer.value >> shift === inner.value >> shift;
}

const octet = fc.oneof(fc.constantFrom(0, 1, 127, 128, 254, 255), fc.nat(255));
const ipv4Text = fc.array(octet, { minLength: 4, maxLength: 4 }).map((octets) => octets.join('.'));
const group = fc.oneof(fc.constantFrom(0, 0, 0, 1, 0x7fff, 0x8000, 0xffff), fc.nat(0xffff));
const ipv6Text = fc
  .array(group, { minLength: 8, maxLength: 8 })
  .map((groups) => groups.map((value) => value.toString(16)).join(':'));
const mappedText = ipv4Text.map((text) => `::ffff:${text}`);
const addressText = fc.oneof(ipv4Text, ipv6Text, mappedText);

/** A network whose first address is `value` cut to `length`. */
function network(family: 4 | 6, value: bigint, length: number): string {
  const bits = family === 4 ? 32n : 128n;
  const shift = bits - BigInt(length);
  const first = (value >> shift) << shift;
  const size = family === 4 ? 4 : 16;
  const bytes = Array.from({ length: size }, (_, i) => Number((first >> BigInt(8 * (size - 1 - i))) & 0xffn));
  return `${ipaddr.fromByteArray(bytes)}/${length}`;
}
const networkText = fc.oneof(
  fc.tuple(ipv4Text, fc.integer({ min: 0, max: 32 })).map(([text, n]) => network(4, modelOf(text).value, n)),
  fc
    .tuple(ipv6Text, fc.integer({ min: 0, max: 128 }))
    .filter(([text]) => modelOf(text).family === 6)
    .map(([text, n]) => network(6, modelOf(text).value, n)),
);

describe('parseAddress', () => {
  test.each([
    ['0.0.0.0', '0.0.0.0'],
    ['203.0.113.9', '203.0.113.9'],
    ['255.255.255.255', '255.255.255.255'],
    ['::', '::'],
    ['::1', '::1'],
    ['1::', '1::'],
    ['2001:DB8::A', '2001:db8::a'],
    ['2001:0db8:0000:0000:0000:0000:0000:000a', '2001:db8::a'],
    ['1:2:3:4:5:6:7:8', '1:2:3:4:5:6:7:8'],
    ['1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0'],
    ['::2:3:4:5:6:7:8', '0:2:3:4:5:6:7:8'],
    ['1:2:3:4:5:6:1.2.3.4', '1:2:3:4:5:6:102:304'],
    ['64:ff9b::192.0.2.33', '64:ff9b::c000:221'],
  ])('reads %s as %s', (text, canonical) => {
    expect(formatAddress(address(text))).toBe(canonical);
  });

  test.each([
    ['::ffff:203.0.113.9'],
    ['::FFFF:203.0.113.9'],
    ['::ffff:cb00:7109'],
    ['0:0:0:0:0:ffff:203.0.113.9'],
    ['0000:0000:0000:0000:0000:ffff:203.0.113.9'],
  ])('reads the IPv4-mapped %s as its IPv4', (text) => {
    expect(address(text)).toEqual(address('203.0.113.9'));
  });

  test.each([
    ['the deprecated IPv4-compatible form', '::203.0.113.9'],
    ['one bit before the mapped range', '::fffe:203.0.113.9'],
    ['a mapped address with a bit before it', '1::ffff:203.0.113.9'],
    ['a mapped address with a bit closer before it', '::1:0:ffff:203.0.113.9'],
    ['the translated form', '::ffff:0:203.0.113.9'],
  ])('keeps %s an IPv6 address', (_, text) => {
    expect(address(text).family).toBe(6);
  });

  test.each([
    ['nothing', ''],
    ['a leading zero', '010.0.0.1'],
    ['a doubled zero', '00.0.0.1'],
    ['a leading zero in a mapped address', '::ffff:010.0.0.1'],
    ['a hexadecimal octet', '0x7f.0.0.1'],
    ['a single number', '2130706433'],
    ['two parts', '127.1'],
    ['three parts', '127.0.1'],
    ['five parts', '127.0.0.0.1'],
    ['an octet over 255', '256.0.0.1'],
    ['an empty octet', '127..0.1'],
    ['a trailing dot', '127.0.0.1.'],
    ['a sign', '+127.0.0.1'],
    ['a port', '127.0.0.1:80'],
    ['a space before', ' 127.0.0.1'],
    ['a space behind', '127.0.0.1 '],
    ['a newline behind', '127.0.0.1\n'],
    ['a NUL behind', '127.0.0.1\0'],
    ['other digits', '\u0661\u0662\u0667.0.0.1'],
    ['full-width digits', '\uff11\uff12\uff17.0.0.1'],
    ['a length', '127.0.0.1/32'],
    ['a list', '127.0.0.1,10.0.0.1'],
    ['a zone id', 'fe80::1%eth0'],
    ['brackets', '[::1]'],
    ['brackets and a port', '[::1]:80'],
    ['seven groups', '1:2:3:4:5:6:7'],
    ['nine groups', '1:2:3:4:5:6:7:8:9'],
    ['a gap of no groups', '1:2:3:4::5:6:7:8'],
    ['eight groups and a gap', '1:2:3:4:5:6:7:8::'],
    ['two gaps', '1::2::3'],
    ['three colons', '1:::2'],
    ['one colon', ':'],
    ['one colon before', ':1:2:3:4:5:6:7'],
    ['one colon behind', '1:2:3:4:5:6:7:'],
    ['five digits', '::00001'],
    ['a letter that is no digit', '::g'],
    ['a quad too early', '::1.2.3.4:5'],
    ['a quad too late', '1:2:3:4:5:6:7:1.2.3.4'],
    ['a quad too late behind a gap', '1:2:3:4:5:6::7:1.2.3.4'],
    ['a short quad', '::ffff:1.2.3'],
    ['a host name', 'localhost'],
    ['a very long text', '1'.repeat(1_000_000)],
  ])('refuses %s', (_, text) => {
    expect(parseAddress(text)).toBeUndefined();
  });

  test('is read the same whatever was read before', () => {
    fc.assert(
      fc.property(addressText, addressText, (first, second) => {
        const before = parseAddress(second);
        parseAddress(first);
        expect(parseAddress(second)).toEqual(before);
      }),
    );
  });

  test('agrees with inet_pton on what an address is', () => {
    const noise = fc
      .array(fc.constantFrom(':', '::', '.', '0', '1', '9', '25', '255', '256', 'f', 'ffff', 'g', '%', '/'), {
        maxLength: 16,
      })
      .map((pieces) => pieces.join(''));
    const damaged = fc
      .tuple(addressText, fc.nat(45), fc.constantFrom('', ':', '.', '0', 'f', ' ', '\0'))
      .map(([text, at, char]) => text.slice(0, at) + char + text.slice(at + 1));
    fc.assert(
      fc.property(fc.oneof(addressText, noise, damaged), (text) => {
        const isAddress = (isIPv4(text) || isIPv6(text)) && !text.includes('%');
        expect(parseAddress(text) !== undefined).toBe(isAddress);
      }),
      { numRuns: 5_000 },
    );
  });

  test('gives the number that ipaddr.js gives, and writes what it reads', () => {
    fc.assert(
      fc.property(addressText, (text) => {
        const written = formatAddress(address(text));
        expect(modelOf(written)).toEqual(modelOf(text));
        expect(parseAddress(written)).toEqual(address(text));
      }),
    );
  });
});

describe('parseCidr', () => {
  test.each([
    ['203.0.113.0/24', '203.0.113.0', 24],
    ['203.0.113.7', '203.0.113.7', 32],
    ['0.0.0.0/0', '0.0.0.0', 0],
    ['::/0', '::', 0],
    ['2001:db8::/32', '2001:db8::', 32],
    ['2001:db8::1', '2001:db8::1', 128],
    ['::ffff:10.0.0.0/104', '10.0.0.0', 8],
    ['::ffff:10.1.2.3/128', '10.1.2.3', 32],
    ['::ffff:0:0/96', '0.0.0.0', 0],
    ['::fffe:0:0/95', '::fffe:0:0', 95],
  ])('reads %s', (text, first, prefixLength) => {
    const parsed = cidr(text);
    expect([formatAddress(parsed), parsed.prefixLength]).toEqual([first, prefixLength]);
  });

  test.each([
    ['a length over 32', '10.0.0.0/33'],
    ['a length over 128', '::/129'],
    ['no length', '10.0.0.0/'],
    ['a signed length', '10.0.0.0/+8'],
    ['a negative length', '10.0.0.0/-8'],
    ['a zero before the length', '10.0.0.0/08'],
    ['two lengths', '10.0.0.0/8/8'],
    ['a netmask', '10.0.0.0/255.0.0.0'],
    ['a space', '10.0.0.0 /8'],
    ['a fraction', '10.0.0.0/8.0'],
    ['a long length', '10.0.0.0/0000000000008'],
    ['no address', '/8'],
    ['a shortened address', '10/8'],
    ['an IPv4 length for a mapped address', '::ffff:10.0.0.0/8'],
  ])('refuses %s', (_, text) => {
    expect(parseCidr(text)).toBeUndefined();
    expect(cidrFault(text)).toEqual(expect.any(String));
  });

  test.each([
    ['203.0.113.7/24', '203.0.113.0/24'],
    ['10.0.0.1/0', '0.0.0.0/0'],
    ['::ffff:10.0.0.1/104', '10.0.0.0/8'],
    ['2001:db8::1/64', '2001:db8::/64'],
    ['::ffff:10.0.0.0/64', '::/64'],
  ])('refuses %s for its host bits and names %s', (text, named) => {
    expect(parseCidr(text)).toBeUndefined();
    expect(cidrFault(text)).toContain(`write ${named} for`);
    expect(cidrFault(named)).toBeUndefined();
  });
});

describe('containsAddress', () => {
  test.each([
    ['203.0.113.0/24', '203.0.113.0', true],
    ['203.0.113.0/24', '203.0.113.255', true],
    ['203.0.113.0/24', '203.0.112.255', false],
    ['203.0.113.0/24', '203.0.114.0', false],
    ['203.0.113.7', '203.0.113.7', true],
    ['203.0.113.7', '203.0.113.6', false],
    ['0.0.0.0/0', '255.255.255.255', true],
    ['0.0.0.0/0', '::1', false],
    ['203.0.113.0/24', '::ffff:203.0.113.9', true],
    ['::ffff:203.0.113.0/120', '203.0.113.9', true],
    ['203.0.113.0/24', '::203.0.113.9', false],
    ['::/0', '203.0.113.9', false],
    ['::/0', '::ffff:203.0.113.9', false],
    ['::/64', '::ffff:203.0.113.9', false],
    ['::/0', '::1', true],
    ['2001:db8::/33', '2001:db8:7fff::', true],
    ['2001:db8::/33', '2001:db8:8000::', false],
  ])('%s holds %s: %s', (outer, inner, expected) => {
    expect(containsAddress(cidr(outer), address(inner))).toBe(expected);
  });

  test('agrees with a model that shifts big integers', () => {
    const nearby = fc.tuple(networkText, addressText, fc.nat(128)).map(([net, text, flip]) => {
      const [base = ''] = net.split('/');
      const { family, value } = modelOf(base);
      const bits = family === 4 ? 32 : 128;
      const candidate = network(family, value ^ (1n << BigInt(flip % bits)), bits).split('/')[0];
      return { net, candidate: flip % 3 === 0 ? text : (candidate ?? text) };
    });
    fc.assert(
      fc.property(nearby, ({ net, candidate }) => {
        expect(containsAddress(cidr(net), address(candidate))).toBe(modelContains(net, candidate));
      }),
      { numRuns: 3_000 },
    );
  });
});

describe('cidrWithin', () => {
  test.each([
    ['10.0.0.0/8', '10.0.0.0/8', true],
    ['10.1.0.0/16', '10.0.0.0/8', true],
    ['10.0.0.0/8', '10.1.0.0/16', false],
    ['10.0.0.0/8', '10.0.0.0/9', false],
    ['11.0.0.0/16', '10.0.0.0/8', false],
    ['10.0.0.1', '0.0.0.0/0', true],
    ['10.0.0.1', '::/0', false],
    ['::ffff:10.0.0.0/104', '10.0.0.0/8', true],
    ['::1', '::/127', true],
  ])('%s is within %s: %s', (inner, outer, expected) => {
    expect(cidrWithin(cidr(inner), cidr(outer))).toBe(expected);
    expect(cidrWithinUnion(cidr(inner), [cidr(outer)])).toBe(expected);
  });

  test.each([
    ['two halves', ['10.128.0.0/9', '10.0.0.0/9'], true],
    ['overlapping networks', ['10.0.0.0/9', '10.0.0.0/16', '10.128.0.0/9'], true],
    ['parts that leave a gap', ['10.0.0.0/9', '10.129.0.0/16'], false],
    ['all but the last address', ['10.0.0.0/9', '10.128.0.0/10', '10.192.0.0/11'], false],
    ['nothing', [], false],
    ['networks of the other family', ['::/0'], false],
  ])('10.0.0.0/8 against %s', (_, outer, expected) => {
    expect(cidrWithinUnion(cidr('10.0.0.0/8'), outer.map(cidr))).toBe(expected);
  });

  test('a union holds a small network exactly if it holds each of its addresses', () => {
    const small = fc
      .tuple(fc.nat(15), fc.integer({ min: 28, max: 32 }))
      .map(([last, n]) => network(4, BigInt(0x0a000000 + last), n));
    fc.assert(
      fc.property(small, fc.array(small, { maxLength: 6 }), (inner, outer) => {
        const everyAddress = Array.from({ length: 16 }, (_, i) => address(`10.0.0.${i}`))
          .filter((candidate) => containsAddress(cidr(inner), candidate))
          .every((candidate) => outer.some((text) => containsAddress(cidr(text), candidate)));
        expect(cidrWithinUnion(cidr(inner), outer.map(cidr))).toBe(everyAddress);
      }),
      { numRuns: 2_000 },
    );
  });
});
