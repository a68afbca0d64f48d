import { createHmac, hkdfSync, randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type KeyId, keyIdFromUuid } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { createTokenMint, hintOf, holdsToken, MAX_TOKEN_LENGTH } from '../../src/domain/token.ts';

const ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const SECRET = 'the-first-secret-of-more-than-32-characters';
const OLDER_SECRET = 'the-older-secret-of-more-than-32-characters';

const mint = mintOf(SECRET);
const UUID = '01890a5d-ac96-774b-bcce-b302099a8057';
const ID = keyIdFromUuid(UUID);

function mintOf(newest: string, ...older: string[]) {
  return createTokenMint(
    [keySecret(newest).derive('mint'), ...older.map((secret) => keySecret(secret).derive('mint'))],
    randomBytes,
  );
}

/*
 * Contract §2 once more, written from its text alone: bitwise CRC-32, BigInt base62, HKDF and HMAC of node:crypto.
 */
function base62(value: bigint, length: number): string {
  let text = '';
  for (let rest = value; rest > 0n; rest /= 62n) text = (ALPHABET[Number(rest % 62n)] ?? '') + text;
  return text.padStart(length, '0');
}

function crc32(text: string): number {
  let crc = 0xffff_ffff;
  for (const byte of Buffer.from(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb8_8320 : crc >>> 1;
  }
  return (crc ^ 0xffff_ffff) >>> 0;
}

function checksum(unchecked: string): string {
  return base62(BigInt(crc32(unchecked)), 6);
}

function tag(untagged: string, secret = SECRET): string {
  const mintKey = Buffer.from(hkdfSync('sha256', secret, '', 'claviger/mint', 32));
  const mac = createHmac('sha256', mintKey).update(untagged).digest('hex').slice(0, 16);
  return base62(BigInt(`0x${mac}`), 11);
}

/** Tag and checksum for whatever stands before them. */
function complete(untagged: string, secret = SECRET): string {
  const unchecked = untagged + tag(untagged, secret);
  return unchecked + checksum(unchecked);
}

/** How far a text is from having each character of the alphabet equally often. */
function chiSquared(text: string): number {
  const counts = new Map<string, number>();
  for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1);
  const expected = text.length / ALPHABET.length;
  return [...ALPHABET].reduce(
    (sum, character) => sum + ((counts.get(character) ?? 0) - expected) ** 2 / expected,
    0,
  );
}

function numberOf(uuid: string): bigint {
  return BigInt(`0x${uuid.replaceAll('-', '')}`);
}

const labels = fc.stringMatching(/^[a-z][a-z0-9]{0,15}$/);
const ids = fc.uuid({ version: 7 }).map(keyIdFromUuid);
const minted = fc
  .record({ prefix: labels, environment: labels, id: ids })
  .map((key) => ({ ...key, token: mint.mint(key) }));

describe('a token', () => {
  test('names the key that it was minted for, whatever its prefix and environment', () => {
    fc.assert(
      fc.property(minted, ({ prefix, environment, id, token }) => {
        expect(token.startsWith(`${prefix}_${environment}_`)).toBe(true);
        expect(token.length).toBe(prefix.length + environment.length + 2 + 66);
        expect(mint.identify(token)).toBe(id);
      }),
    );
  });

  test('of the default prefix has 74 characters: 8, then 22 + 27 + 11 + 6 of base62', () => {
    const token = mint.mint({ prefix: 'ck', environment: 'live', id: ID });
    expect(token).toMatch(/^ck_live_[0-9A-Za-z]{66}$/);
    expect(token.length).toBe(74);
  });

  test('is laid out as the contract says, computed without our code', () => {
    fc.assert(
      fc.property(fc.uuid({ version: 7 }), labels, (uuid, environment) => {
        const token = mint.mint({ prefix: 'ck', environment, id: keyIdFromUuid(uuid) });
        const start = `ck_${environment}_`.length;
        const id = token.slice(start, start + 22);
        const unchecked = token.slice(0, -6);
        expect(id).toBe(base62(numberOf(uuid), 22));
        expect(token.slice(start + 49, start + 60)).toBe(tag(token.slice(0, start + 49)));
        expect(token.slice(-6)).toBe(checksum(unchecked));
      }),
    );
  });

  test('made by hand from the contract is one of ours', () => {
    const token = complete(`ck_live_${base62(numberOf(UUID), 22)}${'x'.repeat(27)}`);
    expect(token.length).toBe(74);
    expect(mint.identify(token)).toBe(ID);
  });

  test('has the published CRC-32 for a checksum', () => {
    // The check value of CRC-32/ISO-HDLC, so that the test's own implementation is known to be right.
    expect(crc32('123456789')).toBe(0xcbf4_3926);
  });

  test('has the id 2^128 - 1 at most', () => {
    const most = complete(`ck_live_${base62(2n ** 128n - 1n, 22)}${'0'.repeat(27)}`);
    const beyond = complete(`ck_live_${base62(2n ** 128n, 22)}${'0'.repeat(27)}`);
    expect(mint.identify(most)).toBe('key_7zzzzzzzzzzzzzzzzzzzzzzzzz');
    expect(mint.identify(beyond)).toBeUndefined();
    expect(mint.identify(complete(`ck_live_${'z'.repeat(22)}${'0'.repeat(27)}`))).toBeUndefined();
  });

  test('with the smallest id is padded with zeros and stays one of ours', () => {
    const token = complete(`ck_live_${'0'.repeat(22)}${'0'.repeat(27)}`);
    expect(mint.identify(token)).toBe('key_00000000000000000000000000');
  });

  test('is never the same twice for one key', () => {
    const tokens = Array.from({ length: 200 }, () =>
      mint.mint({ prefix: 'ck', environment: 'live', id: ID }),
    );
    expect(new Set(tokens).size).toBe(200);
  });

  test('draws every character of its secret equally often, over all and at every position', () => {
    const secrets = Array.from({ length: 6_200 }, () =>
      mint.mint({ prefix: 'ck', environment: 'live', id: ID }).slice(30, 57),
    );
    // Chi-squared with 61 degrees of freedom is above 160 once in 10^10 runs. A byte taken modulo 62 gives 1,000
    // over all, a position that stands still 370,000.
    expect(chiSquared(secrets.join(''))).toBeLessThan(160);
    for (let position = 0; position < 27; position++) {
      expect(chiSquared(secrets.map((secret) => secret.charAt(position)).join(''))).toBeLessThan(160);
    }
  });

  test('shows of itself a hint of its prefix and its last four characters', () => {
    expect(hintOf('ck_live_', 'x7Qa')).toBe('ck_live_…x7Qa');
  });
});

describe('a string that is not exactly a token of ours is refused', () => {
  // Everything one may type by mistake, and what an attacker would try first.
  const characters = fc.constantFrom(...ALPHABET, '_', '-', ' ', '\n', '\0', 'é', '٣', '\ud800');

  test('with any one character changed', () => {
    fc.assert(
      fc.property(minted, fc.nat(), characters, ({ token }, position, character) => {
        const at = position % token.length;
        fc.pre(token[at] !== character);
        expect(mint.identify(token.slice(0, at) + character + token.slice(at + 1))).toBeUndefined();
      }),
      { numRuns: 1_000 },
    );
  });

  test('at every position of one token, with every other character of the alphabet', () => {
    const token = mint.mint({ prefix: 'ck', environment: 'live', id: ID });
    for (let at = 0; at < token.length; at++) {
      for (const character of `${ALPHABET}_`) {
        if (token[at] === character) continue;
        expect(mint.identify(token.slice(0, at) + character + token.slice(at + 1))).toBeUndefined();
      }
    }
  });

  test('with one character inserted', () => {
    fc.assert(
      fc.property(minted, fc.nat(), characters, ({ token }, position, character) => {
        const at = position % (token.length + 1);
        expect(mint.identify(token.slice(0, at) + character + token.slice(at))).toBeUndefined();
      }),
      { numRuns: 1_000 },
    );
  });

  test('with one character left out', () => {
    fc.assert(
      fc.property(minted, ({ token }) => {
        for (let at = 0; at < token.length; at++) {
          expect(mint.identify(token.slice(0, at) + token.slice(at + 1))).toBeUndefined();
        }
      }),
      { numRuns: 50 },
    );
  });

  test('with two neighbours swapped', () => {
    fc.assert(
      fc.property(minted, ({ token }) => {
        for (let at = 0; at + 1 < token.length; at++) {
          if (token[at] === token[at + 1]) continue;
          const swapped = token.slice(0, at) + token[at + 1] + token[at] + token.slice(at + 2);
          expect(mint.identify(swapped)).toBeUndefined();
        }
      }),
      { numRuns: 50 },
    );
  });

  test('in another case, whole or in one letter', () => {
    fc.assert(
      fc.property(minted, ({ token }) => {
        expect(mint.identify(token.toUpperCase())).toBeUndefined();
        if (token !== token.toLowerCase()) expect(mint.identify(token.toLowerCase())).toBeUndefined();
        for (let at = 0; at < token.length; at++) {
          const letter = token.charAt(at);
          const other = letter === letter.toLowerCase() ? letter.toUpperCase() : letter.toLowerCase();
          if (other === letter) continue;
          expect(mint.identify(token.slice(0, at) + other + token.slice(at + 1))).toBeUndefined();
        }
      }),
      { numRuns: 50 },
    );
  });

  test.each([' ', '\n', '\r\n', '\t', '\u00a0', '\ufeff', '"', "'", '\0'])('with %j around it', (around) => {
    const token = mint.mint({ prefix: 'ck', environment: 'live', id: ID });
    expect(mint.identify(token)).toBe(ID);
    for (const text of [around + token, token + around, around + token + around]) {
      expect(mint.identify(text)).toBeUndefined();
    }
  });

  test('with a right checksum and a wrong tag, and with a right tag and a wrong checksum', () => {
    const untagged = `ck_live_${base62(numberOf(UUID), 22)}${'x'.repeat(27)}`;
    const wrongTag = `${untagged}${'0'.repeat(11)}`;
    expect(mint.identify(wrongTag + checksum(wrongTag))).toBeUndefined();
    expect(mint.identify(`${untagged}${tag(untagged)}000000`)).toBeUndefined();
  });

  test('with a tag of 2^64 more than the right one, which is another spelling of the same 8 bytes', () => {
    const untagged = `ck_live_${base62(numberOf(UUID), 22)}${'x'.repeat(27)}`;
    const value = [...tag(untagged)].reduce(
      (sum, character) => sum * 62n + BigInt(ALPHABET.indexOf(character)),
      0n,
    );
    const other = value + 2n ** 64n;
    expect(other < 62n ** 11n).toBe(true);
    const unchecked = untagged + base62(other, 11);
    expect(mint.identify(unchecked + checksum(unchecked))).toBeUndefined();
  });

  test('with a character beyond Latin-1 that ends in the right byte, though its checksum holds', () => {
    const token = mint.mint({ prefix: 'ck', environment: 'live', id: ID });
    for (let at = 0; at < token.length - 6; at++) {
      const beyond = String.fromCharCode(token.charCodeAt(at) + 0x100);
      const unchecked = token.slice(0, at) + beyond + token.slice(at + 1, -6);
      expect(mint.identify(unchecked + checksum(unchecked))).toBeUndefined();
    }
  });

  test('with a prefix or an environment that is no label, though tag and checksum hold', () => {
    const body = `${base62(numberOf(UUID), 22)}${'x'.repeat(27)}`;
    expect(mint.identify(complete(`a_b_${body}`))).toBe(ID);
    expect(mint.identify(complete(`${'a'.repeat(16)}_${'b'.repeat(16)}_${body}`))).toBe(ID);
    const faulty = ['_b_', 'a__', '1a_b_', 'a_1b_', 'A_b_', 'a_B_', 'a-b_c_', 'a_b_c_', 'ab_', ''];
    for (const start of [...faulty, `${'a'.repeat(17)}_b_`, `a_${'b'.repeat(17)}_`]) {
      expect(mint.identify(complete(start + body))).toBeUndefined();
    }
  });

  test('whatever it is', () => {
    fc.assert(fc.property(fc.string(), (text) => mint.identify(text) === undefined));
    expect(mint.identify('')).toBeUndefined();
    expect(mint.identify('x'.repeat(MAX_TOKEN_LENGTH + 1))).toBeUndefined();
    expect(mint.identify(`ck_live_${'0'.repeat(66)}`)).toBeUndefined();
  });
});

describe('KEY_SECRET', () => {
  const key: { prefix: string; environment: string; id: KeyId } = {
    prefix: 'ck',
    environment: 'live',
    id: ID,
  };

  test('refuses tokens that were minted under another one', () => {
    const token = mintOf(OLDER_SECRET).mint(key);
    expect(mintOf(OLDER_SECRET).identify(token)).toBe(ID);
    expect(mint.identify(token)).toBeUndefined();
    expect(
      mint.identify(complete(`ck_live_${base62(numberOf(UUID), 22)}${'x'.repeat(27)}`, OLDER_SECRET)),
    ).toBe(undefined);
  });

  test('accepts tokens of every secret that it lists, and mints with the first', () => {
    const both = mintOf(SECRET, OLDER_SECRET);
    expect(both.identify(mintOf(OLDER_SECRET).mint(key))).toBe(ID);
    expect(both.identify(mint.mint(key))).toBe(ID);
    expect(mint.identify(both.mint(key))).toBe(ID);
    expect(mintOf(OLDER_SECRET).identify(both.mint(key))).toBeUndefined();
  });

  test('gives each purpose a key of its own', () => {
    const purposes = (['mint', 'cursor', 'memo'] as const).map((purpose) =>
      keySecret(SECRET).derive(purpose).toString('hex'),
    );
    expect(new Set([...purposes, keySecret(SECRET).fingerprint.toString('hex')]).size).toBe(4);
  });
});

describe('a text that holds a token', () => {
  const token = mint.mint({ prefix: 'ck', environment: 'live', id: ID });

  test.each([token, `key: ${token}`, `{"Authorization":"Bearer ${token}"}`, `${token}, ${token}`])(
    'is found: %#',
    (text) => {
      expect(holdsToken(text)).toBe(true);
    },
  );

  test.each([
    '',
    'ck_live_',
    token.slice(0, -1),
    `${token.slice(0, -1)}!`,
    hintOf('ck_live_', token.slice(-4)),
  ])('is not seen in what is none: %#', (text) => {
    expect(holdsToken(text)).toBe(false);
  });

  test('is told from a text of the same form by its checksum', () => {
    const last = token.endsWith('0') ? '1' : '0';
    expect(holdsToken(token.slice(0, -1) + last)).toBe(false);
  });
});
