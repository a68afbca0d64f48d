import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import * as schemas from './schemas.ts';

export interface MetricsSource {
  render(): Promise<{ readonly text: string; readonly contentType: string }>;
}

/** `GET /metrics` for Prometheus, without authentication (contract §8): nothing in it names a key or a caller. */
export function registerMetricsRoute(app: FastifyInstance, metrics: MetricsSource): void {
  app.get(
    '/metrics',
    {
      schema: {
        tags: ['Operations'],
        operationId: 'metrics',
        summary: 'Metrics for Prometheus',
        description: 'Their names begin with `claviger_`.',
        security: [],
        response: {
          200: {
            description: "Prometheus' text format.",
            content: { 'text/plain': { schema: z.string() } },
          },
          ...schemas.problems({ ...schemas.BARE_PROBLEMS, 404: 'Metrics are switched off (`not_found`).' }),
        },
      },
    },
    async (_request, reply) => {
      const { text, contentType } = await metrics.render();
      return reply.type(contentType).send(text);
    },
  );
}
