import { expect } from 'vitest';
import { ERRORS, type ErrorCode } from '../../src/domain/errors.ts';
import type { Answer } from '../support/client.ts';

const MEMBERS = ['type', 'title', 'status', 'detail', 'instance', 'success', 'code', 'request_id'];

/** Asserts that an answer is a problem of the closed list, exact in every member, and which one it is. */
export function expectProblem(answer: Answer, code?: ErrorCode): void {
  expect(answer.headers['content-type'], answer.text).toMatch(
    /^application\/problem\+json(; charset=utf-8)?$/,
  );
  const found: string = answer.body.code;
  expect(Object.keys(ERRORS)).toContain(found);
  if (code !== undefined) expect(found, answer.text).toBe(code);
  const { status, title } = ERRORS[found as ErrorCode];
  const requestId = answer.headers['x-request-id'];
  expect(requestId).toMatch(/^[A-Za-z0-9._-]{1,128}$/);
  const { errors, ...rest } = answer.body;
  expect(rest).toEqual({
    type: `urn:claviger:error:${found}`,
    title,
    status,
    detail: expect.stringMatching(/./),
    instance: `urn:claviger:request:${requestId}`,
    success: false,
    code: found,
    request_id: requestId,
  });
  expect(Object.keys(rest)).toEqual(MEMBERS);
  expect(answer.status).toBe(status);
  if (errors !== undefined) {
    // Of many objects in one request, those that are not found are named.
    expect(['invalid_request', 'not_found']).toContain(found);
    expect(errors.length).toBeGreaterThan(0);
    for (const fault of errors) {
      expect(fault).toEqual({ path: expect.any(String), message: expect.stringMatching(/./) });
    }
  }
  expect(answer.headers['cache-control']).toBe('no-store');
  if (status === 401) expect(answer.headers['www-authenticate']).toMatch(/^Bearer realm="claviger"/);
  if (status === 429 || status === 503) expect(answer.headers['retry-after']).toMatch(/^[1-9]\d*$/);
}

/** Asserts that an answer blames the caller: a problem with a 4xx status. */
export function expectRefusal(answer: Answer, code?: ErrorCode): void {
  expect(answer.status, answer.text).toBeGreaterThanOrEqual(400);
  expect(answer.status, answer.text).toBeLessThan(500);
  expectProblem(answer, code);
}

/** Asserts that nothing in an answer, headers and body, holds the secret or a piece of it as long as 20 characters. */
export function expectSilentOn(answer: Answer, secret: string): void {
  const all = `${JSON.stringify(answer.headers)}\n${answer.text}`;
  expect(piecesOf(secret).filter((piece) => all.includes(piece))).toEqual([]);
}

/** Every run of 20 characters of a secret. */
export function piecesOf(secret: string): string[] {
  return Array.from({ length: Math.max(1, secret.length - 19) }, (_, index) =>
    secret.slice(index, index + 20),
  );
}
