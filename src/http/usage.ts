import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { reaches } from '../domain/caller.ts';
import { OUTCOMES, type Outcome } from '../domain/decision.ts';
import { MAX_DURATION_MS, RELATIVE_ERROR } from '../domain/duration-histogram.ts';
import { invalidInput } from '../domain/errors.ts';
import {
  GRANULARITIES,
  MAX_DAYS,
  spanOf,
  summariseUsage,
  type UsageFigures,
  type UsageSummary,
} from '../domain/usage.ts';
import { noSuchKey } from '../lifecycle/key-rules.ts';
import { noSuchWorkspace } from '../lifecycle/workspaces.ts';
import type { Recorder } from '../recording/recorder.ts';
import { acceptReports } from '../recording/reports.ts';
import type { Database } from '../storage/database.ts';
import { findKey } from '../storage/keys.ts';
import { readDurations, readUsage, type UsageSpan } from '../storage/usage.ts';
import { type Callers, callerOf } from './callers.ts';
import { keyIdOf } from './keys.ts';
import * as schemas from './schemas.ts';
import { fromTime, toTime } from './schemas.ts';

const TAGS = ['Watching'];
const MAX_REPORTS = 1_000;
/** Room for so many reports with long paths. */
const MAX_REPORTS_BYTES = 1024 * 1024;
const MAX_PATH_LENGTH = 1_024;

const usageQuery = z.strictObject({
  from: schemas.timeInput
    .optional()
    .describe('From the hour that this lies in. Absent: 24 hours before the end.'),
  to: schemas.timeInput
    .optional()
    .describe('To the end of the hour that this lies in; a full hour is not counted any more. Absent: now.'),
  granularity: z
    .enum(GRANULARITIES, `must be one of: ${GRANULARITIES.join(', ')}`)
    .default('hour')
    .describe(
      `A bucket for each hour, over ${MAX_DAYS.hour} days at most, or for each UTC day, over ${MAX_DAYS.day}.`,
    ),
});

const outcomeCounts = Object.fromEntries(
  OUTCOMES.map((outcome) => [outcome, z.int().optional().describe(`Came to \`${outcome}\`.`)]),
) as Record<Outcome, z.ZodOptional<z.ZodInt>>;

const figures = {
  totals: z.object(outcomeCounts).meta({
    id: 'Outcomes',
    description: 'Introspections by outcome. Outcomes that did not occur are absent.',
  }),
  success_rate: z
    .number()
    .nullable()
    .describe('The share of introspections that was `active`; `null`: there was none.'),
  response_times: z
    .object({
      count: z.int().describe('How many requests were reported.'),
      mean_ms: z.number().describe('Exact.'),
      p50_ms: z.number().describe('Half of them took no longer.'),
      p95_ms: z.number().describe('95 of 100 took no longer.'),
      p99_ms: z.number().describe('99 of 100 took no longer.'),
    })
    .meta({
      id: 'ResponseTimes',
      description: `Of the requests that were reported (\`POST /v1/usage-reports\`). Percentiles by the nearest rank, to within ${RELATIVE_ERROR * 100} %.`,
    })
    .nullable()
    .describe('`null`: nothing was reported.'),
};

const usageOutput = z
  .object({
    ...figures,
    buckets: z
      .array(
        z
          .object({
            start: schemas.timeOutput.describe('The beginning of the hour, or of the UTC day.'),
            ...figures,
          })
          .meta({ id: 'UsageBucket', description: 'One hour, or the part of a UTC day that was asked for.' }),
      )
      .describe('In the order of time, without gaps.'),
  })
  .meta({
    id: 'Usage',
    description: 'What introspections came to, and how long the requests behind them took.',
  });

const report = z
  .strictObject({
    key_id: z
      .string()
      .max(64, 'must be the id of a key')
      .describe('The id of the key that the request came with.'),
    at: schemas.timeInput.describe('When the request came: within the last week, and not in the future.'),
    status: z
      .int('must be an HTTP status')
      .min(100, 'must be an HTTP status')
      .max(599, 'must be an HTTP status')
      .describe('The status of the response.'),
    duration_ms: z
      .number()
      .min(0, `must be from 0 to ${MAX_DURATION_MS}`)
      .max(MAX_DURATION_MS, `must be from 0 to ${MAX_DURATION_MS}`)
      .describe('How long the response took, in milliseconds; fractions count.'),
    method: z
      .string()
      .regex(/^[A-Z][A-Z-]{0,31}$/, 'must be a method in upper case, such as GET')
      .nullable()
      .optional()
      .describe('The method of the request.'),
    path: schemas
      .text(MAX_PATH_LENGTH)
      .nullable()
      .optional()
      .describe('The path of the request. A query is cut off.'),
  })
  .meta({ id: 'UsageReport', description: "One of an API's own requests and responses." });

const reports = z.array(report).max(MAX_REPORTS, `must be at most ${MAX_REPORTS} reports`);

const reportsBody = z
  .strictObject({ reports: reports.describe('All of them are taken, or none.') })
  .meta({ id: 'UsageReports', description: 'What an API did for its own clients.' });

const idOfKey = z.object({ id: z.string().describe('The id of the key: `key_…`.') });
const idOfWorkspace = z.object({ id: schemas.workspaceId });

/** `/v1/api-keys/{id}/usage`, `/v1/workspaces/{id}/usage`, `/v1/usage-reports` (contract §8). */
export function registerUsageRoutes({
  callers,
  database,
  recorder,
}: {
  callers: Callers;
  database: Database;
  recorder: Recorder;
}): void {
  async function usageOf(
    subject: Pick<UsageSpan, 'workspaceId' | 'keyId'>,
    { from, to, granularity }: z.output<typeof usageQuery>,
    nowMs: number,
  ): Promise<z.input<typeof usageOutput>> {
    const asked = {
      fromMs: from === undefined ? undefined : toTime(from),
      toMs: to === undefined ? undefined : toTime(to),
    };
    const span = spanOf(asked, { granularity, nowMs });
    if ('path' in span) throw invalidInput(span);
    const read = { ...subject, ...span, granularity };
    const [counts, durations] = await Promise.all([
      database.read((executor) => readUsage(executor, read)),
      database.read((executor) => readDurations(executor, read)),
    ]);
    return usageView(summariseUsage(span, granularity, { counts, durations }));
  }

  callers.scope('keys:read', 'management', (plain) => {
    const app = plain.withTypeProvider<ZodTypeProvider>();
    const usageOfSubject = {
      tags: TAGS,
      security: schemas.callerWith('keys:read'),
      querystring: usageQuery,
    };

    app.get(
      '/v1/api-keys/:id/usage',
      {
        schema: {
          ...usageOfSubject,
          operationId: 'getKeyUsage',
          summary: 'Get the usage of a key',
          description: 'Up to two seconds late. By default the last 24 hours, the present one among them.',
          params: idOfKey,
          response: {
            200: schemas.success(usageOutput).describe('The usage of the key.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              404: 'There is no such key that this caller may see (`not_found`).',
            }),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const id = keyIdOf(request.params.id);
        const key = await database.read((executor) => findKey(executor, id));
        if (key === undefined || !reaches(caller, key.workspaceId)) throw noSuchKey();
        const subject = { workspaceId: key.workspaceId, keyId: id };
        return { success: true as const, data: await usageOf(subject, request.query, caller.now) };
      },
    );

    app.get(
      '/v1/workspaces/:id/usage',
      {
        schema: {
          ...usageOfSubject,
          operationId: 'getWorkspaceUsage',
          summary: 'Get the usage of a workspace',
          description:
            'All its keys together. Otherwise as for one key. A workspace without keys has no usage.',
          params: idOfWorkspace,
          response: {
            200: schemas.success(usageOutput).describe('The usage of the workspace.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              404: 'There is no such workspace that this caller may see (`not_found`).',
            }),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const { id } = request.params;
        if (!reaches(caller, id)) throw noSuchWorkspace();
        const subject = { workspaceId: id, keyId: undefined };
        return { success: true as const, data: await usageOf(subject, request.query, caller.now) };
      },
    );
  });

  callers.scope('introspect', 'management', (plain) => {
    plain.withTypeProvider<ZodTypeProvider>().post(
      '/v1/usage-reports',
      {
        bodyLimit: MAX_REPORTS_BYTES,
        schema: {
          tags: TAGS,
          operationId: 'reportUsage',
          summary: 'Report requests and responses',
          description: `What an API did for its own clients, up to ${MAX_REPORTS} at once: it appears in usage, as response times, and in request logs. Answered when all of them are written. A fault of one names it, and none is taken. A call that is repeated counts twice.`,
          security: schemas.callerWith('introspect'),
          body: reportsBody,
          response: {
            200: schemas
              .success(
                z
                  .object({ accepted: z.int().describe('How many reports were written: all.') })
                  .describe('What was done.'),
              )
              .describe('The reports are written.'),
            ...schemas.problems({
              ...schemas.CALLER_PROBLEMS,
              404: 'A key of these, which `errors` names, does not exist or is not for this caller to see (`not_found`).',
              413: 'The body is larger than 1 MiB (`payload_too_large`).',
              415: schemas.BODY_PROBLEMS[415],
            }),
          },
        },
      },
      async (request) => {
        const caller = callerOf(request);
        const told = request.body.reports.map((entry) => ({
          keyId: entry.key_id,
          at: toTime(entry.at),
          status: entry.status,
          durationMs: entry.duration_ms,
          method: entry.method ?? null,
          path: entry.path?.replace(/[?#].*$/s, '') ?? null,
        }));
        await acceptReports({ database, recorder }, told, { id: request.id, caller });
        return { success: true as const, data: { accepted: told.length } };
      },
    );
  });
}

function usageView({ buckets, ...whole }: UsageSummary): z.input<typeof usageOutput> {
  return {
    ...figuresView(whole),
    buckets: buckets.map(({ startMs, ...bucket }) => ({ start: fromTime(startMs), ...figuresView(bucket) })),
  };
}

function figuresView({ totals, successRate, responseTimes }: UsageFigures) {
  return {
    totals: { ...totals },
    success_rate: successRate,
    response_times: responseTimes && {
      count: responseTimes.count,
      mean_ms: responseTimes.meanMs,
      p50_ms: responseTimes.p50Ms,
      p95_ms: responseTimes.p95Ms,
      p99_ms: responseTimes.p99Ms,
    },
  };
}
