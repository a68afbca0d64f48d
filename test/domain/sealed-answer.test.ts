import { createDecipheriv, createHmac, hkdfSync, randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type KeyId, newKeyId } from '../../src/domain/key-id.ts';
import { keySecret } from '../../src/domain/key-secret.ts';
import { lookupMac, openAnswer, type Seal, sealAnswer } from '../../src/domain/sealed-answer.ts';

const SECRET = 'a-secret-of-more-than-32-characters-alone';
const SEAL: Seal = {
  secret: keySecret(SECRET).derive('answer'),
  callerToken: 'ck_svc_0352QcallerTokenOfATest',
  idempotencyKey: 'order-1',
  rowId: '5b0f1d1e-8a6b-4a7e-9b3c-000000000001',
};
const ANSWER = '{"key":"ck_live_secret"}';

describe('a sealed answer', () => {
  test('opens with what it was sealed with, whatever its text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 500 }), (answer) => {
        const text = answer.toWellFormed();
        expect(openAnswer(sealAnswer(text, SEAL, randomBytes), SEAL)).toBe(text);
      }),
    );
  });

  test.each<[string, Partial<Seal>]>([
    ['another secret', { secret: keySecret(`${SECRET}x`).derive('answer') }],
    ['no secret', { secret: new Uint8Array() }],
    ['the key of another purpose', { secret: keySecret(SECRET).derive('idempotency') }],
    ['another token', { callerToken: `${SEAL.callerToken}x` }],
    ['no token', { callerToken: '' }],
    ['another Idempotency-Key', { idempotencyKey: 'order-2' }],
    ['no Idempotency-Key', { idempotencyKey: '' }],
    ['the id of another row', { rowId: '5b0f1d1e-8a6b-4a7e-9b3c-000000000002' }],
    // What stands between token and key stands in neither of them.
    [
      'a character moved from the key to the token',
      { callerToken: `${SEAL.callerToken}o`, idempotencyKey: 'rder-1' },
    ],
  ])('does not open with %s', (_what, other) => {
    const sealed = sealAnswer(ANSWER, SEAL, randomBytes);
    expect(() => openAnswer(sealed, { ...SEAL, ...other })).toThrow();
    expect(openAnswer(sealed, SEAL)).toBe(ANSWER);
  });

  test('does not open when any one bit of it is another, nor when it is cut short', () => {
    const sealed = sealAnswer(ANSWER, SEAL, randomBytes);
    for (let bit = 0; bit < sealed.length * 8; bit++) {
      const changed = Buffer.from(sealed);
      changed.writeUInt8(changed.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
      expect(() => openAnswer(changed, SEAL), `bit ${bit}`).toThrow();
    }
    for (let length = 0; length < sealed.length; length++) {
      expect(() => openAnswer(sealed.subarray(0, length), SEAL), `${length} bytes`).toThrow();
    }
  });

  test('is never the same twice, and tells no more than its length', () => {
    const one = sealAnswer(ANSWER, SEAL, randomBytes);
    const other = sealAnswer(ANSWER, SEAL, randomBytes);
    expect(one.length).toBe(other.length);
    // Salt, nonce, text, tag: each is another.
    for (const [from, to] of [
      [0, 32],
      [32, 44],
      [44, -16],
      [-16, undefined],
    ] as const) {
      expect(one.subarray(from, to).equals(other.subarray(from, to))).toBe(false);
    }
  });

  test('is AES-256-GCM under HKDF-SHA-256, with the id of its row authenticated', () => {
    const sealed = sealAnswer(ANSWER, SEAL, randomBytes);
    const answerKey = Buffer.from(hkdfSync('sha256', SECRET, '', 'claviger/answer', 32));
    const key = hkdfSync(
      'sha256',
      Buffer.concat([answerKey, Buffer.from(`${SEAL.callerToken} ${SEAL.idempotencyKey}`)]),
      sealed.subarray(0, 32),
      'claviger/answer/aes-256-gcm',
      32,
    );
    const decipher = createDecipheriv('aes-256-gcm', Buffer.from(key), sealed.subarray(32, 44), {
      authTagLength: 16,
    });
    decipher.setAAD(Buffer.from(SEAL.rowId)).setAuthTag(sealed.subarray(-16));
    expect(decipher.update(sealed.subarray(44, -16), undefined, 'utf8') + decipher.final('utf8')).toBe(
      ANSWER,
    );
  });
});

test('an answer is found by an HMAC of the caller and the Idempotency-Key', () => {
  const lookup = keySecret(SECRET).derive('idempotency');
  const callerId: KeyId = newKeyId(Date.UTC(2026, 0, 2));
  const mac = lookupMac(lookup, { callerId, idempotencyKey: 'order-1' });
  expect(mac.toString('hex')).toBe(createHmac('sha256', lookup).update(`${callerId}order-1`).digest('hex'));
  expect(mac.equals(lookupMac(lookup, { callerId, idempotencyKey: 'order-2' }))).toBe(false);
  expect(mac.equals(lookupMac(lookup, { callerId: newKeyId(0), idempotencyKey: 'order-1' }))).toBe(false);
  expect(mac.equals(lookupMac(SEAL.secret, { callerId, idempotencyKey: 'order-1' }))).toBe(false);
});
