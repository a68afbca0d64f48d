import type { core, z } from 'zod';
import { Failure, type InputFault } from '../domain/errors.ts';

/** Member names longer than this or of other characters are not repeated: a token sent as a name would be. */
const SPEAKABLE_NAME = /^[A-Za-z0-9_.-]{1,40}$/;

/** Checks a part of a request for Fastify; what is wrong with it becomes a `Failure` that names each fault. */
export function validatorCompiler({ schema }: { schema: z.ZodType }) {
  return (data: unknown) => {
    const result = schema.safeParse(data);
    return result.success ? { value: result.data } : { error: inputFailure(result.error) };
  };
}

/** @throws Failure `invalid_request` naming each fault. */
export function parseInput<T>(schema: z.ZodType<T>, data: unknown): T {
  const result = schema.safeParse(data);
  if (result.success) return result.data;
  throw inputFailure(result.error);
}

function inputFailure({ issues }: z.ZodError): Failure {
  return new Failure('invalid_request', 'The request breaks a rule of this endpoint; see `errors`.', {
    errors: issues.flatMap(faultsOf),
  });
}

function faultsOf(issue: core.$ZodIssue): InputFault[] {
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((name) => ({
      path: pathOf([...issue.path, name]),
      message: 'is not a member of this request',
    }));
  }
  const isMissing = issue.code === 'invalid_type' && issue.message.endsWith('received undefined');
  return [{ path: pathOf(issue.path), message: isMissing ? 'is required' : issue.message }];
}

function pathOf(names: readonly PropertyKey[]): string {
  return names.map((name) => (SPEAKABLE_NAME.test(String(name)) ? String(name) : '(unnamed)')).join('.');
}
