import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { Failure } from '../domain/errors.ts';
import type { TokenRevocation } from '../lifecycle/token-revocation.ts';
import type { Callers } from './callers.ts';
import { createEvenAnswers } from './even-answers.ts';
import { originOf } from './keys.ts';
import * as schemas from './schemas.ts';

const MAX_STRINGS = 100;
/** Far longer than any token: what was found beside one is no fault. */
const MAX_STRING_LENGTH = 4_096;
/** Each of them waits for a second or so, and holds its body. */
const MOST_AT_ONCE = 500;
export const LEAKED = 'leaked';

const reportBody = z
  .strictObject({
    tokens: z
      .array(z.string().max(MAX_STRING_LENGTH, `must have at most ${MAX_STRING_LENGTH} characters`))
      .min(1, `must be 1 to ${MAX_STRINGS} strings`)
      .max(MAX_STRINGS, `must be 1 to ${MAX_STRINGS} strings`)
      .describe('What was found, each string as it reads, with nothing around it.'),
  })
  .meta({ id: 'LeakReport', description: 'Strings that may be tokens of this deployment.' });

/** `POST /v1/leaks` (contract §7). */
export function registerLeakRoute({
  callers,
  tokenRevocation,
}: {
  callers: Callers;
  tokenRevocation: TokenRevocation;
}): void {
  const answers = createEvenAnswers();
  let underWay = 0;

  callers.strangers((plain) => {
    plain.withTypeProvider<ZodTypeProvider>().post(
      '/v1/leaks',
      {
        schema: {
          tags: ['Leaks'],
          operationId: 'reportLeaks',
          summary: 'Report tokens that leaked',
          description:
            'Whoever holds a token may end its key, and needs nothing else for it. Keys whose tokens are among the strings are revoked with the reason `leaked` when this answers, on every instance; service keys too, and the last admin key. Neither the answer nor its time tells whether a string was genuine: it comes a quarter of a second after the request, and later by 25 ms for each string. No string is kept.',
          security: [],
          body: reportBody,
          response: {
            202: schemas
              .success(
                z
                  .object({ received: z.int().describe('How many strings came, whatever they were.') })
                  .describe('What came.'),
              )
              .describe('The keys of those strings that are tokens are revoked.'),
            ...schemas.problems({
              ...schemas.BARE_PROBLEMS,
              400: schemas.CALLER_PROBLEMS[400],
              429: 'Too many reports from this address (`rate_limited`).',
              503: 'The report was not dealt with to its end, whatever its strings: repeat it (`overloaded`, `unavailable`).',
              ...schemas.BODY_PROBLEMS,
            }),
          },
        },
      },
      async (request, reply) => {
        const { tokens } = request.body;
        if (underWay >= MOST_AT_ONCE) throw new Failure('overloaded', UNFINISHED);
        underWay++;
        try {
          await answers.give(tokens.length, () =>
            tokenRevocation.revokeAlike(tokens, {
              source: 'leak_report',
              reason: LEAKED,
              origin: originOf(request),
            }),
          );
        } catch (error) {
          // Its own words may say how far it came, and so what the strings were.
          throw error instanceof Failure ? new Failure(error.code, UNFINISHED, error.options) : error;
        } finally {
          underWay--;
        }
        reply.code(202);
        return { success: true as const, data: { received: tokens.length } };
      },
    );
  });
}

const UNFINISHED = 'The report was not dealt with to its end; repeat it.';
