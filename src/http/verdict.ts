import type { Decision } from '../domain/decision.ts';
import type { RequestFacts } from '../domain/restriction.ts';
import type { Asking, Recorder } from '../recording/recorder.ts';
import type { Soon } from '../verification/verifier.ts';

/** Has a verdict recorded, and answers it: at once where there is nothing to wait for. */
export function conclude<Answer>(
  recorder: Recorder,
  soon: Soon<Decision>,
  answerOf: (decision: Decision) => Answer,
  asking: Asking,
  facts: RequestFacts | undefined,
): Soon<Answer> {
  if (soon instanceof Promise) {
    return soon.then((decision) => conclude(recorder, decision, answerOf, asking, facts));
  }
  recorder.introspected(soon, facts, asking);
  return answerOf(soon);
}
