import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  KEY_ID_PATTERN,
  keyIdFromBytes,
  keyIdFromUuid,
  keyIdToBytes,
  keyIdToUuid,
  newKeyId,
  uuidFloor,
} from '../../src/domain/key-id.ts';

const CROCKFORD = '0123456789abcdefghjkmnpqrstvwxyz';

/** TypeID 0.3 by BigInt: 128 bits as 26 characters of lower-case Crockford base32, the first of 3 bits. */
function typeId(uuid: string): string {
  let value = BigInt(`0x${uuid.replaceAll('-', '')}`);
  let text = '';
  for (let position = 0; position < 26; position++) {
    text = (CROCKFORD[Number(value % 32n)] ?? '') + text;
    value /= 32n;
  }
  return `key_${text}`;
}

const uuids = fc.uuid({ version: 7 });

describe('a key id', () => {
  test.each([
    // The vectors of the TypeID specification (valid.json), with the type `key`.
    ['00000000-0000-0000-0000-000000000000', 'key_00000000000000000000000000'],
    ['00000000-0000-0000-0000-000000000001', 'key_00000000000000000000000001'],
    ['00000000-0000-0000-0000-00000000000a', 'key_0000000000000000000000000a'],
    ['00000000-0000-0000-0000-000000000010', 'key_0000000000000000000000000g'],
    ['00000000-0000-0000-0000-000000000020', 'key_00000000000000000000000010'],
    ['ffffffff-ffff-ffff-ffff-ffffffffffff', 'key_7zzzzzzzzzzzzzzzzzzzzzzzzz'],
    ['0110c853-1d09-52d8-d73e-1194e95b5f19', 'key_0123456789abcdefghjkmnpqrs'],
    ['01890a5d-ac96-774b-bcce-b302099a8057', 'key_01h455vb4pex5vsknk084sn02q'],
  ])('of the UUID %s is %s', (uuid, id) => {
    expect(keyIdFromUuid(uuid)).toBe(id);
    expect(keyIdToUuid(id)).toBe(uuid);
  });

  test('and its UUID and its bytes are three spellings of one number', () => {
    fc.assert(
      fc.property(uuids, (uuid) => {
        const id = keyIdFromUuid(uuid);
        expect(id).toBe(typeId(uuid));
        expect(id).toMatch(KEY_ID_PATTERN);
        expect(keyIdToUuid(id)).toBe(uuid);
        expect(Buffer.from(keyIdToBytes(id)).toString('hex')).toBe(uuid.replaceAll('-', ''));
        expect(keyIdFromBytes(keyIdToBytes(id))).toBe(id);
      }),
    );
  });

  test.each([
    ['another type', 'ky_01h455vb4pex5vsknk084sn02q'],
    ['capitals', 'key_01H455VB4PEX5VSKNK084SN02Q'],
    ['a letter that Crockford leaves out', 'key_01h455vb4pex5vsknk084sn02i'],
    ['25 characters', 'key_01h455vb4pex5vsknk084sn02'],
    ['27 characters', 'key_01h455vb4pex5vsknk084sn02qq'],
    ['2^128', 'key_80000000000000000000000000'],
    ['a trailing newline', 'key_01h455vb4pex5vsknk084sn02q\n'],
    ['a leading space', ' key_01h455vb4pex5vsknk084sn02q'],
  ])('is not spelled with %s', (_, text) => {
    expect(KEY_ID_PATTERN.test(text)).toBe(false);
    expect(() => keyIdToUuid(text)).toThrow(TypeError);
  });

  test('that is new is a UUIDv7 of the given millisecond', () => {
    const now = Date.UTC(2026, 0, 2, 3, 4, 5, 678);
    const uuid = keyIdToUuid(newKeyId(now + 0.9));
    expect(Number.parseInt(uuid.replaceAll('-', '').slice(0, 12), 16)).toBe(now);
    expect(uuid[14]).toBe('7');
    expect('89ab').toContain(uuid[19]);
    expect(newKeyId(now)).not.toBe(newKeyId(now));
  });

  test('sorts after the ids of all milliseconds before', () => {
    const times = fc.integer({ min: 0, max: 2 ** 48 - 2 });
    fc.assert(fc.property(times, (time) => newKeyId(time) < newKeyId(time + 1)));
  });
});

describe('the floor of a millisecond', () => {
  test('lies above every id made before it and not above any made in it', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 2 ** 48 - 1 }), (time) => {
        expect(keyIdToUuid(newKeyId(time - 1)) < uuidFloor(time)).toBe(true);
        expect(keyIdToUuid(newKeyId(time)) < uuidFloor(time)).toBe(false);
      }),
    );
  });

  test('is a UUID for times that no UUIDv7 can hold, too', () => {
    expect(uuidFloor(-1)).toBe('00000000-0000-7000-8000-000000000000');
    expect(uuidFloor(2 ** 60)).toBe('ffffffff-ffff-7000-8000-000000000000');
  });
});
