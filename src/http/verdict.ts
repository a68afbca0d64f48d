import type { FastifyRequest } from 'fastify';
import type { Decision } from '../domain/decision.ts';
import type { RequestFacts } from '../domain/restriction.ts';
import type { Recorder } from '../recording/recorder.ts';
import type { Soon } from '../verification/verifier.ts';

/** Has a verdict recorded, and answers it: at once where there is nothing to wait for. */
export function conclude<Answer>(
  recorder: Recorder,
  soon: Soon<Decision>,
  answerOf: (decision: Decision) => Answer,
  request: FastifyRequest,
  facts: RequestFacts | undefined,
): Soon<Answer> {
  if (soon instanceof Promise) {
    return soon.then((decision) => conclude(recorder, decision, answerOf, request, facts));
  }
  recorder.introspected(soon, facts, request);
  return answerOf(soon);
}
