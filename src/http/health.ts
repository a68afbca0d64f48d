import type { FastifyInstance } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { Failure } from '../domain/errors.ts';
import * as schemas from './schemas.ts';

export interface Readiness {
  /** The age of the lease in milliseconds (`null`: none) when this instance can serve; throws a Failure that says why not. */
  check(): Promise<{ readonly leaseAgeMs: number | null }>;
}

const TAGS = ['Operations'];

/** `/healthz`: the process answers. `/readyz`: send it requests (contract §8). */
export function registerHealthRoutes(plain: FastifyInstance, { readiness }: { readiness: Readiness }): void {
  const app = plain.withTypeProvider<ZodTypeProvider>();
  const status = <Status extends string>(value: Status) =>
    z.object({ status: z.literal(value).describe('The word to look for.') });

  app.get(
    '/healthz',
    {
      schema: {
        tags: TAGS,
        operationId: 'healthz',
        summary: 'The process is alive',
        description: 'For liveness probes: asks nothing of the database.',
        security: [],
        response: { 200: status('ok').describe('It is.'), ...schemas.problems(schemas.BARE_PROBLEMS) },
      },
    },
    async () => ({ status: 'ok' as const }),
  );

  app.get(
    '/readyz',
    {
      schema: {
        tags: TAGS,
        operationId: 'readyz',
        summary: 'The instance can serve',
        description: 'For readiness probes and load balancers.',
        security: [],
        response: {
          200: status('ready')
            .extend({
              lease_age_ms: z
                .number()
                .nullable()
                .describe(
                  'Since the lease was renewed; `null`: without one, every request reads the database.',
                ),
            })
            .describe('It can.'),
          ...schemas.problems({
            ...schemas.BARE_PROBLEMS,
            503: 'Not now (`unavailable`); `detail` says why.',
          }),
        },
      },
    },
    async () => {
      try {
        const { leaseAgeMs } = await readiness.check();
        return { status: 'ready' as const, lease_age_ms: leaseAgeMs };
      } catch (error) {
        // Expected while the database is away, and asked for every few seconds: no line in the log for each.
        throw error instanceof Failure ? new Failure(error.code, error.message) : error;
      }
    },
  );
}
