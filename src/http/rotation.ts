import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { DEFAULT_GRACE_SECONDS, MAX_GRACE_SECONDS } from '../domain/rotation.ts';
import type { Idempotency } from '../lifecycle/idempotency.ts';
import type { KeyLifecycle } from '../lifecycle/keys.ts';
import { type Callers, callerOf } from './callers.ts';
import { IDEMPOTENCY_PROBLEMS, makeKeyOnce } from './idempotency.ts';
import { viewOf } from './key-view.ts';
import { idParams, keyIdOf, originOf } from './keys.ts';
import * as schemas from './schemas.ts';

const GRACE = `must be a whole number from 0 to ${MAX_GRACE_SECONDS}`;

const rotateBody = z
  .strictObject({
    grace_period_seconds: z
      .int(GRACE)
      .min(0, GRACE)
      .max(MAX_GRACE_SECONDS, GRACE)
      .optional()
      .describe(
        `How long the key itself lives on, in seconds: ${DEFAULT_GRACE_SECONDS}, a day, unless it is said. 0 revokes it at once.`,
      ),
  })
  .meta({ id: 'NewRotation', description: 'How a key is rotated.' })
  .nullish();

/** `POST /v1/api-keys/{id}/rotate` (contract §4). */
export function registerRotationRoute({
  callers,
  lifecycle,
  idempotency,
  rotationDueDays,
}: {
  callers: Callers;
  lifecycle: KeyLifecycle;
  idempotency: Idempotency;
  rotationDueDays: number;
}): void {
  callers.scope('keys:write', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().post(
      '/v1/api-keys/:id/rotate',
      {
        schema: {
          tags: ['Keys'],
          operationId: 'rotateKey',
          summary: 'Rotate a key',
          description:
            'Makes a successor with the same settings, and answers with it and its token, which is shown this once. The key itself lives on for the grace period, and never longer than it would have; with 0 it is revoked, for the reason `rotated`. A key has one successor: rotate that one next. Send an `Idempotency-Key` to be given the same answer again should it get lost.',
          security: schemas.callerWith('keys:write'),
          idempotent: true,
          params: idParams,
          body: rotateBody,
          response: {
            201: schemas
              .changed(schemas.keyWithTokenOutput)
              .describe('The successor and its token. The end of the old key holds on every instance.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              ...schemas.PLAN_PROBLEMS,
              ...IDEMPOTENCY_PROBLEMS,
              404: 'There is no such key that this caller may see (`not_found`).',
              409: 'The key is not active, or was rotated already (`key_not_active`); or the same is being worked on (`idempotency_in_flight`).',
              ...schemas.BODY_PROBLEMS,
            }),
          },
        },
      },
      async (request, reply) => {
        const caller = callerOf(request);
        const id = keyIdOf(request.params.id);
        const graceSeconds = request.body?.grace_period_seconds ?? DEFAULT_GRACE_SECONDS;
        const { data, rest } = await makeKeyOnce(
          idempotency,
          { request, reply },
          {
            first: (around) => lifecycle.rotate(caller, originOf(request), id, graceSeconds, around),
            again: () => lifecycle.confirmRotation(caller, originOf(request), id),
            view: ({ key, token }) => ({
              ...viewOf(key, { nowMs: caller.now, rotationDueDays }),
              key: token,
            }),
          },
        );
        reply.code(201);
        return { success: true as const, data, propagation: schemas.propagationView(rest.propagation) };
      },
    );
  });
}
